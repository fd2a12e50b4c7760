"""Label images and layers: ids, outlines, layers, overlaps."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from jaxcell.geometry.labels import (
    cell_ids,
    close_gaps,
    instances_to_labels,
    outlines,
    replace_ids,
    resolve_overlaps,
    to_layers,
    topmost,
    windows,
)
from jaxcell.types import Instances

HUGE = 2**31 - 1


def ints(*rows):
    return np.asarray(rows, np.int32)


def rectangles(shape, boxes, scores=None):
    """Instances that fill their boxes."""
    boxes = np.asarray(boxes, np.int32).reshape(-1, 4)
    masks = [np.ones((y1 - y0, x1 - x0), bool) for y0, x0, y1, x1 in boxes]
    scores = np.ones(len(boxes), np.float32) if scores is None else np.asarray(scores, np.float32)
    return Instances(shape, boxes, masks, scores)


def random_ellipses(count, size, seed):
    rng = np.random.default_rng(seed)
    boxes, masks = [], []
    for _ in range(count):
        canvas = np.zeros((size, size), np.uint8)
        centre, axes = rng.integers(0, size, 2).tolist(), rng.integers(1, 9, 2).tolist()
        cv2.ellipse(canvas, centre, axes, float(rng.integers(180)), 0, 360, 1, -1)
        y, x = np.nonzero(canvas)
        boxes.append((y.min(), x.min(), y.max() + 1, x.max() + 1))
        masks.append(canvas[y.min():y.max() + 1, x.min():x.max() + 1].astype(bool))
    return Instances((size, size), np.asarray(boxes, np.int32), masks, rng.random(count).astype(np.float32))


def test_ids_of_small_and_of_huge_labels():
    np.testing.assert_array_equal(cell_ids(ints([0, -1, 3, 3, 1])), [1, 3])
    np.testing.assert_array_equal(cell_ids(ints([0, -1, HUGE, 1])), [1, HUGE])
    assert len(cell_ids(np.zeros((4, 4), np.int32))) == 0
    assert len(cell_ids(np.zeros((0, 4), np.int32))) == 0


def test_closing_gaps_moves_only_the_largest():
    np.testing.assert_array_equal(close_gaps(ints([1, 2, 4, 5, 7, -1, 0])), [[1, 2, 4, 5, 3, -1, 0]])
    np.testing.assert_array_equal(close_gaps(ints([5, 0, HUGE, HUGE, -1])), [[1, 0, 2, 2, -1]])
    np.testing.assert_array_equal(close_gaps(ints([2, 1, 0])), [[2, 1, 0]])


def test_gaps_are_filled_in_the_order_of_the_reference():
    labels = ints([1, 2, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16])      # the ids of the reference's recorded example
    np.testing.assert_array_equal(close_gaps(labels), [[1, 2, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 10, 3]])


@pytest.mark.parametrize("top", [6, HUGE])
def test_replacing_ids_leaves_the_rest(top):
    labels = ints([0, -1, 3, top, 5, 1])
    before = labels.copy()
    np.testing.assert_array_equal(replace_ids(labels, ints(3, 4, top), ints(-1, 8, 2)), [[0, -1, -1, 2, 5, 1]])
    np.testing.assert_array_equal(labels, before)


def test_windows_of_huge_ids_cost_no_memory():
    plane = np.zeros((5, 6), np.int32)
    plane[1:3, 2:5], plane[4, 0] = HUGE, 7
    assert list(windows(plane)) == [(7, (slice(4, 5), slice(0, 1))), (HUGE, (slice(1, 3), slice(2, 5)))]


def test_outline_of_a_rectangle_walks_its_border():
    labels = np.zeros((6, 8), np.int32)
    labels[1:4, 2:6] = 9
    (line,) = outlines(labels)[9]
    border = [(y, x) for y in range(1, 4) for x in range(2, 6) if y in (1, 3) or x in (2, 5)]
    assert sorted(map(tuple, line.tolist())) == sorted(border)
    assert np.abs(np.diff(line, axis=0)).max() == 1


def test_outlines_of_pixels_pieces_layers_and_holes():
    layers = np.zeros((8, 8, 2), np.int32)
    layers[0, 0, 0] = 1                                # one pixel
    layers[2, 2, 1] = layers[3, 3, 1] = 2              # joined over the corner: one piece
    layers[2, 5, 0] = layers[2, 7, 0] = 3              # two pieces
    layers[5:8, 0:3, 1] = 4
    layers[6, 1, 1] = 0                                # a hole
    found = outlines(layers)
    assert list(found) == [1, 2, 3, 4]
    assert [len(pieces) for pieces in found.values()] == [1, 1, 2, 1]
    np.testing.assert_array_equal(found[1][0], [(0, 0), (0, 0)])
    assert len(found[4][0]) == 8
    assert outlines(np.zeros((4, 4), np.int32)) == {}


def test_a_cell_goes_to_the_first_layer_with_room():
    cells = rectangles((10, 20), [(0, 0, 4, 4), (2, 2, 6, 6), (0, 6, 4, 9), (0, 13, 4, 16)])
    pixels = to_layers(cells)
    assert pixels.shape == (10, 20, 2)
    assert [np.flatnonzero((pixels == k).any(axis=(0, 1))).tolist() for k in (1, 2, 3, 4)] == [[0], [1], [0], [0]]
    boxes = to_layers(cells, gap=3)                    # 3 is two pixels from 1 and from 2, 4 is four from 3
    assert [np.flatnonzero((boxes == k).any(axis=(0, 1))).tolist() for k in (1, 2, 3, 4)] == [[0], [1], [2], [0]]
    assert to_layers(Instances.empty((3, 4)), depth=2).shape == (3, 4, 2)


@pytest.mark.parametrize("gap", [None, 0, 3])
def test_layers_hold_every_pixel_of_every_cell(gap):
    cells = random_ellipses(40, 64, seed=1)
    layers = to_layers(cells, gap=gap)
    for number, (box, mask) in enumerate(zip(cells.boxes, cells.masks, strict=True), start=1):
        whole = (layers == number).any(axis=-1)
        np.testing.assert_array_equal(whole[box[0]:box[2], box[1]:box[3]], mask)
        assert whole.sum() == mask.sum()


def test_overlap_is_shared_from_both_sides():
    row = to_layers(rectangles((1, 10), [(0, 0, 1, 7), (0, 3, 1, 10)]))
    #    1 alone   shared: 3 4 5 6   2 alone
    np.testing.assert_array_equal(resolve_overlaps(row), [[1, 1, 1, 1, 1, 2, 2, 2, 2, 2]])
    middle = to_layers(rectangles((1, 9), [(0, 0, 1, 6), (0, 3, 1, 9)]))       # where both arrive, the larger id wins
    np.testing.assert_array_equal(resolve_overlaps(middle), [[1, 1, 1, 1, 2, 2, 2, 2, 2]])


def test_a_cell_inside_others_has_no_seed():
    layers = to_layers(rectangles((3, 9), [(0, 0, 3, 9), (1, 3, 2, 6)]))
    np.testing.assert_array_equal(resolve_overlaps(layers), np.ones((3, 9)))
    assert not resolve_overlaps(to_layers(rectangles((3, 4), [(0, 0, 3, 4)] * 2))).any()


def test_ignored_pixels_stay_ignored():
    layers = np.zeros((1, 4, 2), np.int32)
    layers[0, 0, 0], layers[0, 1] = -1, (-1, 5)
    np.testing.assert_array_equal(resolve_overlaps(layers), [[-1, 5, 0, 0]])


def grown(layers):
    """Region growing over the whole image with OpenCV's dilation, as plainly as it can be said."""
    count = (layers > 0).sum(axis=-1)
    labels = np.where(count == 1, layers.max(axis=-1), 0).astype(np.float64)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    while True:
        after = np.where((count > 1) & (labels == 0), cv2.dilate(labels, cross), labels)
        if (after == labels).all():
            return labels
        labels = after


@pytest.mark.parametrize("seed", range(4))
def test_growing_equals_dilation_of_the_whole_image(seed):
    cells = random_ellipses(60, 64, seed)
    expected = grown(to_layers(cells))
    np.testing.assert_array_equal(resolve_overlaps(to_layers(cells)), expected)
    np.testing.assert_array_equal(instances_to_labels(cells), expected)


def test_the_better_cell_takes_the_overlap():
    cells = random_ellipses(60, 64, seed=3)
    cells.scores[:20] = 0.5                            # ties go to the first
    expected = np.zeros((64, 64), np.int32)
    for y in range(64):
        for x in range(64):
            here = [i for i, (b, m) in enumerate(zip(cells.boxes, cells.masks, strict=True))
                    if b[0] <= y < b[2] and b[1] <= x < b[3] and m[y - b[0], x - b[1]]]
            expected[y, x] = max(here, key=lambda i: (cells.scores[i], -i)) + 1 if here else 0
    np.testing.assert_array_equal(instances_to_labels(cells, overlaps="score"), expected)


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="'grow' or 'score'"):
        instances_to_labels(Instances.empty((2, 2)), overlaps="first")


@pytest.mark.parametrize("overlaps", ["grow", "score"])
def test_more_cells_than_16_bits_hold_in_a_large_image(overlaps):
    side, step = 270, 15
    corners = np.stack(np.meshgrid(np.arange(side) * step, np.arange(side) * step, indexing="ij"), axis=-1).reshape(-1, 2)
    cells = rectangles((side * step, side * step), np.concatenate([corners, corners + 12], axis=-1))
    labels = instances_to_labels(cells, overlaps=overlaps)
    assert labels.dtype == np.int32
    assert labels.max() == side**2 > 2**16
    assert labels[-step, -step] == side**2


def test_of_layers_the_last_is_seen_where_cells_overlap():
    layers = np.zeros((1, 5, 2), np.int32)
    layers[0, :3, 0], layers[0, 2:4, 1], layers[0, 4, 1] = 1, 2, -1
    np.testing.assert_array_equal(topmost(layers), [[1, 1, 2, 2, -1]])
