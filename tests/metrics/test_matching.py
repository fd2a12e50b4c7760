"""Matching and counts: by hand, against brute force over all matchings, and against the challenge's rules on label images."""

import itertools
import tracemalloc

import numpy as np
import pytest
from metrics.cells import dense, jittered, random_cells, squares

from jaxcell.metrics import matching
from jaxcell.types import Instances


def dense_iou(truth, prediction):
    a, b = dense(truth), dense(prediction)
    intersection = (a[:, None] & b[None]).sum((2, 3))
    union = (a[:, None] | b[None]).sum((2, 3))
    return intersection / union


def best_by_brute_force(iou, threshold):
    """(pairs, summed IoU) of the best of all one-to-one matchings."""
    if min(iou.shape) == 0:
        return 0, 0.0
    iou = iou if iou.shape[0] <= iou.shape[1] else iou.T
    rows = np.arange(iou.shape[0])
    chosen = [iou[rows, list(columns)] for columns in itertools.permutations(range(iou.shape[1]), iou.shape[0])]
    return max(((c >= threshold).sum(), round(c[c >= threshold].sum(), 9)) for c in chosen)


def test_overlap_table_equals_dense_masks():
    rng = np.random.default_rng(0)
    for count in (0, 1, 7, 20):
        truth, prediction = random_cells(rng, count), random_cells(rng, 12)
        table = matching.overlap_table(truth, prediction)
        iou = np.zeros((len(truth), len(prediction)))
        iou[tuple(table.pairs.T)] = table.iou
        np.testing.assert_array_equal(iou, dense_iou(truth, prediction))
        np.testing.assert_array_equal(table.truth_areas, truth.areas())
        assert (table.intersections > 0).all()


def test_the_memory_of_a_table_does_not_grow_with_the_image():
    corner = 40_000
    cells = squares((0, 0, 4, 4), (corner - 9, corner - 9, corner, corner), shape=(corner, corner))
    tracemalloc.start()
    table = matching.overlap_table(cells, cells)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.intersections.tolist() == [16, 81] and peak < 1e6


def test_predictions_on_ignored_pixels_are_not_scored():
    labels = np.zeros((40, 40, 2), np.int32)
    labels[:20, :, 0] = -1
    labels[:5, :5, 1] = 7                    # a cell of the second layer inside the region
    prediction = squares((0, 0, 5, 5), (0, 0, 5, 10), (0, 0, 5, 11), (15, 20, 25, 30), (14, 20, 25, 30), (25, 0, 30, 5))
    kept = matching.drop_ignored(prediction, labels)
    assert kept.boxes.tolist() == prediction.boxes[[0, 1, 3, 5]].tolist()      # exactly half is not more than half
    assert len(matching.drop_ignored(prediction, np.zeros_like(labels))) == 6
    with pytest.raises(ValueError, match="same image"):
        matching.drop_ignored(prediction, labels[:30])


def test_label_images_and_layers_are_cells():
    labels = np.zeros((6, 8), np.int32)
    labels[:2, :4], labels[3:, 5:], labels[5, 0] = 7, 70_000, -1
    layers = np.stack([np.where(labels == 7, 7, 0), np.where(labels == 70_000, 70_000, 0)], -1)
    for other in (labels, layers, Instances.from_labels(labels)):
        table = matching.overlap_table(labels, other)
        assert table.pairs.tolist() == [[0, 0], [1, 1]] and table.intersections.tolist() == [8, 9]
    with pytest.raises(ValueError, match="same image"):
        matching.overlap_table(labels, labels[:-1])


@pytest.mark.parametrize("seed", range(40))
def test_optimal_matching_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    truth = random_cells(rng, int(rng.integers(0, 7)), shape=(16, 16), largest=10)
    prediction = random_cells(rng, int(rng.integers(0, 7)), shape=(16, 16), largest=10)
    table, iou = matching.overlap_table(truth, prediction), dense_iou(truth, prediction)
    for threshold in (0.01, 0.1, 0.2, 0.3, 0.5):
        rows = matching.optimal_matching(table, threshold=threshold)
        pairs = table.pairs[rows]
        assert all(len(set(side)) == len(side) for side in pairs.T.tolist())
        assert (table.iou[rows] >= threshold).all()
        assert (len(rows), round(table.iou[rows].sum(), 9)) == best_by_brute_force(iou, threshold)


def test_greedy_matching_takes_the_best_pair_first():
    # Prediction 0 overlaps both truths, best the first; prediction 1 only the first. Greedy blocks it, the optimum does not.
    truth = squares((0, 0, 10, 10), (0, 10, 10, 20))
    prediction = squares((0, 4, 10, 14), (0, 0, 10, 5))
    table = matching.overlap_table(truth, prediction)
    assert np.round(table.iou, 3).tolist() == [0.429, 0.25, 0.5]
    assert table.pairs.tolist() == [[0, 0], [1, 0], [0, 1]]
    assert matching.greedy_matching(table, threshold=0.2).tolist() == [1, 2]
    blocked = matching.overlap_table(truth, squares((0, 4, 10, 14), (0, 0, 10, 4)))
    assert np.round(blocked.iou, 3).tolist() == [0.429, 0.25, 0.4]
    assert matching.greedy_matching(blocked, threshold=0.3).tolist() == [0]
    assert matching.greedy_matching(blocked, threshold=0.2).tolist() == [0]
    assert matching.optimal_matching(blocked, threshold=0.2).tolist() == [1, 2]


def test_a_pair_on_the_threshold_matches():
    truth = squares((0, 0, 1, 20))
    for pixels in range(1, 21):                                   # IoU = pixels / 20 exactly
        table = matching.overlap_table(truth, squares((0, 0, 1, pixels)))
        for threshold in np.arange(0.05, 1.001, 0.05):            # carries 0.6500000000000001 and the like
            matched = len(matching.optimal_matching(table, threshold=threshold))
            assert matched == (pixels >= round(threshold * 20)), (pixels, threshold)


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01])
def test_threshold_outside_range_is_refused(threshold):
    table = matching.overlap_table(squares((0, 0, 1, 2)), squares((0, 0, 1, 2)))
    with pytest.raises(ValueError, match="outside"):
        matching.optimal_matching(table, threshold=threshold)


def test_counts_and_ratios_by_hand():
    truth = squares((0, 0, 10, 10), (20, 0, 30, 10), (20, 20, 30, 30))
    prediction = squares((0, 0, 10, 8), (20, 0, 30, 10), (0, 30, 5, 35), (35, 35, 40, 40))
    counts = matching.match(truth, prediction, thresholds=(0.5, 0.8, 0.9))
    assert counts.tp.tolist() == [2, 2, 1] and counts.fp.tolist() == [2, 2, 3] and counts.fn.tolist() == [1, 1, 2]
    np.testing.assert_allclose(counts.iou, [1.8, 1.8, 1.0])
    np.testing.assert_allclose(counts.precision[0], 2 / 4)
    np.testing.assert_allclose(counts.recall[0], 2 / 3)
    np.testing.assert_allclose(counts.f1[0], 4 / 7)
    np.testing.assert_allclose(counts.jaccard[0], 2 / 5)
    np.testing.assert_allclose(counts.sq[0], 0.9)
    np.testing.assert_allclose(counts.pq, counts.sq * counts.f1)
    np.testing.assert_allclose(counts.fowlkes_mallows, np.sqrt(counts.precision * counts.recall))


def test_counts_add_up():
    rng = np.random.default_rng(1)
    images = [random_cells(rng, n) for n in (5, 0, 9)]
    pairs = [(image, jittered(rng, image)) for image in images]
    thresholds = (0.3, 0.5, 0.7)
    parts = [matching.match(a, b, thresholds=thresholds) for a, b in pairs]
    # The three images side by side, as one.
    wide = [Instances.concatenate([cells.shift((0, 48 * i), (40, 144)) for i, cells in enumerate(side)])
            for side in zip(*pairs, strict=True)]
    whole = matching.match(*wide, thresholds=thresholds)
    total = parts[0] + parts[1] + parts[2]
    for name in ("tp", "fp", "fn", "iou", "f1", "pq"):
        np.testing.assert_allclose(getattr(total, name), getattr(whole, name))


def test_nothing_to_find_and_nothing_found_is_undefined():
    none, one = squares(), squares((0, 0, 5, 5))
    empty = matching.match(none, none)
    assert all(np.isnan(getattr(empty, name)).all() for name in ("precision", "recall", "f1", "jaccard", "sq", "pq"))
    missed, false = matching.match(one, none), matching.match(none, one)
    assert missed.fn == 1 and missed.f1 == 0 and missed.recall == 0 and np.isnan(missed.precision).all()
    assert false.fp == 1 and false.f1 == 0 and false.precision == 0 and np.isnan(false.recall).all()
    np.testing.assert_array_equal((empty + missed).f1, 0)


# ------------------------------------------------------------------------------------------------------------- challenge


def challenge_by_pixels(truth, prediction, threshold, patch, large):
    """(tp, fp, fn, truth, prediction) by the challenge's rules, written over pixels of label images."""
    height, width = truth.shape
    if height * width >= large:
        full = [np.pad(a, ((0, -height % patch), (0, -width % patch))) for a in (truth, prediction)]
        tiles = [[a[y:y + patch, x:x + patch] for a in full]
                 for y in range(0, full[0].shape[0], patch) for x in range(0, full[0].shape[1], patch)]
    else:
        tiles = [[truth, prediction]]
    total = np.zeros(5, int)
    for sides in tiles:
        ids = []
        for side in sides:
            edge = np.ones(side.shape, bool)
            edge[2:-2, 2:-2] = False
            ids.append([i for i in np.unique(side) if i > 0 and not (edge & (side == i)).any()])
        iou = np.array([[((sides[0] == i) & (sides[1] == j)).sum() / ((sides[0] == i) | (sides[1] == j)).sum() for j in ids[1]]
                        for i in ids[0]]).reshape(len(ids[0]), len(ids[1]))
        tp = int((iou >= threshold).any(1).sum()) if iou.size else 0     # at most one partner each above 0.5
        fn = len(ids[0]) - tp if ids[1] else 0
        total += [tp, len(ids[1]) - tp, fn, len(ids[0]), len(ids[1])]
    return total


def random_labels(rng, shape, count):
    labels = np.zeros(shape, np.int32)
    for i in range(1, count + 1):
        y, x = rng.integers(0, shape[0] - 4), rng.integers(0, shape[1] - 4)
        labels[y:y + rng.integers(3, 9), x:x + rng.integers(3, 9)] = i * 3
    return labels


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("large", [10_000, 100])
def test_challenge_equals_its_rules_on_label_images(seed, large):
    rng = np.random.default_rng(seed)
    truth = random_labels(rng, (47, 61), 40)
    prediction = np.where(rng.random(truth.shape) < 0.12, 0, np.roll(truth, seed % 2, 1))
    counts = matching.challenge_counts(truth, prediction, thresholds=(0.51, 0.75), large=large, patch=20)
    for t, threshold in enumerate((0.51, 0.75)):
        expected = challenge_by_pixels(truth, prediction, threshold, 20, large)
        assert [int(getattr(counts, k)[t]) for k in ("tp", "fp", "fn", "truth", "prediction")] == expected.tolist()


def test_challenge_border_and_empty_prediction():
    truth = squares((0, 0, 5, 5), (1, 10, 6, 15), (2, 20, 7, 25), (33, 33, 38, 38), (34, 10, 39, 15))
    assert matching.remove_border_cells(truth).boxes.tolist() == [[2, 20, 7, 25], [33, 33, 38, 38]]
    nothing = Instances.empty((40, 40))
    lost = matching.challenge_counts(truth, nothing)
    kept = matching.challenge_counts(truth, nothing, empty_prediction="count_missed")
    assert (lost.fn, kept.fn, lost.truth, kept.truth) == (0, 2, 2, 2)
    assert lost.f1 == kept.f1 == matching.challenge_counts(nothing, nothing).f1 == 0
    perfect = matching.challenge_counts(truth, truth) + lost
    assert (perfect.tp, perfect.truth, perfect.prediction) == (2, 4, 2)
    np.testing.assert_allclose(perfect.f1, 2 * 1 * 0.5 / 1.5)
    assert perfect.counted_f1 == 1 and lost.counted_f1 == 0     # what was not counted is not missed
    np.testing.assert_allclose((matching.challenge_counts(truth, truth) + kept).counted_f1, perfect.f1)
    with pytest.raises(ValueError, match="count_missed"):
        matching.challenge_counts(truth, truth, empty_prediction="zero")


def test_untight_boxes_reach_the_border_only_with_pixels():
    mask = np.zeros((10, 10), bool)
    mask[3:6, 3:6] = True
    cell = Instances((10, 10), np.asarray([[0, 0, 10, 10]], np.int32), [mask], np.ones(1, np.float32))
    assert len(matching.remove_border_cells(cell)) == 1
    assert len(matching.remove_border_cells(cell, margin=4)) == 0


def test_five_thousand_cells():
    rng = np.random.default_rng(0)
    truth = np.kron(np.arange(1, 5042).reshape(71, 71), np.ones((14, 14), np.int64)).astype(np.int32)   # each touches 8 others
    prediction = np.roll(truth, (2, 1), (0, 1))
    prediction[rng.random(truth.shape) < 0.02] = 0
    counts = matching.match(truth, prediction, thresholds=(0.1, 0.5, 0.9))
    assert counts.tp[1] > 4500 and counts.tp[2] == 0 and (counts.tp + counts.fn == 5041).all()
