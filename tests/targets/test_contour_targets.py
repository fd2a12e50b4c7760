"""Targets of the contour proposal network, and the way back: targets -> perfect outputs -> cells."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from targets.perfect import perfect_outputs

from jaxcell.decode.contours import decode_contours
from jaxcell.geometry.labels import to_layers
from jaxcell.targets.contours import (
    centric_labels,
    clean_labels,
    contour_targets,
    foreground_pixels,
    reduce_labels,
    relative_distances,
    single_owner,
)
from jaxcell.types import Instances, Sample

SETTINGS = {"order": 8, "samples": 48, "stride": 2, "max_background_distance": 0.5, "min_foreground_distance": 0.6,
            "max_cells": 96, "max_foreground": 4096, "max_iterations": 4, "min_area": 5}
SHAPES = {"labels": (32, 48), "foreground": (4096,), "fourier": (96, 8, 4), "locations": (96, 2), "contours": (96, 48, 2),
          "sampling": (48,), "iterations": (), "cells": (), "ids": (96,)}


def sample(labels):
    labels = labels[..., None] if labels.ndim == 2 else labels
    return Sample(np.zeros((*labels.shape[:2], 1), np.float32), labels.astype(np.int32), name="drawn")


def disks(shape, circles):
    """Label image of (y, x, radius); later ones lie on top."""
    labels = np.zeros(shape, np.int32)
    for number, (y, x, radius) in enumerate(circles, start=1):
        cv2.circle(labels, (x, y), radius, number, -1)
    return labels


def grid_of_disks(shape, step, radius):
    """Disks on a grid, each inside its own square of side `step`; they touch where 2 * radius + 1 = step."""
    ys, xs = (range(step // 2, side - step // 2, step) for side in shape)
    return disks(shape, [(y, x, radius) for y in ys for x in xs])


def targets(labels, seed=0, **settings):
    return contour_targets(sample(labels), np.random.default_rng(seed), **(SETTINGS | settings))


@pytest.mark.parametrize("labels", [
    np.zeros((64, 96)), np.ones((64, 96)), grid_of_disks((64, 96), 12, 5),
    to_layers(Instances.from_labels(grid_of_disks((64, 96), 12, 5)), depth=3)], ids=["none", "one", "many", "layers"])
def test_shapes_do_not_depend_on_the_content(labels):
    found = targets(labels)
    assert {k: v.shape for k, v in found.items()} == SHAPES
    integers = {"labels", "foreground", "iterations", "cells", "ids"}
    assert all(v.dtype == (np.int32 if k in integers else np.float32) for k, v in found.items())
    assert all(np.isfinite(v).all() for v in found.values())


def test_every_foreground_pixel_points_to_its_own_cell():
    labels = grid_of_disks((64, 96), 13, 5)
    found = targets(labels)
    pixels = found["foreground"][found["foreground"] >= 0]
    np.testing.assert_array_equal(pixels, np.flatnonzero(found["labels"] > 0))
    assert set(found["labels"].ravel()[pixels]) == set(range(1, labels.max() + 1))
    y, x = np.divmod(pixels, 48)
    rows = found["labels"][y, x] - 1
    inside = labels.reshape(32, 2, 48, 2).max(axis=(1, 3))[y, x]
    for row, number in zip(rows, inside, strict=True):
        ys, xs = np.nonzero(labels == number)
        np.testing.assert_allclose(found["locations"][row], (ys.mean(), xs.mean()), atol=0.6)
        low, high = found["contours"][row].min(axis=0), found["contours"][row].max(axis=0)
        np.testing.assert_allclose([*low, *high], [ys.min(), xs.min(), ys.max(), xs.max()], atol=1)
    assert not found["contours"][labels.max():].any()
    assert found["cells"] == labels.max()


def test_draws_come_from_the_generator_alone():
    labels = grid_of_disks((64, 96), 12, 5)
    one, again, other = targets(labels), targets(labels), targets(labels, seed=1)
    assert all((one[k] == again[k]).all() for k in one)
    assert (one["sampling"] != other["sampling"]).any()
    assert (np.diff(one["sampling"]) >= 0).all()
    assert {int(targets(labels, seed=s)["iterations"]) for s in range(40)} == {1, 2, 3, 4}


def test_the_sample_is_left_alone():
    labels = grid_of_disks((64, 96), 12, 5)[..., None]
    before = labels.copy()
    targets(labels)
    np.testing.assert_array_equal(labels, before)


def test_fragments_and_specks_are_ignored():
    labels = np.zeros((64, 96), np.int32)
    labels[4:20, 4:20] = 70
    labels[30:40, 4:10] = labels[30:40, 20:30] = 71       # two pieces
    labels[50, 50:54] = 72                                # four pixels
    labels[44:60, 70:90] = 3_000_000
    clean = clean_labels(labels[..., None], min_area=5)[..., 0]
    assert sorted(np.unique(clean)) == [-1, 0, 1, 2]
    np.testing.assert_array_equal(clean == -1, (labels == 71) | (labels == 72))
    found = targets(labels)
    assert found["cells"] == 2
    assert (found["labels"][15:20, 2:5] == -1).all()


def test_too_many_cells_are_left_out_and_told():
    labels = grid_of_disks((64, 96), 13, 5)
    count = labels.max()
    found, whole = targets(labels, max_cells=7), targets(labels)
    assert found["cells"] == count > 7
    assert set(found["labels"].ravel()) == {-1, 0, *range(1, 8)}
    np.testing.assert_array_equal(found["labels"] == 0, whole["labels"] == 0)      # ignored, not background
    for row in range(7):
        (one,) = set(whole["labels"][found["labels"] == row + 1])
        np.testing.assert_array_equal(found["fourier"][row], whole["fourier"][one - 1])


def test_distances_of_touching_cells_by_both_rules():
    owner = np.zeros((5, 9), np.int32)
    owner[1:4, 1:4], owner[1:4, 4:8] = 1, 2
    foreground = relative_distances(owner, distance="foreground")
    assert foreground[2, 3] == foreground[2, 2] == 1       # no border between the two: as deep as the middle
    assert foreground[1, 4] == 0.5
    owner = np.zeros((9, 18), np.int32)
    owner[1:8, 1:8], owner[1:8, 8:17] = 1, 2
    objects = relative_distances(owner, distance="object")
    np.testing.assert_allclose(objects[4, 1:8], np.array([1, 2, 3, 4, 3, 2, 1]) / 4, rtol=1e-6)
    np.testing.assert_allclose(objects[4, 8:17], np.array([1, 2, 3, 4, 4, 4, 3, 2, 1]) / 4, rtol=1e-6)
    assert relative_distances(owner * 0, distance="object").max() == 0
    with pytest.raises(ValueError, match="'foreground' or 'object'"):
        relative_distances(owner, distance="cell")


def test_small_cells_keep_their_distance_in_pixels():
    owner = np.zeros((10, 10), np.int32)
    owner[2:8, 2:8] = 1                                    # 36 pixels: the last that is not normalised
    assert relative_distances(owner, distance="object")[2, 2] == pytest.approx(0.955, abs=1e-3)
    owner[2:9, 2:8] = 1
    assert relative_distances(owner, distance="object")[2, 2] == pytest.approx(1 / 3, abs=1e-3)


def test_pixels_of_several_cells_propose_none():
    layers = np.asarray([[[1, 0], [1, 2], [0, 2], [-1, -1], [-1, 0], [0, 0]]], np.int32)
    np.testing.assert_array_equal(single_owner(layers), [[1, -1, 2, -1, 0, 0]])


def test_the_rim_is_background_the_middle_foreground():
    owner = np.asarray([[0, 4, 4, 4, 4, 4, -1]], np.int32)
    distances = np.asarray([[0, 0.2, 0.5, 0.55, 0.6, 1, 0]], np.float32)
    found = centric_labels(owner, distances, max_background_distance=0.5, min_foreground_distance=0.6)
    np.testing.assert_array_equal(found, [[0, 0, 0, -1, 4, 4, -1]])


def test_reducing_takes_the_largest():
    labels = np.random.default_rng(0).integers(-1, 9, (12, 20)).astype(np.int32)
    for stride in (1, 2, 4):
        expected = labels.reshape(12 // stride, stride, 20 // stride, stride).max(axis=(1, 3))
        np.testing.assert_array_equal(reduce_labels(labels, stride), expected)
    assert reduce_labels(np.asarray([[-1, 0], [-1, -1]], np.int32), 2) == 0
    with pytest.raises(ValueError, match="12 x 20.*stride 8"):
        reduce_labels(labels, 8)


def test_foreground_is_a_fair_draw_when_there_is_too_much():
    labels = np.zeros((4, 5), np.int32)
    labels.ravel()[[3, 8, 9, 17]] = 1
    np.testing.assert_array_equal(foreground_pixels(labels, 6, np.random.default_rng(0)), [3, 8, 9, 17, -1, -1])
    drawn = [foreground_pixels(labels, 2, np.random.default_rng(s)) for s in range(60)]
    assert all(len(set(d)) == 2 and d[0] < d[1] for d in drawn)
    assert set(np.concatenate(drawn)) == {3, 8, 9, 17}


def test_a_sample_without_labels_is_named():
    with pytest.raises(ValueError, match="'unlabelled' has no labels"):
        contour_targets(Sample(np.zeros((8, 8, 1), np.float32), name="unlabelled"), np.random.default_rng(0), **SETTINGS)


def best_ious(truth, found):
    """For every true cell the IoU of the found cell that fits it best."""
    result = []
    for box, mask in zip(truth.boxes, truth.masks, strict=True):
        best = 0.0
        near = (np.minimum(found.boxes[:, 2:], box[2:]) > np.maximum(found.boxes[:, :2], box[:2])).all(axis=-1)
        for other in np.flatnonzero(near):
            y0, x0 = np.maximum(box[:2], found.boxes[other, :2])
            y1, x1 = np.minimum(box[2:], found.boxes[other, 2:])
            a = mask[y0 - box[0]:y1 - box[0], x0 - box[1]:x1 - box[1]]
            y, x = found.boxes[other, :2]
            b = found.masks[other][y0 - y:y1 - y, x0 - x:x1 - x]
            both = int((a & b).sum())
            best = max(best, both / (int(mask.sum()) + int(found.masks[other].sum()) - both))
        result.append(best)
    return np.asarray(result)


def round_trip(labels, **settings):
    target = targets(labels, **settings)
    outputs = perfect_outputs(target, stride=(SETTINGS | settings)["stride"], buckets=4, uncertainty=True)
    return decode_contours(outputs, score_threshold=0.5, samples=64, iterations=3, nms_threshold=0.6)


def check_round_trip(labels, mean=0.9, **settings):
    truth, found = Instances.from_labels(labels), round_trip(labels, **settings)
    ious = best_ious(truth, found)
    assert len(found) == len(truth)
    assert ious.min() > 0.5                               # with equal counts: F1 at 0.5 is 1
    assert ious.mean() > mean


@pytest.mark.parametrize("distance", ["foreground", "object"])
@pytest.mark.parametrize("stride", [2, 4])
def test_touching_cells_come_back(distance, stride):
    check_round_trip(grid_of_disks((64, 96), 17, 8), distance=distance, stride=stride)


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_tiny_cells_come_back(radius):
    labels = grid_of_disks((64, 96), 8, radius)               # from crosses of 5 pixels on
    check_round_trip(labels, distance="object", closed_outlines=True, order=12)
    check_round_trip(labels, distance="object", closed_outlines=False, order=12, mean=0.55)   # open outlines lose their last step


def test_single_pixels_come_back():
    labels = np.zeros((64, 96), np.int32)
    labels[::8, ::8] = np.arange(1, 97).reshape(8, 12)                      # single pixels
    check_round_trip(labels, min_area=1, distance="object")


@pytest.mark.parametrize("distance", ["foreground", "object"])
def test_overlapping_cells_come_back_whole(distance):
    circles = [(20, 20, 12), (20, 34, 12), (32, 28, 10), (40, 70, 20), (25, 80, 9)]
    layers = to_layers(Instances.concatenate([Instances.from_labels(disks((64, 96), [c])) for c in circles]))
    assert layers.shape[2] > 1
    check_round_trip(layers, distance=distance)


def test_cells_cut_by_the_edge_and_one_that_covers_all_come_back():
    check_round_trip(disks((64, 96), [(0, 0, 20), (63, 40, 15), (30, 95, 12)]), order=12)
    check_round_trip(np.ones((64, 96), np.int32), order=12, distance="object")
    check_round_trip(np.ones((64, 96), np.int32), order=12, distance="foreground")
    assert len(round_trip(np.zeros((64, 96), np.int32))) == 0


def test_real_nuclei_come_back(data_dir):
    files = sorted((data_dir / "bbbc039").glob("*_label.png"))[:3]
    assert files
    for path in files:
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.int32)
        labels = labels[:labels.shape[0] // 2 * 2, :labels.shape[1] // 2 * 2]
        labels = clean_labels(labels[..., None], min_area=20)              # without the few in pieces
        truth = Instances.from_labels(labels)
        found = round_trip(labels, max_cells=512, max_foreground=60_000, order=12)
        ious = best_ious(truth, found)
        assert (ious > 0.5).all() and len(found) == len(truth)
        assert ious.mean() > 0.9
