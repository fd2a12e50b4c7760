"""COCO average precision of masks: the area under precision over recall as the score threshold falls.

The rules are pycocotools', to the last tie, on the sparse overlap table instead of its dense loop over all pairs of an image:
that loop takes minutes for one image of thousands of cells, and needs all masks of all images at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxcell.metrics.matching import Overlaps, overlap_table
from jaxcell.types import Instances

__all__ = ["COCO_SIZES", "LIVECELL_DETECTIONS", "LIVECELL_SIZES", "RankedDetections", "average_precision",
           "coco_scores", "precision_curves", "rank_detections"]

# Name -> (smallest, largest) area in pixels, both included: a cell of exactly 1024 px is small and medium, as in COCO.
COCO_SIZES: dict[str, tuple[float, float]] = {
    "all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
LIVECELL_SIZES: dict[str, tuple[float, float]] = {"all": (0, 1e10), "small": (0, 324), "medium": (324, 961), "large": (961, 1e10)}
LIVECELL_DETECTIONS = (100, 500, 2000)


@dataclass(frozen=True, eq=False)
class RankedDetections:
    """The fate of an image's most confident predictions, by size band and IoU threshold: all that AP needs to remember.

    Attributes:
      scores: [N] float64, falling.
      matched: [A, T, N] bool, the prediction found a true cell.
      ignored: [A, T, N] bool, it counts neither for nor against: it found a cell outside the size band, or it found none and
        is outside the band itself.
      truths: [A] int64, true cells inside the band.
    """

    scores: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    truths: np.ndarray


def rank_detections(truth: Instances | np.ndarray, prediction: Instances, *, thresholds: Sequence[float],
                    sizes: Mapping[str, tuple[float, float]], limit: int, crowd: np.ndarray | None = None) -> RankedDetections:
    """Matches an image's predictions to its cells, the most confident first, each taking the free cell of highest IoU.

    Args:
      truth: M cells, overlaps kept.
      prediction: cells with `scores`; equal scores keep their order.
      thresholds: T values of IoU in (0, 1].
      sizes: A bands of area, name -> (smallest, largest) in pixels, both included.
      limit: predictions kept, the most confident ones.
      crowd: [M] bool, "cells" that are regions nobody divided: whatever lies in one to the threshold's share of its own pixels,
        and found no cell, counts neither for nor against. None where there are none.

    Source: pycocotools 2.0, cocoeval.py COCOeval.evaluateImg.
    """
    order = np.argsort(-prediction.scores, kind="stable")[:limit]
    kept = prediction.select(order)
    table = overlap_table(truth, kept)
    low, high = np.asarray(list(sizes.values()), np.float64).T[..., None]
    shared = np.zeros(len(table.truth_areas), bool) if crowd is None else crowd
    outside_truth = (table.truth_areas < low) | (table.truth_areas > high) | shared
    share = table.intersections / table.prediction_areas[table.pairs[:, 1]]
    iou = np.where(shared[table.pairs[:, 0]], share, table.iou)
    outside = (table.prediction_areas < low) | (table.prediction_areas > high)
    shape = (len(sizes), len(thresholds), len(kept))
    matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    for a, beyond in enumerate(outside_truth):
        for t, threshold in enumerate(thresholds):
            found = _match(table, iou, beyond, shared, min(round(float(threshold), 10), 1 - 1e-10))
            matched[a, t] = found >= 0
            ignored[a, t] = np.where(found >= 0, beyond[found] if len(beyond) else False, outside[a])
    return RankedDetections(kept.scores.astype(np.float64), matched, ignored, (~outside_truth).sum(1))


def _match(table: Overlaps, iou: np.ndarray, ignored: np.ndarray, shared: np.ndarray, threshold: float) -> np.ndarray:
    """[N] int64, the true cell that each prediction takes in turn, -1 for none. A cell that counts beats one that is ignored."""
    found = np.full(len(table.prediction_areas), -1)
    rows = np.flatnonzero(iou >= threshold)
    truth, prediction = table.pairs[rows].T
    # Predictions in rank order; each tries cells of the band first, then the highest IoU, of equals the last.
    order = np.lexsort((-truth, -iou[rows], ignored[truth], prediction))
    taken = np.zeros(len(ignored), bool)
    for g, d in zip(truth[order].tolist(), prediction[order].tolist(), strict=True):
        if found[d] < 0 and not taken[g]:
            found[d], taken[g] = g, not shared[g]
    return found


def average_precision(images: Sequence[RankedDetections], *, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and recall over images whose predictions are ranked together.

    Args:
      images: of one `rank_detections` setting, with its limit at least this one.
      limit: predictions considered per image.

    Returns:
      AP [A, T], the mean of interpolated precision at recall 0, 0.01, ..., 1; and the recall reached [A, T]. Both NaN in a
      size band without true cells.
    """
    curves, recall = precision_curves(images, limit=limit)
    return curves.mean(-1), recall


def precision_curves(images: Sequence[RankedDetections], *, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated precision at 101 values of recall, over images whose predictions are ranked together.

    Args:
      images: of one `rank_detections` setting, with its limit at least this one.
      limit: predictions considered per image.

    Returns:
      Precision [A, T, 101] at recall 0, 0.01, ..., 1 (0 where that is never reached), and the recall reached [A, T]. Both NaN in
      a size band without true cells.

    Source: pycocotools 2.0, cocoeval.py COCOeval.accumulate.
    """
    truths = np.sum([image.truths for image in images], axis=0)
    scores = np.concatenate([image.scores[:limit] for image in images])
    order = np.argsort(-scores, kind="stable")
    matched, ignored = (np.concatenate([part[..., :limit] for part in parts], axis=-1)[..., order]
                        for parts in zip(*((image.matched, image.ignored) for image in images), strict=True))
    tp = np.cumsum(matched & ~ignored, axis=-1)
    fp = np.cumsum(~matched & ~ignored, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = tp / truths[:, None, None]
    precision = tp / (tp + fp + np.spacing(1))
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    points = np.linspace(0, 1, 101)
    curves, final = np.full((*tp.shape[:2], len(points)), np.nan), np.full(tp.shape[:2], np.nan)
    for a, t in np.ndindex(*tp.shape[:2]):
        if truths[a]:
            at = np.searchsorted(recall[a, t], points, side="left")
            curves[a, t] = np.append(envelope[a, t], 0.0)[at]     # a recall never reached has precision 0
            final[a, t] = recall[a, t, -1] if len(scores) else 0.0
    return curves, final


def coco_scores(images: Sequence[RankedDetections], *, thresholds: Sequence[float], sizes: Mapping[str, tuple[float, float]],
                limits: Sequence[int]) -> dict[str, float]:
    """The numbers of COCO's summary: AP, AP50, AP75, AP by size; AR by number of detections and by size.

    Args:
      images: `rank_detections` of each image, with `limit=max(limits)`.
      thresholds: the T values of IoU they were matched at; AP and AR are means over them.
      sizes: the A bands they were matched in; the first one gives AP, AP50, AP75 and AR.
      limits: predictions per image; AP uses the largest.

    Returns:
      Name -> value in [0, 1], NaN where there are no true cells. AP50 and AP75 only if among the thresholds.
    """
    ap, recall = average_precision(images, limit=max(limits))
    at = {f"AP{100 * t:.0f}": i for i, t in enumerate(thresholds) if round(float(t), 10) in (0.5, 0.75)}
    bands = list(enumerate(sizes))[1:]
    return ({"AP": float(ap[0].mean())}
            | {name: float(ap[0, i]) for name, i in at.items()}
            | {f"AP {band}": float(ap[a].mean()) for a, band in bands}
            | {f"AR@{limit}": float(average_precision(images, limit=limit)[1][0].mean()) for limit in sorted(limits)}
            | {f"AR {band}": float(recall[a].mean()) for a, band in bands})
