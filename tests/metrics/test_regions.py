"""Outlines and their distances against brute force; empty masks in both meanings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from jaxcell.metrics.regions import RegionCounts, hausdorff95, morphoseg_scores, region_counts, surface, surface_distances

EMPTY = np.zeros((30, 40), bool)


def blobs(seed: int, shape=(61, 47), level: float = 0.1) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3) > level


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(61, 47), (1, 50), (50, 1), (9, 200)])
def test_against_brute_force(seed, shape):
    a, b = blobs(seed, shape, 0.0), blobs(seed + 10, shape, 0.05)
    a[shape[0] // 2, shape[1] // 2] = b[0, -1] = True
    outlines = [mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(2, 1)) for mask in (a, b)]
    for mask, outline in zip((a, b), outlines, strict=True):
        np.testing.assert_array_equal(surface(mask), outline)
    points = [np.argwhere(outline).astype(float) for outline in outlines]
    table = np.linalg.norm(points[0][:, None] - points[1], axis=-1)
    expected = np.concatenate([table.min(0), table.min(1)])
    np.testing.assert_allclose(np.sort(surface_distances(a, b)), np.sort(expected), rtol=1e-6)
    assert hausdorff95(a, b) == pytest.approx(np.percentile(expected, 95), rel=1e-6)
    assert hausdorff95(a, b) == pytest.approx(hausdorff95(b, a)), "pooled, so neither side comes first"


def test_far_apart_in_a_large_image_is_exact():
    a, b = np.zeros((3000, 5000), bool), np.zeros((3000, 5000), bool)
    a[1, 2] = b[2998, 4990] = True
    assert hausdorff95(a, b) == pytest.approx(math.hypot(2997, 4988), rel=1e-6)
    a[2000:2010, 100:110] = True
    expected = np.concatenate([[math.hypot(998 - 9, 4990 - 109)],
                               [math.hypot(2998 - y, 4990 - x) for y, x in np.argwhere(surface(a))]])
    assert hausdorff95(a, b) == pytest.approx(np.percentile(expected, 95), rel=1e-6)


def test_empty_masks_in_both_meanings():
    some = EMPTY.copy()
    some[4:9, 4:9] = True
    assert math.isnan(hausdorff95(EMPTY, EMPTY)) and hausdorff95(some, EMPTY) == hausdorff95(EMPTY, some) == 50
    cases = {"both": (EMPTY, EMPTY, 0, 1), "prediction": (some, EMPTY, 0, 0), "truth": (EMPTY, some, 1, 0)}
    for truth, prediction, dsc, iou in cases.values():
        scores = morphoseg_scores(truth, prediction)
        assert (scores.dsc, scores.hd95) == (dsc, 0) and scores.iou == pytest.approx(iou, abs=1e-6)
        assert scores.passed.tolist() == [bool(iou)] * 3 and scores.ap == iou
    same = morphoseg_scores(some, some)
    assert (same.dsc, same.hd95, same.ap) == (1, 0, 1)


def test_an_iou_on_a_threshold_passes_and_one_below_does_not():
    truth, prediction = EMPTY.copy(), EMPTY.copy()
    truth[0, :20], prediction[0, 5:20] = True, True
    assert morphoseg_scores(truth, prediction).passed.tolist() == [True, True, False]
    prediction[0, 5] = False
    assert morphoseg_scores(truth, prediction).passed.tolist() == [True, False, False]
    assert morphoseg_scores(truth, prediction, thresholds=(0.1, 0.2)).ap == 1


def test_sums_of_images_add_up():
    pairs = [(blobs(i), blobs(i + 50)) for i in range(3)] + [(EMPTY, EMPTY), (EMPTY, ~EMPTY)]
    each = [region_counts(*pair) for pair in pairs]
    total = each[0]
    for counts in each[1:]:
        total = total + counts
    assert total.images == 5 and total.defined == 4
    assert total.hd95 == pytest.approx((sum(hausdorff95(*pair) for pair in pairs[:3]) + 50) / 4)
    np.testing.assert_allclose(total.fractions, np.mean([e.passed for e in each if e.defined], axis=0))
    np.testing.assert_allclose(total.released_fractions, np.mean([morphoseg_scores(*p).passed for p in pairs], axis=0))
    back = RegionCounts.of_rows(np.stack([e.row() for e in each]).sum(0))
    assert back.hd95 == total.hd95 and back.released_dsc == total.released_dsc
    np.testing.assert_array_equal(back.passed, total.passed)
    with pytest.raises(ValueError, match="same image"):
        region_counts(EMPTY, EMPTY[1:])
