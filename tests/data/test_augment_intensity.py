"""Intensities stay in [0, 1], labels and the given sample stay as they are, formulas are those of their sources."""

from __future__ import annotations

import colorsys
import dataclasses
from functools import partial

import cv2
import numpy as np
import pytest
from scipy import ndimage, stats

from jaxcell.data import augment
from jaxcell.types import Sample

INTENSITY = [augment.blur, augment.smooth, augment.change_gamma, augment.change_contrast, augment.shift_histogram,
             augment.add_noise, augment.coarse_dropout, augment.shift_hsv, augment.shuffle_channels, augment.color_map]


def noise(channels: int = 3, size: int = 64) -> Sample:
    rng = np.random.default_rng(0)
    labels = np.zeros((size, size, 1), np.int32)
    labels[10:20, 10:22, 0] = 1
    return Sample(rng.random((size, size, channels), dtype=np.float32), labels, name="noise")


@pytest.mark.parametrize("step", INTENSITY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("gray", [False, True])
def test_intensity_steps_keep_range_shape_labels_and_the_given_sample(step, channels, gray):
    sample = noise(channels)
    if gray:
        sample = Sample(np.repeat(sample.image[..., :1], channels, axis=2), sample.labels)
    before = sample.image.copy()
    for seed in range(6):
        changed, again = (step(sample, np.random.default_rng(seed)) for _ in range(2))
        assert changed.image.shape == sample.image.shape and changed.image.dtype == np.float32
        assert changed.image.min() >= 0 and changed.image.max() <= 1
        assert changed.labels is sample.labels
        np.testing.assert_array_equal(sample.image, before)
        np.testing.assert_array_equal(again.image, changed.image)


@pytest.mark.parametrize("step", INTENSITY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_flat_and_tiny_images_stay_finite(step, value):
    for shape in ((1, 1, 3), (1, 9, 1), (6, 6, 3)):
        changed = step(Sample(np.full(shape, value, np.float32)), np.random.default_rng(0)).image
        assert changed.shape == shape and changed.min() >= 0 and changed.max() <= 1


def spread(sample: Sample) -> Sample:
    """As standardisation leaves it: values from -2 to 3."""
    return dataclasses.replace(sample, image=5 * sample.image - 2)


@pytest.mark.parametrize("step", [*INTENSITY, partial(augment.zoom_to_square, size=40)],
                         ids=lambda f: getattr(f, "__name__", "zoom_to_square"))
@pytest.mark.parametrize("gray", [False, True])
def test_standardised_images_change_as_others_do(step, gray):
    sample = noise()
    sample.image[0, 0], sample.image[0, 1] = 0, 1
    if gray:
        sample = dataclasses.replace(sample, image=np.repeat(sample.image[..., :1], 3, axis=2))
    options = {"fill": -2.0} if step is augment.coarse_dropout else {}
    for seed in range(4):
        draws = [] if isinstance(step, partial) else [np.random.default_rng(seed)]
        plain = spread(step(sample, *draws)).image
        draws = [] if isinstance(step, partial) else [np.random.default_rng(seed)]
        changed = step(spread(sample), *draws, **options).image
        assert changed.dtype == np.float32
        np.testing.assert_allclose(changed, plain, atol=0.03 if step is augment.color_map or not draws else 1e-3)


def test_blurs_by_hand():
    rng = np.random.default_rng(0)
    image = np.zeros((9, 9, 1), np.float32)
    image[4, 4] = 1
    np.testing.assert_allclose(augment.blur(Sample(image), rng, weights=(0, 0, 1)).image[3:6, 3:6], 1 / 9, atol=1e-6)
    assert not augment.blur(Sample(image), rng, weights=(0, 1, 0)).image.any()
    streak = augment.blur(Sample(image), rng, weights=(1, 0, 0)).image
    assert streak.sum() == pytest.approx(1, abs=1e-5) and 2 < (streak > 0).sum() <= 7
    picture = noise().image
    smooth = augment.smooth(Sample(picture), rng, deviation=(1.5, 1.5)).image
    np.testing.assert_allclose(smooth, ndimage.gaussian_filter(picture, (1.5, 1.5, 0), mode="mirror"), atol=1e-3)


def test_grey_levels_by_hand():
    rng = np.random.default_rng(0)
    half = Sample(np.full((4, 4, 3), 0.5, np.float32))
    np.testing.assert_allclose(augment.change_gamma(half, rng, limits=(2, 2)).image, 0.25, atol=1e-6)
    two = Sample(np.asarray([0.4, 0.6], np.float32).reshape(1, 2, 1))
    for factor, expected in ((2, [0.3, 0.7]), (9, [0, 1])):
        changed = augment.change_contrast(two, rng, contrast=(factor, factor), brightness=0)
        np.testing.assert_allclose(changed.image[0, :, 0], expected, atol=1e-6)


def test_histogram_shift_is_a_rising_polygon_between_the_images_extremes():
    ramp = np.linspace(0.2, 0.8, 601, dtype=np.float32)
    for seed in range(20):
        bent = augment.shift_histogram(Sample(ramp.reshape(1, -1, 1)), np.random.default_rng(seed), points=(3, 3)).image.ravel()
        assert bent[0] == pytest.approx(0.2, abs=1e-4) and bent[-1] == pytest.approx(0.8, abs=1e-4) and np.diff(bent).min() >= 0
        slopes = np.diff(bent) / np.diff(ramp)
        np.testing.assert_allclose(slopes[1:299], slopes[1], atol=0.1)      # one corner, at the middle of the range
        np.testing.assert_allclose(slopes[301:-1], slopes[302], atol=0.1)
    corners = [augment.shift_histogram(Sample(ramp.reshape(1, -1, 1)), np.random.default_rng(s), points=(3, 3)).image.ravel()[300]
               for s in range(400)]
    assert stats.kstest((np.asarray(corners) - 0.2) / 0.6, "uniform").pvalue > 0.01


def test_noise_is_normal_and_the_same_in_all_channels_of_a_grey_image():
    flat = Sample(np.full((300, 300, 1), 0.5, np.float32))
    values = (augment.add_noise(flat, np.random.default_rng(1), deviation=(0.1, 0.1)).image.ravel() - 0.5) / 0.1
    assert stats.kstest(values, "norm").pvalue > 0.01 and 3.5 < np.abs(values).max() < 4.4
    rng = np.random.default_rng(0)
    half, red = Sample(np.full((4, 4, 3), 0.5, np.float32)), Sample(np.full((4, 4, 3), (1, 0, 0), np.float32))
    assert np.ptp(augment.add_noise(half, rng).image, axis=2).max() == 0
    assert np.ptp(augment.add_noise(red, rng).image[..., 1:], axis=2).max() > 0


def test_holes_are_rectangles_of_the_asked_number_and_size():
    sample = Sample(np.ones((100, 200, 2), np.float32), np.ones((100, 200, 1), np.int32))
    for seed in range(20):
        hidden = augment.coarse_dropout(sample, np.random.default_rng(seed), holes=(1, 3), sides=(0.05, 0.1), fill=0.25)
        parts, count = ndimage.label((hidden.image == 0.25).all(axis=2))
        assert 1 <= count <= 3 and set(np.unique(hidden.image)) == {0.25, 1} and hidden.labels is sample.labels
        for box in ndimage.find_objects(parts):
            assert 5 <= box[0].stop - box[0].start <= 30 and 10 <= box[1].stop - box[1].start <= 60     # touching ones join


def test_colours_by_hand():
    rng = np.random.default_rng(0)
    half, red = Sample(np.full((4, 4, 3), 0.5, np.float32)), Sample(np.full((4, 4, 3), (1, 0, 0), np.float32))
    bone = cv2.applyColorMap(np.full((1, 1), 128, np.uint8), cv2.COLORMAP_BONE)[0, 0, ::-1] / 255
    np.testing.assert_allclose(augment.color_map(half, rng).image[0, 0], bone, atol=1e-6)
    np.testing.assert_allclose(augment.shift_hsv(red, rng, hue=0, saturation=0, value=0).image, red.image, atol=1e-6)
    order = augment.shuffle_channels(Sample(np.arange(5, dtype=np.float32).reshape(1, 1, 5) / 5), rng).image.ravel()
    assert sorted(order.tolist()) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("hue", [-60.0, 60.0, 170.0])
def test_hues_turn_through_zero(hue):
    class Draws:
        def uniform(self, low, high, size):
            return np.asarray([1.0, 0.0, 0.0])

    image = np.random.default_rng(0).random((5, 5, 3), dtype=np.float32)
    moved = augment.shift_hsv(Sample(image), Draws(), hue=hue, saturation=0, value=0).image
    before = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3)]
    expected = [colorsys.hsv_to_rgb((h + hue / 360) % 1, s, v) for h, s, v in before]
    np.testing.assert_allclose(moved.reshape(-1, 3), expected, atol=1e-3)


def test_steps_for_grey_and_for_coloured_images():
    rng = np.random.default_rng(0)
    half, red = Sample(np.full((4, 4, 3), 0.5, np.float32)), Sample(np.full((4, 4, 3), (1, 0, 0), np.float32))
    step = partial(augment.change_gamma, limits=(2, 2))
    assert augment.on_gray(step)(red, rng) is red and augment.on_color(step)(half, rng) is half
    assert augment.on_gray(step)(half, rng).image.max() == 0.25 and augment.on_color(step)(red, rng) is not red
