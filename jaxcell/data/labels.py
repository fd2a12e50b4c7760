"""The cells of annotation files as label layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxcell.data.images import read_label_array
from jaxcell.geometry.labels import to_layers
from jaxcell.types import Instances

__all__ = ["pack_masks", "read_labels"]


def read_labels(path: str | Path) -> np.ndarray:
    """The cells of a label file: a label image, or a stack with one mask per page.

    A stack is one of masks if no page holds more than one value beside 0: page k (from 1) is cell k, an empty page none.
    Masks that do not overlap share a layer. Other stacks are label layers already.

    Args:
      path: a file that ends in one of `SUFFIXES`; integers of any width, or floats without fractions.

    Returns:
      [H, W, D] int32, 0 background, -1 ignore. Ids are the file's; where one exceeds int32, all are renumbered from 1 in
      their order.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown ending, undecodable, a colour picture, fractions, or one id in several layers.
    """
    path = Path(path)
    stack = read_label_array(path)
    if path.suffix.lower() not in (".tif", ".tiff", ".npy") and stack.shape[2] > 1:
        if not (stack == stack[..., :1]).all():
            raise ValueError(f"{path}: is a colour picture of shape {stack.shape}; a label image has one number per cell. "
                             "Save the label array itself, not a rendering of it.")
        stack = stack[..., :1]      # grey saved as colour
    stack = _to_int32(stack, path)
    if stack.shape[2] == 1:
        return stack
    pages = [stack[..., k] for k in range(stack.shape[2])]
    cells = [ids[ids != 0] for ids in map(np.unique, pages)]
    if all(len(ids) <= 1 for ids in cells):
        return pack_masks((page != 0 for page in pages), stack.shape[:2])
    ids, counts = np.unique(np.concatenate([i[i > 0] for i in cells]), return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{path}: cell {ids[counts > 1][0]} occurs on several of the {len(pages)} pages; a cell lies in one "
                         "layer only. Save one page with one number per cell, or one page per cell.")
    return stack


def pack_masks(masks: Iterable[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Label layers of masks that may overlap.

    Args:
      masks: mask [H, W] bool of cell 1, 2, ...; an empty one leaves no trace. One is held at a time.
      shape: (H, W).

    Returns:
      [H, W, D] int32, one layer where nothing overlaps.
    """
    boxes, crops = [], []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1) if len(rows) else (0, 0, 0, 0)
        boxes.append(box)
        crops.append(mask[box[0]:box[2], box[1]:box[3]].copy())
    return to_layers(Instances(shape, np.asarray(boxes, np.int32).reshape(-1, 4), crops, np.ones(len(crops), np.float32)))


def _to_int32(labels: np.ndarray, path: Path) -> np.ndarray:
    if labels.dtype.kind == "f":
        whole = np.rint(labels)
        if not np.array_equal(whole, labels):
            raise ValueError(f"{path}: labels have fractions (such as {labels[whole != labels][0]}), but a cell's id is a whole "
                             "number. This looks like an image or a probability map; name the label file.")
        labels = whole.astype(np.int64)
    if labels.size and labels.min() < -1:
        raise ValueError(f"{path}: labels hold {labels.min()}; below 0 only -1 (ignore) has a meaning. Set background to 0.")
    if labels.size and labels.min() == -1 and not (labels == 0).any():
        raise ValueError(f"{path}: labels hold -1 and no 0: background seems to be -1 and the first cell may be 0. Here 0 is "
                         "background, cells are 1, 2, ... and -1 means \"ignore\": save labels + 1.")
    if labels.size and np.count_nonzero(labels < 0) > labels.size / 2:
        warnings.warn(f"{path}: more than half of the pixels are -1, which means \"ignore\". If -1 is your background and cells "
                      "start at 0, save labels + 1.", stacklevel=2)
    if labels.size and labels.max() > np.iinfo(np.int32).max:
        dense = np.minimum(labels, 0).astype(np.int32)
        dense[labels > 0] = np.unique(labels[labels > 0], return_inverse=True)[1] + 1
        return dense
    return labels.astype(np.int32)
