"""Three classes and the distance field: by hand, cell by cell against scikit-image and scipy, and at the ends."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import dilation, disk
from skimage.segmentation import find_boundaries

from jaxcell.targets.boundaries import boundary_radius, distance_target, three_classes


def overlapping_cells(seed, shape=(70, 80), count=16, step=7):
    """Cells that touch and lie on each other, at the image's edges too, whose numbers have gaps."""
    labels = np.zeros(shape, np.int32)
    y, x = np.indices(shape)
    rng = np.random.default_rng(seed)
    for number, (cy, cx) in enumerate(rng.integers(0, shape, (count, 2)), start=1):
        labels[((y - cy) / rng.integers(2, 25)) ** 2 + ((x - cx) / rng.integers(2, 25)) ** 2 < 1] = step * number
    return labels


def plain_classes(labels):
    """The reference's steps on whole images, one cell after another."""
    classes = np.zeros(labels.shape, np.int32)
    for number in np.unique(labels[labels > 0]):
        cell = labels == number
        band = dilation(find_boundaries(cell, mode="inner"), disk(int(np.ceil(np.sqrt(cell.sum()) / 40))))
        pieces = label(cell & ~band, connectivity=1)
        classes[band] = 2
        classes[np.isin(pieces, np.flatnonzero(np.bincount(pieces.ravel()) >= 16)) & (pieces > 0)] = 1
    return classes


@pytest.mark.parametrize("seed", range(6))
def test_classes_equal_the_plain_steps(seed):
    labels = overlapping_cells(seed)
    np.testing.assert_array_equal(three_classes(labels), plain_classes(labels))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("measure", ("edge", "centre"))
def test_distance_equals_the_definition_cell_by_cell(seed, measure):
    labels = overlapping_cells(seed)
    classes = three_classes(labels)
    target, depth = distance_target(labels, classes, measure=measure, beta=2.0), ndimage.distance_transform_edt(classes == 1)
    assert target.dtype == np.float32 and not target[labels == 0].any()
    for number in np.unique(labels[labels > 0]):
        y, x = np.nonzero(labels == number)
        away = depth[y, x].max() - depth[y, x] if measure == "edge" else np.hypot(y - y.mean(), x - x.mean())
        np.testing.assert_allclose(target[y, x], 1 / (1 + 2 * away / np.sqrt(len(y))), rtol=1e-5)


def test_by_hand():
    labels = np.zeros((12, 12), np.int32)
    labels[2:10, 2:10] = 5
    classes = three_classes(labels)
    assert (classes == 1).sum() == 16 and classes[4:8, 4:8].all() and classes[1, 5] == classes[3, 5] == 2 and classes[1, 1] == 0
    assert not (three_classes(labels, least_interior=17) == 1).any()
    target = distance_target(labels, classes)
    assert target[5, 5] == 1 and target[4, 4] == pytest.approx(1 / (1 + 1 / 8)) and target[2, 2] == pytest.approx(1 / (1 + 2 / 8))
    assert target[1, 5] == 0        # boundary outside of the cell


def test_boundaries_thicken_with_the_cell():
    assert [boundary_radius(area) for area in (1, 1600, 1601, 6400, 6401)] == [1, 1, 2, 2, 3]
    assert boundary_radius(400, divisor=5.0) == 2


def test_a_later_cell_covers_an_earlier_ones_boundary():
    labels = np.zeros((12, 24), np.int32)
    labels[:, :12], labels[:, 12:] = 1, 2
    classes = three_classes(labels)
    assert classes[6].tolist() == [1] * 10 + [2] * 4 + [1] * 10      # (the image's edge makes no boundary)
    swapped = three_classes(3 - labels)
    np.testing.assert_array_equal(swapped, classes[:, ::-1])


def test_gaps_in_the_numbers_change_nothing():
    labels = overlapping_cells(1, step=1)
    for other in (np.where(labels > 0, 1000 * labels, 0), np.where(labels > 0, labels + 2_000_000_000, 0).astype(np.int32)):
        classes = three_classes(other)
        np.testing.assert_array_equal(classes, three_classes(labels))
        np.testing.assert_array_equal(distance_target(other, classes), distance_target(labels, classes))


@pytest.mark.parametrize("labels", (np.zeros((9, 7), np.int32), np.full((9, 7), -1, np.int32), np.ones((9, 7), np.int32),
                                    np.ones((1, 1), np.int32), np.pad(np.ones((1, 1), np.int32), 3)))
@pytest.mark.parametrize("measure", ("edge", "centre"))
def test_nothing_everything_and_one_pixel(labels, measure):
    target = distance_target(labels, three_classes(labels), measure=measure)
    assert np.isfinite(target).all() and ((target > 0) == (labels > 0)).all() and target.max(initial=0) == (labels > 0).any()


def test_a_cell_without_interior_is_one_all_over():
    labels = np.pad(np.ones((3, 3), np.int32), 2)
    assert distance_target(labels, three_classes(labels)).sum() == 9


def test_an_unknown_measure_is_named():
    with pytest.raises(ValueError, match="measure='middle'"):
        distance_target(np.zeros((3, 3), np.int32), np.zeros((3, 3), np.int32), measure="middle")
