"""Kinds of errors: each by hand, and all of them against deepcell's dense matrices and graph on random cells."""

import numpy as np
import pytest
from metrics.cells import jittered, random_cells, squares
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from jaxcell.metrics.errors import ErrorCounts, error_counts
from jaxcell.metrics.matching import overlap_table


def counts_of(truth, prediction, **options):
    return error_counts(overlap_table(truth, prediction), **options)


def named(counts):
    """Only what is not 0."""
    return {name: int(value) for name, value in vars(counts).items() if value}


CELL, HALF, OTHER_HALF = (0, 0, 10, 20), (0, 0, 10, 10), (0, 10, 10, 20)


@pytest.mark.parametrize("truth, prediction, expected", [
    ([], [], {}),
    ([CELL], [], {"cells": 1, "missed": 1}),
    ([], [CELL], {"predictions": 1, "gained": 1}),
    ([CELL], [CELL], {"cells": 1, "predictions": 1, "correct": 1}),
    ([CELL], [(0, 0, 10, 13)], {"cells": 1, "predictions": 1, "correct": 1}),              # IoU 0.65
    ([CELL], [(0, 0, 10, 12)], {"cells": 1, "predictions": 1, "missed": 1, "gained": 1}),  # IoU 0.6 is not enough
    ([HALF, OTHER_HALF], [CELL], {"cells": 2, "predictions": 1, "merges": 1, "missed_in_merges": 1}),
    ([CELL], [HALF, OTHER_HALF], {"cells": 1, "predictions": 2, "splits": 1, "gained_in_splits": 1}),
    ([HALF, OTHER_HALF], [(0, 0, 5, 20), (5, 0, 10, 20)],
     {"cells": 2, "predictions": 2, "catastrophes": 1, "cells_in_catastrophes": 2, "predictions_in_catastrophes": 2}),
    # A speck inside a cell hangs with it although their IoU is small, but the cell has its own match.
    ([CELL], [CELL, (0, 0, 2, 2)], {"cells": 1, "predictions": 2, "correct": 1, "gained": 1}),
])
def test_by_hand(truth, prediction, expected):
    assert named(counts_of(squares(*truth), squares(*prediction))) == expected


def test_a_swallowed_speck_makes_a_split_only_if_links_are_forced():
    truth, prediction = squares(CELL), squares((0, 0, 10, 18), (0, 18, 4, 20))
    assert named(counts_of(truth, prediction)) == {"cells": 1, "predictions": 2, "correct": 1, "gained": 1}
    forced = counts_of(truth, prediction, force_event_links=True)
    assert named(forced) == {"cells": 1, "predictions": 2, "splits": 1, "gained_in_splits": 1}


def test_counts_add_up_and_ratios_come_last():
    a = counts_of(squares(CELL), squares(CELL))
    b = counts_of(squares(HALF, OTHER_HALF), squares((0, 0, 5, 20), (5, 0, 10, 20)))
    total = a + b
    assert (total.cells, total.correct, total.detections) == (3, 1, 2)     # deepcell counts a catastrophe as a detection
    assert total.f1 == pytest.approx(2 * 2 / (3 + 3)) and total.precision == pytest.approx(2 / 3)
    assert np.isnan(counts_of(squares(), squares()).f1)
    rows = np.stack([a.row(), b.row()])
    np.testing.assert_array_equal(ErrorCounts.of_rows(rows).cells, (1, 2))


def label_image(rng, count, shape=(60, 70)):
    """Touching random cells as a label image."""
    labels = np.zeros(shape, np.int32)
    y, x = np.indices(shape)
    for number in range(1, count + 1):
        cy, cx, ry, rx = *rng.integers(0, shape), *rng.integers(2, 12, 2)
        labels[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = number
    return np.unique(labels, return_inverse=True)[1].reshape(shape).astype(np.int32) if labels.any() else labels


def changed(rng, labels):
    """Some cells lost, cut, joined or moved."""
    table = np.arange(labels.max() + 1)
    table[1:] = np.where(rng.random(labels.max()) < 0.15, rng.integers(0, labels.max() + 1, labels.max()), table[1:])
    out = np.roll(table[labels], rng.integers(-2, 3, 2), axis=(0, 1))
    cut = (np.add.outer(np.arange(60) // 13, np.arange(70) // 17) % 2).astype(bool)
    out = np.where((out > 0) & cut & (out % 3 == 0), out + 1000, out)
    return (np.unique(out, return_inverse=True)[1].reshape(labels.shape) - (0 if (out == 0).any() else -1)).astype(np.int32)


def by_definition(truth, prediction, *, cutoff1=0.4, cutoff2=0.1, force_event_links=False):
    """The reference's procedure on dense matrices, cell by cell."""
    n, m = truth.max(), prediction.max()
    both = np.asarray([[np.sum((truth == t) & (prediction == p)) for p in range(1, m + 1)] for t in range(1, n + 1)])
    both = both.reshape(n, m)
    a, b = (np.bincount(x.ravel(), minlength=k + 1)[1:] for x, k in ((truth, n), (prediction, m)))
    iou = both / (a[:, None] + b[None] - both)
    raised = iou.copy()
    for t, p in zip(*np.nonzero((iou > 0) & (iou < 1 - cutoff1) & (iou <= cutoff1)), strict=True):
        if max(both[t, p] / a[t], both[t, p] / b[p]) > 0.5:
            raised[t, p] = cutoff2
            if force_event_links and both[t, p] / a[t] > 0.5:
                raised[iou[:, p] >= 1 - cutoff1, p] = 1 - cutoff1 - 0.01
            elif force_event_links:
                raised[t, iou[t] >= 1 - cutoff1] = 1 - cutoff1 - 0.01
    cost = np.block([[1 - raised, cutoff1 * np.eye(n) + np.ones((n, n)) - np.eye(n)],
                     [cutoff1 * np.eye(m) + np.ones((m, m)) - np.eye(m), 1 - raised.T]])
    rows, columns = linear_sum_assignment(cost)
    pairs = {(r, c) for r, c in zip(rows, columns, strict=True) if r < n and c < m}
    left = [t for t in range(n) if t not in {r for r, _ in pairs}], [p for p in range(m) if p not in {c for _, c in pairs}]
    out = dict.fromkeys(ErrorCounts.__dataclass_fields__, 0) | {"predictions": m, "cells": n, "correct": len(pairs)}
    groups = np.eye(len(left[0]) + len(left[1]), dtype=bool)
    for i, t in enumerate(left[0]):
        for j, p in enumerate(left[1], start=len(left[0])):
            groups[i, j] = groups[j, i] = raised[t, p] >= cutoff2
    for _ in range(len(groups)):
        groups = groups @ groups
    for members in {tuple(row) for row in groups}:
        t, p = sum(members[:len(left[0])]), sum(members[len(left[0]):])
        if t <= 1 and p <= 1:
            out["missed"] += t
            out["gained"] += p
        elif p == 1:
            out["merges"] += 1
            out["missed_in_merges"] += t - 1
        elif t == 1:
            out["splits"] += 1
            out["gained_in_splits"] += p - 1
        else:
            out["catastrophes"] += 1
            out["cells_in_catastrophes"] += t
            out["predictions_in_catastrophes"] += p
    return {name: int(value) for name, value in out.items()}


@pytest.mark.parametrize("options", [{}, {"cutoff1": 0.55, "cutoff2": 0.2}, {"force_event_links": True}, {"cutoff1": 0.5}])
def test_all_kinds_equal_the_dense_procedure(options):
    seen = np.zeros(12, bool)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = label_image(rng, int(rng.integers(0, 25)))
        prediction = changed(rng, truth) if truth.any() else label_image(rng, int(rng.integers(0, 4)))
        counts = counts_of(truth, prediction, **options)
        assert {name: int(value) for name, value in vars(counts).items()} == by_definition(truth, prediction, **options), seed
        seen |= counts.row() > 0
    assert seen.sum() >= 10


def test_every_cell_is_counted_once_even_where_cells_overlap():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        truth = random_cells(rng, 25)
        c = counts_of(truth, jittered(rng, truth))
        assert c.cells == c.correct + c.missed + c.missed_in_merges + c.merges + c.splits + c.cells_in_catastrophes
        assert c.predictions == c.correct + c.gained + c.gained_in_splits + c.splits + c.merges + c.predictions_in_catastrophes


def test_ids_may_have_gaps():
    labels = np.zeros((20, 20), np.int32)
    labels[2:8, 2:8], labels[10:15, 10:15] = 1_000_000, 7
    assert named(counts_of(labels, ndimage.label(labels > 0)[0])) == {"cells": 2, "predictions": 2, "correct": 2}
