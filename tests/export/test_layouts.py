"""Data sets in other layouts: read again they hold the same pixels and cells, and nothing is lost in silence."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from roifile import roiread

from jaxcell.data.annotations.qupath import read_qupath_nuclei
from jaxcell.data.sources.bbbc038 import Bbbc038Source
from jaxcell.data.sources.cellpose import CellposeSource
from jaxcell.data.sources.coco import CocoSource
from jaxcell.data.sources.folder import FolderSource
from jaxcell.data.sources.tfds import TfdsSource
from jaxcell.export.layouts import LAYOUTS, convert
from jaxcell.types import Sample


class Samples(list):
    """A source in memory."""

    @property
    def names(self):
        return [s.name for s in self]


IMAGES = [((40, 50, 1), np.uint8), ((41, 50, 3), np.uint8), ((40, 53, 1), np.uint16), ((40, 50, 3), np.uint16),
          ((30, 31, 5), np.uint16), ((30, 31, 2), np.float32), ((30, 31, 4), np.uint8), ((30, 31, 1), np.int32),
          ((30, 30, 1), np.float64)]


def samples(seed: int, *, overlaps: bool, ignored: bool) -> Samples:
    """Images of every type; cells in pieces, with holes and gaps in their numbers; one image has none."""
    rng, made = np.random.default_rng(seed), Samples()
    for number, (shape, dtype) in enumerate(IMAGES):
        labels = np.zeros((*shape[:2], 2 if overlaps else 1), np.int32)
        for k in range(0 if number == 3 else 9):
            height, width = rng.integers(3, 14, 2)
            y, x = rng.integers(0, shape[0] - height), rng.integers(0, shape[1] - width)
            view = labels[y:y + height, x:x + width, k % labels.shape[2]]
            view[(rng.random((height, width)) < 0.7) & (view == 0)] = 3 * k + 2
        if ignored and number == 2:
            labels[:5][(labels[:5] == 0).all(axis=-1)] = -1
        scale = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
        image = (rng.random(shape) * scale).astype(dtype)
        made.append(Sample(image, labels, pixel_size=0.25 * number or None, modality="phase", group=f"group {number // 2}",
                           name=f"seed{seed}.{number}" if number % 2 else f"in/{seed}-{number}"))
    return made


def cells(labels: np.ndarray) -> list[np.ndarray]:
    """The mask of every cell, by rising id."""
    return [(labels == k).any(axis=-1) for k in np.unique(labels[labels > 0])]


def ignored_pixels(labels: np.ndarray) -> np.ndarray:
    return (labels < 0).any(axis=-1) & ~(labels > 0).any(axis=-1)


def assert_same(source, expected: Samples, *, metadata: bool) -> None:
    """The samples, in any order; stems that a layout changes are found by their end."""
    assert len(source) == len(expected)
    for sample in expected:
        stem = sample.name.replace("/", "_")
        (index,) = [i for i, name in enumerate(source.names) if stem in name]
        back = source[index]
        np.testing.assert_array_equal(back.image, sample.image)
        assert back.image.dtype == sample.image.dtype
        left, right = cells(back.labels), cells(sample.labels)
        assert len(left) == len(right) and all(map(np.array_equal, left, right))
        np.testing.assert_array_equal(ignored_pixels(back.labels), ignored_pixels(sample.labels))
        if metadata:
            assert (back.pixel_size, back.modality, back.group) == (sample.pixel_size, sample.modality, sample.group)


READERS = {     # layout -> (holds overlaps, ignored pixels, metadata; folder and split -> source)
    "folder": (True, True, True, lambda out, split: FolderSource(out, split=split)),
    "qupath": (True, True, True, lambda out, split: FolderSource(out, split=split)),
    "imagej": (True, False, True, lambda out, split: FolderSource(out, split=split)),
    "coco": (True, True, False, lambda out, split: CocoSource(out / f"{split}.json", out / "images")),
    "cellpose": (False, False, False, lambda out, split: CellposeSource(out, split=split)),
    "bbbc038": (True, False, False, lambda out, split: Bbbc038Source(out, split=split)),
    "tfds": (True, True, True, lambda out, split: TfdsSource(out, split=split)),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_gives_pixels_and_cells_back(tmp_path, kind):
    overlaps, ignored, metadata, read = READERS[kind]
    parts = {"train": samples(1, overlaps=overlaps, ignored=ignored), "test": samples(2, overlaps=overlaps, ignored=ignored)}
    if kind == "tfds":
        parts = {split: Samples(replace(s, name=s.name.replace("/", "_")) for s in part) for split, part in parts.items()}
    written = convert(parts, tmp_path / "new" / "out", kind=kind)
    assert written.images == 18 and written.cells == sum(len(cells(s.labels)) for part in parts.values() for s in part)
    assert bool(written.lost) == (not metadata)
    for split, expected in parts.items():
        assert_same(read(tmp_path / "new" / "out", split), expected, metadata=metadata)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["folder", "qupath", "imagej"])
def test_without_splits_and_labels(tmp_path, kind):
    part = samples(1, overlaps=False, ignored=False)
    part[4] = replace(part[4], labels=None)
    convert({"": part}, tmp_path / "out", kind=kind)
    source = FolderSource(tmp_path / "out")
    assert source[4].labels is None and source[5].labels is not None
    assert not any(path.is_dir() for path in (tmp_path / "out").iterdir())


def test_one_cell_in_many_pieces_is_not_taken_for_a_mask_of_all(tmp_path):
    labels = np.zeros((40, 40, 1), np.int32)
    labels[2:38:8, 4:30] = 1
    lone = Samples([Sample(np.zeros((40, 40, 1), np.uint8), labels, name="a")])
    for kind in ("folder", "cellpose"):
        convert({"train": lone}, tmp_path / kind, kind=kind)
        np.testing.assert_array_equal(READERS[kind][3](tmp_path / kind, "train")[0].labels > 0, labels > 0)


@pytest.mark.parametrize("count, ending", [(22_500, ".png"), (70_000, ".tif")])
def test_large_numbers_and_many_cells(tmp_path, count, ending):
    labels = np.zeros((300, 300, 1), np.int32)
    labels.ravel()[:count] = np.arange(count) * 5 + 7
    part = Samples([Sample(np.zeros((300, 300, 1), np.uint8), labels, name="many")])
    convert({"train": part}, tmp_path / "out", kind="cellpose")
    assert (tmp_path / "out" / "train" / f"many_masks{ending}").exists()
    back = CellposeSource(tmp_path / "out", split="train")[0].labels
    for array in (back, labels):
        assert len(np.unique(array)) == count + 1 and (np.diff(array.ravel()[:count]) > 0).all()


# ---------------------------------------------------------------- what a layout cannot hold
def test_overlaps_are_refused_or_resolved_as_asked(tmp_path):
    labels = np.zeros((20, 30, 3), np.int32)
    labels[5:15, 3:15, 0], labels[5:15, 11:25, 1], labels[6:9, 12:14, 2] = 1, 2, 3
    part = {"train": Samples([Sample(np.zeros((20, 30, 1), np.uint8), labels, name="pair")])}
    with pytest.raises(ValueError, match=r"'pair'.*40 pixels of more than one cell.*--overlaps=top"):
        convert(part, tmp_path / "out", kind="cellpose")
    assert not any(tmp_path.iterdir())
    written = convert(part, tmp_path / "top", kind="cellpose", overlaps="top")
    assert dict(written.lost) == {"overlaps, each pixel now in one cell, in images": 1}
    top = CellposeSource(tmp_path / "top")[0].labels[..., 0]
    np.testing.assert_array_equal(top, labels.max(axis=2))
    written = convert(part, tmp_path / "grown", kind="cellpose", overlaps="grow")
    assert written.cells == 2 and written.lost["cells that lay wholly in others"] == 1
    grown = CellposeSource(tmp_path / "grown")[0].labels[..., 0]
    assert (grown[5:15, 3:25] > 0).all() and np.count_nonzero(grown == grown[5, 3]) > 80


@pytest.mark.parametrize("kind", ["cellpose", "bbbc038", "imagej"])
def test_pixels_to_be_ignored_are_refused_or_background_as_asked(tmp_path, kind):
    part = {"train": samples(1, overlaps=False, ignored=True)}
    with pytest.raises(ValueError, match=r"'in/1-2'.*to be ignored.*--ignored=background"):
        convert(part, tmp_path / "out", kind=kind)
    written = convert(part, tmp_path / "out", kind=kind, ignored="background")
    assert written.lost["pixels to be ignored, now background, in images"] == 1
    assert all((s.labels >= 0).all() for s in READERS[kind][3](tmp_path / "out", "train"))


@pytest.mark.parametrize("kind", ["coco", "cellpose", "bbbc038"])
def test_images_without_labels_are_refused_or_left_out_as_asked(tmp_path, kind):
    part = samples(1, overlaps=False, ignored=False)
    part[1] = replace(part[1], labels=None)
    with pytest.raises(ValueError, match=r"'seed1.1'.*no labels.*--unlabelled=skip"):
        convert({"train": part}, tmp_path / "out", kind=kind)
    written = convert({"train": part}, tmp_path / "out", kind=kind, unlabelled="skip")
    assert written.images == 8 and written.lost["images without labels, left out"] == 1


def test_remarks_that_are_lost_are_counted(tmp_path):
    part = samples(1, overlaps=False, ignored=False)
    part[0] = replace(part[0], nuclei=np.zeros(part[0].labels.shape[:2], np.int32))
    written = convert({"val": part}, tmp_path / "out", kind="bbbc038")
    assert dict(written.lost) == {"nuclei, in images": 1, "pixel size, in images": 8, "modality, in images": 9,
                                  "group, in images": 9, "split val is called test there": 9}


def test_nuclei_that_are_not_known_are_lost_by_name(tmp_path):
    part = samples(1, overlaps=False, ignored=False)
    nuclei = np.where(part[0].labels[..., 0] > 0, np.int32(-1), np.int32(0))
    nuclei[np.unravel_index(np.argmax(part[0].labels[..., 0]), nuclei.shape)] = part[0].labels.max()
    part[0] = replace(part[0], nuclei=nuclei)
    lost = convert({"val": part}, tmp_path / "out", kind="qupath").lost
    assert dict(lost) == {"pixels whose nuclei are not known (now none), in images": 1}
    assert not convert({"val": part}, tmp_path / "whole", kind="tfds").lost


def test_splits_without_a_place(tmp_path):
    part = samples(1, overlaps=False, ignored=False)
    with pytest.raises(ValueError, match="no place for the split 'test2'.*--split test2=test"):
        convert({"test2": part}, tmp_path / "out", kind="folder")
    with pytest.raises(ValueError, match="val, test would become test, test; two cannot be one"):
        convert({"val": part, "test": part}, tmp_path / "out", kind="bbbc038")
    with pytest.raises(ValueError, match="'npz' is no choice; it is one of folder"):
        convert({"val": part}, tmp_path / "out", kind="npz")


# ---------------------------------------------------------------- files and folders
def test_nothing_is_overwritten_and_nothing_half_done_is_left(tmp_path):
    part = samples(1, overlaps=False, ignored=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        convert({"train": part}, tmp_path / "full", kind="folder")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    convert({"train": part}, tmp_path / "empty", kind="folder")

    class Broken(Samples):
        def __getitem__(self, index):
            if index == 5:
                raise ValueError("x.png: cannot be read as png.")
            return super().__getitem__(index)

    with pytest.raises(ValueError, match=r"x\.png"):
        convert({"train": Broken(part)}, tmp_path / "out", kind="coco")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full"]
    (tmp_path / "out.part").mkdir()
    with pytest.raises(ValueError, match="interrupted"):
        convert({"train": part}, tmp_path / "out", kind="folder")


def test_names_that_clash_get_their_split_or_are_refused(tmp_path):
    part = samples(1, overlaps=False, ignored=False)
    convert({"train": part, "val": part}, tmp_path / "out", kind="folder")
    assert FolderSource(tmp_path / "out", split="val").names[:2] == ["val_in_1-0", "val_seed1.1"]
    with pytest.raises(ValueError, match="2 images would be called 'a_b'"):
        convert({"": Samples([replace(part[0], name="a/b"), replace(part[0], name="a_b")])}, tmp_path / "two", kind="folder")


def test_other_programs_find_what_they_expect(tmp_path):
    """Formats as their own readers, or their specifications, see them."""
    part = {"train": samples(1, overlaps=True, ignored=False)}
    expected = cells(part["train"][0].labels)
    convert(part, tmp_path / "imagej", kind="imagej")
    rois = roiread(tmp_path / "imagej" / "train" / "in_1-0_rois.zip")
    assert [(roi.top, roi.left, roi.bottom, roi.right) for roi in rois] == [
        (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
        for rows, columns in ((np.flatnonzero(m.any(1)).tolist(), np.flatnonzero(m.any(0)).tolist()) for m in expected)]
    convert(part, tmp_path / "qupath", kind="qupath")
    features = json.loads((tmp_path / "qupath" / "train" / "in_1-0.geojson").read_text())["features"]
    assert len(features) == len(expected) and {f["properties"]["objectType"] for f in features} == {"detection"}
    for feature in features:
        polygons = feature["geometry"]["coordinates"]
        rings = [ring for p in (polygons if feature["geometry"]["type"] == "MultiPolygon" else [polygons]) for ring in p]
        assert all(ring[0] == ring[-1] and len(ring) >= 5 for ring in rings)
    convert(part, tmp_path / "folder", kind="folder")
    pages = tifffile.imread(tmp_path / "folder" / "train" / "in_1-0_labels.tif")
    assert pages.dtype == np.int32 and pages.shape == (2, 40, 50)


def test_nuclei_go_to_qupath(tmp_path):
    part = samples(1, overlaps=False, ignored=False)
    nuclei = np.where(np.random.default_rng(0).random((40, 50)) < 0.5, part[0].labels[..., 0], 0).astype(np.int32)
    written = convert({"": Samples([replace(part[0], nuclei=nuclei)])}, tmp_path / "out", kind="qupath")
    back = read_qupath_nuclei(tmp_path / "out" / "in_1-0.geojson", (40, 50))
    ids = np.unique(part[0].labels)[1:]
    np.testing.assert_array_equal(np.concatenate([[0], ids])[back], nuclei)
    assert not written.lost


def test_that_no_cell_has_a_nucleus_is_known_in_qupath(tmp_path):
    known = replace(samples(1, overlaps=False, ignored=False)[0], nuclei=np.zeros((40, 50), np.int32))
    empty = replace(known, name="empty", labels=np.zeros_like(known.labels))
    unknown = replace(known, name="unknown", nuclei=None)
    convert({"": Samples([known, empty, unknown])}, tmp_path / "out", kind="qupath")
    for sample in (known, empty):
        nuclei = read_qupath_nuclei(next((tmp_path / "out").glob(f"*{sample.name.replace('/', '_')}.geojson")), (40, 50))
        np.testing.assert_array_equal(nuclei, sample.nuclei)
    assert read_qupath_nuclei(tmp_path / "out" / "unknown.geojson", (40, 50)) is None


def test_far_cells_keep_their_place_in_imagej(tmp_path):
    labels = np.zeros((3, 70_000, 1), np.int32)
    labels[1, 69_990:69_999], labels[0, 40_000:40_003] = 1, 2
    part = Samples([Sample(np.zeros((3, 70_000, 1), np.uint8), labels, name="strip")])
    convert({"": part}, tmp_path / "out", kind="imagej")
    assert_same(FolderSource(tmp_path / "out"), part, metadata=False)
