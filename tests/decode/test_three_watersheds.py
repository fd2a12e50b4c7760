"""Three floods: the released script's plain calls, targets that give the cells back, and the ends where the script stops."""

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.measure import label
from skimage.morphology import remove_small_objects

from jaxcell.decode.three_watersheds import (
    class_probabilities,
    flood,
    interior_pieces,
    kernel_size,
    local_maxima,
    three_watersheds,
    watershed_stages,
)
from jaxcell.targets.boundaries import distance_target, three_classes

BONE = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)     # as far as 0 and 1 go


def cells(rng, shape=(150, 180), count=40):
    labels = np.zeros(shape, np.int32)
    y, x = np.indices(shape)
    for number, (cy, cx) in enumerate(rng.integers(0, shape, (count, 2)), start=1):
        inside = ((y - cy) / rng.integers(4, 14)) ** 2 + ((x - cx) / rng.integers(4, 14)) ** 2 < 1
        labels[inside & (labels == 0)] = number
    return labels


def maps(rng, noise):
    """(probabilities, distance) of random cells, blurred and noisy."""
    labels = cells(rng)
    classes = three_classes(labels)
    blurred = [ndimage.gaussian_filter((classes == k).astype(np.float32), 1) for k in range(3)]
    probabilities = np.stack(blurred, -1) + noise * rng.standard_normal((*labels.shape, 3)).astype(np.float32)
    distance = distance_target(labels, classes)
    return np.clip(probabilities, 0, 1), distance + noise * rng.standard_normal(labels.shape).astype(np.float32)


def small_removed(mask, least):
    return remove_small_objects(mask, max_size=least - 1) if least > 1 else mask


def plain(probabilities, distance):
    """The released script's calls in its order."""
    foreground, inner = probabilities[..., 0] < 0.3, small_removed(probabilities[..., 1] > 0.7, 16)
    kernel = int(np.sqrt(int(inner.sum() / label(inner).max())))
    kernel += 1 if kernel % 2 == 0 else 2
    blurred = cv2.GaussianBlur(distance, (kernel, kernel), 0)

    def run(markers, picture):
        basins = np.where(markers > 0, markers + 1, np.where(foreground, 0, 1)).astype(np.int32)
        return cv2.watershed(np.ascontiguousarray(BONE[picture.astype(np.uint8)]), basins)

    def cells_of(basins):
        return np.where(basins > 1, basins - 1, 0)

    first = run(label((blurred > np.float32(0.85 * float(blurred.max()))) & inner), inner)
    peaks = np.zeros(inner.shape, bool)
    peaks[tuple(peak_local_max(blurred, min_distance=kernel // 4, threshold_rel=0.6).T)] = True
    left = inner & (first == 1)
    second = cells_of(run(label(peaks & left), left))
    first = cells_of(first)
    result = cells_of(run(first + second + first.max() * (second > 0), foreground))
    kept = small_removed(result > 0, int((result > 0).sum() / result.max() / 10))
    return np.where(kept, result, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", (0.0, 0.05, 0.3))
def test_equals_the_plain_calls(seed, noise):
    probabilities, distance = maps(np.random.default_rng(seed), noise)
    found = three_watersheds(probabilities, distance)
    assert found.dtype == np.int32 and found.max() > 5
    np.testing.assert_array_equal(found, plain(probabilities, distance))


@pytest.mark.parametrize("seed", range(60))
def test_local_maxima_are_scikit_images(seed):
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.standard_normal((50, 60)), rng.uniform(0.3, 3)).astype(np.float32)
    step = rng.choice([0.0, 0.02, 0.1, 0.3]) * np.ptp(image)
    image = image if not step else (np.round(image / step) * step).astype(np.float32)      # plateaus
    distance, threshold = int(rng.integers(1, 9)), 0.6 * float(image.max())
    expected = np.zeros(image.shape, bool)
    expected[tuple(peak_local_max(image, min_distance=distance, threshold_abs=max(image.min(), np.float32(threshold))).T)] = True
    np.testing.assert_array_equal(local_maxima(image, threshold=threshold, distance=distance), expected)


def test_targets_give_the_cells_back():
    labels, (y, x) = np.zeros((120, 150), np.int32), np.indices((120, 150))
    for number in range(12):
        labels[np.hypot(y - 20 - 26 * (number // 4), x - 20 - 26 * (number % 4)) < 11] = number + 1
    classes = three_classes(labels)
    found = three_watersheds(np.eye(3, dtype=np.float32)[classes], distance_target(labels, classes))
    assert len(np.unique(found)) == 13
    for number in range(1, 13):
        inner = found[(labels == number) & (classes == 1)]
        assert np.count_nonzero(inner == inner[len(inner) // 2]) > 0.9 * len(inner) and inner[len(inner) // 2]


def test_peaks_begin_the_cells_that_have_no_skeleton():
    """Two cells: the field of the right one stays below 0.85 of the left one's."""
    probabilities, distance = np.zeros((60, 120, 3), np.float32), np.zeros((60, 120), np.float32)
    probabilities[..., 0] = 1
    y, x = np.indices(distance.shape)
    for cx, height in ((30, 1.0), (90, 0.8)):
        away = np.hypot(y - 30, x - cx)
        probabilities[away < 15, 0] = 0
        probabilities[away < 13, 1] = 1
        distance += height * np.exp(-(away / 10) ** 2).astype(np.float32)
    stages = watershed_stages(probabilities, distance)
    assert stages.skeletons.max() == 1 and stages.peak_markers.max() == 1
    found = three_watersheds(probabilities, distance)
    assert found[30, 30] == 1 and found[30, 90] == 2
    assert (found > 0).sum() > 0.8 * (probabilities[..., 0] < 0.3).sum()      # all but the line around the foreground
    assert three_watersheds(probabilities, distance, peak_threshold=0.9)[30, 90] == 0
    assert watershed_stages(probabilities, distance, skeleton="absolute", skeleton_threshold=0.5).skeletons.max() == 2


@pytest.mark.parametrize("background, interior, distance", [
    (1.0, 0.0, 0.0),        # nothing
    (0.0, 0.5, 1.0),        # foreground without interior
    (0.0, 1.0, 0.0),        # interior without any marker: a flat distance
    (0.0, 1.0, -1.0),
])
def test_where_the_released_script_stops_there_are_no_cells(background, interior, distance):
    probabilities = np.zeros((40, 50, 3), np.float32)
    probabilities[..., 0], probabilities[..., 1] = background, interior
    found = three_watersheds(probabilities, np.full((40, 50), distance, np.float32))
    assert found.shape == (40, 50) and not found.any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2), (3, 50), (7, 7)])
def test_thin_images_have_an_answer(shape):
    probabilities = np.zeros((*shape, 3), np.float32)
    probabilities[..., 1] = 1
    for least in (1, 16):
        found = three_watersheds(probabilities, np.random.default_rng(0).random(shape, np.float32), least_interior=least)
        assert found.shape == shape and found.dtype == np.int32


def test_one_cell_covering_all():
    probabilities = np.zeros((60, 60, 3), np.float32)
    probabilities[..., 1] = 1
    y, x = np.indices((60, 60))
    found = three_watersheds(probabilities, np.exp(-((y - 30) ** 2 + (x - 30) ** 2) / 400).astype(np.float32))
    assert (found == 1).sum() == 58 * 58 and not found[0].any()


def test_small_foreground_goes_and_touching_cells_count_as_one():
    probabilities, distance = maps(np.random.default_rng(0), 0.0)
    everything, large = (three_watersheds(probabilities, distance, small_fraction=f) for f in (0.0, 1.0))
    pieces, _ = ndimage.label(everything > 0)
    least = int((everything > 0).sum() / everything.max())
    np.testing.assert_array_equal(large > 0, (np.bincount(pieces.ravel()) >= least)[pieces] & (everything > 0))


def test_kernel_sizes_are_odd():
    assert [kernel_size(area) for area in (16, 25, 30, 36, 274, 175, 33)] == [5, 7, 7, 7, 17, 15, 7]


def test_background_floods_the_ring_before_it_enters_the_interior():
    foreground, inside = np.zeros((13, 19), bool), np.zeros((13, 19), bool)
    foreground[3:10, 3:16], inside[5:8, 5:14] = True, True
    markers = np.zeros((13, 19), np.int32)
    markers[6, 6] = 1
    basins = flood(foreground, markers, inside)
    assert (basins[6, 6:13] == 2).all() and (basins[~inside] != 2).all()


def test_probabilities_are_a_softmax_whose_proxy_is_dropped():
    logits = np.random.default_rng(0).normal(0, 30, (300, 4, 4)).astype(np.float32)
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    found = class_probabilities(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (powers / powers.sum(-1, keepdims=True))[..., :3], atol=1e-6)


def test_interior_pieces_without_a_distance():
    probabilities = np.zeros((30, 40, 3), np.float32)
    probabilities[2:10, 2:10, 1] = probabilities[10:20, 10:20, 1] = probabilities[2:5, 30:33, 1] = 0.6
    probabilities[5, 5, 1] = 0
    found = interior_pieces(probabilities)
    assert found.max() == 1 and found[5, 5] == found[15, 15] == 1 and found[3, 31] == 0
    assert interior_pieces(probabilities, least=9)[3, 31] == 2 and interior_pieces(probabilities, holes=1)[5, 5] == 0


def test_wrong_maps_and_names_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 5, 1\)"):
        three_watersheds(np.zeros((4, 5, 3), np.float32), np.zeros((4, 5, 1), np.float32))
    with pytest.raises(ValueError, match="skeleton='both'"):
        three_watersheds(np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.float32), skeleton="both")
