"""Semantic planes and overlap maps of small pictures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jaxcell.targets.overlaps import LOW, OVERLAP_MAPS, overlap_map
from jaxcell.targets.planes import PLANES, semantic_planes


def two_cells():
    """Two squares of 7 that share two columns; the first one's nucleus is one pixel."""
    labels, nuclei = np.zeros((12, 20, 2), np.int32), np.zeros((12, 20), np.int32)
    labels[2:9, 2:9, 0], labels[2:9, 7:14, 1] = 1, 2
    nuclei[5, 5], nuclei[5, 11] = 1, 2
    return labels, nuclei


def test_planes():
    labels, nuclei = two_cells()
    planes = semantic_planes(labels, nuclei, tuple(PLANES))
    assert all(plane.shape == (12, 20, 1) and plane.dtype == np.float32 for plane in planes.values())
    cells, shared, border = (planes[name][..., 0] for name in ("cytoplasm", "overlap", "border"))
    assert cells[2:9, 2:14].all() and cells.sum() == 7 * 12
    assert shared[2:9, 7:9].all() and shared.sum() == 14
    np.testing.assert_array_equal(planes["background"][..., 0], 1 - cells)
    np.testing.assert_array_equal(planes["nuclei"][..., 0], nuclei > 0)
    # An outline of one pixel, grown by one to either side: it runs through the other cell too.
    assert border[1:4, 1:10].all() and not border[4:7, 4:6].any() and border[5, [1, 3, 6, 7, 8, 9, 12, 14]].all()
    assert not border[5, [0, 4, 5, 10, 11, 15]].any()


def test_pixels_whose_nuclei_are_not_known_are_to_ignore():
    labels, nuclei = two_cells()
    nuclei[2:9, 9:14] = -1
    plane = semantic_planes(labels, nuclei, ("nuclei",))["nuclei"][..., 0]
    np.testing.assert_array_equal(plane, np.sign(nuclei))
    assert {-1, 0, 1} == set(plane.ravel().tolist())


def test_what_is_not_known_is_refused():
    labels, _ = two_cells()
    with pytest.raises(ValueError, match="does not know its nuclei"):
        semantic_planes(labels, None, ("nuclei",))
    with pytest.raises(ValueError, match="'membrane' is unknown"):
        semantic_planes(labels, None, ("membrane",))
    with pytest.raises(ValueError, match="v1.*use v2 or v4"):
        overlap_map(labels, None, "v1")
    with pytest.raises(ValueError, match="v9"):
        overlap_map(labels, None, "v9")


@pytest.mark.parametrize("name", OVERLAP_MAPS)
def test_maps_lie_between_0_and_1_and_are_low_where_overlaps_are_unlikely(name):
    labels, nuclei = two_cells()
    chances = overlap_map(labels, nuclei, name)[..., 0]
    assert chances.dtype == np.float32 and chances.min() >= 0 and chances.max() <= 1
    if name in ("v0", "v1", "v3"):
        assert chances[5, 5] == chances[5, 11] == np.float32(LOW)
    if name in ("v0", "v2", "v4"):
        assert (chances[(labels == 0).all(-1)] == np.float32(LOW)).all()
    if name in ("v2", "v3", "v4"):
        assert (chances[2:9, 7:9] == 1).all()


def test_v0_and_v4_by_hand():
    labels, nuclei = two_cells()
    away = np.hypot(3, 3)
    np.testing.assert_allclose(overlap_map(labels, nuclei, "v0")[5, 3, 0], 2 / away, rtol=1e-6)
    np.testing.assert_allclose(overlap_map(labels, nuclei, "v0")[5, 8, 0], max(3 / away, 3 / away), rtol=1e-6)
    # (5, 5) is 2 from the border of the other cell, whose farthest pixels are the left corners.
    farthest = np.hypot(3, 7)
    np.testing.assert_allclose(overlap_map(labels, nuclei, "v4")[5, 5, 0], 1 - np.log(3) / np.log1p(farthest), rtol=1e-6)


@pytest.mark.parametrize("name", OVERLAP_MAPS)
@pytest.mark.parametrize("case", ["nothing", "one cell covering all", "a single pixel"])
def test_maps_of_extremes_are_finite(name, case):
    labels, nuclei = np.zeros((6, 7, 1), np.int32), np.zeros((6, 7), np.int32)
    if case != "nothing":
        labels[... if case == "one cell covering all" else np.s_[2:3, 3:4]] = 5
        nuclei[2, 3] = 5
    assert np.isfinite(overlap_map(labels, nuclei, name)).all()
