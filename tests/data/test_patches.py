"""Images cut into patches: where they lie, what is kept, how they are shown, and who may train on which."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from jaxcell.data.pipeline import make_train_iterator
from jaxcell.data.sources import open_source
from jaxcell.data.sources.patches import CUTTINGS, PatchSource, patch_grid
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.types import Sample


class Pictures:
    """Images of one size, each with one square cell (id 7); two share a group."""

    def __init__(self, count: int = 1, shape: tuple[int, int] = (60, 83), cells: tuple[tuple[int, int], ...] = ((10, 12),)):
        self.names, self._shape, self._cells = [f"p{i}" for i in range(count)], shape, cells

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, (*self._shape, 1)).astype(np.uint8)
        labels = np.zeros((*self._shape, 1), np.int32)
        for number, (y, x) in enumerate(self._cells, start=7):
            labels[y:y + 6, x:x + 6] = number
        return Sample(image, labels, labels[..., 0].copy(), 0.5, self.names[index], "brightfield", f"day {index // 2}")


# ---------------------------------------------------------------- grids
@pytest.mark.parametrize("shape", [(60, 83), (40, 40), (41, 100), (32, 200)])
@pytest.mark.parametrize("overlap", [0.0, 0.35, 0.8])
def test_patches_cover_the_image_but_for_the_released_margin(shape, overlap):
    for size in (16, 32, 40):
        seen = {name: np.zeros(shape, int) for name in CUTTINGS}
        for name, count in seen.items():
            for side, top, left in patch_grid(shape, sizes=(size,), overlap=overlap, cutting=name):
                assert side == size and 0 <= top <= shape[0] - size and 0 <= left <= shape[1] - size
                count[top:top + size, left:left + size] += 1
        assert (seen["covering"] > 0).all() if size <= min(shape) else not seen["covering"].any()
        step = int(size * (1 - overlap))
        ends = [side - (side - size) % step if size < min(shape) else 0 for side in shape]
        assert (seen["released"][:ends[0], :ends[1]] > 0).all() and not seen["released"][ends[0]:].any()
        assert not seen["released"][:, ends[1]:].any()


def test_released_steps_and_sizes():
    grid = patch_grid((2101, 2345), cutting="released")
    for size, step in ((224, 145), (448, 291), (1000, 650), (1500, 975), (2000, 1300)):
        tops = np.unique(grid[grid[:, 0] == size, 1])
        assert tops[0] == 0 and (np.diff(tops) == step).all() and 2101 - size - step < tops[-1] <= 2101 - size
    assert not len(patch_grid((224, 300), sizes=(224,), cutting="released")) and len(patch_grid((224, 300), sizes=(224,))) == 2
    for wrong in ({"overlap": 1.0}, {"sizes": ()}, {"sizes": (0,)}, {"cutting": "diced"}):
        with pytest.raises(ValueError, match="Use for example|known are covering, released"):
            patch_grid((99, 99), **wrong)


# ---------------------------------------------------------------- what is shown
def test_patches_without_cells_are_left_out():
    source = PatchSource(Pictures(), sizes=(20,), overlap=0.0, output=20)
    kept = {(p.top, p.left) for p in source.patches if p.size}
    labels = Pictures()[0].labels
    everything = patch_grid((60, 83), sizes=(20,), overlap=0.0)
    assert kept == {(t, x) for _, t, x in everything.tolist() if (labels[t:t + 20, x:x + 20] > 0).any()} and len(kept) < 5
    everywhere = PatchSource(Pictures(), sizes=(20,), overlap=0.0, output=20, empty=True, undivided=False)
    assert [(p.size, p.top, p.left) for p in everywhere.patches] == [tuple(row) for row in everything.tolist()]


def test_a_patch_is_its_part_of_the_image_with_ids_nuclei_and_pixel_size():
    whole, source = Pictures()[0], PatchSource(Pictures(), sizes=(20, 40), overlap=0.5, output=20)
    for patch, sample in zip(source.patches, map(source.__getitem__, range(len(source))), strict=True):
        assert sample.group == "day 0" and sample.modality == "brightfield" and sample.image.dtype == np.uint8
        window = np.s_[patch.top:patch.top + patch.size, patch.left:patch.left + patch.size]
        if patch.size == 20:
            assert sample.name == f"p0_ps20_{patch.top}_{patch.left}" and sample.pixel_size == 0.5
            np.testing.assert_array_equal(sample.image, whole.image[window])
            np.testing.assert_array_equal(sample.labels, whole.labels[window])
        elif patch.size == 40:
            blocks = whole.image[window].reshape(20, 2, 20, 2).astype(float).mean((1, 3))
            assert np.abs(sample.image[..., 0] - blocks).max() <= 0.5 and sample.pixel_size == 1.0
            np.testing.assert_array_equal(sample.labels, whole.labels[window][1::2, 1::2])
            np.testing.assert_array_equal(sample.nuclei, sample.labels[..., 0])
        else:
            assert sample.image.shape == (20, 28, 1) and sample.name == "p0", "the undivided image keeps its proportions"
    assert {p.size for p in source.patches} == {0, 20, 40}


def test_released_patches_are_pillows_and_their_masks_fatter():
    whole = Pictures(shape=(90, 83))[0]
    source = PatchSource(Pictures(shape=(90, 83)), sizes=(48,), overlap=0.35, output=24, cutting="released")
    for patch, sample in zip(source.patches, map(source.__getitem__, range(len(source))), strict=True):
        if not patch.size:
            assert sample.image.shape == (90, 83, 1) and set(np.unique(sample.labels)) == {0, 1}
            continue
        window = np.s_[patch.top:patch.top + 48, patch.left:patch.left + 48]
        shown = Image.fromarray(whole.image[window][..., 0]).resize((24, 24))
        np.testing.assert_array_equal(sample.image[..., 0], np.asarray(shown))
        assert sample.labels.sum() > 0.25 * (whole.labels[window] > 0).sum(), "the filter's tails count"
        assert set(np.unique(sample.labels)) <= {0, 1}


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_released_patches_of_other_types_keep_type_and_range(dtype):
    source = Pictures()
    original = source.__getitem__
    top = 60_000 if dtype == np.uint16 else 0.9

    class Deep(Pictures):
        def __getitem__(self, index):
            sample = original(index)
            return dataclasses.replace(sample, image=(sample.image / 255 * top).astype(dtype))

    shown = PatchSource(Deep(), sizes=(40,), output=20, cutting="released", undivided=False)[0].image
    eight = PatchSource(Pictures(), sizes=(40,), output=20, cutting="released", undivided=False)[0].image
    assert shown.dtype == dtype and np.abs(shown / top * 255 - eight).max() < 1


def test_a_cell_that_vanishes_when_shrunk_is_no_cell():
    class Speck(Pictures):
        def __getitem__(self, index):
            labels = np.zeros((100, 100, 1), np.int32)
            labels[50, 50] = 1
            return Sample(np.zeros((100, 100, 1), np.uint8), labels, name="speck")

    assert PatchSource(Speck(), sizes=(99,), output=4, cutting="released").patches[-1].size == 0
    with pytest.raises(ValueError, match="none is left of 1 images"):
        PatchSource(Speck(), sizes=(99,), output=4, cutting="released", undivided=False)


# ---------------------------------------------------------------- parts
def test_parts_keep_groups_or_images_together_or_leak_by_name():
    pictures = Pictures(12)
    options = {"sizes": (20,), "overlap": 0.5, "output": 20}
    shared = {}
    for division in ("group", "image", "leaking"):
        parts = {part: PatchSource(pictures, **options, part=part, division=division) for part in ("train", "val")}
        everything = PatchSource(pictures, **options)
        assert sorted([*parts["train"].names, *parts["val"].names]) == sorted(everything.names)
        assert 0 < len(parts["val"]) < len(parts["train"])
        for kind, key in (("image", lambda p: p.index), ("group", lambda p: p.index // 2)):
            common = {key(p) for p in parts["train"].patches} & {key(p) for p in parts["val"].patches}
            shared[division, kind] = bool(common)
    assert shared == {("group", "image"): False, ("group", "group"): False, ("image", "image"): False, ("image", "group"): True,
                      ("leaking", "image"): True, ("leaking", "group"): True}
    with pytest.raises(ValueError, match="none is left"):
        PatchSource(Pictures(2), **options, part="val")     # one group cannot be divided
    for wrong in ({"part": "test"}, {"division": "random"}, {"output": 0}, {"cutting": "diced"}):
        with pytest.raises(ValueError):
            PatchSource(pictures, **(options | wrong))


# ---------------------------------------------------------------- in the pipeline
def test_any_source_of_a_config_can_be_cut():
    specs = {"a": {"kind": "synthetic", "count": 3, "size": 96, "seed": 1,
                   "cut": {"sizes": (48, 64), "overlap": 0.35, "output": 48}}}
    source = open_source(specs, root=".", cache_gb=0.1)
    assert len(source) > 30 and any("_ps64_" in name for name in source.names)
    batches = make_train_iterator(source, targets=lambda sample, rng: {"labels": sample.labels[..., 0]}, batch_size=4, crop=48,
                                  normalize={"name": "type_range"}, seed=0)
    batch, names = next(batches)
    assert batch["image"].shape == (4, 48, 48, 3) and batch["labels"].any() and set(names) <= set(source.names)
    specs["a"]["cut"]["overlaps"] = 0.5
    with pytest.raises(ValueError, match="source 'a': cut: .*overlaps.*patches.py"):
        open_source(specs, root=".", cache_gb=0.1)


def test_unlabelled_images_keep_all_patches_and_workers_get_the_plan():
    specs = {"a": {"kind": "synthetic", "count": 2, "size": 64, "seed": 1, "hide_labels": True, "cut": {"sizes": (32,)}}}
    source = open_source(specs, root=".", cache_gb=0.0)
    assert len(source) == 2 * (3 * 3 + 1) and source[0].labels is None
    again = pickle.loads(pickle.dumps(PatchSource(SyntheticSource(2, size=64, seed=1), sizes=(32,), output=32)))
    assert again[3].image.shape[:2] == (32, 32)
