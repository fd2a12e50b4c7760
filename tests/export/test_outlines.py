"""Outlines along pixel edges: filled they give the mask back, no ring touches itself, and holes run the other way."""

from __future__ import annotations

import numpy as np
import pytest

from jaxcell.data.annotations.polygons import fill_rings
from jaxcell.export.outlines import pixel_outlines


def signed_area(ring: np.ndarray) -> float:
    y, x = ring.T.astype(float)
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def test_a_rectangle_has_four_corners_clockwise():
    assert [[ring.tolist() for ring in piece] for piece in pixel_outlines(np.ones((2, 3), bool))] == [
        [[[0, 0], [0, 3], [2, 3], [2, 0]]]]
    assert pixel_outlines(np.zeros((3, 3), bool)) == []


@pytest.mark.parametrize("seed", range(40))
def test_random_masks_come_back(seed):
    rng = np.random.default_rng(seed)
    for _ in range(25):
        mask = rng.random(rng.integers(1, 12, 2)) < rng.uniform(0.2, 0.9)
        filled = np.zeros(mask.shape, int)
        for outer, *holes in pixel_outlines(mask):
            rings = [outer, *holes]
            (y0, x0, y1, x1), piece = fill_rings([ring.astype(float) for ring in rings], mask.shape)
            filled[y0:y1, x0:x1] += piece
            assert signed_area(outer) > 0 and all(signed_area(hole) < 0 for hole in holes)
            assert sum(map(signed_area, rings)) == piece.sum()
            assert all(len(np.unique(ring, axis=0)) == len(ring) for ring in rings)
        np.testing.assert_array_equal(filled, mask)
