"""Cells as a box and the mask inside it: what vector annotations become before they are label layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from jaxcell.geometry.labels import to_layers
from jaxcell.types import Instances

__all__ = ["EMPTY", "MOST_GB", "Box", "Crop", "crop_of", "pack_crops", "union"]

Box = tuple[int, int, int, int]
Crop = tuple[Box, np.ndarray]
"""(y0, x0, y1, x1), half-open and inside the image, and [y1 - y0, x1 - x0] bool."""
EMPTY: Crop = ((0, 0, 0, 0), np.zeros((0, 0), bool))
MOST_GB = 8.0       # label layers may take so much


def crop_of(mask: np.ndarray) -> Crop:
    """The smallest crop of a mask [H, W] bool that holds all of it; `EMPTY` where there is nothing."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return EMPTY
    y0, x0, y1, x1 = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    return (y0, x0, y1, x1), mask[y0:y1, x0:x1].copy()


def union(parts: Sequence[Crop]) -> Crop:
    """One cell of several parts; at least one, none empty."""
    if len(parts) == 1:
        return parts[0]
    boxes = np.asarray([box for box, _ in parts])
    y0, x0, y1, x1 = (int(v) for v in (*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)))
    whole = np.zeros((y1 - y0, x1 - x0), bool)
    for (top, left, bottom, right), mask in parts:
        whole[top - y0:bottom - y0, left - x0:right - x0] |= mask
    return (y0, x0, y1, x1), whole


def pack_crops(crops: Sequence[Crop], shape: tuple[int, int], *, ignore: Iterable[Crop] = ()) -> np.ndarray:
    """Label layers of cells that may overlap; cell i becomes i + 1.

    Args:
      crops: the cells; each goes to the first layer that has room, an empty one leaves no trace.
      shape: (H, W).
      ignore: regions that become -1, in every layer, where no cell lies.

    Returns:
      [H, W, D] int32, one layer where nothing overlaps.

    Raises:
      ValueError: so many cells lie over one another that their layers take more than `MOST_GB`.
    """
    if len(crops) * shape[0] * shape[1] * 4 > MOST_GB * 2**30:
        _check_depth(crops, shape)
    boxes = np.asarray([box for box, _ in crops], np.int32).reshape(-1, 4)
    labels = to_layers(Instances(shape, boxes, [mask for _, mask in crops], np.ones(len(crops), np.float32)))
    for (y0, x0, y1, x1), mask in ignore:
        view = labels[y0:y1, x0:x1]
        view[mask & (view == 0).all(axis=2)] = -1
    return labels


def _check_depth(crops: Sequence[Crop], shape: tuple[int, int]) -> None:
    depth = np.zeros(shape, np.int32)
    for (y0, x0, y1, x1), mask in crops:
        depth[y0:y1, x0:x1] += mask
    size = int(depth.max()) * shape[0] * shape[1] * 4 / 2**30
    if size > MOST_GB:
        raise ValueError(f"{int(depth.max())} cells lie over one another in an image of {shape[0]} x {shape[1]}, and as label "
                         f"layers take {size:.0f} GB; {MOST_GB:.0f} GB are the most. Leave out regions that are no cells, or cut "
                         "the image into parts.")
