"""The two analyses against brute force over all pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from metrics.cells import dense, jittered, random_cells, squares

from jaxcell.metrics.analysis import ANALYSES, best_matched, with_true_masks


def dice(truth, prediction):
    """[M, N] of every pair."""
    a, b = dense(truth), dense(prediction)
    return np.asarray([[2 * (x & y).sum() / (x.sum() + y.sum()) for y in b] for x in a]).reshape(len(a), len(b))


def test_every_prediction_becomes_its_best_cell():
    rng = np.random.default_rng(0)
    truth = random_cells(rng, 12)
    found = jittered(rng, truth)
    table, true, mended = dice(truth, found), dense(truth), dense(with_true_masks(truth, found))
    for i, column in enumerate(table.T):
        np.testing.assert_array_equal(mended[i], true[column.argmax()] if column.max() > 0 else dense(found)[i])
    np.testing.assert_array_equal(with_true_masks(truth, found).scores, found.scores)


def test_only_the_best_matching_is_left():
    rng = np.random.default_rng(1)
    for _ in range(20):
        truth, found = random_cells(rng, 4, shape=(16, 16)), random_cells(rng, 5, shape=(16, 16))
        table = dice(truth, found)
        best = max(sum(table[t, p] for t, p in enumerate(choice) if p < 5 and table[t, p] >= 0.3)
                   for choice in itertools.permutations(range(9), 4))
        kept = best_matched(truth, found, least_dice=0.3)
        chosen = [next(i for i in range(5) if np.array_equal(found.boxes[i], box) and found.scores[i] == score)
                  for box, score in zip(kept.boxes, kept.scores, strict=True)]
        assert chosen == sorted(chosen)
        possible = [sum(table[t, p] for t, p in zip(rows, chosen, strict=True))
                    for rows in itertools.permutations(range(4), len(chosen))
                    if all(table[t, p] >= 0.3 for t, p in zip(rows, chosen, strict=True))]
        assert max(possible, default=0.0) == pytest.approx(best)


@pytest.mark.parametrize("change", ANALYSES.values(), ids=ANALYSES)
def test_nothing_on_either_side(change):
    one, none = squares((1, 1, 9, 9)), squares()
    assert len(change(none, none)) == len(change(one, none)) == 0
    assert len(change(none, one)) == (1 if change is with_true_masks else 0)


def test_a_repeated_prediction_is_dropped_by_one_and_kept_by_the_other():
    truth, found = squares((0, 0, 10, 10)), squares((0, 0, 10, 10), (0, 0, 10, 9), (20, 20, 30, 30))
    assert best_matched(truth, found).boxes.tolist() == [[0, 0, 10, 10]]
    assert with_true_masks(truth, found).boxes.tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]]
