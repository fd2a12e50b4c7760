"""Counts of a class by hand; counts add up, ratios are taken once."""

from __future__ import annotations

import numpy as np
import pytest

from jaxcell.metrics.semantic import class_counts

TRUTH = np.asarray([[1, 1, 1, 0, 0, 0, 0, 1]], bool)
FOUND = np.asarray([[1, 1, 0, 1, 0, 0, 0, 1]], bool)
COUNTED = np.asarray([[1, 1, 1, 1, 1, 1, 1, 0]], bool)


def test_by_hand():
    counts = class_counts(TRUTH, FOUND, COUNTED)
    assert [int(n) for n in (counts.tp, counts.fp, counts.fn, counts.tn)] == [2, 1, 1, 3]
    assert counts.scores() == pytest.approx({"accuracy": 5 / 7, "precision": 2 / 3, "recall": 2 / 3, "F1": 2 / 3, "IoU": 0.5})
    both = counts + class_counts(TRUTH, TRUTH, COUNTED)
    assert float(both.iou) == pytest.approx(5 / 7)


def test_nothing_to_find():
    scores = class_counts(np.zeros((2, 3), bool), np.zeros((2, 3), bool), np.ones((2, 3), bool)).scores()
    assert scores.pop("accuracy") == 1 and all(np.isnan(value) for value in scores.values())


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="one size"):
        class_counts(TRUTH, FOUND[:, :3], COUNTED)
