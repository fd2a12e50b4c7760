"""Folders, COCO files, synthetic cells, joined and cached sources; and the real data where it is."""

from __future__ import annotations

import csv
import json
import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco_mask

from jaxcell.data.sources import SOURCES, CachedSource, ConcatSource
from jaxcell.data.sources.coco import CocoSource
from jaxcell.data.sources.folder import FolderSource
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.types import Sample


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def image(value: int = 0) -> np.ndarray:
    return np.full((6, 8), value, np.uint8)


# ---------------------------------------------------------------- folders
def test_manifest_gives_splits_modalities_and_groups(tmp_path):
    rows = [("a", "train", "phase contrast", "g1", "a_label.png"), ("b", "train", "fluorescence", "g2", ""),
            ("c", "val", "phase contrast", "g3", "c_label.png")]
    for number, (stem, *_, label) in enumerate(rows):
        save(tmp_path / f"{stem}.png", image(number))
        if label:
            save(tmp_path / label, np.full((6, 8), 300 + number, np.uint16))
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stem", "split", "modality", "group", "label_file", "image_file", "pixel_size"])
        writer.writerows([*row, f"{row[0]}.png", "0.65"] for row in rows)
    assert FolderSource(tmp_path).names == ["a", "b", "c"]
    assert FolderSource(tmp_path, limit=2).names == ["a", "b"]
    assert FolderSource(tmp_path, split="train", modality="phase").names == ["a"]
    sample = FolderSource(tmp_path, split="val")[0]
    assert (sample.name, sample.modality, sample.group, sample.pixel_size) == ("c", "phase contrast", "g3", 0.65)
    assert (sample.labels == 302).all() and (sample.image == 2).all()
    assert FolderSource(tmp_path, modality="fluorescence")[0].labels is None
    with pytest.raises(ValueError, match="split 'test'.*train: phase contrast; val"):
        FolderSource(tmp_path, split="test")
    (tmp_path / "c_label.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"line 4: c_label\.png"):
        FolderSource(tmp_path)


def test_names_pair_images_and_labels(tmp_path):
    for name in ("a.png", "b.png", "c.tif", "d.png", "e_mask.png"):
        save(tmp_path / name, image())
    for name in ("a_label.png", "b_masks.png"):
        save(tmp_path / name, image(4))
    tifffile.imwrite(tmp_path / "c_labels.tif", np.stack([image(255), image(255)]), photometric="minisblack")
    (tmp_path / "notes.txt").write_text("")
    source = FolderSource(tmp_path)
    assert source.names == ["a", "b", "c", "d", "e_mask"]     # a mask of nothing is an image
    assert [s.labels is not None for s in source] == [True, True, True, False, False]
    assert source[2].labels.shape == (6, 8, 2)
    save(tmp_path / "a_mask.png", image(4))
    with pytest.raises(ValueError, match=r"a_label\.png, a_mask\.png all answer to 'a'"):
        FolderSource(tmp_path)


def test_subfolders_of_images_labels_and_splits(tmp_path):
    save(tmp_path / "val" / "images" / "a.png", image())
    save(tmp_path / "val" / "labels" / "a.png", image(1))
    save(tmp_path / "val" / "images" / "b.png", image())
    save(tmp_path / "val" / "labels" / "b_label.png", image(2))
    source = FolderSource(tmp_path, split="val")
    assert source.names == ["a", "b"] and [int(s.labels.max()) for s in source] == [1, 2]
    with pytest.raises(ValueError, match="neither manifest.csv nor a subfolder 'train'"):
        FolderSource(tmp_path, split="train")
    with pytest.raises(ValueError, match="holds no image"):
        FolderSource(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        FolderSource(tmp_path / "absent")


def test_a_folder_without_splits_holds_out_about_every_fifth_image(tmp_path):
    for number in range(60):
        save(tmp_path / f"x{number}.png", image())
        save(tmp_path / f"x{number}_mask.png", image(1))
    train, val = (FolderSource(tmp_path, split=split).names for split in ("train", "val"))
    assert sorted([*train, *val]) == sorted(FolderSource(tmp_path).names) and len(train) + len(val) == 60
    assert 6 <= len(val) <= 20 and FolderSource(tmp_path, split="val")[0].labels is not None
    assert {f"x{number}" for number in range(10)} & set(val) == {"x0", "x3", "x4"}     # on every machine
    save(tmp_path / "one more.png", image())
    assert set(FolderSource(tmp_path, split="val").names) - {"one more"} == set(val)
    with pytest.raises(ValueError, match="no split 'test'"):
        FolderSource(tmp_path, split="test")


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_neither_part_of_a_small_folder_is_empty(tmp_path, count):
    for start in range(4):
        for number in range(count):
            save(tmp_path / str(start) / f"{start}_{number}.png", image())
        parts = [FolderSource(tmp_path / str(start), split=split).names for split in ("train", "val")]
        assert all(parts) and len({*parts[0], *parts[1]}) == count


def test_hidden_and_session_files_are_passed_over(tmp_path):
    for name in ("a.png", "a_cp_masks.png", "._a.png", "._a_cp_masks.png"):
        save(tmp_path / name, image(1))
    np.save(tmp_path / "a_seg.npy", {"masks": 0}, allow_pickle=True)
    source = FolderSource(tmp_path)
    assert source.names == ["a"] and source[0].labels.max() == 1


def test_the_pixel_size_of_the_file_serves_where_no_manifest_gives_one(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", image(), imagej=True, resolution=(4, 4), metadata={"unit": "micron"})
    assert FolderSource(tmp_path)[0].pixel_size == 0.25
    for size, expected in (("", 0.25), ("0.5", 0.5)):
        (tmp_path / "manifest.csv").write_text(f"image_file,pixel_size\na.tif,{size}\n")
        assert FolderSource(tmp_path)[0].pixel_size == expected


def test_sizes_that_differ_name_the_sample(tmp_path):
    save(tmp_path / "a.png", image())
    save(tmp_path / "a_label.png", np.ones((3, 3), np.uint8))
    with pytest.raises(ValueError, match="'a'.*pairing"):
        FolderSource(tmp_path)[0]


# ---------------------------------------------------------------- COCO
def coco_file(tmp_path, annotations):
    save(tmp_path / "images" / "a.png", image())
    save(tmp_path / "images" / "b.png", image())
    content = {"images": [{"id": 7, "file_name": "a.png", "height": 6, "width": 8}, {"id": 9, "file_name": "b.png"}],
               "annotations": [{"id": i, "image_id": 7, "category_id": 1, **a} for i, a in enumerate(annotations)],
               "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "dirt"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return tmp_path / "coco.json"


def test_coco_polygons_runs_crowds_and_overlaps(tmp_path):
    disc, crowd = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    disc[1:4, 2:5], crowd[4:, :] = 1, 1
    compressed = coco_mask.encode(np.asfortranarray(disc))
    runs = {"size": [6, 8], "counts": [28, 2, 4, 2, 12]}       # column-major: columns 4 and 5, the last two rows of each
    path = coco_file(tmp_path, [
        {"segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]},
        {"segmentation": {"size": [6, 8], "counts": compressed["counts"].decode()}},
        {"segmentation": runs},
        {"segmentation": {"size": [6, 8], "counts": coco_mask.encode(np.asfortranarray(crowd))["counts"].decode()}, "iscrowd": 1},
        {"segmentation": [[5, 0, 8, 0, 8, 2, 5, 2]], "category_id": 2},
    ])
    sample = CocoSource(path, tmp_path / "images", categories=["cell"], modality="phase")[0]
    assert sample.name == "a.png" and sample.modality == "phase" and sample.labels.shape == (6, 8, 2)
    np.testing.assert_array_equal((sample.labels == 2).any(axis=-1), disc)
    np.testing.assert_array_equal((sample.labels == 1).any(axis=-1)[:3, :3], True)
    np.testing.assert_array_equal(np.argwhere((sample.labels == 3).any(axis=-1)), [[4, 4], [4, 5], [5, 4], [5, 5]])
    np.testing.assert_array_equal((sample.labels == -1).any(axis=-1), (crowd > 0) & ~(sample.labels > 0).any(axis=-1))
    source = CocoSource(path, tmp_path / "images")
    assert source[0].labels.max() == 4 and not source[1].labels.any() and len(source) == 2
    assert len(CocoSource(path, tmp_path / "images", limit=1)) == 1


def test_coco_mistakes_are_named(tmp_path):
    path = coco_file(tmp_path, [{"segmentation": {"size": [9, 9], "counts": [81]}}])
    with pytest.raises(ValueError, match=r"a\.png: annotation 0 is for .* \(9, 9\).*\(6, 8\)"):
        CocoSource(path, tmp_path / "images")[0]
    with pytest.raises(ValueError, match="no category nucleus; it has cell, dirt"):
        CocoSource(path, tmp_path / "images", categories=["nucleus"])
    with pytest.raises(ValueError, match="no segmentation"):
        CocoSource(coco_file(tmp_path, [{"bbox": [0, 0, 2, 2]}]), tmp_path / "images")[0]
    path.write_text("[]")
    with pytest.raises(ValueError, match="not a COCO instance file"):
        CocoSource(path, tmp_path)


# ---------------------------------------------------------------- synthetic cells
@pytest.mark.parametrize("kind", ["fluorescence", "brightfield", "phase", "mixed"])
def test_synthetic_cells_are_reproducible_and_plausible(kind):
    source, again = SyntheticSource(6, size=(96, 128), seed=3, kind=kind), SyntheticSource(9, size=(96, 128), seed=3, kind=kind)
    contrasts, counts = [], []
    for index in (4, 0, 2):
        sample = source[index]
        np.testing.assert_array_equal(sample.image, source[index].image)
        if kind != "mixed":
            np.testing.assert_array_equal(sample.image, again[index].image)
        assert sample.image.dtype == np.uint8 and sample.image.shape[:2] == (96, 128)
        assert sample.modality == (kind if kind != "mixed" else ("fluorescence", "brightfield", "phase")[index % 3])
        ids, areas = np.unique(sample.labels[sample.labels > 0], return_counts=True)
        np.testing.assert_array_equal(ids, np.arange(1, len(ids) + 1))
        assert (areas >= 25).all()
        inside = (sample.labels > 0).any(axis=-1)
        contrasts.append(abs(float(sample.image[inside].mean()) - float(sample.image[~inside].mean())))
        counts.append(len(ids))
    assert min(contrasts) > 8 and max(counts) > 5
    assert (SyntheticSource(6, size=(96, 128), seed=4, kind=kind)[0].image != source[0].image).any()
    assert len(set(source.names)) == len(list(source)) == 6


def test_synthetic_cells_touch_and_overlap():
    samples = list(SyntheticSource(12, size=192, seed=0, clustering=0.6, overlap=0.5))
    assert any(s.labels.shape[2] > 1 for s in samples)
    assert not any(s.labels.shape[2] > 1 for s in SyntheticSource(12, size=192, seed=0, overlap=0.0))
    plane = samples[0].labels[..., 0]
    assert ((plane[:, 1:] != plane[:, :-1]) & (plane[:, 1:] > 0) & (plane[:, :-1] > 0)).any()
    with pytest.raises(ValueError, match="'dark' is unknown.*phase"):
        SyntheticSource(1, kind="dark")


# ---------------------------------------------------------------- sources of sources
def test_joined_sources_repeat():
    one, two = SyntheticSource(2, size=32, seed=1), SyntheticSource(3, size=32, seed=2)
    joined = ConcatSource([one, two], repeats=[2, 1])
    assert joined.names == [*one.names * 2, *two.names] and len(joined) == 7
    assert [s.name for s in joined] == joined.names
    with pytest.raises(ValueError, match=r"repeats \[1, 0\]"):
        ConcatSource([one, two], repeats=[1, 0])


class Counting:
    """Counts how often each sample is read."""

    def __init__(self):
        self.names, self.reads = ["a", "b", "c"], [0, 0, 0]

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.reads[index] += 1
        return Sample(np.zeros((10, 10, 1), np.uint8), np.zeros((10, 10, 1), np.int32), name=self.names[index])


def test_cache_is_bounded_by_bytes_and_never_drops():
    counting = Counting()
    source = CachedSource(counting, max_bytes=1000)      # two samples of 100 + 400 bytes
    for _ in range(3):
        assert [source[i].name for i in range(3)] == source.names
    assert counting.reads == [1, 1, 3]
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 600 and copy[0].name == "a"


def test_sources_are_listed():
    assert set(SOURCES) == {"folder", "coco", "synthetic"}


# ---------------------------------------------------------------- real images
@pytest.mark.parametrize("folder", ["baby_yeast", "bbbc038", "bbbc039", "usiigaci_t98g", "yeastvision_phase"])
def test_real_folders_open_as_their_manifest_says(data_dir, folder):
    with (data_dir / folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    source = FolderSource(data_dir / folder)
    assert source.names == [row["stem"] for row in rows]
    every = max(1, len(rows) // 60)
    for index in range(0, len(rows), every):
        sample, row = source[index], rows[index]
        assert sample.image.shape[:2] == (int(row["height"]), int(row["width"])) and sample.image.dtype == row["dtype"]
        assert len(np.unique(sample.labels[sample.labels > 0])) == int(row["n_objects"])
        assert (sample.modality, sample.group) == (row["modality"], row["group"])
        if row["channels"] == "4":
            assert sample.image.shape[2] == 3       # alpha is opaque in all of them
    assert set(FolderSource(data_dir / folder, split="train").names) == {row["stem"] for row in rows if row["split"] == "train"}


def test_overlapping_yeast_outlines_keep_their_shared_pixels(data_dir):
    with (data_dir / "baby_yeast" / "manifest.csv").open(newline="") as file:
        overlaps = [int(row["n_overlap_px"]) for row in csv.DictReader(file)]
    counted = [int(((s.labels > 0).sum(axis=-1) > 1).sum()) for s in FolderSource(data_dir / "baby_yeast")]
    assert counted == overlaps and sum(overlaps) > 200
