"""Which predicted cell is which true cell: one table of overlaps, and the counts that every instance score is made of.

Overlaps are integer pixel counts, so whether a pair reaches an IoU threshold is decided exactly (pairs do sit on thresholds:
a cell of 20 px found as its half has IoU 1/2). Counts of several images add up; ratios are taken once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from jaxcell.geometry.masks import shared_pixels
from jaxcell.types import Instances

__all__ = ["ChallengeCounts", "Counts", "Overlaps", "as_instances", "challenge_counts", "divide", "drop_ignored",
           "greedy_matching", "match", "match_counts", "optimal_matching", "overlap_table", "remove_border_cells"]


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0: a score of nothing is undefined, neither 0 nor 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(denominator) == 0, np.nan, np.true_divide(numerator, denominator))


# ---------------------------------------------------------------------------------------------------------------- counts


@dataclass(frozen=True, eq=False)
class Counts:
    """Matched, false and missed cells, at any number of thresholds. `a + b` are the counts of both images together.

    A ratio whose denominator is 0 is NaN (F1 and Jaccard: neither truth nor prediction has a cell; precision: no prediction;
    recall: no truth; SQ: no match). StarDist and the NeurIPS challenge write 0 there.

    Attributes:
      tp, fp, fn: [..., T] int64, matched pairs, unmatched predictions, unmatched truths.
      iou: [..., T] float64, sum of the IoU of the matched pairs.
    """

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    iou: np.ndarray

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou + other.iou)

    @property
    def precision(self) -> np.ndarray:
        """TP / (TP + FP)."""
        return divide(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> np.ndarray:
        """TP / (TP + FN)."""
        return divide(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> np.ndarray:
        """2 TP / (2 TP + FP + FN); also the recognition quality RQ."""
        return divide(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def jaccard(self) -> np.ndarray:
        """TP / (TP + FP + FN): the "AP" of StarDist, Cellpose and the 2018 Data Science Bowl."""
        return divide(self.tp, self.tp + self.fp + self.fn)

    @property
    def fowlkes_mallows(self) -> np.ndarray:
        """TP / sqrt((TP + FP) (TP + FN)), the geometric mean of precision and recall."""
        return divide(self.tp, np.sqrt(np.multiply(self.tp + self.fp, self.tp + self.fn, dtype=np.float64)))

    @property
    def sq(self) -> np.ndarray:
        """Segmentation quality: mean IoU of the matched pairs."""
        return divide(self.iou, self.tp)

    @property
    def pq(self) -> np.ndarray:
        """Panoptic quality: sum of matched IoU / (TP + FP/2 + FN/2) = SQ * RQ.

        Source: Kirillov et al. 2019, Panoptic Segmentation, equation 1.
        Departs: there IoU must exceed the threshold, here it may equal it, as in every other score of this file.
        """
        return divide(self.iou, self.tp + self.fp / 2 + self.fn / 2)


@dataclass(frozen=True, eq=False)
class ChallengeCounts:
    """Counts of the NeurIPS 2022 cell segmentation challenge; see `challenge_counts`.

    Attributes:
      tp, fp, fn: [..., T] int64. `fn` as the script counts it, which may be less than truth - tp.
      truth, prediction: [..., T] int64, cells left on either side after border removal.
    """

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray

    def __add__(self, other: ChallengeCounts) -> ChallengeCounts:
        return ChallengeCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.truth + other.truth,
                               self.prediction + other.prediction)

    @property
    def precision(self) -> np.ndarray:
        """TP / predicted cells, 0 without a match (the challenge's convention, also for an image without any cell)."""
        return np.where(self.tp == 0, 0.0, divide(self.tp, self.prediction))

    @property
    def recall(self) -> np.ndarray:
        """TP / true cells, 0 without a match."""
        return np.where(self.tp == 0, 0.0, divide(self.tp, self.truth))

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, 0 without a match; the challenge rounds it to 4 digits."""
        return np.where(self.tp == 0, 0.0, divide(2 * self.tp, self.truth + self.prediction))

    @property
    def counted_f1(self) -> np.ndarray:
        """F1 from `tp`, `fp` and `fn` as counted, 0 without a match: larger than `f1` where an image or patch has no prediction.

        Source: Woof6/neurips22-cellseg_saltfish@c2b85d5, eval_f1.py F1_2 (MAUNet's score), which rounds it to 4 digits.
        """
        precision, recall = divide(self.tp, self.tp + self.fp), divide(self.tp, self.tp + self.fn)
        return np.where(self.tp == 0, 0.0, divide(2 * (precision * recall), precision + recall))


# --------------------------------------------------------------------------------------------------------- overlap table


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Areas of two sets of cells, and what every pair that shares a pixel shares.

    Attributes:
      truth_areas: [M] int64, pixels.
      prediction_areas: [N] int64, pixels.
      pairs: [P, 2] int64 (truth row, prediction row), ordered by prediction, then truth.
      intersections: [P] int64, pixels, at least 1.
    """

    truth_areas: np.ndarray
    prediction_areas: np.ndarray
    pairs: np.ndarray
    intersections: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """[P] float64: the nearest double to the exact fraction."""
        areas = self.truth_areas[self.pairs[:, 0]] + self.prediction_areas[self.pairs[:, 1]]
        return self.intersections / (areas - self.intersections)


def as_instances(cells: Instances | np.ndarray) -> Instances:
    """Instances as they are; a label image [H, W] or label layers [H, W, D] converted."""
    return cells if isinstance(cells, Instances) else Instances.from_labels(cells)


def overlap_table(truth: Instances | np.ndarray, prediction: Instances | np.ndarray) -> Overlaps:
    """Counts the pixels that each true cell shares with each predicted cell. Cells of one side may overlap each other.

    Memory grows with the number of cells, not with the image.

    Args:
      truth: M cells, or a label image [H, W] or layers [H, W, D].
      prediction: N cells of the same image, likewise.

    Raises:
      ValueError: the two belong to images of different sizes.
    """
    truth, prediction = as_instances(truth), as_instances(prediction)
    if truth.shape != prediction.shape:
        raise ValueError(f"overlap_table: truth covers {truth.shape} pixels, prediction {prediction.shape}; both must belong to "
                         "the same image. Check the pairing of files, and whether one of them was resized or cropped.")
    pairs = _pairs_of_boxes(truth.boxes, prediction.boxes)
    shared = np.asarray([shared_pixels(truth.boxes[t], truth.masks[t], prediction.boxes[p], prediction.masks[p])
                         for t, p in pairs.tolist()], np.int64)
    return Overlaps(truth.areas(), prediction.areas(), pairs[shared > 0], shared[shared > 0])


def _pairs_of_boxes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[P, 2] int64, rows (first, second) of the boxes [M, 4] and [N, 4] that share a pixel, ordered by second, then first."""
    order = np.argsort(second[:, 0], kind="stable")
    tops = second[order, 0]
    # Of the boxes sorted by their upper side only those of some rows can reach a box; no table of all pairs is made.
    start = np.searchsorted(tops, first[:, 0] - np.max(second[:, 2] - second[:, 0], initial=0), side="right").tolist()
    stop = np.searchsorted(tops, first[:, 2], side="left").tolist()
    found = [np.zeros((0, 2), np.int64)]
    for row, (_, x0, y1, x1) in enumerate(first.tolist()):
        near = order[start[row]:stop[row]]
        boxes = second[near]
        near = near[(boxes[:, 2] > first[row, 0]) & (boxes[:, 1] < x1) & (boxes[:, 3] > x0) & (boxes[:, 0] < y1)]
        found.append(np.stack([np.full(len(near), row), near], axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]


def drop_ignored(prediction: Instances, labels: np.ndarray) -> Instances:
    """The predictions that are to be scored: those that lie mostly where the annotation says what is there.

    Args:
      prediction: cells.
      labels: [H, W, D] label layers of the truth, -1 "ignore" (a crowd that nobody outlined, a region nobody annotated).

    Returns:
      The predictions without those that have more than half of their pixels on "ignore"; a pixel that is also a true cell's is
      none. What is dropped could not match at IoU 0.5 or above: it shares less than half of its pixels with any true cell.

    Raises:
      ValueError: the two belong to images of different sizes.
    """
    if prediction.shape != labels.shape[:2]:
        raise ValueError(f"drop_ignored: the prediction covers {prediction.shape} pixels, the labels {labels.shape[:2]}; both "
                         "must belong to the same image.")
    scored = np.ones(len(prediction), bool)
    for i, ((y0, x0, y1, x1), mask) in enumerate(zip(prediction.boxes.tolist(), prediction.masks, strict=True)):
        pixels = labels[y0:y1, x0:x1][mask]
        ignored = (pixels == -1).any(axis=1) & ~(pixels > 0).any(axis=1)
        scored[i] = 2 * np.count_nonzero(ignored) <= len(pixels)
    return prediction.select(scored)


# -------------------------------------------------------------------------------------------------------------- matching


def _reaching(overlaps: Overlaps, threshold: float) -> np.ndarray:
    """Rows of `overlaps.pairs` with IoU >= threshold.

    Both sides are the nearest double to an exact fraction, so equality is exact; rounding the threshold undoes what
    arange and linspace add (0.6500000000000001).
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"IoU threshold {threshold} is outside (0, 1]; at 0 cells that do not touch would match. Use e.g. 0.5.")
    return np.flatnonzero(overlaps.iou >= round(float(threshold), 10))


def optimal_matching(overlaps: Overlaps, *, threshold: float) -> np.ndarray:
    """One-to-one matching with the most pairs of IoU >= threshold, and of those the one with the largest summed IoU.

    Args:
      overlaps: table of P pairs.
      threshold: IoU in (0, 1].

    Returns:
      [K] int64, the matched rows of `overlaps.pairs`, ascending.

    Source: StarDist 0.9.1, stardist/matching.py; the number of pairs is also the challenge's (`challenge_counts`).
    Departs: StarDist compares IoU in float32, and lets pairs below the threshold take part in the tie-break, which needs the
      dense table of all pairs. Here they do not, so the problem falls into components of a few cells each; the number of
      matches is the same, and so are the pairs whenever the threshold exceeds 0.5 and cells do not overlap.
    """
    rows = _reaching(overlaps, threshold)
    truth, prediction = overlaps.pairs[rows].T
    first = len(overlaps.truth_areas)
    count = first + len(overlaps.prediction_areas)
    graph = sparse.coo_array((np.ones(len(rows), np.int8), (truth, first + prediction)), shape=(count, count))
    component = sparse.csgraph.connected_components(graph, directed=False)[1][truth]
    alone = np.bincount(component, minlength=1)[component] == 1
    groups = _grouped(rows[~alone], component[~alone])
    return np.sort(np.concatenate([rows[alone], *(_assign(overlaps, group) for group in groups)]))


def _grouped(values: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """`values` split into one array per distinct key."""
    if not len(values):
        return []
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.flatnonzero(np.diff(keys[order])) + 1)


def _assign(overlaps: Overlaps, rows: np.ndarray) -> np.ndarray:
    """The optimal matching among `rows` of `overlaps.pairs`."""
    (truths, t), (predictions, p) = (np.unique(side, return_inverse=True) for side in overlaps.pairs[rows].T)
    row = np.full((len(truths), len(predictions)), -1)
    row[t, p] = rows
    gain = np.zeros(row.shape)
    # All IoU together weigh at most 1/2, less than one more pair.
    gain[t, p] = 1 + overlaps.iou[rows] / (2 * min(row.shape))
    chosen = row[linear_sum_assignment(gain, maximize=True)]
    return chosen[chosen >= 0]


def greedy_matching(overlaps: Overlaps, *, threshold: float) -> np.ndarray:
    """One-to-one matching that takes pairs of IoU >= threshold by falling IoU; it can find fewer pairs than the optimum.

    Args:
      overlaps: table of P pairs.
      threshold: IoU in (0, 1].

    Returns:
      [K] int64, the matched rows of `overlaps.pairs`, ascending.

    Source: celldetection 0.4.9, data/instance_eval.py LabelMatcher.
    Departs: of equal IoU the pair with the later prediction, then the later truth, goes first, at any number of pairs;
      there the order of equals is left to an unstable sort.
    """
    rows = _reaching(overlaps, threshold)
    truth_free = np.ones(len(overlaps.truth_areas), bool)
    prediction_free = np.ones(len(overlaps.prediction_areas), bool)
    kept = []
    for row in rows[np.argsort(overlaps.iou[rows], kind="stable")[::-1]].tolist():
        truth, prediction = overlaps.pairs[row]
        if truth_free[truth] and prediction_free[prediction]:
            truth_free[truth] = prediction_free[prediction] = False
            kept.append(row)
    return np.sort(np.asarray(kept, np.int64))


def match_counts(overlaps: Overlaps, *, thresholds: Sequence[float],
                 matching: Callable[..., np.ndarray] = optimal_matching) -> Counts:
    """Counts of one image at each threshold.

    Args:
      overlaps: `overlap_table(truth, prediction)`.
      thresholds: T values of IoU in (0, 1].
      matching: `optimal_matching` or `greedy_matching`.

    Returns:
      Counts of shape [T].
    """
    matched = [matching(overlaps, threshold=threshold) for threshold in thresholds]
    tp = np.asarray([len(rows) for rows in matched], np.int64)
    iou = np.asarray([overlaps.iou[rows].sum() for rows in matched], np.float64)
    return Counts(tp, len(overlaps.prediction_areas) - tp, len(overlaps.truth_areas) - tp, iou)


def match(truth: Instances | np.ndarray, prediction: Instances | np.ndarray, *, thresholds: Sequence[float] = (0.5,),
          matching: Callable[..., np.ndarray] = optimal_matching) -> Counts:
    """Counts of one image at each threshold, from its cells or label images: `match(a, b).f1[0]` is F1 at IoU 0.5.

    Args and Returns: see `overlap_table` and `match_counts`.
    """
    return match_counts(overlap_table(truth, prediction), thresholds=thresholds, matching=matching)


# -------------------------------------------------------------------------------------------- the NeurIPS 2022 challenge


def remove_border_cells(cells: Instances | np.ndarray, *, margin: int = 2) -> Instances:
    """The cells without a pixel in the outermost `margin` rows and columns, in their order."""
    cells = as_instances(cells)
    height, width = cells.shape
    inside = np.zeros(len(cells), bool)
    for i, ((y0, x0, _, _), mask) in enumerate(zip(cells.boxes.tolist(), cells.masks, strict=True)):
        inner = mask[max(margin - y0, 0):max(height - margin - y0, 0), max(margin - x0, 0):max(width - margin - x0, 0)]
        inside[i] = np.count_nonzero(inner) == np.count_nonzero(mask)
    return cells.select(inside)


def challenge_counts(truth: Instances | np.ndarray, prediction: Instances | np.ndarray, *, thresholds: Sequence[float] = (0.5,),
                     margin: int = 2, large: int = 25_000_000, patch: int = 2000,
                     empty_prediction: Literal["challenge", "count_missed"] = "challenge") -> ChallengeCounts:
    """Counts of one image by the protocol of the NeurIPS 2022 cell segmentation challenge.

    Cells within `margin` pixels of the image's edge are removed from truth and prediction separately. An image of `large`
    pixels or more is cut into squares of `patch` pixels (the last ones padded with background), each counted as an image of
    its own, border removal included: cells that cross a cut are not counted at all.

    Args:
      truth: true cells, or a label image [H, W].
      prediction: predicted cells of the same image.
      thresholds: T values of IoU in (0, 1]; the challenge ranks by 0.5.
      margin: pixels.
      large: pixels of an image from which patches are used.
      patch: side of a patch, pixels.
      empty_prediction: what an image (or patch) without any prediction adds to `fn`: "challenge" nothing, as the script does,
        or "count_missed" its true cells. Precision, recall and F1 divide by `truth` and `prediction` and are the same (but not
        `counted_f1`).

    Returns:
      ChallengeCounts of shape [T].

    Raises:
      ValueError: sizes differ, or `empty_prediction` is neither name.

    Source: NeurIPS-CellSeg@3128e96, baseline/compute_metric.py.
    Departs: cells that overlap keep all their pixels, which that script's label images cannot express; a prediction's ids do
      not wrap around at the truth's integer type in large images.
    """
    if empty_prediction not in ("challenge", "count_missed"):
        raise ValueError(f"empty_prediction is {empty_prediction!r}; it must be 'challenge' (nothing is missed then, as in the "
                         "challenge's script) or 'count_missed'.")
    truth, prediction = as_instances(truth), as_instances(prediction)
    height, width = truth.shape
    corners: list[tuple[int, int]] = [(0, 0)]
    if height * width >= large:
        corners = [(y, x) for y in range(0, height, patch) for x in range(0, width, patch)]
    total = ChallengeCounts(*np.zeros((5, len(thresholds)), np.int64))
    for corner in corners:
        sides = (truth, prediction) if len(corners) == 1 else (_window(side, corner, patch) for side in (truth, prediction))
        table = overlap_table(*(remove_border_cells(side, margin=margin) for side in sides))
        counts = match_counts(table, thresholds=thresholds)
        if not len(table.prediction_areas) and empty_prediction == "challenge":
            counts = replace(counts, fn=np.zeros_like(counts.fn))
        cells = (np.full_like(counts.tp, len(areas)) for areas in (table.truth_areas, table.prediction_areas))
        total = total + ChallengeCounts(counts.tp, counts.fp, counts.fn, *cells)
    return total


def _window(cells: Instances, corner: tuple[int, int], size: int) -> Instances:
    """The parts of cells that lie in the square of `size` pixels at `corner`, in its coordinates."""
    low = np.tile(corner, 2)
    boxes = np.clip(cells.boxes - low, 0, size).astype(np.int32)
    touching = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
    masks = []
    for i in touching.tolist():
        (y0, x0, y1, x1), (top, left, _, _) = boxes[i].tolist(), (cells.boxes[i] - low).tolist()
        masks.append(cells.masks[i][y0 - top:y1 - top, x0 - left:x1 - left])
    part = Instances((size, size), boxes[touching], masks, cells.scores[touching])
    return part.select(part.areas() > 0)
