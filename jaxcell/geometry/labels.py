"""Label images and label layers: number cells without gaps, find outlines, stack cells that overlap, resolve overlaps.

A label image is [H, W] int32 and label layers are [H, W, D] int32: 0 is background, -1 is "ignore", and a cell has one id,
unique over the layers. Ids may be large (millions) without costing memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from scipy import ndimage

from jaxcell.types import Instances

__all__ = ["cell_ids", "close_gaps", "instances_to_labels", "outlines", "replace_ids", "resolve_overlaps", "to_layers", "topmost",
           "windows"]

Window = tuple[slice, slice]


def cell_ids(labels: np.ndarray) -> np.ndarray:
    """The ids of all cells in `labels` (any shape), rising; [n] int32. Ids at or below 0 are not cells."""
    if labels.max(initial=0) <= labels.size:     # counting is many times faster than sorting, but costs one entry per id
        return np.flatnonzero(np.bincount(np.maximum(labels, 0).ravel())[1:]).astype(np.int32) + np.int32(1)
    ids = np.unique(labels)
    return ids[ids > 0].astype(np.int32)


def replace_ids(labels: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Gives the cells `old` the ids `new`; all other pixels stay.

    Args:
      labels: any shape, int32.
      old: [n] rising ids above 0; those that do not occur change nothing.
      new: [n] int32, any values.

    Returns:
      A new array like `labels`.
    """
    if not len(old):
        return labels.copy()
    largest = max(int(labels.max(initial=0)), int(old[-1]))
    if largest <= labels.size:
        table = np.arange(largest + 1, dtype=np.int32)
        table[old] = new
        return np.where(labels > 0, table[np.maximum(labels, 0)], labels)
    place = np.minimum(np.searchsorted(old, labels), len(old) - 1)
    return np.where(old[place] == labels, np.asarray(new, np.int32)[place], labels)


def close_gaps(labels: np.ndarray) -> np.ndarray:
    """Numbers the cells 1..n by moving as few as possible: those above n go into the gaps below; 0 and negative values stay.

    Source: celldetection 0.4.0, data/segmentation.py `fill_label_gaps_`.
    """
    ids = cell_ids(labels)
    # The reference takes the gaps out of a set, so its numbering (and with it which cell wins a pixel of the head grid) follows
    # CPython's order of small integers in a set: deterministic, but rising only while the gaps are close together.
    gaps = list(set(range(1, len(ids) + 1)) - set(ids.tolist()))
    return replace_ids(labels, ids[ids > len(ids)], np.asarray(gaps, np.int32))


def windows(plane: np.ndarray) -> Iterator[tuple[int, Window]]:
    """(id, the smallest window that holds the cell) for every cell of a label image [H, W], by rising id."""
    ids = cell_ids(plane)
    if len(ids) and ids[-1] != len(ids):
        plane = replace_ids(plane, ids, np.arange(1, len(ids) + 1, dtype=np.int32))
    return zip(ids.tolist(), ndimage.find_objects(plane, len(ids)), strict=True)


def outlines(labels: np.ndarray) -> dict[int, list[np.ndarray]]:
    """The outer border of every piece of every cell.

    Args:
      labels: [H, W] or [H, W, D] int32.

    Returns:
      id -> one outline per 8-connected piece, so a fragmented cell has several; ids rise. An outline is [P, 2] int32, P >= 2: the
      pixels (y, x) of the cell along its border, in OpenCV's own start point and direction, the first not repeated at the
      end. (A single pixel alone counts twice.) Holes are not followed.

    Source: celldetection 0.4.0, data/cpn.py `labels2contours`.
    """
    found = {}
    for layer in range(labels.shape[2] if labels.ndim == 3 else 1):
        plane = labels[..., layer] if labels.ndim == 3 else labels
        for number, window in windows(plane):
            mask = (plane[window] == number).view(np.uint8)
            lines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(window[1].start, window[0].start))
            found[number] = [np.repeat(line[:, 0, ::-1], 2, axis=0) if len(line) == 1 else line[:, 0, ::-1] for line in lines]
    return dict(sorted(found.items()))


def to_layers(instances: Instances, *, gap: int | None = None, depth: int = 1) -> np.ndarray:
    """Stacks cells that may overlap into label layers; cell i becomes i + 1.

    Args:
      instances: the cells; each goes to the first layer that has room, in their order.
      gap: room means that the cell's box, enlarged by `gap` pixels on every side, holds no other cell. None: that the cell's own
        pixels are free, which needs the fewest layers (one where nothing overlaps).
      depth: least number of layers.

    Returns:
      [H, W, D] int32, D >= depth.

    Source: celldetection 0.4.0, data/cpn.py `contours2labels` (gap 3).
    """
    layers = [np.zeros(instances.shape, np.int32) for _ in range(max(depth, 1))]
    for number, (box, mask) in enumerate(zip(instances.boxes.tolist(), instances.masks, strict=True), start=1):
        y0, x0, y1, x1 = box
        margin = gap or 0
        room = slice(max(y0 - margin, 0), y1 + margin), slice(max(x0 - margin, 0), x1 + margin)
        asked = mask if gap is None else slice(None)
        free = (k for k, layer in enumerate(layers) if not layer[room][asked].any())
        place = next(free, len(layers))
        if place == len(layers):
            layers.append(np.zeros(instances.shape, np.int32))
        layers[place][y0:y1, x0:x1][mask] = number
    return np.stack(layers, axis=-1)


def resolve_overlaps(layers: np.ndarray, *, max_iterations: int = 999) -> np.ndarray:
    """One label image from label layers, by growing the cells into the pixels that they share.

    Pixels of one cell keep its id. Pixels of several start empty; in every round each empty one that touches a cell (4
    neighbours, the state before the round) takes the largest id beside it. What no cell reaches stays 0: a cell all of whose
    pixels are shared has no seed and disappears.

    Args:
      layers: [H, W, D] int32.
      max_iterations: most rounds.

    Returns:
      [H, W] int32; -1 where there is no cell and any layer says "ignore".

    Source: the paper, section 2.4; celldetection 0.4.0, data/cpn.py `resolve_label_channels`.
    """
    labels = layers.max(axis=-1)
    labels[(labels == 0) & (layers < 0).any(axis=-1)] = -1
    shared = np.count_nonzero(layers > 0, axis=-1) > 1
    return _grow(labels, shared, max_iterations)


def topmost(layers: np.ndarray) -> np.ndarray:
    """Label layers [H, W, D] -> label image [H, W]: a cell hides what lies in the layers before its own."""
    labels = layers[..., 0]
    for layer in np.moveaxis(layers[..., 1:], -1, 0):
        labels = np.where(layer != 0, layer, labels)
    return labels


def instances_to_labels(instances: Instances, *, overlaps: str = "grow") -> np.ndarray:
    """One label image from cells that may overlap; cell i becomes i + 1. Works on the cells' crops, whatever the image's size.

    Args:
      instances: the cells.
      overlaps: "grow" shares the pixels of several cells by region growing (see `resolve_overlaps`), "score" gives them to the
        cell of highest score (the first of equals). Under either a cell can vanish whose pixels all lie in others; overlaps
        are kept whole in `Instances` itself and in its COCO export.

    Returns:
      [H, W] int32.

    Raises:
      ValueError: for another value of `overlaps`.
    """
    if overlaps not in ("grow", "score"):
        raise ValueError(f"instances_to_labels: overlaps={overlaps!r} is not a rule; use 'grow' or 'score'.")
    labels = np.zeros(instances.shape, np.int32)
    shared = np.zeros(instances.shape if overlaps == "grow" else (0, 0), bool)
    # Later cells overwrite earlier ones: paint the best last.
    order = range(len(instances)) if overlaps == "grow" else np.argsort(-instances.scores, kind="stable")[::-1].tolist()
    boxes = instances.boxes.tolist()
    for index in order:
        y0, x0, y1, x1 = boxes[index]
        mask, view = instances.masks[index], labels[y0:y1, x0:x1]
        if overlaps == "grow":
            shared[y0:y1, x0:x1] |= mask & (view > 0)
        view[mask] = index + 1
    return _grow(labels, shared, 999) if overlaps == "grow" else labels


def _grow(labels: np.ndarray, shared: np.ndarray, max_iterations: int) -> np.ndarray:
    """Empties the `shared` pixels [H, W] of `labels` in place and grows the others into them; visits only those pixels."""
    labels[shared] = 0
    rows, columns = np.nonzero(shared)
    height, width = labels.shape
    for _ in range(max_iterations):
        # At the image's edge a pixel stands in for its missing neighbour: it is empty itself, so it adds nothing.
        best = np.maximum(
            np.maximum(labels[np.maximum(rows - 1, 0), columns], labels[np.minimum(rows + 1, height - 1), columns]),
            np.maximum(labels[rows, np.maximum(columns - 1, 0)], labels[rows, np.minimum(columns + 1, width - 1)]))
        reached = best > 0
        if not reached.any():
            break
        labels[rows[reached], columns[reached]] = best[reached]
        rows, columns = rows[~reached], columns[~reached]
    return labels
