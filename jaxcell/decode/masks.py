"""From N predicted masks to cells that may overlap: which of them are cells, how sure that is, which are the same cell twice."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from scipy.special import expit, logit

from jaxcell.geometry.masks import shared_pixels
from jaxcell.types import Instances

__all__ = ["RESCORINGS", "confidences", "decode_masks", "maskness", "maskness_of_all_pixels", "suppress_duplicates"]


def maskness(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """How sure a mask is of its own pixels: their mean probability.

    Args:
      probabilities: [N, H, W] in [0, 1].
      threshold: above which a pixel is the mask's.

    Returns:
      [N] in [0, 1]; 0 where a mask has no pixel.

    Source: SparseInst@a895019, sparseinst/sparseinst.py rescoring_mask, which adds 1e-6 to the number of pixels. (The author's
      evaluator does not: there it is NaN where a mask has none.)
    """
    inside = probabilities > threshold
    return (probabilities * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)


def maskness_of_all_pixels(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """The mean probability of all pixels, as the thesis' formula reads, by which a small cell is never sure; see `maskness`."""
    return probabilities.mean((1, 2))


def _one(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    return np.ones(len(probabilities), np.float32)


RESCORINGS: Mapping[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "foreground": maskness, "all_pixels": maskness_of_all_pixels, "none": _one}
"""name -> (probabilities [N, H, W], threshold) -> factor of the score [N]; the released code's is "foreground"."""


def confidences(scores: np.ndarray, objectness: np.ndarray | None, factor: np.ndarray) -> np.ndarray:
    """What cells are ranked by.

    Args:
      scores: [N] in [0, 1], the probability of being a cell.
      objectness: [N] in [0, 1], the IoU that the network foretells; None where that is not to count.
      factor: [N], of an entry of `RESCORINGS`.

    Returns:
      [N]: score * factor, or sqrt(score * objectness) * factor.

    Source: the thesis, section 4.5.3; SparseInst@a895019, sparseinst/sparseinst.py.
    """
    return (scores if objectness is None else np.sqrt(scores * objectness)) * factor


def decode_masks(outputs: Mapping[str, np.ndarray], *, mask_threshold: float = 0.5, score_threshold: float = 0.05,
                 rescoring: str = "foreground", objectness: bool = False, least_pixels: int = 1, duplicate_iou: float = 1.0,
                 duplicate_share: float = 1.0) -> Instances:
    """The cells of one region, the surest first.

    Args:
      outputs: logits: masks [N, H, W] at the region's own size, scores [N] and, where it counts, objectness [N].
      mask_threshold: probability above which a pixel is a mask's; 0.5 in the thesis, 0.1 to 0.5 in the author's evaluations.
      score_threshold: score above which a query is a cell, before rescoring; 0.05 in the author's, 0.005 in SparseInst's.
      rescoring: an entry of `RESCORINGS`.
      objectness: whether the foretold IoU counts.
      least_pixels: masks of fewer pixels are no cells; at least 1.
      duplicate_iou: of two masks whose IoU exceeds this the less sure one goes; 1 keeps all, as the thesis does.
      duplicate_share: so it does if they share more than this part of the smaller one: a splinter of a cell that was found, or
        two cells in one mask. Below what cells overlap each other it would take cells; 1 keeps all.

    Returns:
      Instances with overlaps, `scores` from `confidences`.

    Raises:
      ValueError: another word as `rescoring`.

    Warns:
      UserWarning: every query is a cell, so that there may be more cells than the network has queries.
    """
    if rescoring not in RESCORINGS:
        raise ValueError(f"decode_masks: rescoring={rescoring!r} is unknown; known are {', '.join(RESCORINGS)}.")
    count, *shape = outputs["masks"].shape
    scores = confidences(expit(outputs["scores"]), expit(outputs["objectness"]) if objectness else None, np.ones(count))
    sure = np.flatnonzero(scores > score_threshold)
    inside = outputs["masks"][sure] > np.float32(logit(mask_threshold))
    large = inside.sum((1, 2)) >= max(1, least_pixels)
    sure, inside = sure[large], inside[large]
    if count and len(sure) == count:
        warnings.warn(f"all {count} queries of the network are cells in this region of {shape[0]} x {shape[1]} pixels, which may "
                      "hold more. Predict smaller tiles, or train with more queries.", UserWarning, stacklevel=2)
    factors = np.asarray([RESCORINGS[rescoring](expit(mask[None]), mask_threshold)[0] for mask in outputs["masks"][sure]])
    ranked = np.clip(scores[sure] * factors, 0, 1).astype(np.float32)
    order = np.argsort(-ranked, kind="stable")
    boxes = np.asarray([_box(mask) for mask in inside[order]], np.int32).reshape(-1, 4)
    crops = [mask[y0:y1, x0:x1].copy() for mask, (y0, x0, y1, x1) in zip(inside[order], boxes.tolist(), strict=True)]
    cells = Instances((int(shape[0]), int(shape[1])), boxes, crops, ranked[order])
    if min(duplicate_iou, duplicate_share) >= 1:
        return cells
    return cells.select(~suppress_duplicates(cells, duplicate_iou, share=duplicate_share))


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def suppress_duplicates(cells: Instances, iou: float, *, share: float = 1.0) -> np.ndarray:
    """Cells that a surer one has found already.

    Args:
      cells: M cells.
      iou: of two masks above which the one of lower score (of equals the later one) goes, unless the other has gone before.
      share: the same for the part of the smaller mask that both have.

    Returns:
      [M] bool, True for a cell to drop.
    """
    drop, areas, boxes = np.zeros(len(cells), bool), cells.areas(), cells.boxes
    order = np.argsort(-cells.scores, kind="stable")
    for place, i in enumerate(order.tolist()):
        if drop[i]:
            continue
        rest = order[place + 1:]
        near = rest[~drop[rest] & (boxes[rest, :2] < boxes[i, 2:]).all(1) & (boxes[rest, 2:] > boxes[i, :2]).all(1)]
        for j in near.tolist():
            shared = shared_pixels(boxes[i], cells.masks[i], boxes[j], cells.masks[j])
            drop[j] = shared > iou * (areas[i] + areas[j] - shared) or shared > share * min(areas[i], areas[j])
    return drop
