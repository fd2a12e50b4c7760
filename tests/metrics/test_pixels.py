"""Foreground counts by hand."""

import numpy as np
import pytest
from metrics.cells import dense, random_cells, squares

from jaxcell.metrics.pixels import foreground, pixel_counts


def test_by_hand():
    # Overlapping cells cover a pixel once: truth 0..15 of a row of 5, prediction 10..20.
    truth, prediction = squares((0, 0, 5, 10), (0, 5, 5, 15)), squares((0, 10, 5, 20))
    counts = pixel_counts(truth, prediction)
    assert (counts.intersection, counts.truth, counts.prediction) == (25, 75, 50)
    assert counts.dice == pytest.approx(50 / 125) and counts.iou == pytest.approx(25 / 100)
    both = counts + pixel_counts(squares(), squares((0, 0, 5, 5)))
    assert both.dice == pytest.approx(50 / 150)
    assert np.isnan(pixel_counts(squares(), squares()).dice)
    with pytest.raises(ValueError, match="same image"):
        pixel_counts(truth, np.zeros((3, 3), np.int32))


def test_foreground_is_the_union():
    cells = random_cells(np.random.default_rng(0), 20)
    np.testing.assert_array_equal(foreground(cells), dense(cells).any(0))
