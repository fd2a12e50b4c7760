"""Geometry moves image, layers and nuclei alike; labels are never blended; nothing comes from outside of the image."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from data.cells_to_move import BACKGROUND, INTENSITIES, scene
from scipy import ndimage

from jaxcell.data.augment import flip, in_place, random_crop, rescale, rescale_to_cells, rotate90, warp
from jaxcell.data.augment.geometry import draw_geometry
from jaxcell.types import Sample

GEOMETRIES = {
    "rotation": partial(warp, rotation=180), "zoom": partial(warp, zoom=(0.6, 1.7)), "shear": partial(warp, shear=25),
    "elastic": partial(warp, amplitude=5.0, spacing=24),
    "all": partial(warp, rotation=180, zoom=(0.8, 1.25), shear=10, amplitude=4, spacing=20),
    "rescale": partial(rescale, factors=(0.4, 2.0), aspect_deviation=0.1),
    "rescale_to_cells": partial(rescale_to_cells, sizes=(12, 80), aspect_deviation=0.1, largest_side=288),
}
IN_PLACE = {name: in_place(geometry) for name, geometry in GEOMETRIES.items()} | {"flip": flip, "rotate90": rotate90}


def coordinates(height: int = 12, width: int = 20, channels: int = 3) -> Sample:
    """A sample whose image and layers carry the same numbers, so that any difference in their movement shows."""
    index = np.arange(height * width, dtype=np.int32).reshape(height, width)
    image = np.repeat((index / 1000).astype(np.float32)[..., None], channels, axis=2)
    labels = np.stack([index + 1, index + 1_000_001], axis=-1)
    return Sample(image, labels, nuclei=index, name="x")


@pytest.mark.parametrize("step", [flip, rotate90, lambda s, r: random_crop(s, r, size=8)])
@pytest.mark.parametrize("channels", [1, 2, 3, 7, 40])
def test_mirrors_turns_and_crops_move_everything_together(step, channels):
    for seed in range(12):
        moved = step(coordinates(channels=channels), np.random.default_rng(seed))
        index = np.rint(moved.image[..., 0] * 1000).astype(np.int32)
        assert (moved.image == moved.image[..., :1]).all() and moved.image.shape[2] == channels
        np.testing.assert_array_equal(moved.nuclei, index)
        np.testing.assert_array_equal(moved.labels, np.stack([index + 1, index + 1_000_001], axis=-1))


def test_flip_and_rotation_reach_every_orientation():
    for step, expected in ((flip, {a[::y, ::x].tobytes() for a in [coordinates(6, 6).nuclei] for y in (1, -1) for x in (1, -1)}),
                           (rotate90, {np.rot90(coordinates(6, 6).nuclei, k).tobytes() for k in range(4)})):
        assert {step(coordinates(6, 6), np.random.default_rng(seed)).nuclei.tobytes() for seed in range(60)} == expected


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_labels_stay_on_their_cells(name, channels):
    """Every grey level is found under its own label, whatever the geometry; ids of any size, overlaps and -1 are kept."""
    seen = set()
    for seed in range(6):
        moved = IN_PLACE[name](scene(channels), np.random.default_rng(seed))
        assert moved.image.dtype == np.float32 and moved.labels.dtype == np.int32 and moved.image.shape[2] == channels
        assert moved.image.shape[:2] == moved.labels.shape[:2] == moved.nuclei.shape and moved.labels.shape[2] == 2
        assert set(np.unique(moved.labels)) <= {0, *INTENSITIES} and set(np.unique(moved.nuclei)) <= {0, 7, 2 ** 24 + 1}
        for number, intensity in INTENSITIES.items():
            mask = (moved.labels == number).any(axis=-1)
            if number == 7:
                mask &= moved.labels[..., 1] == 0       # drawn below the cell of the other layer
            inside = ndimage.binary_erosion(mask, iterations=3, border_value=1)
            np.testing.assert_allclose(moved.image[inside], intensity, atol=2e-3)
            if inside.any():
                seen.add(number)
        for number in (7, 2 ** 24 + 1):
            assert (moved.labels[moved.nuclei == number] == number).any(axis=-1).all()
        background = ndimage.binary_erosion((moved.labels == 0).all(axis=-1) & (moved.image[..., 0] > 0), iterations=3)
        np.testing.assert_allclose(moved.image[background], BACKGROUND, atol=2e-3)
    assert seen == set(INTENSITIES)
    again = IN_PLACE[name](scene(channels), np.random.default_rng(5))
    np.testing.assert_array_equal(again.image, moved.image)
    np.testing.assert_array_equal(again.labels, moved.labels)


def test_outside_of_the_image_is_empty_not_a_mirror():
    for seed in range(8):
        moved = in_place(partial(warp, rotation=180, zoom=(0.5, 0.7)))(scene(), np.random.default_rng(seed))
        outside = ndimage.binary_erosion(moved.image[..., 0] == 0, iterations=1)
        assert outside.mean() > 0.2 and not moved.labels[outside].any() and not moved.nuclei[outside].any()


def test_a_large_image_is_never_seen_from_outside():
    sample = Sample(np.ones((300, 300, 1), np.float32), np.ones((300, 300, 1), np.int32))
    for seed in range(60):
        rng = np.random.default_rng(seed)
        side, finish = warp(sample, rng, 40, rotation=180, zoom=(0.5, 2), shear=30, amplitude=6, spacing=24)
        crop = finish(random_crop(sample, rng, size=side, pad=False), rng)
        assert crop.image.shape == (40, 40, 1) and crop.image.min() > 0.999 and crop.labels.all()


def test_warp_against_scipy():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.random((70, 70)), 3).astype(np.float32)
    sample = Sample(smooth[..., None], rng.integers(0, 2 ** 31 - 1, (70, 70, 1), dtype=np.int32))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        _, finish = warp(sample, rng, 31, rotation=180, zoom=(0.6, 2), shear=20)
        moved = finish(sample, np.random.default_rng(1))
        draws = np.random.default_rng(1).uniform(-0.5, 0.5, 2)
        matrix = finish.keywords["matrix"]
        free = 70 - 31 * np.abs(matrix).sum(axis=1)         # the region is larger than needed: the place is drawn
        offsets = np.stack(np.meshgrid(np.arange(31), np.arange(31), indexing="ij")) - 15
        places = np.einsum("ij,jyx->iyx", matrix, offsets) + (34.5 + draws * free)[:, None, None]
        np.testing.assert_allclose(moved.image[..., 0], ndimage.map_coordinates(smooth, places, order=1), atol=2e-3)
        nearest = ndimage.map_coordinates(sample.labels[..., 0], places, order=0)
        ties = (np.abs(places % 1 - 0.5) < 1e-3).any(axis=0)
        np.testing.assert_array_equal(moved.labels[..., 0][~ties], nearest[~ties])


def test_warp_without_options_changes_nothing_and_turns_by_its_angle():
    same = in_place(warp)(scene(), np.random.default_rng(0))
    np.testing.assert_array_equal(same.image, scene().image)
    np.testing.assert_array_equal(same.labels, scene().labels)
    angles = [np.degrees(np.arctan2(m[0, 1], m[0, 0])) for m in
              (warp(scene(), np.random.default_rng(seed), 9, rotation=30)[1].keywords["matrix"] for seed in range(200))]
    assert -30 <= min(angles) < -25 and 25 < max(angles) <= 30 and abs(np.mean(angles)) < 5


def test_elastic_deformation_is_bounded_smooth_and_does_not_fold():
    rows, columns = np.meshgrid(*[np.arange(120, dtype=np.float32)] * 2, indexing="ij")
    sample = Sample(np.stack([rows, columns], axis=-1))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        side, finish = warp(sample, rng, 80, amplitude=6.0, spacing=24.0)
        assert side == 92
        places = finish(sample, rng).image
        (y_y, y_x), (x_y, x_x) = (np.gradient(places[..., axis]) for axis in (0, 1))
        assert (y_y * x_x - y_x * x_y).min() > 0
        # The window lies in the middle of the 120 pixels up to the place that is drawn, which is the same for all its pixels.
        displacement = places - np.stack([rows, columns], axis=-1)[:80, :80]
        displacement -= displacement.mean(axis=(0, 1))
        assert 1 < np.abs(displacement).max() < 7 and 0.5 < displacement.std() < 3


@pytest.mark.parametrize("options, message",
                         [({"zoom": (0.3, 1)}, "zoom"), ({"shear": 50}, "shear"), ({"amplitude": 9}, "folds")])
def test_warp_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        warp(scene(), np.random.default_rng(0), 32, **options)


def test_crop_pads_small_images_with_zeros_at_the_end():
    sample = random_crop(coordinates(3, 20), np.random.default_rng(0), size=8)
    assert sample.image.shape == (8, 8, 3) and sample.labels.shape == (8, 8, 2)
    assert (sample.labels[:3] > 0).all() and not sample.labels[3:].any() and not sample.image[3:].any()
    assert random_crop(coordinates(3, 20), np.random.default_rng(0), size=8, pad=False).image.shape == (3, 8, 3)


def test_crop_drops_layers_without_cells_and_keeps_one():
    labels = np.zeros((8, 8, 3), np.int32)
    labels[..., 2] = 5
    sample = Sample(np.zeros((8, 8, 1), np.float32), labels)
    np.testing.assert_array_equal(random_crop(sample, np.random.default_rng(0), size=4).labels, np.full((4, 4, 1), 5))
    empty = Sample(np.zeros((8, 8, 1), np.float32), 0 * labels)
    assert random_crop(empty, np.random.default_rng(0), size=4).labels.shape == (4, 4, 1)


def test_empty_crops_can_be_rejected():
    labels = np.zeros((64, 64, 1), np.int32)
    labels[:30] = 1
    sample = Sample(np.zeros((64, 64, 1), np.float32), labels)

    def share(reject):
        rng = np.random.default_rng(0)
        crops = [random_crop(sample, rng, size=16, reject_empty=reject) for _ in range(1000)]
        return np.mean([crop.labels.any() for crop in crops])

    # 30 of 49 rows are good; half of the others are drawn again
    np.testing.assert_allclose([share(0.0), share(0.5), share(1.0)], [30 / 49, 60 / 79, 1], atol=0.04)


def two_cells() -> Sample:
    labels = np.zeros((64, 64, 1), np.int32)
    labels[10:20, 10:22, 0], labels[30:50, 30:45, 0], labels[0:4, 50:60, 0] = 1, 70_000, -1
    return Sample(np.random.default_rng(0).random((64, 64, 3), dtype=np.float32), labels, name="two")


def test_rescale_to_cells_keeps_cells_within_bounds():
    rng, heights = np.random.default_rng(3), []
    step = in_place(partial(rescale_to_cells, sizes=(5, 40), aspect_deviation=0.05))
    for _ in range(40):
        sample = step(two_cells(), rng)
        assert set(np.unique(sample.labels)) <= {-1, 0, 1, 70_000}
        heights += [(sample.labels == i).any(axis=(1, 2)).sum() for i in (1, 70_000)]
    assert min(heights) >= 4 and max(heights) <= 42       # a pixel of rounding either way
    assert min(heights) < 8 and max(heights) > 34
    blank = Sample(np.zeros((8, 8, 1), np.float32), np.zeros((8, 8, 1), np.int32))
    assert in_place(rescale_to_cells)(blank, rng) is blank


def test_rescale_to_cells_stops_at_the_largest_side_and_takes_many_planes():
    small = Sample(np.ones((32, 16, 7), np.float32), np.pad(np.ones((2, 2, 1), np.int32), ((0, 30), (0, 14), (0, 0))))
    for seed in range(10):
        sample = in_place(partial(rescale_to_cells, largest_side=64, aspect_deviation=0))(small, np.random.default_rng(seed))
        assert sample.image.shape[0] <= 64 and sample.image.shape[2] == 7
        np.testing.assert_allclose(sample.image, 1, atol=1e-6)


def test_rescale_draws_its_factor_and_asks_only_for_the_region_it_needs():
    factors, sample = [], Sample(np.zeros((900, 900, 1), np.float32))
    for seed in range(300):
        side, finish = rescale(sample, np.random.default_rng(seed), 64, factors=(0.25, 2.0))
        y, x = finish.keywords["factors"]
        assert y == x and side == int(np.ceil(64 / y))
        region = random_crop(sample, np.random.default_rng(0), size=side, pad=False)
        assert 64 <= finish(region, np.random.default_rng(0)).image.shape[0] <= 66
        factors.append(y)
    assert 0.25 <= min(factors) < 0.3 and 1.9 < max(factors) <= 2 and abs(np.mean(factors) - 1.125) < 0.1


def test_rescale_does_not_shrink_images_into_a_corner_of_the_crop():
    small = Sample(np.zeros((80, 400, 1), np.float32))
    for least, floor in ((1.0, 0.8), (0.5, 0.4)):
        drawn = [rescale(small, np.random.default_rng(seed), 64, factors=(0.1, 1.0), least=least)[1].keywords["factors"]
                 for seed in range(200)]
        assert np.min(drawn) == pytest.approx(floor) and np.max(drawn) > 0.9 and all(y == x for y, x in drawn)


def test_at_most_one_geometry_is_drawn_each_with_its_probability():
    choices = [(0.2, lambda s, r, n: (1, "a")), (0.5, lambda s, r, n: (2, "b"))]
    rng, sample = np.random.default_rng(0), scene()
    drawn = [draw_geometry(sample, rng, 9, choices)[0] for _ in range(4000)]
    np.testing.assert_allclose([np.mean(np.equal(drawn, side)) for side in (1, 2, 9)], [0.2, 0.5, 0.3], atol=0.03)
