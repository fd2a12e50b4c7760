"""Decoding of contour proposals: NMS, masks, thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from jaxcell.decode.contours import decode_contours, nms, nms_weights, propose, rasterize
from jaxcell.geometry.boxes import pairwise_iou

SETTINGS = {"score_threshold": 0.5, "samples": 32, "iterations": 0}
DECODE = SETTINGS | {"nms_threshold": 0.3, "nms_weight": "score"}


def random_boxes(rng, count, extent, sides):
    low = rng.uniform(0, extent, (count, 2))
    return np.concatenate([low, low + rng.uniform(*sides, (count, 2))], axis=-1).astype(np.float32)


def plain_nms(boxes, weights, threshold):
    """By the definition, one pair at a time."""
    iou = pairwise_iou(boxes, boxes)
    kept = []
    for index in sorted(range(len(boxes)), key=lambda i: (-weights[i], i)):
        if all(iou[index, other] <= threshold for other in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3141592653589793, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("extent, sides", [((60, 60), (4, 20)), ((300, 20), (1, 60)), ((5, 400), (2, 9)), ((9, 9), (0, 1))])
def test_nms_equals_the_definition(threshold, extent, sides):
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 250, extent, sides)
    boxes[40:80] = boxes[:40]                                    # the same box twice
    boxes[80:90, 2:] = boxes[80:90, :2]                          # of no area
    weights = rng.integers(0, 20, 250).astype(np.float32) / 20   # many ties
    kept = nms(boxes, weights, iou_threshold=threshold)
    assert kept.dtype == np.int64
    assert kept.tolist() == plain_nms(boxes, weights, threshold)


def test_nms_by_hand():
    boxes = np.asarray([(0, 0, 4, 4), (0, 2, 4, 6), (0, 4, 4, 8)], np.float32)      # neighbours share a third
    assert nms(boxes, np.asarray([0.5, 0.9, 0.8]), iou_threshold=0.3).tolist() == [1]
    assert nms(boxes, np.asarray([0.9, 0.8, 0.5]), iou_threshold=0.3).tolist() == [0, 2]
    assert nms(boxes, np.asarray([0.5, 0.5, 0.9]), iou_threshold=0.4).tolist() == [2, 0, 1]
    assert nms(boxes[:0], np.zeros(0), iou_threshold=0.3).tolist() == []
    with pytest.raises(ValueError, match="iou_threshold is 1.5"):
        nms(boxes, np.ones(3), iou_threshold=1.5)


@pytest.mark.parametrize("extent, sides", [((5000, 5000), (15, 40)), ((300, 300), (20, 300))], ids=["many cells", "one heap"])
def test_nms_of_fifty_thousand_boxes(extent, sides):
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 50_000, extent, sides)
    kept = nms(boxes, rng.random(50_000), iou_threshold=0.3)
    assert 0 < len(kept) < 50_000


def test_weights_by_hand():
    scores, raw = np.asarray([0.8, 0.5], np.float32), np.asarray([[0, 0, 0, 0], [0, 0, np.log(3), -np.log(3)]], np.float32)
    np.testing.assert_allclose(nms_weights(scores, raw, kind="score"), [0.8, 0.5])
    np.testing.assert_allclose(nms_weights(scores, raw, kind="certainty"), [0.4, 0.25])
    raw[1] = (0, 0, 0, 4 * np.log(3))
    np.testing.assert_allclose(nms_weights(scores, raw, kind="tile"), [0.4, 0.125], rtol=1e-6)
    with pytest.raises(ValueError, match="'score', 'certainty' or 'tile'"):
        nms_weights(scores, raw, kind="mean")
    with pytest.raises(ValueError, match="use 'score'"):
        nms_weights(scores, None, kind="certainty")


def test_masks_hold_their_border_round_to_even_and_stay_inside():
    square = [(1.4, 2.5), (1.4, 5.5), (3.6, 5.5), (3.6, 2.5)]          # 2.5 -> 2, 5.5 -> 6
    outside = [(-3, -2), (-3, 1), (20, 1), (20, -2)]
    boxes, masks = rasterize(np.asarray([square, outside], np.float32), (8, 9))
    np.testing.assert_array_equal(boxes, [(1, 2, 5, 7), (0, 0, 8, 2)])
    assert [m.shape for m in masks] == [(4, 5), (8, 2)]
    assert all(m.dtype == bool and m.all() for m in masks)
    assert boxes.dtype == np.int32


def test_no_mask_is_empty_and_every_frame_is_tight():
    rng = np.random.default_rng(0)
    contours = rng.uniform(-4, 36, (300, 12, 2))
    contours[:50] = contours[:50, :1] + rng.uniform(-0.2, 0.2, (50, 12, 2))     # smaller than a pixel
    boxes, masks = rasterize(contours.astype(np.float32), (32, 30))
    for (y0, x0, y1, x1), mask in zip(boxes, masks, strict=True):
        assert 0 <= y0 < y1 <= 32 and 0 <= x0 < x1 <= 30
        assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()
    assert rasterize(np.zeros((0, 12, 2), np.float32), (4, 4))[0].shape == (0, 4)


def test_a_diverged_network_is_named():
    contours = np.zeros((3, 4, 2), np.float32)
    contours[1, 2] = np.nan
    with pytest.raises(ValueError, match="contour 1 of 3"):
        rasterize(contours, (8, 8))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_of_a_diverged_network_are_no_empty_image(value):
    outputs = circles((10, 12), 4, [(5, 2, value)])
    with pytest.raises(ValueError, match="1 of 120 scores are not finite; the network has diverged.*earlier checkpoint"):
        decode_contours(outputs, **DECODE)


def circles(grid, stride, cells, radius=4.0):
    """Dense outputs with one circle proposed at each given (row, column, score logit)."""
    height, width = grid
    fourier = np.zeros((height, width, 4), np.float32)
    fourier[..., 1] = fourier[..., 2] = radius / stride              # y = r sin, x = r cos
    scores = np.full((height, width, 1), -9, np.float32)
    for y, x, score in cells:
        scores[y, x] = score
    return {"scores": scores, "locations": np.zeros((height, width, 2), np.float32), "fourier": fourier,
            "refinement": np.zeros((height * stride, width * stride, 2), np.float32),
            "uncertainty": np.full((height, width, 4), -9, np.float32)}


def test_proposals_are_row_major_in_image_pixels():
    outputs = circles((10, 12), 4, [(5, 2, 3.0), (2, 9, 1.0), (2, 3, 2.0), (8, 8, -0.1)])
    outputs["locations"][5, 2] = (0.25, -0.5)
    found = propose(outputs, **SETTINGS)
    np.testing.assert_allclose(found["locations"], [(8, 12), (8, 36), (21, 6)])
    np.testing.assert_allclose(found["scores"], 1 / (1 + np.exp([-2.0, -1.0, -3.0])), rtol=1e-6)
    np.testing.assert_allclose(found["float_boxes"][2], (17, 2, 25, 10), atol=0.1)
    np.testing.assert_allclose(found["fourier"][:, 0], [(0, 4, 4, 0)] * 3)
    assert found["contours"].shape == (3, 32, 2)


def test_refinement_moves_contours_and_keeps_them_inside():
    outputs = circles((10, 12), 4, [(5, 2, 3.0)])
    outputs["refinement"][..., 0] = 2
    moved = propose(outputs, **(SETTINGS | {"iterations": 3}))["float_boxes"][0]
    np.testing.assert_allclose(moved, (22, 4, 30, 12), atol=1)
    outputs["refinement"][..., 0] = 30
    assert propose(outputs, **(SETTINGS | {"iterations": 3}))["contours"][..., 0].max() == 39


def test_chunks_change_nothing():
    rng = np.random.default_rng(0)
    outputs = circles((60, 60), 2, [])
    outputs["scores"][:] = 9                                          # 3,600 proposals
    outputs["refinement"] = rng.normal(size=(120, 120, 6)).astype(np.float32)
    whole = propose(outputs, **(SETTINGS | {"iterations": 2}))
    for row in (0, 59):
        part = {k: v.copy() for k, v in outputs.items()}
        part["scores"][:] = -9
        part["scores"][row] = 9
        np.testing.assert_array_equal(propose(part, **(SETTINGS | {"iterations": 2}))["contours"],
                                      whole["contours"][row * 60:(row + 1) * 60])


def test_the_weight_decides_who_stays():
    outputs = circles((10, 12), 4, [(4, 4, 3.0), (4, 5, 2.0), (8, 9, 1.0)], radius=12)
    outputs["uncertainty"][4, 4] = 1.0
    by_score = decode_contours(outputs, **DECODE)
    by_certainty = decode_contours(outputs, **(DECODE | {"nms_weight": "certainty"}))
    np.testing.assert_allclose(by_score.extras["locations"], [(16, 16), (32, 36)])
    np.testing.assert_allclose(by_certainty.extras["locations"], [(16, 20), (32, 36)])
    assert (np.diff(by_certainty.extras["nms_weights"]) < 0).all()
    assert by_score.extras["uncertainties"][0] == pytest.approx(1 / (1 + np.exp(-1)))
    assert by_score.shape == (40, 48)
    assert set(by_score.extras) == {"contours", "float_boxes", "locations", "nms_weights", "uncertainties"}


def test_certainty_threshold_and_limit_choose_proposals():
    outputs = circles((10, 12), 4, [(2, 2, 1.0), (2, 8, 3.0), (7, 2, 2.0), (7, 8, 3.0)])
    outputs["uncertainty"][2, 8] = 1.0
    certain = propose(outputs, certainty_threshold=0.5, **SETTINGS)
    np.testing.assert_allclose(certain["locations"], [(8, 8), (28, 8), (28, 32)])
    best = propose(outputs, max_proposals=2, **SETTINGS)
    np.testing.assert_allclose(best["locations"], [(8, 32), (28, 32)])


def test_the_image_size_must_be_known():
    outputs = circles((10, 12), 4, [(2, 2, 1.0)])
    with pytest.raises(ValueError, match="contradicts"):
        propose(outputs, shape=(80, 96), **SETTINGS)
    del outputs["refinement"], outputs["uncertainty"]
    with pytest.raises(ValueError, match=r"pass shape=\(H, W\)"):
        propose(outputs, **SETTINGS)
    with pytest.raises(ValueError, match="needs the output 'uncertainty'"):
        propose(outputs, shape=(40, 48), certainty_threshold=0.5, **SETTINGS)
    found = decode_contours(outputs, shape=(40, 48), **DECODE)
    assert found.shape == (40, 48) and len(found) == 1 and "uncertainties" not in found.extras


def test_a_sliver_at_the_border_is_found_once():
    """A contour that is clipped to a line has a box without an area; three proposals of one are one cell all the same."""
    outputs = circles((10, 12), 4, [(0, 3, 3.0), (0, 4, 2.0), (1, 3, 1.0), (6, 6, 3.0)])
    for (y, x), offset in {(0, 3): (-1.5, 0), (0, 4): (-1.5, -1), (1, 3): (-2.5, 0)}.items():
        outputs["locations"][y, x] = offset
    found = decode_contours(outputs, **DECODE)
    heights = found.extras["float_boxes"][:, 2] - found.extras["float_boxes"][:, 0]
    assert sorted(heights == 0) == [False, True]


def test_no_proposal_gives_no_cell():
    found = decode_contours(circles((10, 12), 4, []), **DECODE)
    assert len(found) == 0 and found.extras["contours"].shape == (0, 32, 2)
