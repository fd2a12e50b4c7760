"""Distances inside cells as regression targets: to the cell's centre, and to the background.

Both measure to the background of the whole image, so cells that touch share one distance field. An object is an 8-connected piece
of a cell: a cell in two pieces has two centres. Pixels that are no cell (background, and "ignore", which the caller masks) are 0.
"""

from __future__ import annotations

import numpy as np
from skimage.measure import label

from jaxcell.geometry.boundaries import distances_inside, erode_labels

__all__ = ["distance_classes", "inner_distance", "outer_distance"]


def inner_distance(labels: np.ndarray, *, alpha: float | str = "auto", beta: float = 1.0, erosion: int = 0) -> np.ndarray:
    """1 at the middle of every cell, falling with the squared distance from it.

    Args:
      labels: [H, W] integers, cells above 0.
      alpha: of 1 / (1 + beta * alpha * r^2), per squared pixel; "auto" takes 1 / sqrt(area) of each object.
      beta: see there.
      erosion: pixels taken off the cells' boundaries first.

    Returns:
      [H, W] float32 in [0, 1]. The middle is the centroid weighted by the distance to the background, so that it lies in the
      thick part of a cell; it is rarely a pixel, so the largest value of a cell is a little below 1.

    Raises:
      ValueError: for another word as `alpha`.

    Source: deepcell-tf@f1839a4eac03, utils/transform_utils.py inner_distance_transform_2d, whose own default alpha is 0.1.
      The paper writes r for what is r^2 there.
    """
    if isinstance(alpha, str) and alpha != "auto":
        raise ValueError(f"inner_distance: alpha={alpha!r} is no rule; use 'auto' or a number per squared pixel, such as 0.1.")
    objects, distances = _objects(labels, erosion)
    inside = np.flatnonzero(objects)
    cell = objects.ravel()[inside]
    y, x = np.divmod(inside, objects.shape[1])
    weight = distances.ravel()[inside].astype(np.float64)
    total = np.maximum(np.bincount(cell, weight), 1e-30)
    cy, cx = (np.bincount(cell, weight * axis) / total for axis in (y, x))
    scale = 1 / np.sqrt(np.maximum(np.bincount(cell), 1)) if alpha == "auto" else np.full(len(total), float(alpha))
    result = np.zeros(objects.shape, np.float32)
    result.ravel()[inside] = 1 / (1 + beta * scale[cell] * ((y - cy[cell]) ** 2 + (x - cx[cell]) ** 2))
    return result


def outer_distance(labels: np.ndarray, *, erosion: int = 0) -> np.ndarray:
    """Distance to the nearest pixel that is no cell, relative to the largest one of its object.

    Args:
      labels: [H, W] integers, cells above 0.
      erosion: pixels taken off the cells' boundaries first; without it there is no border between cells that touch.

    Returns:
      [H, W] float32 in [0, 1], 1 somewhere in every object.

    Source: deepcell-tf@f1839a4eac03, utils/transform_utils.py outer_distance_transform_2d.
    """
    objects, distances = _objects(labels, erosion)
    largest = np.ones(int(objects.max(initial=0)) + 1, np.float32)
    largest[1:] = 0
    np.maximum.at(largest, objects.ravel(), distances.ravel())
    return distances / largest[objects]


def distance_classes(distances: np.ndarray, classes: int) -> np.ndarray:
    """Distances cut into classes of equal width between their least and largest: [H, W] -> [H, W] int32 in [0, classes).

    Source: deepcell-tf@f1839a4eac03, utils/transform_utils.py (`bins`).
    """
    edges = np.linspace(distances.min() - 1e-7, distances.max() + 1e-7, classes + 1)
    return (np.digitize(distances, edges, right=True) - 1).astype(np.int32)


def _objects(labels: np.ndarray, erosion: int) -> tuple[np.ndarray, np.ndarray]:
    """Objects 1..n, 0 elsewhere, and every pixel's distance to the nearest pixel of no object, float32."""
    cells = erode_labels(np.maximum(labels, 0), erosion)
    return label(cells, connectivity=2), distances_inside(cells > 0)
