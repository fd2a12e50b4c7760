"""COCO files: the pixels of polygons and run lengths against pycocotools, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from jaxcell.data.annotations.runs import counts_of_texts, crop_of_runs, polygon_runs, runs_of_counts
from jaxcell.data.sources.coco import CocoSource

RNG = np.random.default_rng(0)
SHAPE = (6, 8)
SQUARE = [0, 0, 3, 0, 3, 3, 0, 3]


def whole(runs: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The mask [H, W] of a crop."""
    (y0, x0, y1, x1), crop = crop_of_runs(runs, shape[0])
    mask = np.zeros(shape, bool)
    mask[y0:y1, x0:x1] = crop
    return mask


# ---------------------------------------------------------------- pixels
@pytest.mark.parametrize("digits", [0, 1, 2, 15])
def test_polygons_cover_the_pixels_of_pycocotools(digits):
    shape = (61, 83)
    cells = []
    for corners in [3, 4, 5, 9, 30, 200] * 20:
        centre, radius = RNG.uniform(-5, 90, 2), RNG.uniform(1, 40)
        parts = [(centre + RNG.uniform(-radius, radius, (corners, 2))).round(digits) for _ in range(1 + corners % 2)]
        cells.append([part.ravel() for part in parts])      # they cross themselves, each other and the image's border
    for cell, runs in zip(cells, polygon_runs(cells, shape), strict=True):
        reference = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([part.tolist() for part in cell], *shape)))
        np.testing.assert_array_equal(whole(runs, shape), reference.astype(bool))


def test_run_lengths_mean_what_pycocotools_says():
    shape = (23, 31)
    masks = [RNG.random(shape) < density for density in (0, 0.01, 0.3, 0.9, 1) for _ in range(10)]
    masks += [np.pad(np.ones((h, 3), bool), ((y, 23 - y - h), (5, 23))) for y, h in ((0, 23), (0, 4), (19, 4), (7, 1))]
    texts = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for mask in masks]
    counts, lengths = counts_of_texts(texts)
    for mask, one in zip(masks, np.split(counts, np.cumsum(lengths)[:-1]), strict=True):
        np.testing.assert_array_equal(whole(runs_of_counts(one, shape), shape), mask)
        with_nothing = np.insert(one, 1, [0, 0])        # runs of no pixels are allowed
        np.testing.assert_array_equal(whole(runs_of_counts(with_nothing, shape), shape), mask)


def test_large_numbers_of_run_lengths_are_read():
    shape = (40_000, 40_000)
    counts = [12, 1, 39_999, 1, 799_999_000, 5, 70_000, 3]
    counts += [shape[0] * shape[1] - sum(counts)]
    text = coco_mask.frPyObjects({"size": list(shape), "counts": counts}, *shape)["counts"]
    np.testing.assert_array_equal(counts_of_texts([text])[0], counts)


# ---------------------------------------------------------------- files
def coco_file(folder, annotations, *, images=None, **changes):
    """A file with image a.png (id 7) and its annotations, and image b.png without any."""
    (folder / "images").mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros(SHAPE, np.uint8)).save(folder / "images" / name)
    listed = [{"id": 7, "file_name": "a.png", "height": 6, "width": 8}, {"id": "b", "file_name": "b.png"}]
    content = {"images": listed if images is None else images,
               "annotations": [{"id": k, "image_id": 7, "category_id": 1, **a} for k, a in enumerate(annotations)],
               "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "dirt"}, {"id": 3, "name": "cell"}]} | changes
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def opened(folder, annotations, *, images=None, **options):
    return CocoSource(coco_file(folder, annotations, images=images), folder / "images", **options)


def test_polygons_runs_crowds_and_overlaps(tmp_path):
    disc, crowd = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    disc[1:4, 2:5], crowd[4:, :] = 1, 1
    stored = [coco_mask.encode(np.asfortranarray(mask))["counts"].decode() for mask in (disc, crowd)]
    annotations = [
        {"segmentation": [SQUARE]},
        {"segmentation": {"size": [6, 8], "counts": stored[1]}, "iscrowd": 1},
        {"segmentation": {"size": [6, 8], "counts": stored[0]}},
        {"segmentation": {"size": [6, 8], "counts": [28, 2, 4, 2, 12]}, "category_id": 3},     # two columns, the last two rows
        {"segmentation": [[5, 0, 8, 0, 8, 2, 5, 2], [0, 5, 2, 5, 2, 6, 0, 6], [1, 1, 2, 2]], "category_id": 2},
    ]
    source = opened(tmp_path, annotations, categories=["cell"], modality="phase")
    sample = source[0]
    assert (sample.name, sample.modality, sample.group) == ("a.png", "phase", "a.png") and sample.labels.shape == (6, 8, 2)
    cells = [(sample.labels == k).any(axis=2) for k in (1, 2, 3)]
    assert cells[0].sum() == 9 and cells[0][:3, :3].all()
    np.testing.assert_array_equal(cells[1], disc)
    np.testing.assert_array_equal(np.argwhere(cells[2]), [[4, 4], [4, 5], [5, 4], [5, 5]])
    np.testing.assert_array_equal((sample.labels == -1).any(axis=2), (crowd > 0) & ~(sample.labels > 0).any(axis=2))
    everything = opened(tmp_path, annotations)
    assert everything.names == ["a.png", "b.png"] and everything.dropped == 0
    assert (everything[0].labels == 4).sum() == 8 and everything[1].labels.shape == (6, 8, 1) and not everything[1].labels.any()
    assert len(opened(tmp_path, annotations, limit=1)) == 1
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(everything))[0].labels, everything[0].labels)


def test_what_lies_outside_is_cut_off(tmp_path):
    corners = [[-20, -20, 3, -20, 3, 3, -20, 3], [6, 4, 90, 4, 90, 70, 6, 70]]
    labels = opened(tmp_path, [{"segmentation": [polygon]} for polygon in corners])[0].labels[..., 0]
    assert (labels[:3, :3] == 1).all() and (labels[4:, 6:] == 2).all() and np.count_nonzero(labels) == 13


@pytest.mark.parametrize("segmentation", [
    [], [[]], [[1, 1, 2, 2]], [[1, 1, 1, 1, 1, 1]], [[20, 20, 25, 20, 25, 25]], [[-9, -9, -5, -9, -5, -5]],
    [[1.1, 0, 1.2, 0, 1.2, 5, 1.1, 5]], {"size": [6, 8], "counts": [48]},
])
def test_annotations_without_a_pixel_are_refused_or_dropped_and_counted(tmp_path, segmentation):
    annotations = [{"segmentation": [SQUARE]}, {"segmentation": segmentation}, {"segmentation": [[4, 0, 8, 0, 8, 2, 4, 2]]}]
    with pytest.raises(ValueError, match=r"coco\.json: a\.png: annotation 1 leaves no pixel.*\(1 such.*degenerate=\"drop\""):
        opened(tmp_path, annotations)
    source = opened(tmp_path, annotations, degenerate="drop")
    assert source.dropped == 1
    np.testing.assert_array_equal(np.unique(source[0].labels), [0, 1, 2])


@pytest.mark.parametrize("annotation, message", [
    ({"bbox": [0, 0, 2, 2]}, "has no segmentation"), ({"segmentation": None}, "has no segmentation"),
    ({"segmentation": "abc"}, "has no segmentation"), ({"segmentation": SQUARE}, "no flat list"),
    ({"segmentation": [[[0, 0], [3, 0], [3, 3]]]}, "no flat list"), ({"segmentation": [["0", "0", "3", "0"]]}, "no flat list"),
    ({"segmentation": [[0, 0, 3, None, 3, 3]]}, "no flat list"), ({"segmentation": [[0, 0, 3, 0, 3, 10**400]]}, "no flat list"),
    ({"segmentation": [[0, 0, 3, 0, 3, 3, 0]]}, "7 numbers, but every point needs x and y"),
    ({"segmentation": [[0, 0, float("nan"), 0, 3, 3]]}, "no places in an image, such as nan"),
    ({"segmentation": [[0, 0, 3, 0, float("inf"), 3]]}, "no places in an image, such as inf"),
    ({"segmentation": [[0, 0, 3, 0, 3e9, 3]]}, "no places in an image, such as 3000000000"),    # a crash
    ({"segmentation": [[0, 0, 9e5, 9e5] * 9]}, "outline of more than 1048576 pixels"),
    ({"segmentation": {"size": [9, 9], "counts": [81]}}, r"is for \(H, W\) = \(9, 9\), but the image has \(6, 8\)"),
    ({"segmentation": {"size": [8, 6], "counts": [48]}}, r"is for \(H, W\) = \(8, 6\)"),
    ({"segmentation": {"counts": [48]}}, r"is for \(H, W\) = None"),
    ({"segmentation": {"size": [10**9, 10**9], "counts": [10**18]}}, r"is for \(H, W\) = \(1000000000, 1000000000\)"),
    ({"segmentation": {"size": [6, 8]}}, "damaged run lengths"),
    ({"segmentation": {"size": [6, 8], "counts": [47]}}, "must add up to 6 x 8 pixels"),
    ({"segmentation": {"size": [6, 8], "counts": [0, 49]}}, "damaged run lengths"),
    ({"segmentation": {"size": [6, 8], "counts": [50, -2]}}, "damaged run lengths"),
    ({"segmentation": {"size": [6, 8], "counts": [2**62, 2**62, 2**62, 2**62, 48]}}, "damaged"),        # 48 modulo 2**64
    ({"segmentation": {"size": [6, 8], "counts": [2**70]}}, "no list of whole numbers"),
    ({"segmentation": {"size": [6, 8], "counts": [24.0, 24.0]}}, "no list of whole numbers"),
    ({"segmentation": {"size": [6, 8], "counts": {"a": 1}}}, "no list of whole numbers"),
    ({"segmentation": {"size": [6, 8], "counts": ""}}, "damaged compressed"),
    ({"segmentation": {"size": [6, 8], "counts": "oooooooooooooooooooo0"}}, "damaged compressed"),
    ({"segmentation": {"size": [6, 8], "counts": "o"}}, "damaged compressed"),
    ({"segmentation": {"size": [6, 8], "counts": "~\u00e9"}}, "damaged compressed"),
    ({"segmentation": {"size": [6, 8], "counts": "oooo1"}}, "damaged run lengths"),      # two million pixels into 48
    ({"image_id": 8}, "belongs to image 8, which is not in its 'images'"), ({"image_id": [7]}, r"belongs to image \[7\]"),
    ({"category_id": 9}, "has the category 9, which is not in its 'categories'"),
    ({"category_id": None}, "has the category None"),
])
def test_annotations_that_are_wrong_are_named_with_their_reason(tmp_path, annotation, message):
    good = {"segmentation": [SQUARE]}
    with pytest.raises(ValueError, match=rf"coco\.json: .*annotation 1.*{message}") as error:
        opened(tmp_path, [good, good | annotation if "segmentation" in annotation or "bbox" not in annotation else annotation],
               degenerate="drop")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("images, message", [
    ([], "lists no image"), ([3], "'images' must be a list of objects"), ({"a": 1}, "'images' must be a list of objects"),
    ([{"file_name": "a.png"}], "image 1 of its list needs an 'id'"), ([{"id": 7}], "needs an 'id' and a 'file_name'"),
    ([{"id": 7, "file_name": 3}], "needs an 'id' and a 'file_name'"),
    ([{"id": 7, "file_name": "../../etc/passwd"}], "leaves the image folder"),
    ([{"id": 7, "file_name": "/etc/passwd"}], "leaves"),
    ([{"id": 7, "file_name": "..\\..\\x.png"}], "leaves"), ([{"id": 7, "file_name": "C:\\x.png"}], "leaves"),
    ([{"id": 7, "file_name": "a.png"}, {"id": 7, "file_name": "b.png"}], "two images with the id 7"),
    ([{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "a.png"}], "the name 'a.png'"),
    ([{"id": 7, "file_name": "a.png"}], "has height None and width None"),
    ([{"id": 7, "file_name": "a.png", "height": 0, "width": 8}], "has height 0"),
    ([{"id": 7, "file_name": "a.png", "height": 6, "width": -8}], "width -8"),
    ([{"id": 7, "file_name": "a.png", "height": "6", "width": 8}], "has height '6'"),
    ([{"id": 7, "file_name": "a.png", "height": 6.5, "width": 8}], "has height 6.5"),
    ([{"id": 7, "file_name": "a.png", "height": float("nan"), "width": 8}], "has height nan"),
    ([{"id": 7, "file_name": "a.png", "height": 10**6, "width": 10**6}], "more than COCO's tools can count"),
])
def test_lists_of_images_that_are_wrong_are_named_with_their_reason(tmp_path, images, message):
    with pytest.raises(ValueError, match=rf"coco\.json.*{message}"):
        opened(tmp_path, [{"segmentation": [SQUARE]}], images=images)


def test_files_that_contradict_themselves_or_others_are_refused(tmp_path):
    twice = [{"segmentation": [SQUARE], "id": 4}] * 2
    with pytest.raises(ValueError, match="two annotations have the id 4, so a cell may be there twice"):
        opened(tmp_path, twice)
    source = opened(tmp_path, [{"segmentation": [SQUARE]}], images=[{"id": 7, "file_name": "a.png", "height": 8.0, "width": 6}])
    with pytest.raises(ValueError, match=r"a\.png: \(H, W\) = \(6, 8\), but .*coco\.json says \(8, 6\)"):
        source[0]
    absent = [{"id": k, "file_name": f"{k}.png", "height": 6, "width": 8} for k in range(7, 12)]
    with pytest.raises(FileNotFoundError, match=r"images: 5 of 5 images .*coco\.json lists are missing \('7\.png', '8\.png', "):
        opened(tmp_path, [], images=absent)
    with pytest.raises(ValueError, match="no category nucleus; it has cell, dirt"):
        opened(tmp_path, [], categories=["nucleus"])
    with pytest.raises(ValueError, match="degenerate='skip' is unknown; known are refuse, drop"):
        opened(tmp_path, [], degenerate="skip")


@pytest.mark.parametrize("content, message", [
    ("", "is no JSON"), ('{"images": [', "is no JSON"), ("[]", "is not a COCO instance file"),
    ('{"images": []}', "is not a COCO instance file"),
    ('{"images": [], "annotations": 5}', "'annotations' must be a list"), ("[" * 100_000, "is no JSON"),
    ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": [{"name": "cell"}]}', "category 1 of its"),
    ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": [{"id": 1}, {"id": 1}]}', "category 2 of its"),
])
def test_what_is_no_coco_is_refused(tmp_path, content, message):
    (tmp_path / "coco.json").write_text(content)
    with pytest.raises(ValueError, match=rf"coco\.json.*{message}"):
        CocoSource(tmp_path / "coco.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        CocoSource(tmp_path / "absent.json", tmp_path)


def test_many_cells_over_one_another_are_refused_before_they_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxcell.data.annotations.crops.MOST_GB", 3 * 6 * 8 * 4 / 2**30)
    assert opened(tmp_path, [{"segmentation": [SQUARE]}] * 3)[0].labels.shape == (6, 8, 3)
    source = opened(tmp_path, [{"segmentation": [SQUARE]}] * 4)
    with pytest.raises(ValueError, match=r"coco\.json: a\.png: 4 cells lie over one another"):
        source[0]
