"""Fills outlines whose coordinates count pixel edges, as those of QuPath and of ImageJ's area selections do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxcell.data.annotations.crops import EMPTY, Crop

__all__ = ["fill_rings", "ring"]

LARGEST = 1e7           # no image has so many pixels a side
MOST_CROSSINGS = 2**24  # edges times rows: no cell's outline is 16 million pixels long, and memory grows with it


def ring(xy: object) -> np.ndarray:
    """A closed line from a list of (x, y); the first point may be repeated at its end.

    Returns:
      [P, 2] float64 (y, x).

    Raises:
      ValueError: anything but finite pairs of numbers (a third number, the height, is left out).
    """
    try:
        points = np.asarray(xy, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("its outline is no list of points [x, y]") from error
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise ValueError(f"its outline has the shape {points.shape}, but must be a list of points [x, y]")
    points = points[:, 1::-1]
    if (strange := points[~(np.abs(points) < LARGEST)]).size:
        raise ValueError(f"its outline has coordinates that are no places in an image, such as {strange[0]}")
    return points


def fill_rings(rings: Sequence[np.ndarray], shape: tuple[int, int]) -> Crop:
    """The pixels whose centre lies inside closed rings, by the even-odd rule: a ring inside another is a hole.

    Pixel (0, 0) is the square from (0, 0) to (1, 1). A centre on a border belongs to the left, or lower, of the two regions that
    share the border, so neighbours with a common border neither overlap nor leave a gap. What lies outside the image is cut off.

    Args:
      rings: each [P, 2] float64 (y, x).
      shape: (H, W).

    Returns:
      A crop; `EMPTY` where no centre lies inside.

    Raises:
      ValueError: the outline is longer than any cell's.

    Source: ImageJ 1.53, ij/process/PolygonFiller.java (which borders are inside).
    """
    height, width = shape
    starts = np.concatenate(rings) if rings else np.zeros((0, 2))
    stops = np.concatenate([np.roll(points, -1, axis=0) for points in rings]) if rings else starts
    down = starts[:, :1] <= stops[:, :1]
    upper, lower = np.where(down, starts, stops), np.where(down, stops, starts)
    first = np.clip(np.ceil(upper[:, 0] - 0.5), 0, height).astype(np.int64)
    count = np.clip(np.ceil(lower[:, 0] - 0.5), 0, height).astype(np.int64) - first
    if count.sum() > MOST_CROSSINGS:
        raise ValueError(f"its outline crosses {count.sum()} rows of pixels, which no cell does")
    edge = np.repeat(np.arange(len(count)), count)
    if not len(edge):
        return EMPTY
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    upper, lower = upper[edge], lower[edge]
    slope = (lower[:, 1] - upper[:, 1]) / (lower[:, 0] - upper[:, 0])
    # The small step keeps a centre on a border on its side, whatever the rounding.
    column = np.floor(upper[:, 1] + (row + 0.5 - upper[:, 0]) * slope + 0.5 + 1e-8)
    column = np.clip(column, 0, width).astype(np.int64)
    y0, x0, y1, x1 = int(row.min()), int(column.min()), int(row.max()) + 1, int(column.max())
    changes = np.zeros((y1 - y0, x1 - x0 + 1), np.uint8)
    np.add.at(changes, (row - y0, column - x0), 1)
    mask = (np.cumsum(changes[:, :-1], axis=1, dtype=np.uint8) & 1).astype(bool)
    return ((y0, x0, y1, x1), mask) if mask.any() else EMPTY
