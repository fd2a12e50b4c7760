"""Cells from the logits of classes: connected pieces of foreground, each with a score and an uncertainty.

What touches is one cell here. A network that is trained on plain foreground (`targets.pixels.foreground`, as MorphoSeg is) cannot
part cells that share a side or a corner. Where they must come apart, train on cells that were made smaller
(`foreground(labels, erosion=1)`, which leaves 2 pixels between neighbours) and give what was taken off back here (`expansion=1`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import cv2
import numpy as np

from jaxcell.decode.components import grow_labels, instances_from_labels, relabel, remove_small
from jaxcell.types import Instances

__all__ = ["UNCERTAINTIES", "class_cells", "class_map", "connected_cells", "energy", "entropy", "log_sum_exp", "softmax"]


# ---------------------------------------------------------------- of a pixel's logits
def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """log of the sum of exp over the classes; [..., K] -> [...]. A class may be impossible (-inf), but not all."""
    largest = logits.max(axis=-1)
    return largest + np.log(np.exp(logits - largest[..., None]).sum(axis=-1))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of the classes; [..., K] -> the same."""
    rising = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return rising / rising.sum(axis=-1, keepdims=True)


def energy(logits: np.ndarray) -> np.ndarray:
    """-log(sum of exp) of the logits; [..., K] -> [...], without bounds. High where no class is supported: unlike training.

    Source: Du et al. 2022, VOS: learning what you don't know by virtual outlier synthesis, equation 5 (MorphoSeg's reference 41),
      for images; here of every pixel. MorphoSeg itself reports no uncertainty.
    """
    return -log_sum_exp(logits)


def entropy(logits: np.ndarray) -> np.ndarray:
    """Entropy of the classes' probabilities as a share of the largest possible; [..., K] -> [...] in [0, 1]."""
    p = softmax(logits)
    return -(p * np.log(np.maximum(p, np.finfo(p.dtype).tiny))).sum(axis=-1) / np.log(logits.shape[-1])


UNCERTAINTIES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"energy": energy, "entropy": entropy}
"""name -> (logits [..., K]) -> [...], higher is less sure."""


# ---------------------------------------------------------------- of regions
def class_map(logits: np.ndarray, *, threshold: float = 0.5) -> np.ndarray:
    """The class of each pixel.

    Args:
      logits: [H, W, K] floats, class 0 is background.
      threshold: foreground is where all other classes together are more probable than this. Of votes of overlapping windows 0.99
        keeps where all agree (MorphoSeg's released test), 0 where any does (its released pictures).

    Returns:
      [H, W] int32, 0 background, else the most probable of the classes 1 to K - 1.
    """
    p = softmax(logits)
    inside = p[..., 1:].sum(axis=-1) > threshold
    return np.where(inside, p[..., 1:].argmax(axis=-1) + 1, 0).astype(np.int32)


def connected_cells(classes: np.ndarray, *, holes: int = 0, small_objects: int = 0) -> np.ndarray:
    """The connected pieces of every class.

    Args:
      classes: [H, W] int32, 0 background, classes above 0; pixels of one class that touch, at corners too, are one cell.
      holes: background (4 neighbours) of fewer pixels that one class encloses becomes that class; 0 fills none.
      small_objects: cells of fewer pixels, filled holes included, are removed.

    Returns:
      [H, W] int32, cells 1..n, by class and then from top to bottom.
    """
    labels, count = np.zeros(classes.shape, np.int32), 0
    for number in range(1, int(classes.max(initial=0)) + 1):
        mask = _filled(classes == number, classes > 0, holes)
        pieces, found = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
        labels += np.where(mask, found + np.int32(count), 0)
        count += pieces - 1
    return relabel(remove_small(labels, small_objects))


def _filled(mask: np.ndarray, occupied: np.ndarray, holes: int) -> np.ndarray:
    """The mask and its holes of fewer than `holes` pixels in which nothing else is `occupied`."""
    if not holes or not mask.any():
        return mask
    count, pieces, stats, _ = cv2.connectedComponentsWithStats((~mask).view(np.uint8), connectivity=4)
    ends = stats[:, :2] + stats[:, 2:4]
    hole = (stats[:, :2] > 0).all(1) & (ends < mask.shape[::-1]).all(1) & (stats[:, cv2.CC_STAT_AREA] < holes)
    hole[0] = False
    hole[np.unique(pieces[occupied & ~mask])] = False
    return mask | hole[pieces]


def class_cells(logits: np.ndarray, *, threshold: float = 0.5, holes: int = 0, small_objects: int = 0, expansion: int = 0,
                uncertainty: str = "energy") -> Instances:
    """The cells of a region from its logits.

    Args:
      logits: [H, W, K] float32, class 0 is background.
      threshold: see `class_map`.
      holes: see `connected_cells`.
      small_objects: see there.
      expansion: pixels by which cells then grow into the background, one after another, in the four directions.
      uncertainty: an entry of `UNCERTAINTIES`.

    Returns:
      Instances. A score is the mean probability of foreground over the cell; `extras["uncertainty"]` [M] float32 the mean
      uncertainty; with K > 2 `extras["class"]` [M] int32 the class.

    Raises:
      ValueError: logits of another shape, or another word as `uncertainty`.

    Source: MorphoSeg stops at foreground pixels; cells are ours.
    """
    if logits.ndim != 3 or logits.shape[2] < 2:
        raise ValueError(f"class_cells: logits have shape {logits.shape}; they must be [H, W, K] with the background and one "
                         "more class at least. Take one image of the batch.")
    if uncertainty not in UNCERTAINTIES:
        raise ValueError(f"class_cells: uncertainty={uncertainty!r} is unknown; known are {', '.join(UNCERTAINTIES)}.")
    classes = class_map(logits, threshold=threshold)
    pieces = connected_cells(classes, holes=holes, small_objects=small_objects)
    labels = grow_labels(pieces, expansion)
    cells = instances_from_labels(labels, softmax(logits)[..., 1:].sum(axis=-1))
    extras = {"uncertainty": _means(labels, UNCERTAINTIES[uncertainty](logits), len(cells))}
    if logits.shape[2] > 2:
        extras["class"] = _largest(pieces, classes, len(cells))     # grown cells may lie on what was too small for a cell
    return replace(cells, extras=extras)


def _means(labels: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """[count] float32, the mean of `values` over each of the cells 1..count."""
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    sums = np.bincount(labels.ravel(), weights=values.ravel(), minlength=count + 1)
    return (sums[1:] / areas[1:]).astype(np.float32)


def _largest(labels: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """[count] int32, the largest of `values` in each of the cells 1..count (a cell's own pixels have one class, others 0)."""
    found = np.zeros(count + 1, np.int32)
    np.maximum.at(found, labels.ravel(), values.ravel())
    return found[1:]
