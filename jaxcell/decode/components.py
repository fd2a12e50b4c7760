"""Label images made tidy, and made into instances: small cells and small holes go, numbers have no gaps."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

from jaxcell.geometry.labels import cell_ids, replace_ids
from jaxcell.types import Instances

__all__ = ["euler_numbers", "fill_holes", "grow_labels", "instances_from_labels", "relabel", "remove_small"]


def relabel(labels: np.ndarray) -> np.ndarray:
    """Numbers the cells 1..n in the order of their ids; [H, W] int32 -> the same."""
    ids = cell_ids(labels)
    return replace_ids(labels, ids, np.arange(1, len(ids) + 1, dtype=np.int32))


def remove_small(labels: np.ndarray, least: int) -> np.ndarray:
    """Removes the cells of fewer than `least` pixels (all pieces counted); [H, W] int32, ids of at most a few million."""
    kept = np.bincount(labels.ravel()) >= least
    kept[0] = True
    return labels if kept.all() else np.where(kept[labels], labels, 0)


def grow_labels(labels: np.ndarray, width: int) -> np.ndarray:
    """Gives every cell the background beside it, `width` times: the inverse of `geometry.boundaries.erode_labels`.

    Args:
      labels: [H, W] int32, cells above 0; -1 stays.
      width: pixels, in the four directions.

    Returns:
      A new array. What two cells reach at once goes to the one above, else on the left, else below: whichever part of an image
      is looked at, a pixel gets the same cell.
    """
    grown = np.pad(labels, 1)
    for _ in range(width):
        old = grown.copy()
        inside = grown[1:-1, 1:-1]
        for beside in (old[:-2, 1:-1], old[1:-1, :-2], old[2:, 1:-1], old[1:-1, 2:]):
            np.copyto(inside, beside, where=(inside == 0) & (beside > 0))
    return grown[1:-1, 1:-1]


def euler_numbers(labels: np.ndarray) -> np.ndarray:
    """Pieces less holes of every cell, where pieces join over corners and holes do not.

    Args:
      labels: [H, W] int32, cells 1..n.

    Returns:
      [n + 1] int64, by id; 0 for the background and ids without a pixel.

    Source: Gray 1971, Local properties of binary images in two dimensions: from counts of 2 x 2 pixels with one, three, or two
      opposite pixels of the cell.
    """
    padded = np.pad(labels, 1)
    mixed = np.zeros((labels.shape[0] + 1, labels.shape[1] + 1), bool)
    for part in (padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]):
        mixed |= part != padded[:-1, :-1]
    at = np.flatnonzero(mixed)     # all other squares are of one cell or of none
    at += at // mixed.shape[1]
    width = padded.shape[1]
    corners = padded.ravel()[at + np.asarray([0, 1, width + 1, width])[:, None]]     # clockwise
    beside = corners == np.roll(corners, 1, axis=0)
    beside = beside.view(np.int8) + np.roll(beside, -1, axis=0).view(np.int8)
    opposite = (corners == np.roll(corners, 2, axis=0)).view(np.int8)
    count = int(labels.max(initial=0)) + 1

    def occurrences(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(corners[chosen], minlength=count)

    same = beside + opposite
    # Each of three pixels stands for a third of a square, each of two opposite ones for a half.
    twelfths = 3 * occurrences(same == 0) - occurrences(same == 2) - 3 * occurrences((beside == 0) & (opposite == 1))
    twelfths[0] = 0
    return twelfths // 12


def fill_holes(labels: np.ndarray, size: int) -> np.ndarray:
    """Fills the holes of cells that have fewer than `size` pixels.

    Args:
      labels: [H, W] int32, cells 1..n.
      size: pixels.

    Returns:
      [H, W] int32. In the box of a cell with holes, what is not the cell and has fewer than `size` pixels (4 neighbours) becomes
      the cell: a hole, a corner of the box cut off by it, and also another cell's pixels that lie there. Cells follow by id.

    Source: deepcell-toolbox@e8c1277ee424, utils.py fill_holes, which looks at the same cells: those with fewer pieces than holes
      plus one.
    """
    filled = labels.copy()
    holed = euler_numbers(labels) < 1
    boxes = ndimage.find_objects(labels)
    for number in np.flatnonzero(holed).tolist():
        if number and boxes[number - 1] is not None:
            patch = filled[boxes[number - 1]]
            _, pieces, stats, _ = cv2.connectedComponentsWithStats((patch != number).view(np.uint8), connectivity=4)
            small = stats[:, cv2.CC_STAT_AREA] < size
            small[0] = False
            patch[small[pieces]] = number
    return filled


def instances_from_labels(labels: np.ndarray, score: np.ndarray) -> Instances:
    """The cells of a label image, each with the mean of a map over its pixels as its score.

    Args:
      labels: [H, W] int32, cells above 0; ids of at most a few million.
      score: [H, W] floats in [0, 1], such as the probability of being inside a cell.

    Returns:
      Instances by rising id.
    """
    inside = labels > 0
    areas, sums = np.bincount(labels[inside]), np.bincount(labels[inside], weights=score[inside])
    found = [(number, where) for number, where in enumerate(ndimage.find_objects(labels), start=1) if where is not None]
    ids = np.asarray([number for number, _ in found], np.int64)
    boxes = [(rows.start, columns.start, rows.stop, columns.stop) for _, (rows, columns) in found]
    scores = np.clip(sums[ids] / areas[ids], 0, 1).astype(np.float32)
    masks = [labels[where] == number for number, where in found]
    return Instances((int(labels.shape[0]), int(labels.shape[1])), np.asarray(boxes, np.int32).reshape(-1, 4), masks, scores)
