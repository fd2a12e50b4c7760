"""What kind of mistakes a segmentation makes: cells missed, gained, merged, split, or in such a tangle that none of these fits.

A pair is a correct detection if its IoU exceeds 1 - cutoff1. Among the cells left over, true and predicted ones that overlap
enough are joined; the shape of what hangs together says what went wrong. Counts of several images add up.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from jaxcell.metrics.matching import Overlaps, divide

__all__ = ["ErrorCounts", "correct_detections", "error_counts", "raised_iou"]

_TIE = 1e-12     # IoU; a pair exactly at the cutoff is taken, as the reference's assignment happens to do


@dataclass(frozen=True, eq=False)
class ErrorCounts:
    """Detections and kinds of errors; `a + b` are the counts of both images together.

    Every cell is in one of these: true ones correct, missed, in a merge, split, or in a catastrophe; predicted ones correct,
    gained, part of a split, a merge, or in a catastrophe. The names in brackets are deepcell's.

    Attributes:
      predictions: [...] int64, predicted cells (n_pred).
      cells: true cells (n_true).
      correct: pairs (part of correct_detections, see `detections`).
      missed: true cells that nothing found (missed_detections).
      gained: predicted cells where there is none (gained_detections).
      missed_in_merges: true cells lost in merges, one less than each merge has (missed_det_from_merge).
      gained_in_splits: surplus predicted cells, one less than each split has (gained_det_from_split).
      cells_in_catastrophes: true cells (true_det_in_catastrophe).
      predictions_in_catastrophes: predicted cells (pred_det_in_catastrophe).
      merges: predicted cells that cover several true ones (merge).
      splits: true cells that several predicted ones cover (split).
      catastrophes: groups of several of both (catastrophe).
    """

    predictions: np.ndarray
    cells: np.ndarray
    correct: np.ndarray
    missed: np.ndarray
    gained: np.ndarray
    missed_in_merges: np.ndarray
    gained_in_splits: np.ndarray
    cells_in_catastrophes: np.ndarray
    predictions_in_catastrophes: np.ndarray
    merges: np.ndarray
    splits: np.ndarray
    catastrophes: np.ndarray

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def row(self) -> np.ndarray:
        """[..., 12], the counts side by side in the order above."""
        return np.stack(astuple(self), axis=-1)

    @staticmethod
    def of_rows(rows: np.ndarray) -> ErrorCounts:
        """The inverse of `row`."""
        return ErrorCounts(*np.moveaxis(rows, -1, 0))

    @property
    def detections(self) -> np.ndarray:
        """correct_detections as deepcell counts them: `correct`, and one for each catastrophe, which is hardly meant so."""
        return self.correct + self.catastrophes

    @property
    def precision(self) -> np.ndarray:
        """Detections / predictions; NaN without predictions."""
        return divide(self.detections, self.predictions)

    @property
    def recall(self) -> np.ndarray:
        """Detections / cells; NaN without cells."""
        return divide(self.detections, self.cells)

    @property
    def f1(self) -> np.ndarray:
        """2 detections / (predictions + cells), the harmonic mean of precision and recall; NaN without either."""
        return divide(2 * self.detections, self.predictions + self.cells)


COUNTS = tuple(field.name for field in fields(ErrorCounts))


def error_counts(overlaps: Overlaps, *, cutoff1: float = 0.4, cutoff2: float = 0.1, force_event_links: bool = False
                 ) -> ErrorCounts:
    """Counts of one image.

    Args:
      overlaps: `overlap_table(truth, prediction)`.
      cutoff1: in (0, 1): a lone pair is correct from IoU 1 - cutoff1 on (0.6 by default, not 0.5).
      cutoff2: IoU from which cells that are left over hang together.
      force_event_links: a cell that swallowed a smaller one is never correct, so that the event counts as merge or split.

    Returns:
      ErrorCounts of shape [].

    Source: deepcell-toolbox@e8c1277ee424, metrics.py ObjectMetrics (Caicedo et al. 2018; Jaqaman et al. 2008). A pair that
      overlaps but was not assigned, and hangs together with nothing else, is one missed and one gained cell.
      Departs: on the sparse table of pairs instead of dense matrices of all cells; ids need not be without gaps.
    """
    iou = raised_iou(overlaps, cutoff1=cutoff1, cutoff2=cutoff2, force_event_links=force_event_links)
    truth, prediction = overlaps.pairs.T
    cells, predictions = len(overlaps.truth_areas), len(overlaps.prediction_areas)
    rows = correct_detections(overlaps, iou, cutoff1=cutoff1)
    alone = np.ones(cells + predictions, bool)
    alone[truth[rows]] = alone[cells + prediction[rows]] = False
    linked = (iou >= cutoff2) & alone[truth] & alone[cells + prediction]
    component = _components(truth[linked], cells + prediction[linked], len(alone))
    # True and predicted cells in each group of those left over.
    t, p = (np.bincount(component[part][alone[part]], minlength=len(alone)) for part in (slice(cells), slice(cells, None)))
    merges, splits, tangles = (t > 1) & (p == 1), (t == 1) & (p > 1), (t > 1) & (p > 1)
    single = (t <= 1) & (p <= 1)
    counts = (predictions, cells, len(rows), t[single].sum(), p[single].sum(), (t[merges] - 1).sum(), (p[splits] - 1).sum(),
              t[tangles].sum(), p[tangles].sum(), merges.sum(), splits.sum(), tangles.sum())
    return ErrorCounts(*(np.asarray(count, np.int64) for count in counts))


def raised_iou(overlaps: Overlaps, *, cutoff1: float = 0.4, cutoff2: float = 0.1, force_event_links: bool = False) -> np.ndarray:
    """[P] IoU of the pairs, by which small cells inside large ones are not lost; see `error_counts` for the arguments.

    A pair of IoU at most cutoff1, one of whose cells lies to more than half in the other, gets cutoff2. With `force_event_links`
    the other cell's better pairs fall to 1 - cutoff1 - 0.01, which is no match.
    """
    iou, (truth, prediction) = overlaps.iou, overlaps.pairs.T
    truth_inside = 2 * overlaps.intersections > overlaps.truth_areas[truth]
    prediction_inside = 2 * overlaps.intersections > overlaps.prediction_areas[prediction]
    small = (iou <= cutoff1) & (iou < 1 - cutoff1) & (truth_inside | prediction_inside)
    raised = np.where(small, cutoff2, iou)
    if force_event_links:
        merging = np.zeros(len(overlaps.prediction_areas), bool)
        splitting = np.zeros(len(overlaps.truth_areas), bool)
        merging[prediction[small & truth_inside]] = True
        splitting[truth[small & ~truth_inside]] = True
        raised[(iou >= 1 - cutoff1) & (merging[prediction] | splitting[truth])] = 1 - cutoff1 - 0.01
    return raised


def correct_detections(overlaps: Overlaps, iou: np.ndarray, *, cutoff1: float = 0.4) -> np.ndarray:
    """The one-to-one pairs that save most against leaving their cells alone.

    Args:
      overlaps: table of P pairs.
      iou: [P], of `raised_iou`.
      cutoff1: cost of a cell that is left alone; a pair costs 1 - IoU, counted for each of its two cells.

    Returns:
      [K] int64, rows of `overlaps.pairs`, ascending.
    """
    # The reference adds 1 to the cutoff and takes it off again; pairs do sit on 0.6.
    gain = (cutoff1 + 1) - 1 - (1 - iou)
    rows = np.flatnonzero(gain >= 0)
    truth, prediction = overlaps.pairs[rows].T
    first = len(overlaps.truth_areas)
    component = _components(truth, first + prediction, first + len(overlaps.prediction_areas))
    order = np.argsort(component[truth], kind="stable")
    groups = np.split(rows[order], np.flatnonzero(np.diff(component[truth][order])) + 1)
    return np.sort(np.concatenate([group if len(group) == 1 else _assign(overlaps, group, gain) for group in groups]))


def _assign(overlaps: Overlaps, rows: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Of `rows` of the table, which share cells, those of the one-to-one choice with the largest gain."""
    (truths, t), (predictions, p) = (np.unique(side, return_inverse=True) for side in overlaps.pairs[rows].T)
    row, value = np.full((len(truths), len(predictions)), -1), np.zeros((len(truths), len(predictions)))
    row[t, p], value[t, p] = rows, gain[rows] + _TIE
    chosen = row[linear_sum_assignment(value, maximize=True)]
    return chosen[chosen >= 0]


def _components(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """[count] which of `count` things hang together by the links (first, second)."""
    graph = sparse.coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    return sparse.csgraph.connected_components(graph, directed=False)[1]
