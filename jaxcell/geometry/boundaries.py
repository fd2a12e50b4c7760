"""Where cells of a label image end: boundaries, cells made smaller, distances to the outside, round neighbourhoods."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["disk", "distances_inside", "erode_labels", "inner_boundary"]


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


def distances_inside(inside: np.ndarray) -> np.ndarray:
    """Every pixel's exact distance to the nearest one that is not inside; [H, W] bool -> [H, W] float32, pixels.

    Where all is inside, what lies beyond the image's edge is not (the references' distances are arbitrary then).
    """
    frame = int(inside.all())
    padded = np.pad(inside, frame).view(np.uint8)
    # OpenCV's last digit changes from call to call, and a resumed run must be the same to the bit; its squares are whole numbers.
    distances = np.sqrt(np.rint(np.square(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE))))
    return distances[frame:padded.shape[0] - frame, frame:padded.shape[1] - frame]
