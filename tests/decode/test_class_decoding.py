"""Cells from logits of classes: by hand, against brute force, and alike wherever a block ends."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy import ndimage

from jaxcell.decode.classes import class_cells, class_map, connected_cells, energy, entropy, log_sum_exp, softmax
from jaxcell.decode.components import grow_labels
from jaxcell.geometry.boundaries import erode_labels
from jaxcell.inference.blocks import dense_blocks, predict_image


def logits_of(classes: np.ndarray, count: int = 2, sure: float = 4.0) -> np.ndarray:
    return sure * (classes[..., None] == np.arange(count)).astype(np.float32)


def random_mask(seed: int, shape=(60, 70), sigma: float = 1.0) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma) > 0.03


def test_probabilities_energy_and_entropy_by_hand():
    logits = np.log(np.asarray([[1.0, 3.0], [2.0, 2.0], [7.0, 0.001]], np.float32))
    np.testing.assert_allclose(softmax(logits)[0], [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(energy(logits)[:2], [-np.log(4)] * 2, rtol=1e-6)
    np.testing.assert_allclose(entropy(logits)[:2], [0.8112781, 1.0], rtol=1e-6)
    assert entropy(logits)[2] < 0.01 and energy(1000 + logits)[0] == pytest.approx(-1001.3863)
    certain = np.asarray([0.0, -np.inf], np.float32)      # a class that no window voted for
    assert softmax(certain).tolist() == [1.0, 0.0] and entropy(certain) == 0 and log_sum_exp(certain) == 0


def test_thresholds_on_votes():
    with np.errstate(divide="ignore"):
        votes = np.log(np.asarray([[[1, 0], [0.75, 0.25], [0.5, 0.5], [0, 1]]], np.float32))
    assert class_map(votes).tolist() == [[0, 0, 0, 1]]
    assert class_map(votes, threshold=0.99).tolist() == [[0, 0, 0, 1]]
    assert class_map(votes, threshold=0).tolist() == [[0, 1, 1, 1]]


@pytest.mark.parametrize("seed", range(4))
def test_pieces_holes_and_sizes_against_brute_force(seed):
    mask = random_mask(seed)
    holes, _ = ndimage.label(~mask)
    filled = mask.copy()
    for number in range(1, holes.max() + 1):
        ys, xs = np.nonzero(holes == number)
        edge = ys.min() == 0 or xs.min() == 0 or ys.max() == mask.shape[0] - 1 or xs.max() == mask.shape[1] - 1
        if not edge and len(ys) < 12:
            filled[ys, xs] = True
    expected, count = ndimage.label(filled, np.ones((3, 3)))
    found = connected_cells(mask.astype(np.int32), holes=12, small_objects=20)
    kept = [n for n in range(1, count + 1) if (expected == n).sum() >= 20]
    assert filled.sum() > mask.sum() and 0 < len(kept) < count
    assert found.max() == len(kept)
    np.testing.assert_array_equal(found > 0, np.isin(expected, kept))
    assert len(np.unique(found * 1000 + expected * (found > 0))) == len(kept) + 1, "the same pieces"


def test_a_hole_with_another_class_in_it_stays():
    classes = np.zeros((12, 30), np.int32)
    classes[1:11, 1:11] = classes[1:11, 15:25] = 1
    classes[4:8, 4:8] = classes[4:8, 18:22] = 0
    classes[5, 5] = 2
    labels = connected_cells(classes, holes=50)
    assert labels[4, 4] == 0 and labels[5, 5] == 3 and labels[5, 19] == 2 == labels[1, 15]
    cells = class_cells(logits_of(classes, 3), holes=50)
    assert cells.extras["class"].tolist() == [1, 1, 2]


def test_scores_and_uncertainties_are_means_over_the_cell():
    classes = np.zeros((20, 20), np.int32)
    classes[2:6, 2:7] = classes[10:15, 10:15] = 1
    logits = logits_of(classes)
    logits[2:6, 2:7] *= np.linspace(0.1, 1, 20, dtype=np.float32).reshape(4, 5, 1)
    for name, of in (("energy", energy), ("entropy", entropy)):
        cells = class_cells(logits, uncertainty=name)
        inside = softmax(logits)[..., 1]
        where = [np.s_[2:6, 2:7], np.s_[10:15, 10:15]]
        np.testing.assert_allclose(cells.scores, [inside[w].mean() for w in where], rtol=1e-5)
        np.testing.assert_allclose(cells.extras["uncertainty"], [of(logits)[w].mean() for w in where], rtol=1e-5)
        assert cells.extras["uncertainty"][0] > cells.extras["uncertainty"][1]
    assert set(cells.extras) == {"uncertainty"} and cells.masks[0].shape == (4, 5)


def test_touching_cells_come_apart_only_if_they_were_made_smaller():
    labels = np.zeros((30, 30), np.int32)
    labels[4:14, 4:15], labels[14:25, 8:20], labels[4:14, 15:26] = 1, 2, 3
    plain = (labels > 0).astype(np.int32)
    assert len(class_cells(logits_of(plain))) == 1
    smaller = (erode_labels(labels, 1) > 0).astype(np.int32)
    cells = class_cells(logits_of(smaller), expansion=1)
    assert len(cells) == 3
    for number in (1, 2, 3):
        y0, x0, y1, x1 = cells.boxes[number - 1 if number == 1 else (1 if number == 3 else 2)]
        assert (y0, x0, y1, x1) == {1: (4, 4, 14, 15), 3: (4, 15, 14, 26), 2: (14, 8, 25, 20)}[number]


def test_a_cell_that_grows_over_crumbs_of_another_class_keeps_its_own():
    classes = np.zeros((12, 12), np.int32)
    classes[2:8, 2:8], classes[4, 9] = 1, 2
    cells = class_cells(logits_of(classes, 3), small_objects=3, expansion=3)
    assert cells.extras["class"].tolist() == [1] and cells.boxes[0, 3] > 9


def test_growing_is_the_inverse_of_eroding_and_keeps_others():
    labels = np.zeros((12, 12), np.int32)
    labels[2:6, 2:6], labels[2:6, 6:10], labels[8:, 8:] = 5, 7, -1
    opened = grow_labels(erode_labels(labels, 1), 1)
    assert (opened[labels <= 0] <= 0).all() and opened[3, 5] == 5 and opened[3, 6] == 7 and opened[9, 9] == -1
    grown = grow_labels(labels, 3)
    assert (grown[labels != 0] == labels[labels != 0]).all() and grown[3, 11] == 7, "only background is taken"
    one = np.zeros((5, 5), np.int32)
    one[0, 2], one[2, 0] = 1, 2
    assert grow_labels(one, 1)[1, 1] == 0 and grow_labels(one, 2)[1, 1] == 1, "from above before from the left"


def test_no_foreground_and_nothing_else():
    assert len(class_cells(logits_of(np.zeros((9, 9), np.int32)))) == 0
    everything = class_cells(logits_of(np.ones((9, 9), np.int32)), holes=100, small_objects=5)
    assert everything.boxes.tolist() == [[0, 0, 9, 9]] and everything.extras["uncertainty"].shape == (1,)
    with pytest.raises(ValueError, match="must be"):
        class_cells(np.zeros((9, 9)))
    with pytest.raises(ValueError, match="energy, entropy"):
        class_cells(np.zeros((9, 9, 2)), uncertainty="variance")


@pytest.mark.parametrize("block", [48, 64])
def test_blocks_give_the_cells_of_the_whole_image(block):
    rng = np.random.default_rng(1)
    classes = np.zeros((200, 190), np.int32)
    for y, x in rng.integers(6, 176, (60, 2)):
        classes[y:y + 12, x:x + 10] = 1
        classes[y + 4:y + 7, x + 3:x + 6] = 0
    small = connected_cells(classes)
    areas = np.bincount(small.ravel())
    classes[np.isin(small, np.flatnonzero(areas > 250))] = 0        # what is larger than a halo is cut, as everywhere
    logits = (logits_of(classes) + 0.5 * rng.normal(size=(200, 190, 2))).astype(np.float32)
    options = {"holes": 12, "small_objects": 3, "expansion": 1}
    whole = class_cells(logits, **options)
    found = predict_image(lambda images: {"logits": images}, logits, decode=lambda maps: class_cells(maps["logits"], **options),
                          maps=partial(dense_blocks, tile=64, margin=8), block=block, halo=48, batch=3, divisor=8)
    assert len(whole) > 20

    def described(cells):
        return sorted((tuple(box), mask.tobytes(), float(score), float(uncertain)) for box, mask, score, uncertain in zip(
            cells.boxes.tolist(), cells.masks, cells.scores, cells.extras["uncertainty"], strict=True))

    ours, theirs = described(found), described(whole)
    assert [o[:2] for o in ours] == [t[:2] for t in theirs]
    np.testing.assert_allclose([o[2:] for o in ours], [t[2:] for t in theirs], rtol=1e-5)
