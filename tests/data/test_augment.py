"""Geometry moves image and labels alike, labels are never blended, intensities stay in [0, 1]."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from jaxcell.data import augment
from jaxcell.data.augment import POLICIES, apply_steps, random_crop, rescale_to_cells
from jaxcell.types import Sample


def coordinates(height: int = 12, width: int = 20, channels: int = 3) -> Sample:
    """A sample whose image and layers carry the same numbers, so that any difference in their movement shows."""
    index = np.arange(height * width, dtype=np.int32).reshape(height, width)
    image = np.repeat((index / 1000).astype(np.float32)[..., None], channels, axis=2)
    labels = np.stack([index + 1, index + 1_000_001], axis=-1)
    return Sample(image, labels, nuclei=index, name="x")


def scene(channels: int = 3, size: int = 64) -> Sample:
    rng = np.random.default_rng(0)
    labels = np.zeros((size, size, 1), np.int32)
    labels[10:20, 10:22, 0], labels[30:50, 30:45, 0], labels[0:4, 50:60, 0] = 1, 70_000, -1
    return Sample(rng.random((size, size, channels), dtype=np.float32), labels, name="scene")


@pytest.mark.parametrize("step", [augment.flip, augment.rotate90, lambda s, r: random_crop(s, r, size=8)])
def test_geometry_moves_everything_together(step):
    for seed in range(12):
        moved = step(coordinates(), np.random.default_rng(seed))
        index = np.rint(moved.image[..., 0] * 1000).astype(np.int32)
        np.testing.assert_array_equal(moved.nuclei, index)
        np.testing.assert_array_equal(moved.labels, np.stack([index + 1, index + 1_000_001], axis=-1))


def test_flip_and_rotation_reach_every_orientation():
    for step, count in ((augment.flip, 4), (augment.rotate90, 4)):
        results = {step(coordinates(6, 6), np.random.default_rng(seed)).image.tobytes() for seed in range(60)}
        assert len(results) == count


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


def test_rescale_keeps_cells_within_bounds_and_labels_pure():
    rng, heights = np.random.default_rng(3), []
    for _ in range(40):
        sample = rescale_to_cells(scene(), rng, sizes=(5, 40), aspect_deviation=0.05)
        assert set(np.unique(sample.labels)) <= {-1, 0, 1, 70_000}
        assert sample.image.shape[:2] == sample.labels.shape[:2] and sample.image.dtype == np.float32
        heights += [(sample.labels == i).any(axis=(1, 2)).sum() for i in (1, 70_000)]
    assert min(heights) >= 4 and max(heights) <= 42       # a pixel of rounding either way
    assert min(heights) < 8 and max(heights) > 34
    blank = Sample(np.zeros((8, 8, 1), np.float32), np.zeros((8, 8, 1), np.int32))
    assert rescale_to_cells(blank, rng) is blank


def test_rescale_stops_at_the_largest_side_and_takes_many_planes():
    small = Sample(np.ones((32, 16, 7), np.float32), np.pad(np.ones((2, 2, 1), np.int32), ((0, 30), (0, 14), (0, 0))))
    for seed in range(10):
        sample = rescale_to_cells(small, np.random.default_rng(seed), largest_side=64, aspect_deviation=0)
        assert sample.image.shape[0] <= 64 and sample.image.shape[2] == 7
        np.testing.assert_allclose(sample.image, 1, atol=1e-6)


def test_image_and_labels_stay_aligned_under_rescaling():
    labels = np.zeros((64, 64, 1), np.int32)
    labels[16:48, 24:40] = 1
    sample = Sample(labels.astype(np.float32), labels)
    for seed in range(8):
        scaled = rescale_to_cells(sample, np.random.default_rng(seed), sizes=(8, 60), aspect_deviation=0.2)
        assert np.mean((scaled.image > 0.5) != (scaled.labels > 0)) < 0.02


INTENSITY = [augment.blur, augment.change_gamma, augment.change_contrast, augment.add_noise, augment.shift_hsv,
             augment.shuffle_channels, augment.color_map]


@pytest.mark.parametrize("step", INTENSITY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_intensity_steps_keep_range_shape_labels_and_the_given_sample(step, channels):
    sample = scene(channels)
    before = sample.image.copy()
    for seed in range(6):
        changed = step(sample, np.random.default_rng(seed))
        assert changed.image.shape == sample.image.shape and changed.image.dtype == np.float32
        assert changed.image.min() >= 0 and changed.image.max() <= 1
        assert changed.labels is sample.labels
        np.testing.assert_array_equal(sample.image, before)


def test_intensity_steps_by_hand():
    rng = np.random.default_rng(0)
    image = np.zeros((9, 9, 1), np.float32)
    image[4, 4] = 1
    blurred = augment.blur(Sample(image), rng, weights=(0, 0, 1)).image
    np.testing.assert_allclose(blurred[3:6, 3:6], 1 / 9, atol=1e-6)
    assert not augment.blur(Sample(image), rng, weights=(0, 1, 0)).image.any()
    streak = augment.blur(Sample(image), rng, weights=(1, 0, 0)).image
    assert streak.sum() == pytest.approx(1, abs=1e-5) and 2 < (streak > 0).sum() <= 7
    half = Sample(np.full((4, 4, 3), 0.5, np.float32))
    np.testing.assert_allclose(augment.change_gamma(half, rng, limits=(2, 2)).image, 0.25, atol=1e-6)
    bone = cv2.applyColorMap(np.full((1, 1), 128, np.uint8), cv2.COLORMAP_BONE)[0, 0, ::-1] / 255
    np.testing.assert_allclose(augment.color_map(half, rng).image[0, 0], bone, atol=1e-6)
    red = Sample(np.full((4, 4, 3), (1, 0, 0), np.float32))
    np.testing.assert_allclose(augment.shift_hsv(red, rng, hue=0, saturation=0, value=0).image, red.image, atol=1e-6)
    assert np.ptp(augment.add_noise(half, rng).image, axis=2).max() == 0      # grey stays grey
    assert np.ptp(augment.add_noise(red, rng).image[..., 1:], axis=2).max() > 0
    assert augment.on_gray(augment.blur)(red, rng) is red and augment.on_color(augment.blur)(half, rng) is half


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_deterministic_and_keep_ids(name):
    policy, sample = POLICIES[name], scene()
    for seed in range(20):
        first, second = (apply_steps(sample, np.random.default_rng(seed), (*policy.before, *policy.after)) for _ in range(2))
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.labels, second.labels)
        assert set(np.unique(first.labels)) <= {-1, 0, 1, 70_000}
        assert first.image.dtype == np.float32 and first.image.min() >= 0 and first.image.max() <= 1


def test_steps_are_taken_with_their_probability():
    steps = ((0.25, lambda sample, rng: Sample(1 - sample.image)),)
    black = Sample(np.zeros((1, 1, 1), np.float32))
    rng = np.random.default_rng(0)
    assert 0.2 < np.mean([apply_steps(black, rng, steps).image[0, 0, 0] for _ in range(1000)]) < 0.3
