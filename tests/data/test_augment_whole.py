"""Whole pictures brought to a square: labels move with the image, nothing is cut off, chances are as released."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from jaxcell.data.augment import rotate_nearest, training_item, turn_and_mirror, zoom_to_square
from jaxcell.types import Sample


def sample(height: int = 40, width: int = 30) -> Sample:
    labels = np.zeros((height, width, 2), np.int32)
    labels[5:15, 4:20, 0], labels[10:30, 12:26, 1], labels[-3:, :4, 0] = 100_000, 7, -1
    image = (labels.max(-1, keepdims=True) > 0) * np.float32(200 / 255)
    return Sample(image, labels, np.minimum(labels[..., 0], 5), name="x")


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("axis", [0, 1])
def test_turning_moves_image_labels_and_nuclei_together(turns, axis):
    before, after = sample(), turn_and_mirror(sample(), turns=turns, axis=axis)
    for key in ("image", "labels", "nuclei"):
        np.testing.assert_array_equal(vars(after)[key], np.flip(np.rot90(vars(before)[key], turns), axis))
    assert after.image.shape[:2] == ((40, 30), (30, 40))[turns % 2]


def test_rotation_keeps_size_and_labels_on_their_cells():
    after = rotate_nearest(sample(), angle=-13)
    assert after.image.shape == (40, 30, 1) and set(np.unique(after.labels)) <= {-1, 0, 7, 100_000}
    np.testing.assert_array_equal(after.image[..., 0] > 0, after.labels.max(-1) > 0)
    there_and_back = rotate_nearest(after, angle=13)
    same = (there_and_back.labels == sample().labels)[8:-8, 8:-8]
    assert same.mean() > 0.93 and (after.labels != sample().labels).mean() > 0.05


def test_zoom_is_of_the_whole_picture_in_8_bits():
    shown = zoom_to_square(sample(), size=60)
    assert shown.image.shape == (60, 60, 1) and shown.labels.shape == (60, 60, 2) and shown.nuclei.shape == (60, 60)
    assert set(np.unique(shown.labels)) == {-1, 0, 7, 100_000} and shown.labels[-1, 0, 0] == -1
    np.testing.assert_allclose(shown.image * 255, np.rint(shown.image * 255), atol=1e-4)
    assert shown.image.dtype == np.float32 and 200 / 255 < shown.image.max() <= 1, "the spline overshoots"
    agree = (shown.image[..., 0] > 0.4) == (shown.labels.max(-1) > 0)
    assert agree.mean() > 0.95
    square = zoom_to_square(sample(20, 20), size=20)
    np.testing.assert_array_equal(square.image, sample(20, 20).image)


def test_chances_are_as_released():
    counts, angles = Counter(), set()
    for seed in range(400):
        _, change = training_item(sample(), np.random.default_rng(seed), 32)
        steps = change.keywords["steps"]
        assert steps[-1].func is zoom_to_square
        counts[steps[0].func.__name__] += 1
        angles |= {step.keywords["angle"] for step in steps if "angle" in step.keywords}
    assert 0.42 < counts["turn_and_mirror"] / 400 < 0.58 and 0.19 < counts["rotate_nearest"] / 400 < 0.31
    assert min(angles) >= -20 and max(angles) <= 19 and len(angles) > 30


def test_the_item_has_all_of_the_picture():
    for seed in range(6):
        side, change = training_item(sample(), np.random.default_rng(seed), 32)
        shown = change(sample(), np.random.default_rng(0))
        assert side == 40 and shown.image.shape == (32, 32, 1)
        share = (shown.labels > 0).any(-1).mean() / (sample().labels > 0).any(-1).mean()
        assert 0.85 < share < 1.15
