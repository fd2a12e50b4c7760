"""The released code's tiled inference, on cases small enough to check by hand. The recorded case is cpn/tiled_inference."""

from __future__ import annotations

import numpy as np
import pytest

from jaxcell.inference.overlap import inside_border, merge_tiles, predict_image_overlapping, tile_slices, windowed_nms
from jaxcell.types import Instances


def cells(boxes, weights, shape) -> Instances:
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    whole = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).astype(np.int32)
    weights = np.asarray(weights, np.float32)
    return Instances(shape, whole, [np.ones((y1 - y0, x1 - x0), bool) for y0, x0, y1, x1 in whole], weights,
                     {"float_boxes": boxes, "nms_weights": weights})


@pytest.mark.parametrize(("size", "expected"), [
    (90, [(0, 90)]), (100, [(0, 100)]), (101, [(0, 100), (1, 101)]), (150, [(0, 100), (50, 150)]),
    (250, [(0, 100), (50, 150), (100, 200), (150, 250)]), (170, [(0, 100), (50, 150), (70, 170)]),
])
def test_tiles_along_an_axis(size, expected):
    boxes, grid = tile_slices((size, 60), crop=(100, 100), stride=(50, 50))
    starts = [(y0, y1) for y0, _, y1, _ in boxes]
    assert starts[:len(expected)] == expected and set(starts[len(expected):]) <= {(size - 100, size)}
    assert {(x0, x1) for _, x0, _, x1 in boxes} == {(0, 60)} and grid == (len(boxes), 1)


def test_border_rule_is_strict_and_only_for_inner_sides():
    boxes = np.asarray([[3, 10, 20, 20], [3.01, 10, 20, 20], [10, 10, 97, 20], [10, 10, 96.9, 20], [10, 0, 20, 99]], np.float32)
    for inner, expected in (((True, False, True, False), [False, True, False, True, True]),
                            ((False, True, False, True), [True, True, True, True, False]), ((False,) * 4, [True] * 5)):
        assert inside_border(boxes, (100, 100), border=3, inner=inner).tolist() == expected


def test_merging_drops_small_and_border_cells_then_the_lighter_duplicates():
    tiles, grid = tile_slices((60, 90), crop=(60, 60), stride=(30, 30))
    assert tiles == [(0, 0, 60, 60), (0, 30, 60, 90)]
    left = cells([[10, 35, 20, 45], [10, 50, 20, 58], [30, 5, 30.5, 20]], [0.6, 0.9, 0.9], (60, 60))
    right = cells([[10, 6, 20, 16], [40, 40, 50, 50]], [0.8, 0.3], (60, 60))
    merged = merge_tiles([left, right], tiles, grid, (60, 90), border=3, nms_threshold=0.3)
    assert merged.extras["float_boxes"].tolist() == [[10, 36, 20, 46], [40, 70, 50, 80]]
    assert merged.boxes.tolist() == [[10, 36, 20, 46], [40, 70, 50, 80]] and merged.shape == (60, 90)
    assert merge_tiles([Instances.empty((60, 60))] * 2, tiles, grid, (60, 90), border=3, nms_threshold=0.3).shape == (60, 90)


def test_windows_give_the_same_cells_in_tile_order():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 80, (200, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 9, (200, 2))], axis=1).astype(np.float32)
    part = cells(boxes, rng.random(200), (90, 90))
    parts, tiles = [part, Instances.empty((90, 90))], [(0, 0, 90, 90), (0, 0, 90, 90)]
    once = merge_tiles(parts, tiles, (1, 2), (90, 90), border=-1, nms_threshold=0.3)
    windows = merge_tiles(parts, tiles, (1, 2), (90, 90), border=-1, nms_threshold=0.3, window_above=50)
    assert sorted(map(tuple, once.boxes)) == sorted(map(tuple, windows.boxes))
    keep = windowed_nms(boxes, part.scores, iou_threshold=0.3, shape=(90, 90), crop=(40, 40), stride=(30, 30))
    assert keep.sum() >= len(once)     # windows know less of each other


def test_what_a_decoder_must_give_is_named():
    bare = Instances((60, 60), np.asarray([[0, 0, 9, 9]], np.int32), [np.ones((9, 9), bool)], np.ones(1, np.float32))
    with pytest.raises(ValueError, match="lack the extras .*float_boxes.*nms_weights"):
        merge_tiles([bare], [(0, 0, 60, 60)], (1, 1), (60, 60), border=3, nms_threshold=0.3)
    with pytest.raises(ValueError, match="1 parts and 1 tiles for a grid"):
        merge_tiles([bare], [(0, 0, 60, 60)], (1, 2), (60, 60), border=3, nms_threshold=0.3)


@pytest.mark.parametrize("shape", [(50, 60), (64, 64), (150, 203)])
def test_an_image_of_any_size_with_a_stand_in_network(shape):
    labels = np.zeros(shape, np.int32)
    spots = [(y, x) for y in range(4, shape[0] - 12, 21) for x in range(4, shape[1] - 12, 19)]
    for number, (y, x) in enumerate(spots, start=1):
        labels[y:y + 9, x:x + 8] = number

    def decode(maps):
        found = Instances.from_labels(maps["fine"][..., 0].astype(np.int32))
        assert maps["coarse"].shape[0] * 4 == maps["fine"].shape[0] == -(-min(shape[0], 64) // 4) * 4
        boxes = found.boxes.astype(np.float32)
        return Instances(found.shape, found.boxes, found.masks, found.scores,
                         {"float_boxes": boxes, "nms_weights": np.ones(len(found))})

    found = predict_image_overlapping(lambda images: {"fine": images, "coarse": images[:, ::4, ::4]}, labels[..., None],
                                      decode=decode, crop=64, stride=32, border=3, nms_threshold=0.3, batch=4, divisor=8)
    assert sorted(map(tuple, found.boxes[:, :2])) == spots
    assert all(mask.shape == (9, 8) for mask in found.masks)
    with pytest.raises(ValueError, match="crop is 60; .* Use 64"):
        predict_image_overlapping(lambda images: {"fine": images}, labels[..., None], decode=decode, crop=60, stride=32, border=3,
                                  nms_threshold=0.3, batch=4, divisor=8)
