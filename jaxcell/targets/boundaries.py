"""Targets of networks that tell a cell's interior from its boundary, and draw a distance field in each cell.

Both take labels as they are: numbers may have gaps, there may be no cell at all, and pixels to ignore (-1) count as background,
which the caller masks (`targets.pixels.annotated`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from jaxcell.geometry.boundaries import disk, distances_inside, inner_boundary
from jaxcell.geometry.labels import cell_ids, replace_ids, windows
from jaxcell.geometry.pieces import large_pieces

__all__ = ["BACKGROUND", "BOUNDARY", "DEPTHS", "INTERIOR", "boundary_radius", "distance_target", "three_classes"]

BACKGROUND, INTERIOR, BOUNDARY = 0, 1, 2
"""The classes of `three_classes`."""


def boundary_radius(area: int, *, divisor: float = 20.0) -> int:
    """Pixels by which the boundary of a cell of `area` pixels reaches to either side of its edge, at least 1.

    Source: MAUNet paper, section 2.1: sqrt(area) / 20 thick; Woof6/neurips22-cellseg_saltfish@c2b85d5, data_preprocess.py.
    """
    return max(1, int(np.ceil(np.sqrt(area) / (2 * divisor))))


def three_classes(labels: np.ndarray, *, divisor: float = 20.0, least_interior: int = 16) -> np.ndarray:
    """Background 0, interior 1, boundary 2, whose thickness grows with the cell.

    Cells follow each other by their number: the boundary of a later one, half of which lies outside of it, covers what earlier
    ones have there, and so does its interior. The image's edge makes no boundary.

    Args:
      labels: [H, W] integers, cells above 0.
      divisor: a boundary is sqrt(area) / divisor pixels thick, rounded up on either side of the edge.
      least_interior: pieces of an interior (4 neighbours) of fewer pixels are none; such a pixel stays what it was.

    Returns:
      [H, W] int32.

    Source: MAUNet paper, section 2.1; Woof6/neurips22-cellseg_saltfish@c2b85d5, data_preprocess.py create_interior_map.
    """
    classes = np.zeros(labels.shape, np.int32)
    for number, (rows, columns) in windows(labels):
        radius = boundary_radius(int(np.count_nonzero(labels[rows, columns] == number)), divisor=divisor)
        window = tuple(slice(max(0, side.start - radius), side.stop + radius) for side in (rows, columns))
        cell = labels[window] == number
        band = cv2.dilate(inner_boundary(cell).view(np.uint8), disk(radius)) > 0
        part = classes[window]
        part[band] = BOUNDARY
        part[large_pieces(cell & ~band, least_interior)] = INTERIOR
    return classes


def distance_target(labels: np.ndarray, classes: np.ndarray, *, beta: float = 1.0, measure: str = "edge") -> np.ndarray:
    """1 in the middle of every cell, falling with the distance from there relative to the cell's size.

    Args:
      labels: [H, W] integers, cells above 0.
      classes: [H, W] of `three_classes`.
      beta: of 1 / (1 + beta * r / sqrt(area)).
      measure: r is, with "edge", how much nearer to an edge (a pixel of no interior) a pixel is than the deepest one of its
        cell, as released; with "centre", its distance to the cell's centroid, as the paper writes. Pixels.

    Returns:
      [H, W] float32 in [0, 1], 0 outside of cells. With "edge" a cell without interior is 1 all over.

    Raises:
      ValueError: another `measure`.

    Source: MAUNet paper, section 2.1; Woof6/neurips22-cellseg_saltfish@c2b85d5, dist_transform_preprocess.py, where a gap in the
      numbers makes the whole map NaN and beta does not appear.
    """
    if measure not in DEPTHS:
        raise ValueError(f"distance_target: measure={measure!r} is unknown; known are {', '.join(DEPTHS)}.")
    at, ids = np.flatnonzero(labels > 0), cell_ids(labels)
    cell = replace_ids(labels, ids, np.arange(len(ids), dtype=np.int32)).ravel()[at]
    away = DEPTHS[measure](at, cell, classes)
    target = np.zeros(labels.shape, np.float32)
    target.ravel()[at] = 1 / (1 + beta * away / np.sqrt(np.bincount(cell))[cell])
    return target


def _from_deepest(at: np.ndarray, cell: np.ndarray, classes: np.ndarray) -> np.ndarray:
    depth = distances_inside(classes == INTERIOR).ravel()[at]
    deepest = np.zeros(int(cell.max(initial=-1)) + 1, np.float32)
    np.maximum.at(deepest, cell, depth)
    return deepest[cell] - depth


def _from_centre(at: np.ndarray, cell: np.ndarray, classes: np.ndarray) -> np.ndarray:
    y, x = np.divmod(at, classes.shape[1])
    cy, cx = (np.bincount(cell, axis) / np.bincount(cell) for axis in (y, x))
    return np.hypot(y - cy[cell], x - cx[cell])


DEPTHS: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "edge": _from_deepest, "centre": _from_centre}
"""name -> (flat indices [n] of the cells' pixels, their cells [n] from 0 on, classes [H, W]) -> [n] pixels."""
