"""Folders with and without a manifest, joined and cached sources; and the real data where it is."""

from __future__ import annotations

import csv
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from roifile import ImagejRoi, roiwrite

from jaxcell.data.sources import SOURCES, CachedSource, ConcatSource
from jaxcell.data.sources.folder import LABEL_ENDINGS, FolderSource, name_folders, rename_labels, unread_images
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
    with pytest.raises(ValueError, match="none of its 3 images has split 'test'; they have train; val. Fill the column split"):
        FolderSource(tmp_path, split="test")
    with pytest.raises(ValueError, match="has a modality that contains 'DIC'; they have train: fluor.*; val: phase contrast.$"):
        FolderSource(tmp_path, modality="DIC")
    (tmp_path / "c_label.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"line 4: c_label\.png"):
        FolderSource(tmp_path)


def test_names_pair_images_and_labels(tmp_path):
    for name in ("a.png", "b.png", "c.tif", "d.png"):
        save(tmp_path / name, image())
    for name in ("a_label.png", "b_masks.png"):
        save(tmp_path / name, image(4))
    tifffile.imwrite(tmp_path / "c_labels.tif", np.stack([image(255), image(255)]), photometric="minisblack")
    (tmp_path / "notes.txt").write_text("")
    source = FolderSource(tmp_path)
    assert source.names == ["a", "b", "c", "d"]
    assert [s.labels is not None for s in source] == [True, True, True, False]
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


def test_a_manifest_without_splits_is_divided_like_a_folder(tmp_path):
    for number in range(30):
        save(tmp_path / f"x{number}.png", image())
    plain = set(FolderSource(tmp_path, split="val").names)
    rows = [f"x{number}.png,movie {number // 3}" for number in range(30)]
    (tmp_path / "manifest.csv").write_text("\n".join(["image_file,split", *(f"x{number}.png," for number in range(30))]))
    assert set(FolderSource(tmp_path, split="val").names) == plain
    (tmp_path / "manifest.csv").write_text("\n".join(["image_file,group", *rows]))
    train, val = ({sample.group for sample in FolderSource(tmp_path, split=split)} for split in ("train", "val"))
    assert train and val and not train & val and len(train | val) == 10
    with pytest.raises(ValueError, match="none of its 30 images has split 'test'; they have no split. Fill the column split of"):
        FolderSource(tmp_path, split="test")


def test_a_split_folder_under_another_name_is_named(tmp_path):
    for split in ("train", "validation"):
        save(tmp_path / split / "a.png", image())
    with pytest.raises(ValueError, match="no split 'val'.*If they are splits, rename validation to val"):
        FolderSource(tmp_path, split="val")
    save(tmp_path / "val" / "a.png", image())
    with pytest.raises(ValueError, match="sort the files into subfolders train and val.$"):
        FolderSource(tmp_path, split="test")


def test_images_of_subfolders_are_named_where_there_are_no_others(tmp_path):
    for name in ("plate1/a.png", "plate1/a_mask.png", "plate2/a.png", "plate2/b.png", "masks/a.png", ".trash/a.png"):
        save(tmp_path / name, image(1))
    with pytest.raises(ValueError, match=r"no image itself, but.*: plate1 \(1 image\), plate2 \(2 images\). Name one of them"):
        FolderSource(tmp_path)


@pytest.mark.parametrize(("files", "splits", "unread"), [
    (("a", "day2/b", "day2/c"), ("",), ["day2 (2 images)"]),
    (("a", "day2/b"), ("train", "val"), ["day2 (1 image)"]),
    (("train/a", "val/b", "c"), ("train", "val"), ["the folder itself (1 image)"]),
    (("train/a", "val/b", "test/c"), ("train",), []),
    (("train/a", "val/b", "c"), ("",), []),
    (("a", "test/c"), ("train", "val"), []),
    (("images/a", "labels/a", "masks/a/1"), ("",), []),
    (("a", "a_masks/1", "b.zarr/c"), ("",), []),
    (("train/images/a", "train/images/old/b", "val/c"), ("train", "val"), ["train/images/old (1 image)"]),
    (("a", "1/2/3/b", "1/2/3/4/c"), ("",), ["1/2/3 (1 image)"]),
])
def test_images_that_nobody_reads_are_found(tmp_path, files, splits, unread):
    for file in files:
        save(tmp_path / f"{file}.png", image())
    assert name_folders(unread_images(tmp_path, splits), tmp_path) == ", ".join(unread)
    (tmp_path / "manifest.csv").write_text("image_file\n")
    assert not unread_images(tmp_path, splits)


@pytest.mark.parametrize(("names", "ending"), [
    (("a", "b", "a_gt", "b_gt"), "_gt"), (("a", "a-seg", "b"), "-seg"), (("a", "b", "c", "d", "a_gt"), ""),
    (("a", "a_1", "a_2"), ""), (("cell", "cells"), ""), ((), ""),
])
def test_labels_of_an_unknown_ending_are_recognised_by_their_pairs(names, ending):
    expected = f" If a{ending} holds the labels of a, rename it a_label, and the others likewise." if ending else ""
    assert rename_labels(names) == expected


def test_missing_labels_that_are_called_otherwise_are_named(tmp_path):
    for name in ("a", "a_gt", "b", "b_gt"):
        save(tmp_path / f"{name}.png", image())
    with pytest.raises(ValueError, match="4 of 4 images have no label file.*If a_gt holds the labels of a, rename it a_label"):
        FolderSource(tmp_path, labelled=True)


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


def test_sizes_that_differ_name_the_file(tmp_path):
    save(tmp_path / "a.png", image())
    save(tmp_path / "a_label.png", np.ones((3, 3), np.uint8))
    with pytest.raises(ValueError, match="a_label.png.*3 x 3.*6 x 8.*pairing"):
        FolderSource(tmp_path)[0]


SQUARE = [[2, 1], [5, 1], [5, 4], [2, 4]]      # (x, y): rows 1 to 3, columns 2 to 4


def write_square(path):
    """The same cell in whatever the ending of `path` stands for; no ending is a folder of masks."""
    mask = image()
    mask[1:4, 2:5] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".geojson":
        geometry = {"type": "Polygon", "coordinates": [[*SQUARE, SQUARE[0]]]}
        path.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"}}))
    elif path.suffix in (".zip", ".roi"):
        roiwrite(path, ImagejRoi.frompoints(np.asarray(SQUARE)), mode="w" if path.suffix == ".zip" else None)
    elif path.suffix == ".npy":
        np.save(path, {"masks": mask // 255, "filename": "a.png"}, allow_pickle=True)
    elif path.suffix:
        save(path, mask // 255)
    else:
        save(path / "cell 1.png", mask)


@pytest.mark.parametrize("label", [
    "a.geojson", "a_labels.geojson", "a.roi", "a_rois.zip", "a_RoiSet.zip", "a_seg.npy", "a_masks", "a_cp_masks.tif",
    "labels/a.geojson", "masks/a.zip", "masks/a", "masks/a_label.png", "labels/a_seg.npy"])
def test_every_kind_of_label_is_found_by_its_name(tmp_path, label):
    save(tmp_path / "a.png", image(9))
    write_square(tmp_path / label)
    (tmp_path / "archive.zip").write_bytes(b"")       # what is no label by its name
    (tmp_path / "export.json").write_text("{}")
    (sample,) = FolderSource(tmp_path, labelled=True)
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:5] = True
    np.testing.assert_array_equal((sample.labels > 0).any(axis=2), expected)


def test_the_nuclei_of_qupath_are_kept(tmp_path):
    save(tmp_path / "a.png", image())
    write_square(tmp_path / "a.geojson")
    assert FolderSource(tmp_path)[0].nuclei is None
    feature = json.loads((tmp_path / "a.geojson").read_text())
    feature["nucleusGeometry"] = {"type": "Polygon", "coordinates": [[[3, 2], [4, 2], [4, 3], [3, 3], [3, 2]]]}
    feature["properties"]["objectType"] = "cell"
    (tmp_path / "a.geojson").write_text(json.dumps(feature))
    np.testing.assert_array_equal(np.argwhere(FolderSource(tmp_path)[0].nuclei == 1), [[2, 3]])


def test_the_endings_of_labels_are_listed_for_users():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert all(f"`{ending}`" in page for ending in LABEL_ENDINGS)


def test_the_longest_name_owns_a_label(tmp_path):
    for name, value in (("x.png", 0), ("x_cp.png", 0), ("x_cp_masks.png", 1), ("x_masks.png", 2)):
        save(tmp_path / name, image(value))
    source = FolderSource(tmp_path)
    assert source.names == ["x", "x_cp"] and [sample.labels.max() for sample in source] == [2, 1]


@pytest.mark.parametrize("orphan", ["e_mask.png", "e.geojson", "e_rois.zip", "e_seg.npy", "labels/e.png", "labels/e"])
def test_labels_without_an_image_are_refused(tmp_path, orphan):
    save(tmp_path / "a.png", image())
    write_square(tmp_path / ("labels/a.png" if "/" in orphan else "a_mask.png"))
    write_square(tmp_path / orphan)
    with pytest.raises(ValueError, match=orphan.split("/")[-1]):
        FolderSource(tmp_path)


def test_an_image_named_like_a_label_is_one_if_it_has_labels(tmp_path):
    for name in ("e_mask.png", "e_mask_label.png"):
        save(tmp_path / name, image(1))
    assert FolderSource(tmp_path).names == ["e_mask"]


def test_planes_and_codings_are_chosen(tmp_path):
    stack = np.stack([image(k) for k in range(3)])
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    write_square(tmp_path / "a_masks")
    tifffile.imwrite(tmp_path / "b.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    binary = image()
    binary[0, 0], binary[3, 3] = 255, 255
    save(tmp_path / "b_mask.png", binary)
    a, b = FolderSource(tmp_path, select={"Z": 2}, coding="binary")
    assert a.image.shape == (6, 8, 1) and (a.image == 2).all() and a.labels.max() == 1
    assert b.labels.max() == 2
    assert (FolderSource(tmp_path, select="Z=2")[0].image == 2).all() and FolderSource(tmp_path, select="")[0].image.shape[2] == 3
    with pytest.raises(ValueError, match=r"b_mask\.png.*set coding=\"binary\".*--coding of `jaxcell data`, --config.data.train"):
        FolderSource(tmp_path)[1]
    with pytest.raises(ValueError, match="coding 'colour' is unknown; known are ids, rgb, binary"):
        FolderSource(tmp_path, coding="colour")
    with pytest.raises(ValueError, match=r"a\.tif"):
        FolderSource(tmp_path, select={"Z": 7})[0]


def write_manifest(folder, text):
    for stem in "ab":
        save(folder / f"{stem}.png", image())
    (folder / "manifest.csv").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(("text", "message"), [
    ("image_file,stem\na.png,x\nb.png,x\n", r"line 3: 'x' is the name of an earlier line too \(a\.png\)"),
    ("image_file\na.png\na.png\n", "line 3: 'a' is the name"),
    ("image_file,split\na.png,train\nb.png,validation\n", "line 3: split 'validation' is unknown; it must be train, val, test"),
    ("image_file,pixel_size\na.png,0.5\nb.png,half\n", "line 3: pixel_size 'half'"),
    ("image_file,pixel_size\na.png,0\n", "line 2: pixel_size '0'"),
    ("image_file,pixel_size\na.png,inf\n", "line 2: pixel_size 'inf'"),
    ("image_file;split\na.png;train\n", "separated by semicolons"),
    ("image_file\tsplit\na.png\ttrain\n", "separated by tabs"),
    ("image_file,split\na.png,train,x,y\n", "line 2: has more than 2 values"),
    ("picture,split\na.png,train\n", "no column image_file; its columns are picture, split"),
    ("image_file,split\n", "has a header and no row"),
    ("image_file,split,split\na.png,train,val\n", "several columns split"),
    ("", "no column image_file"),
    (b"image_file,modality\na.png,caf\xe9\n", "not UTF-8.*byte 29"),
    ("image_file\na.png\n\"b.png\n", "line 2: unexpected end of data"),
    ("image_file,split\na.png,\n\n,train\n", "line 4: image_file is empty"),
    ("image_file\n../a.png\n", r"line 2: \.\./a\.png does not lie in"),
    ("image_file\n/etc/passwd\n", "line 2: /etc/passwd does not lie in"),
    ("image_file\nC:\\a.png\n", r"line 2: C:\\a\.png does not lie in"),
    ("image_file,label_file\na.png,../../b.png\n", r"line 2: \.\./\.\./b\.png does not lie in"),
])
def test_mistakes_in_a_manifest_are_named(tmp_path, text, message):
    write_manifest(tmp_path, text)
    with pytest.raises(ValueError, match=f"manifest.csv.*{message}"):
        FolderSource(tmp_path)


def test_a_manifest_may_come_from_a_spreadsheet(tmp_path):
    write_manifest(tmp_path, b'\xef\xbb\xbfimage_file, split ,modality\r\n a.png ,val,"phase, 20x"\r\nb.png,,,,\r\n')
    source = FolderSource(tmp_path)
    assert source.names == ["a", "b"] and source.splits == ["val", ""] and source[0].modality == "phase, 20x"


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
    assert {"folder", "coco", "synthetic", "tfds", "bbbc038", "bbbc039", "cellpose", "livecell", "neurips2022", "nt2", "omnipose",
            "sartorius"} <= set(SOURCES)


def test_sources_are_quick_to_import():
    code = "import sys, jaxcell.data.sources; print('tensorflow_datasets' in sys.modules, 'tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


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
