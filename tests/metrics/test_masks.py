"""COCO mask AP: equal to pycocotools, and by hand."""

import contextlib
import io

import numpy as np
import pytest
from metrics.cells import dense, jittered, random_cells, squares
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxcell.metrics import masks
from jaxcell.types import Instances

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
BANDS = {"all": (0, 1e10), "small": (0, 30), "medium": (30, 80), "large": (80, 1e10)}


def by_pycocotools(pairs, sizes, limits, crowds):
    """(AP [A, T], recall [A, T, limits]) of the reference implementation; -1 where undefined."""
    images, annotations, detections = [], [], []
    for number, ((truth, prediction), crowd) in enumerate(zip(pairs, crowds, strict=True), start=1):
        images.append({"id": number, "height": truth.shape[0], "width": truth.shape[1]})
        for target, cells, shared in ((annotations, truth, crowd), (detections, prediction, np.zeros(len(prediction), bool))):
            for mask, score, many in zip(dense(cells), cells.scores, shared, strict=True):
                target.append({"id": len(target) + 1, "image_id": number, "category_id": 1, "iscrowd": int(many),
                               "area": int(mask.sum()), "score": float(score), "bbox": [0, 0, 1, 1],
                               "segmentation": rle.encode(np.asfortranarray(mask))})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
        truth.createIndex()
        found = COCO()
        found.dataset = {"images": images, "annotations": detections, "categories": [{"id": 1}]}
        found.createIndex()
        run = COCOeval(truth, found, "segm")
        run.params.iouThrs = np.asarray(THRESHOLDS)
        run.params.maxDets = list(limits)
        run.params.areaRng, run.params.areaRngLbl = [list(band) for band in sizes.values()], list(sizes)
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][:, :, 0, :, -1].mean(1).T, run.eval["recall"][:, 0].transpose(1, 0, 2)


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(8))
def test_equals_pycocotools(seed, share):
    rng = np.random.default_rng(seed)
    pairs, crowds = [], []
    for count in (12, 0, 5, 20):
        truth = random_cells(rng, count)
        prediction = jittered(rng, Instances.concatenate([truth, truth]), step=1)
        prediction = Instances.concatenate([prediction, random_cells(rng, 3)])
        scores = np.round(rng.random(len(prediction)), 1).astype(np.float32)          # many ties
        crowds.append(rng.random(count) < share)
        pairs.append((truth, Instances(prediction.shape, prediction.boxes, prediction.masks, scores)))
    limits = (1, 5, 100)
    expected_ap, expected_recall = by_pycocotools(pairs, BANDS, limits, crowds)
    ranked = [masks.rank_detections(a, b, thresholds=THRESHOLDS, sizes=BANDS, limit=max(limits), crowd=crowd)
              for (a, b), crowd in zip(pairs, crowds, strict=True)]
    for i, limit in enumerate(limits):
        ap, recall = masks.average_precision(ranked, limit=limit)
        np.testing.assert_allclose(recall, expected_recall[..., i], rtol=1e-12)
    np.testing.assert_allclose(ap, expected_ap, rtol=1e-12)
    scores = masks.coco_scores(ranked, thresholds=THRESHOLDS, sizes=BANDS, limits=limits)
    assert scores["AP"] == pytest.approx(expected_ap[0].mean()) and scores["AP50"] == pytest.approx(expected_ap[0, 0])
    assert scores["AP75"] == pytest.approx(expected_ap[0, 5])
    assert scores["AR small"] == pytest.approx(expected_recall[1, :, -1].mean())
    assert scores["AR@5"] == pytest.approx(expected_recall[0, :, 1].mean())


def test_by_hand():
    """Ranked hit, false, hit of 4 cells: precision 1 up to recall 1/4, 2/3 up to 1/2, then 0."""
    truth = squares((0, 0, 10, 10), (0, 20, 10, 30), (20, 0, 30, 10), (20, 20, 30, 30))
    prediction = squares((0, 0, 10, 10), (35, 35, 40, 40), (0, 20, 10, 30))
    prediction = Instances(prediction.shape, prediction.boxes, prediction.masks, np.asarray([0.9, 0.8, 0.7], np.float32))
    ranked = masks.rank_detections(truth, prediction, thresholds=(0.5,), sizes={"all": (0, 1e10)}, limit=100)
    ap, recall = masks.average_precision([ranked], limit=100)
    assert ap[0, 0] == pytest.approx((26 * 1 + 25 * 2 / 3) / 101) and recall[0, 0] == 0.5


def test_nothing_true_and_nothing_predicted():
    one, none = squares((0, 0, 5, 5)), squares()
    settings = {"thresholds": THRESHOLDS, "sizes": masks.COCO_SIZES}
    summary = {"limits": (1, 10, 100), **settings}
    missed, false = (masks.rank_detections(a, b, limit=100, **settings) for a, b in ((one, none), (none, one)))
    assert masks.coco_scores([missed], **summary)["AP"] == 0
    assert np.isnan(masks.coco_scores([false], **summary)["AP"])
    assert np.isnan(masks.coco_scores([missed], **summary)["AP large"])
    assert masks.coco_scores([missed, false], **summary)["AR@100"] == 0


def test_limit_counts_per_image():
    cells = squares(*[(0, 5 * i, 4, 5 * i + 4) for i in range(8)])
    ranked = [masks.rank_detections(cells, cells, thresholds=(0.5, 0.75), sizes=masks.LIVECELL_SIZES, limit=6)] * 2
    scores = masks.coco_scores(ranked, thresholds=(0.5, 0.75), sizes=masks.LIVECELL_SIZES, limits=(2, 6))
    assert scores["AR@2"] == 2 / 8 and scores["AR@6"] == 6 / 8 and scores["AP50"] == pytest.approx(76 / 101)
