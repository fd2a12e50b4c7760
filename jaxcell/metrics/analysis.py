"""Where average precision is lost: the same predictions with their masks mended, or with only the right ones left.

Each analysis gives changed predictions, which are scored like any other. So they work for every system.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from jaxcell.metrics.matching import Overlaps, overlap_table
from jaxcell.types import Instances

__all__ = ["ANALYSES", "best_matched", "with_true_masks"]


def with_true_masks(truth: Instances, prediction: Instances) -> Instances:
    """Every prediction drawn perfectly: its mask is that of the true cell with which it has the largest Dice; scores stay.

    What is lost then is not lost in drawing. Two predictions of one cell stay two; one that touches no cell stays as it is.

    Source: the thesis, section 5.7.4 and Table 5.11 ("w/ gt mask").
    """
    table = overlap_table(truth, prediction)
    found, dice = table.pairs[:, 1], _dice(table)
    order = np.lexsort((-dice, found))                        # of equals the first true cell
    first = order[np.diff(found[order], prepend=-1) > 0]
    best = dict(zip(found[first].tolist(), table.pairs[first, 0].tolist(), strict=True))
    sources = [(truth, best[i]) if i in best else (prediction, i) for i in range(len(prediction))]
    boxes = np.asarray([cells.boxes[i] for cells, i in sources], np.int32).reshape(-1, 4)
    return Instances(prediction.shape, boxes, [cells.masks[i] for cells, i in sources], prediction.scores)


def best_matched(truth: Instances, prediction: Instances, *, least_dice: float = 0.5) -> Instances:
    """Only the predictions that are some cell's: those of the one-to-one matching with the largest sum of Dice.

    What is lost then is not lost in ranking, for wrong predictions and repeated ones are gone.

    Args:
      truth: true cells.
      prediction: predicted cells.
      least_dice: of a pair, in (0, 1]; the thesis says "high".

    Source: the thesis, section 5.7.4 and Table 5.11 ("gt matched").
    """
    if not len(truth) or not len(prediction):
        return prediction.select(np.zeros(0, np.int64))
    table = overlap_table(truth, prediction)
    dice = _dice(table)
    rows = np.flatnonzero(dice >= least_dice)
    t, p = table.pairs[rows].T
    cells, predictions = len(truth), len(prediction)
    # Every true cell may also go without a prediction, at no gain: that makes a full matching exist.
    t, p = np.concatenate([t, np.arange(cells)]), np.concatenate([p, predictions + np.arange(cells)])
    gain = np.concatenate([1 + dice[rows], np.ones(cells)])
    graph = sparse.csr_array((gain, (t, p)), shape=(cells, predictions + cells))
    chosen = min_weight_full_bipartite_matching(graph, maximize=True)[1]
    return prediction.select(np.sort(chosen[chosen < predictions]))


def _dice(table: Overlaps) -> np.ndarray:
    """[P], of every pair."""
    return 2 * table.intersections / (table.truth_areas[table.pairs[:, 0]] + table.prediction_areas[table.pairs[:, 1]])


ANALYSES: Mapping[str, Callable[[Instances, Instances], Instances]] = {
    "true masks": with_true_masks, "best matched": best_matched}
"""name -> (truth, prediction) -> changed prediction."""
