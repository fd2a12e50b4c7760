"""Inner and outer distance by hand, cell by cell against scipy, and at the ends: nothing, everything, one pixel."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label, regionprops

from jaxcell.targets.distance import distance_classes, inner_distance, outer_distance


def touching_cells(seed, shape=(50, 60)):
    labels = np.zeros(shape, np.int32)
    y, x = np.indices(shape)
    rng = np.random.default_rng(seed)
    for number, (cy, cx) in enumerate(rng.integers(0, shape, (14, 2)), start=1):
        labels[((y - cy) / rng.integers(3, 11)) ** 2 + ((x - cx) / rng.integers(3, 11)) ** 2 < 1] = 10 * number
    return labels


def test_inner_distance_by_hand():
    labels = np.zeros((7, 9), np.int32)
    labels[2:5, 2:7] = 4
    inner = inner_distance(labels)
    assert inner.dtype == np.float32 and inner[3, 4] == 1 and not inner[labels == 0].any()
    assert inner[2, 2] == pytest.approx(1 / (1 + (1 + 4) / np.sqrt(15)))
    assert inner_distance(labels, alpha=0.1, beta=2.0)[3, 6] == pytest.approx(1 / (1 + 2 * 0.1 * 4))
    eroded = inner_distance(labels, erosion=1)
    assert np.count_nonzero(eroded) == 3 and eroded[3, 3] == pytest.approx(1 / (1 + 1 / np.sqrt(3)))


def test_outer_distance_by_hand():
    labels = np.zeros((7, 9), np.int32)
    labels[2:5, 1:4], labels[2:5, 4:7] = 1, 2
    row = outer_distance(labels)[3]
    np.testing.assert_allclose(row, [0, 0.5, 1, 1, 1, 1, 0.5, 0, 0])      # no border between cells that touch
    assert outer_distance(labels, erosion=1)[3].tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("erosion", (0, 1))
def test_distances_equal_the_definition_cell_by_cell(erosion):
    for seed in range(4):
        labels = touching_cells(seed)
        inner, outer = inner_distance(labels, erosion=erosion), outer_distance(labels, erosion=erosion)
        cells = np.where(inner > 0, labels, 0)
        depth = ndimage.distance_transform_edt(cells)
        for piece in regionprops(label(cells), depth):
            y, x = piece.coords.T
            cy, cx = piece.centroid_weighted
            expected = 1 / (1 + ((y - cy) ** 2 + (x - cx) ** 2) / np.sqrt(len(y)))
            np.testing.assert_allclose(inner[y, x], expected, rtol=1e-5)
            np.testing.assert_allclose(outer[y, x], depth[y, x] / depth[y, x].max(), rtol=1e-5)
        assert (inner > 0).sum() == (cells > 0).sum() and not outer[cells == 0].any()


def test_pieces_of_a_cell_have_centres_of_their_own():
    labels = np.zeros((5, 12), np.int32)
    labels[1:4, 1:4] = labels[1:4, 7:10] = 3
    assert inner_distance(labels)[2, 2] == inner_distance(labels)[2, 8] == 1


def test_one_cell_covering_all_nothing_and_one_pixel():
    whole = np.full((9, 11), 5, np.int32)
    assert inner_distance(whole)[4, 5] == outer_distance(whole)[4, 5] == 1 and outer_distance(whole)[0, 0] == np.float32(0.2)
    for function in (inner_distance, outer_distance):
        assert not function(np.zeros((4, 5), np.int32)).any()
        assert function(np.ones((1, 1), np.int32)).tolist() == [[1]]
        assert function(np.pad(np.ones((1, 1), np.int32), 2)).sum() == 1


def test_ignored_pixels_are_no_cell():
    labels = np.full((6, 8), -1, np.int32)
    labels[1:4, 1:4] = 2
    for function in (inner_distance, outer_distance):
        np.testing.assert_array_equal(function(labels), function(np.maximum(labels, 0)))


def test_distance_classes():
    assert distance_classes(np.asarray([[0, 0.2, 0.26, 0.5, 0.51, 1]]), 4).tolist() == [[0, 0, 1, 1, 2, 3]]
    assert distance_classes(np.zeros((2, 2)), 4).min() >= 0


def test_an_unknown_alpha_is_named():
    with pytest.raises(ValueError, match="alpha='automatic'"):
        inner_distance(np.ones((3, 3), np.int32), alpha="automatic")
