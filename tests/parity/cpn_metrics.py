"""Parity of instance matching: the challenge's protocol and the package's greedy matcher."""

from __future__ import annotations

import numpy as np
from loader import Case

from jaxcell.metrics.matching import challenge_counts, greedy_matching, match, overlap_table, remove_border_cells
from jaxcell.types import Instances


def painted(cells: Instances) -> np.ndarray:
    """[H, W] label image 1..M of cells that do not overlap."""
    labels = np.zeros(cells.shape, np.int32)
    for number, ((y0, x0, y1, x1), mask) in enumerate(zip(cells.boxes, cells.masks, strict=True), start=1):
        labels[y0:y1, x0:x1][mask] = number
    return labels


def f1_matching(case: Case) -> dict[str, np.ndarray]:
    truth, prediction = case.inputs["truth"], case.inputs["prediction"]
    thresholds = case.constructor["thresholds"]
    inner = remove_border_cells(truth), remove_border_cells(prediction)
    table = overlap_table(*inner)
    iou = np.zeros((len(inner[0]), len(inner[1])))
    iou[tuple(table.pairs.T)] = table.iou
    challenge = challenge_counts(truth, prediction, thresholds=thresholds)
    package = match(truth, prediction, thresholds=thresholds, matching=greedy_matching)
    scores = {
        "challenge": (challenge, ("tp", "fp", "fn", "precision", "recall", "f1")),
        "matcher": (package, ("tp", "fp", "fn", "precision", "recall", "f1", "jaccard", "fowlkes_mallows")),
    }
    # The reference writes 0 where we have NaN (a ratio of nothing).
    tables = {name: np.nan_to_num(np.stack([getattr(counts, key) for key in keys], axis=-1))
              for name, (counts, keys) in scores.items()}
    return {"challenge_truth": painted(inner[0]), "challenge_prediction": painted(inner[1]), "challenge_iou": iou, **tables}


ADAPTERS = {"cpn/f1_matching": f1_matching}
TOLERANCES: dict[str, float] = {}
