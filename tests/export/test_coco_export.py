"""COCO files: what is written is read back bit by bit, and what others write is understood."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from jaxcell.export.coco import coco_writer, decode_rle, encode_rle, read_coco
from jaxcell.types import Instances


def random_cells(shape=(60, 80), count=30, seed=0) -> Instances:
    """Overlapping cells of any shape, in several pieces, with tight boxes; some touch the edges, one is the whole image."""
    rng = np.random.default_rng(seed)
    boxes, masks = [], []
    for _ in range(count):
        height, width = rng.integers(1, 20, 2)
        y0, x0 = rng.integers(0, shape[0] - height + 1), rng.integers(0, shape[1] - width + 1)
        mask = rng.random((height, width)) < 0.6
        mask[[0, -1], :] |= width == 1
        mask[0, 0] = mask[-1, -1] = True
        boxes.append((y0, x0, y0 + height, x0 + width))
        masks.append(mask)
    boxes += [(0, 0, *shape), (0, 3, shape[0], 6)]
    masks += [np.ones(shape, bool), np.ones((shape[0], 3), bool)]
    scores = rng.random(len(boxes)).astype(np.float32)
    return Instances(shape, np.asarray(boxes, np.int32), masks, scores,
                     {"uncertainties": rng.random((len(boxes), 4)).astype(np.float32), "rank": np.arange(len(boxes)),
                      "nms_weights": scores,
                      "contours": np.zeros((len(boxes), 5, 2)), "locations": np.zeros((len(boxes), 2))})


def assert_equal(a: Instances, b: Instances) -> None:
    assert a.shape == b.shape and np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores)
    assert all(np.array_equal(m, n) and n.dtype == bool for m, n in zip(a.masks, b.masks, strict=True))


def write_coco(path, predictions) -> None:
    with coco_writer(path) as add:
        for name, cells in predictions.items():
            add(name, cells)


def full(box, mask, shape) -> np.ndarray:
    plane = np.zeros(shape, np.uint8, order="F")
    plane[box[0]:box[2], box[1]:box[3]] = mask
    return plane


def test_run_lengths_are_those_of_pycocotools():
    cells = random_cells()
    for box, mask in zip(cells.boxes.tolist(), cells.masks, strict=True):
        expected = coco_mask.encode(full(box, mask, cells.shape))
        rle = encode_rle(mask, box, cells.shape)
        assert rle["counts"].encode() == expected["counts"] and rle["size"] == expected["size"]
        back, crop = decode_rle(rle)
        assert back == tuple(box) and np.array_equal(crop, mask)


def test_run_lengths_of_an_empty_mask_and_of_long_runs():
    assert decode_rle({"size": [3, 4], "counts": [12]})[1].size == 0
    assert decode_rle({"size": [3, 4], "counts": [3, 2, 0, 1, 6]})[0] == (0, 1, 3, 2)      # an empty run between two
    mask = np.ones((3000, 2), bool)
    box, crop = decode_rle(encode_rle(mask, (100, 5000, 3100, 5002), (4000, 9000)))
    assert box == (100, 5000, 3100, 5002) and crop.all()
    with pytest.raises(ValueError, match="add up to 11 pixels for an image of 3 x 4"):
        decode_rle({"size": [3, 4], "counts": [11]})


def test_cells_survive_a_round_trip(tmp_path):
    predictions = {"a.png": random_cells(), "empty.tif": Instances.empty((7, 9)), "sub/b.png": random_cells((100, 90), seed=1)}
    write_coco(tmp_path / "p.json", predictions)
    back = read_coco(tmp_path / "p.json")
    assert list(back) == list(predictions)
    for name, cells in predictions.items():
        assert_equal(back[name], cells)
    assert np.array_equal(back["a.png"].extras["uncertainties"], predictions["a.png"].extras["uncertainties"])
    assert back["a.png"].extras["rank"].dtype == np.int64 and set(back["a.png"].extras) == {"uncertainties", "rank"}
    assert not list(tmp_path.glob("*.part"))


def test_pycocotools_reads_the_file(tmp_path):
    cells = random_cells()
    write_coco(tmp_path / "p.json", {"a.png": cells, "b.png": cells})
    coco = COCO(str(tmp_path / "p.json"))
    entries = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert [e["cell_id"] for e in entries] == list(range(1, len(cells) + 1)) and entries[0]["id"] == len(cells) + 1
    for entry, box, mask in zip(entries, cells.boxes.tolist(), cells.masks, strict=True):
        assert np.array_equal(coco.annToMask(entry), full(box, mask, cells.shape))
        assert entry["area"] == mask.sum() and entry["bbox"] == [box[1], box[0], box[3] - box[1], box[2] - box[0]]


def test_an_interrupted_file_holds_what_was_added(tmp_path):
    with pytest.raises(KeyboardInterrupt), coco_writer(tmp_path / "p.json") as add:
        add("a.png", random_cells())
        raise KeyboardInterrupt
    assert_equal(read_coco(tmp_path / "p.json")["a.png"], random_cells())


def test_an_image_is_added_wholly_or_not_at_all(tmp_path):
    broken = random_cells()
    broken.scores[5] = np.nan
    with coco_writer(tmp_path / "p.json") as add:
        add("a.png", random_cells())
        with pytest.raises(ValueError):
            add("bad.png", broken)
        add("c.png", random_cells())
    assert list(read_coco(tmp_path / "p.json")) == ["a.png", "c.png"]


def write(tmp_path, data):
    (tmp_path / "x.json").write_text(json.dumps(data))
    return tmp_path / "x.json"


def test_result_lists_and_names(tmp_path):
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    runs = {"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 8]}
    result = [{"image_id": 7, "category_id": 1, "segmentation": runs, "score": 0.5, "note": "text", "logit": 0.25},
              {"image_id": 9, "category_id": 1, "segmentation": runs, "score": 0.25, "logit": [1, 2]}]
    back = read_coco(write(tmp_path, result), names={7: "seven.png"})
    assert list(back) == ["seven.png", "9"] and back["9"].scores[0] == 0.25
    assert back["9"].boxes.tolist() == [[1, 2, 4, 7]] and back["9"].masks[0].all() and back["9"].shape == (6, 8)
    assert set(back["seven.png"].extras) == {"logit"} and back["9"].extras["logit"].tolist() == [[1, 2]]


def described(number, name, height, width):
    return {"id": number, "file_name": name, "height": height, "width": width}


def test_polygons_crowds_and_missing_scores(tmp_path):
    square = {"image_id": 1, "category_id": 3, "segmentation": [[2, 1, 7, 1, 7, 4, 2, 4]], "id": 5}
    data = {"images": [described(1, "a", 6, 8), described(2, "b", 5, 5)],
            "annotations": [square, square | {"iscrowd": 1}]}
    back = read_coco(write(tmp_path, data))
    assert len(back["a"]) == 1 and back["a"].scores.tolist() == [1] and back["a"].boxes.tolist() == [[1, 2, 4, 7]]
    assert len(back["b"]) == 0 and back["b"].shape == (5, 5)


@pytest.mark.parametrize(("data", "message"), [
    ({"shapes": []}, "no COCO file"), ("text", "no COCO file"),
    ([{"image_id": 1, "bbox": [1, 2, 3, 4]}], "without a mask"),
    ([{"image_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]]}], "polygons and no size"),
    ({"images": [], "annotations": [{"image_id": 4}]}, "image 4, which is not in"),
    ({"images": [described(1, "a", 6, 8), described(2, "a", 6, 8)], "annotations": []}, "two images are called 'a'"),
    ({"images": [described(1, "a", 8, 6)], "annotations": [{"image_id": 1, "segmentation": {"size": [6, 8], "counts": [48]}}]},
     r"masks for images of \[\(6, 8\), \(8, 6\)\]"),
    ([{"type": "Feature", "geometry": {}}], "x.json: annotation 1 of the list has 'image_id' None"),
    ([1], "annotation 1 of the list is 1, no object"), ({"images": {}, "annotations": []}, "images must be a list, not dict"),
    ({"images": [described(1, "a", 6, 8), {"id": 2, "file_name": "b"}], "annotations": []}, "x.json: image 2 .* 'height' None"),
    ({"images": [described(1, "a", 6, "8")], "annotations": []}, "image 1 of the list has 'width' '8'; it must be a whole"),
    ({"images": [described(1, None, 6, 8)], "annotations": []}, "image 1 of the list has 'file_name' None"),
    ([{"image_id": 1, "segmentation": {"counts": [48]}}], "image '1' has a mask of size None"),
    ([{"image_id": 1, "segmentation": {"size": [6, 8], "counts": [11]}}], "x.json: image '1': run lengths add up to 11"),
])
def test_files_that_cannot_be_used_say_why(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        read_coco(write(tmp_path, data))


def test_many_cells_of_a_large_image(tmp_path):
    shape, count = (4000, 4000), 3000
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 3960, (count, 2))
    disk = np.hypot(*np.indices((31, 31)) - 15) <= 15.5
    cells = Instances(shape, np.concatenate([corners, corners + 31], axis=1).astype(np.int32), [disk] * count,
                      np.ones(count, np.float32))
    write_coco(tmp_path / "p.json", {"a": cells})
    back = read_coco(tmp_path / "p.json")["a"]
    assert_equal(back, cells)
