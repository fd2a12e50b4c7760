"""Where cells of a label image end: boundaries, cells made smaller, round neighbourhoods."""

from __future__ import annotations

import numpy as np

__all__ = ["disk", "erode_labels", "inner_boundary"]


def disk(radius: int) -> np.ndarray:
    """[2 * radius + 1, 2 * radius + 1] uint8, 1 up to that distance from the middle; the cross of 5 pixels at radius 1."""
    y, x = np.ogrid[-radius:radius + 1, -radius:radius + 1]
    return (y * y + x * x <= radius * radius).astype(np.uint8)


def inner_boundary(labels: np.ndarray) -> np.ndarray:
    """The pixels of cells that have another value above, below, left or right of them.

    Args:
      labels: [H, W] integers; beyond the image's edge nothing counts as another value.

    Returns:
      [H, W] bool.

    Source: scikit-image 0.26, segmentation.find_boundaries(mode="inner").
    """
    boundary = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    boundary[1:] |= down
    boundary[:-1] |= down
    boundary[:, 1:] |= right
    boundary[:, :-1] |= right
    return boundary & (labels > 0)


def erode_labels(labels: np.ndarray, width: int) -> np.ndarray:
    """Takes the boundary off every cell, `width` times; [H, W] -> a new array of the same type.

    Source: deepcell-toolbox@e8c1277ee424, utils.py erode_edges.
    """
    labels = labels.copy()
    for _ in range(width):
        labels[inner_boundary(labels)] = 0
    return labels
