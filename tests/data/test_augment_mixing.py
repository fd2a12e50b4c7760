"""Mosaics and pasted cells: the pixels of every cell come with it, ids stay unique, what is not known stays to ignore."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
from data.cells_to_move import BACKGROUND, disc, scene
from scipy import ndimage

from jaxcell.data.augment import apply_mix, copy_paste, mosaic, soft_edges
from jaxcell.types import Sample


def plain(level: float, cells: int, *, size: int = 64, channels: int = 1, nuclei: bool = True, first: int = 1) -> Sample:
    """`cells` discs of radius 6 and one grey level on a grid, each with a nucleus of radius 2 and level + 0.02."""
    labels, inner = np.zeros((size, size, 1), np.int32), np.zeros((size, size), np.int32)
    image = np.full((size, size, channels), BACKGROUND, np.float32)
    for index in range(cells):
        y, x = 12 + 20 * (index // 3), 12 + 20 * (index % 3)
        cell, nucleus = disc(size, y, x, 6), disc(size, y, x, 2)
        labels[cell, 0], inner[nucleus] = first + index, first + index
        image[cell], image[nucleus] = level, level + 0.02
    return Sample(image, labels, nuclei=inner if nuclei else None, name=f"plain {level}")


def given(*samples: Sample):
    """A draw that gives these in turn."""
    rest = list(samples)
    return lambda rng: rest.pop(0)


def is_one_of(values: np.ndarray, *levels: float) -> np.ndarray:
    return np.isclose(values[..., None], levels, rtol=0, atol=1e-4).any(axis=-1)


def levels_of(sample: Sample) -> dict[int, float]:
    """id -> the grey level of most of its pixels."""
    masks = {int(i): (sample.labels == i).any(axis=-1) for i in np.unique(sample.labels) if i > 0}
    return {i: round(float(np.median(sample.image[mask])), 3) for i, mask in masks.items()}


def test_a_mosaic_is_made_of_tiles_of_all_samples():
    others = [plain(level, 9) for level in (0.5, 0.7, 0.9)]
    for seed in range(10):
        mixed = mosaic(plain(0.3, 9), given(*others), np.random.default_rng(seed))
        assert mixed.image.shape == (64, 64, 1) and mixed.labels.shape == (64, 64, 1) and mixed.name == "plain 0.3"
        found = levels_of(mixed)
        assert len(set(found.values())) >= 3
        for number, level in found.items():
            mask = mixed.labels[..., 0] == number
            assert is_one_of(mixed.image[mask], level, level + 0.02).all()
        assert {i for i, level in found.items() if level == 0.3} <= set(range(1, 10))       # its own ids
        np.testing.assert_array_equal(mixed.labels[..., 0][mixed.nuclei > 0], mixed.nuclei[mixed.nuclei > 0])
        np.testing.assert_array_equal(mixed.nuclei > 0, is_one_of(mixed.image[..., 0], 0.32, 0.52, 0.72, 0.92))


def test_mosaics_of_other_grids_keep_overlaps_and_large_ids():
    mixed = mosaic(scene(1), lambda rng: scene(1), np.random.default_rng(0), grid=(1, 3))
    assert mixed.image.shape == scene(1).image.shape and mixed.labels.shape[2] == 2
    numbers = np.unique(mixed.labels)
    overlapped = {tuple(pair) for pair in mixed.labels[(mixed.labels > 0).all(axis=-1)].tolist()}
    assert overlapped and numbers.min() >= -1 and len(numbers) > 4
    for below, above in overlapped:
        assert {levels_of(mixed)[below], levels_of(mixed)[above]} == {0.3, 0.7}


def test_what_is_not_annotated_stays_to_ignore():
    bare = Sample(np.full((64, 64, 1), 0.8, np.float32))
    mixed = mosaic(plain(0.3, 9), lambda rng: bare, np.random.default_rng(0))
    strange = mixed.image[..., 0] == np.float32(0.8)
    assert (mixed.labels[strange] == -1).all() and (mixed.labels[~strange] >= 0).all() and (mixed.nuclei[strange] == -1).all()
    for mix in (mosaic, copy_paste):
        assert mix(bare, lambda rng: plain(0.3, 9), np.random.default_rng(0)) is bare
    sample = plain(0.3, 2)
    assert copy_paste(sample, lambda rng: bare, np.random.default_rng(0)) is sample
    pasted = copy_paste(sample, lambda rng: plain(0.9, 5, nuclei=False), np.random.default_rng(0), count=(3, 3), sigma=0)
    new = ~np.isin(pasted.labels[..., 0], (0, 1, 2))
    assert new.any() and (pasted.nuclei[new] == -1).all()
    again = copy_paste(plain(0.5, 0), lambda rng: pasted, np.random.default_rng(0), count=(9, 9), sigma=0)
    for old, copy in ((0.9, -1), (0.3, 0)):     # what is not known of a cell goes with it
        where = is_one_of(again.image[..., 0], old)
        assert where.any() and (again.nuclei[where] == copy).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_pasted_cells_that_occlude_take_the_pixels_from_those_below(channels):
    crowded = dataclasses.replace(plain(0.3, 9, channels=channels), labels=np.full((64, 64, 1), 2 ** 31 - 1, np.int32))
    pasted = copy_paste(crowded, lambda rng: plain(0.9, 9, channels=channels), np.random.default_rng(0), count=(4, 4),
                        max_overlap=1.0, sigma=0)
    new = np.unique(pasted.labels)[:-1]
    assert pasted.labels.shape[2] == 1 and 2 <= len(new) <= 4 and new.max() < 30
    covered = pasted.labels[..., 0] < 2 ** 31 - 1
    np.testing.assert_array_equal(covered, (pasted.image > 0.8).all(axis=-1))
    np.testing.assert_array_equal(pasted.image[~covered], crowded.image[~covered])
    np.testing.assert_array_equal(pasted.nuclei[covered] > 0, (pasted.image[covered] > 0.91).all(axis=-1))
    assert crowded.labels.min() == 2 ** 31 - 1 and crowded.image.max() < 0.4        # the given sample is not written to


def test_transparent_cells_add_their_light_and_keep_their_pixels():
    target = plain(0.3, 0)
    target.labels[8:56, 8:56], target.image[8:56, 8:56] = 1, 0.3
    pasted = copy_paste(target, lambda rng: plain(0.5, 9, nuclei=False), np.random.default_rng(1), count=(3, 3), overlaps="add",
                        max_overlap=1.0, sigma=0)
    assert pasted.labels.shape[2] >= 2
    np.testing.assert_array_equal(pasted.labels[..., 0], target.labels[..., 0])
    new = pasted.labels[..., 1:].max(axis=-1)
    counts = np.count_nonzero(pasted.labels[..., 1:], axis=-1)
    assert len(np.unique(new)) == 4 and 1 not in new
    light = (pasted.image - target.image)[..., 0]
    np.testing.assert_allclose(light[counts == 0], 0)
    assert is_one_of(light[counts == 1], 0.4, 0.42).all()      # 0.5 (and 0.52 in the nucleus) less the background


def test_padding_is_no_background():
    """An image that is smaller than the crop is filled up with zeros, which its cells are not brighter than."""
    donor = plain(0.5, 9, nuclei=False)
    side = donor.image.shape[0]
    padded = dataclasses.replace(donor, image=np.pad(donor.image, [(0, 2 * side), (0, 2 * side), (0, 0)]),
                                 labels=np.pad(donor.labels, [(0, 2 * side), (0, 2 * side), (0, 0)]))
    target = plain(0.3, 0)
    target.image[...] = 0.3
    pasted = copy_paste(target, lambda rng: padded, np.random.default_rng(1), count=(3, 3), overlaps="add", max_overlap=0,
                        sigma=0)
    light = (pasted.image - target.image)[..., 0][(pasted.labels > 0).any(-1)]
    assert is_one_of(light, 0.4, 0.42).all() and len(light)


@pytest.mark.parametrize("overlaps", ["add", "occlude"])
def test_cells_are_pasted_into_standardised_images_as_into_others(overlaps):
    """Light and dark cells, so that sums leave the range at both ends, and are cut off there."""
    samples = [plain(level, 9) for level in (0.95, 0.01)]
    for sample in samples:
        sample.image[0, 0], sample.image[0, 1] = 0, 1
    spread = [dataclasses.replace(sample, image=5 * sample.image - 2) for sample in samples]
    pasted, changed = (copy_paste(one, lambda rng, donor=donor: donor, np.random.default_rng(1), count=(9, 9), overlaps=overlaps,
                                  max_overlap=1.0) for one, donor in (samples, spread))
    np.testing.assert_allclose(changed.image, 5 * pasted.image - 2, atol=1e-5)
    np.testing.assert_array_equal(changed.labels, pasted.labels)


def test_cells_are_pasted_whole_and_where_there_is_room():
    cut = plain(0.9, 9)
    cut = dataclasses.replace(cut, image=cut.image[10:], labels=cut.labels[10:], nuclei=cut.nuclei[10:])      # cuts the first row
    for seed in range(10):
        sample = plain(0.3, 5, first=2 ** 24)
        pasted = copy_paste(sample, lambda rng: cut, np.random.default_rng(seed), count=(1, 20), max_overlap=0.0)
        ids, sizes = np.unique(pasted.labels[pasted.labels > 0], return_counts=True)
        assert len(set(sizes.tolist())) == 1 and len(ids) <= 5 + 6 and pasted.labels.shape[2] == 1
        assert set(range(2 ** 24, 2 ** 24 + 5)) <= set(ids.tolist())
    full = Sample(np.zeros((64, 64, 1), np.float32), np.ones((64, 64, 1), np.int32))
    np.testing.assert_array_equal(copy_paste(full, lambda rng: cut, np.random.default_rng(0)).labels, full.labels)


def test_edges_are_soft_on_both_sides():
    mask = disc(41, 20, 20, 9)
    weight = soft_edges(mask, 2.0)
    np.testing.assert_allclose(weight, ndimage.gaussian_filter(mask.astype(np.float32), 2.0, mode="nearest"), atol=2e-3)
    sample = Sample(np.zeros((41, 41, 1), np.float32), np.zeros((41, 41, 1), np.int32))
    donor = Sample(np.ones((41, 41, 1), np.float32), mask.astype(np.int32)[..., None])
    pasted = copy_paste(sample, lambda rng: donor, np.random.default_rng(0), count=(1, 1), sigma=2.0)
    assert pasted.image.max() == pytest.approx(1, abs=0.01) and ((pasted.image > 0.01) & (pasted.image < 0.99)).sum() > 100


def test_mixes_are_taken_with_their_probability_and_are_deterministic():
    steps = ((0.5, mosaic), (0.5, partial(copy_paste, overlaps="add")))
    results = [apply_mix(scene(), np.random.default_rng(seed), steps, lambda rng: scene()) for seed in range(40)]
    again = apply_mix(scene(), np.random.default_rng(39), steps, lambda rng: scene())
    np.testing.assert_array_equal(again.image, results[-1].image)
    np.testing.assert_array_equal(again.labels, results[-1].labels)
    assert 3 <= sum(np.array_equal(r.image, scene().image) for r in results) <= 18
    with pytest.raises(ValueError, match="occlude, add"):
        copy_paste(scene(), lambda rng: scene(), np.random.default_rng(0), overlaps="blend")
