"""Which cells of a window count: those whose centre it owns, each once, whole in the image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from jaxcell.inference.tiling import Box, Window, touching
from jaxcell.types import Instances

__all__ = ["Decode", "centres_within", "clip_instances", "decode_window", "place_in_image", "seam_duplicates",
           "warn_of_cut_cells"]

Decode = Callable[[Mapping[str, np.ndarray]], Instances]

SAME_OBJECT = 0.5      # mask IoU above which two cells from different blocks are one: no two disjoint cells can both pass it


def decode_window(decode: Decode, maps: Mapping[str, np.ndarray], window: Window,
                  shape: tuple[int, int]) -> tuple[Instances, np.ndarray]:
    """The cells whose centre lies in a window's core, in image coordinates, and the sizes [n, 2] of those cut by the frame's end.

    Args:
      decode: maps of the frame -> Instances in it.
      maps: of the frame.
      window: of the image; its frame may reach past the image's bottom and right.
      shape: (H, W) of the image, pixels.

    Raises:
      ValueError: the decoder's Instances are of another shape than the frame.
    """
    found, cut = place_in_image(decode(maps), window, shape)
    owned = centres_within(found, window.core)
    return found.select(owned), (found.boxes[:, 2:] - found.boxes[:, :2])[owned & cut]


def place_in_image(found: Instances, window: Window, shape: tuple[int, int]) -> tuple[Instances, np.ndarray]:
    """Cells of a window's frame in the image, and which of them [M] the end of the frame cuts.

    Args:
      found: in the frame; what lies past the image is clipped.
      window: of the image.
      shape: (H, W) of the image, pixels.

    Raises:
      ValueError: `found` is of another shape than the frame.
    """
    y0, x0, y1, x1 = window.frame
    if found.shape != (y1 - y0, x1 - x0):
        raise ValueError(f"decode returned Instances of shape {found.shape} for a region of {(y1 - y0, x1 - x0)}; the shape is "
                         "the size of the region in image pixels. Take it from the maps and their strides.")
    found = found.shift((y0, x0), (max(y1, shape[0]), max(x1, shape[1])))
    inner = np.asarray([y0 > 0, x0 > 0, y1 < shape[0], x1 < shape[1]])
    cut = ((found.boxes == np.asarray(window.frame)) & inner).any(1)
    tagged = clip_instances(replace(found, extras={**found.extras, "cut": cut}), shape)
    return replace(tagged, extras={key: tagged.extras[key] for key in found.extras}), tagged.extras["cut"]


def clip_instances(instances: Instances, shape: tuple[int, int]) -> Instances:
    """The part of every cell that lies in an image of `shape` (H, W); cells wholly outside are dropped.

    Coordinates among the extras (`Instances.POINTS`) are moved to the last pixel. Returns the same cells if `shape` is theirs.
    """
    if instances.shape == shape:
        return instances
    boxes = np.minimum(instances.boxes, np.tile(np.asarray(shape, np.int32), 2))
    masks = [mask[:y1 - y0, :x1 - x0] for mask, (y0, x0, y1, x1) in zip(instances.masks, boxes, strict=True)]
    last = np.asarray(shape) - 1
    extras = {key: np.minimum(value, np.resize(last, value.shape[-1])).astype(value.dtype) if key in Instances.POINTS else value
              for key, value in instances.extras.items()}
    clipped = replace(instances, shape=shape, boxes=boxes, masks=masks, extras=extras)
    return clipped.select(np.asarray([bool(mask.any()) for mask in masks], bool))


def centres_within(instances: Instances, box: Box) -> np.ndarray:
    """[M] bool, whether the middle of a cell's box lies in `box` (y0, x0, y1, x1), half-open."""
    centre = (instances.boxes[:, :2] + instances.boxes[:, 2:]) / 2
    return ((centre >= np.asarray(box[:2])) & (centre < np.asarray(box[2:]))).all(1)


def seam_duplicates(instances: Instances, block_of: np.ndarray, cores: Sequence[Box]) -> np.ndarray:
    """Cells that a neighbouring block reported too, with a higher score.

    Only pairs from different blocks are compared, and only where one of them reaches out of its own core: two cells that
    one block decoded both stay, however much they overlap.

    Args:
      instances: M cells of one image.
      block_of: [M] int, the block that reported each.
      cores: (y0, x0, y1, x1) of every block.

    Returns:
      [M] bool, True for the cell to drop: mask IoU above 0.5 with one that is kept and scores higher (or as high and earlier).
    """
    boxes, drop = instances.boxes, np.zeros(len(instances), bool)
    own = np.asarray(cores).reshape(-1, 4)[block_of]
    crossing = (boxes[:, :2] < own[:, :2]).any(1) | (boxes[:, 2:] > own[:, 2:]).any(1)
    twins: dict[int, list[int]] = {}
    for i in np.flatnonzero(crossing).tolist():
        near = touching(boxes, boxes[i]) & (block_of != block_of[i])
        for j in np.flatnonzero(near).tolist():
            if _mask_iou(instances, i, j) > SAME_OBJECT:
                twins.setdefault(i, []).append(j)
                twins.setdefault(j, []).append(i)
    for i in sorted(twins, key=lambda i: (-instances.scores[i], i)):
        if not drop[i]:
            drop[[j for j in twins[i] if (instances.scores[j], -j) < (instances.scores[i], -i)]] = True
    return drop


def warn_of_cut_cells(sizes: np.ndarray, *, end: str, remedy: str) -> None:
    """Says how many cells were cut by the end of what, and how large they are at least; nothing if there are none.

    Args:
      sizes: [n, 2] (height, width), pixels.
      end: of what.
      remedy: a sentence.
    """
    if len(sizes):
        height, width = sizes[np.argmax(sizes.max(1))]
        warnings.warn(f"{len(sizes)} cells reach the end of {end} and are cut there (the largest is at least {height} x {width} "
                      f"px). {remedy}", UserWarning, stacklevel=4)


def _mask_iou(instances: Instances, i: int, j: int) -> float:
    a, b = instances.boxes[i], instances.boxes[j]
    y0, x0, y1, x1 = np.maximum(a[:2], b[:2]).tolist() + np.minimum(a[2:], b[2:]).tolist()
    first = instances.masks[i][y0 - a[0]:y1 - a[0], x0 - a[1]:x1 - a[1]]
    second = instances.masks[j][y0 - b[0]:y1 - b[0], x0 - b[1]:x1 - b[1]]
    shared = int((first & second).sum())
    return shared / (int(instances.masks[i].sum()) + int(instances.masks[j].sum()) - shared)
