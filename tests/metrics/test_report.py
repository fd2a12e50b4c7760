"""The report: numbers by hand, one formula for image, pool and resample, JSON without NaN, nothing kept but counts."""

import json
import weakref

import numpy as np
import pytest
from metrics.cells import jittered, random_cells, squares

from jaxcell.metrics.analysis import ANALYSES
from jaxcell.metrics.errors import error_counts
from jaxcell.metrics.masks import LIVECELL_SIZES
from jaxcell.metrics.matching import challenge_counts, match, overlap_table
from jaxcell.metrics.pixels import foreground, overlap_counts, pixel_counts
from jaxcell.metrics.regions import region_counts
from jaxcell.metrics.report import DEFINITIONS, SCORES, THRESHOLDS, ImageCounts, evaluate, plot, to_json, to_table

ONE = squares((10, 10, 20, 20))
TWO = squares((10, 10, 20, 20), (25, 25, 35, 35))
NONE = squares()


def by_hand():
    """F1 per image: 1, 2/3 (one of two cells found), undefined, 0."""
    return [("a", "phase", ONE, ONE), ("b", "phase", TWO, ONE), ("c", "dark", NONE, NONE), ("d", "dark", ONE, NONE)]


def test_by_hand():
    report = evaluate(by_hand(), resamples=50)
    f1 = report.overall["scores"]["F1@0.5"]
    assert f1["pooled"]["value"] == report.pooled_f1 == pytest.approx(2 * 2 / (2 * 2 + 0 + 2))
    assert f1["mean"]["value"] == pytest.approx((1 + 2 / 3 + 0) / 3) and f1["median"]["value"] == pytest.approx(2 / 3)
    assert f1["images"] == 3 and (report.overall["images"], report.overall["cells"], report.overall["predictions"]) == (4, 4, 2)
    assert report.modalities["phase"]["scores"]["Jaccard-AP@0.75"]["pooled"]["value"] == pytest.approx(2 / 3)
    dark = report.modalities["dark"]["scores"]
    assert dark["F1@0.5"]["pooled"]["value"] == 0 and np.isnan(dark["precision@0.5"]["mean"]["value"])
    challenge = report.overall["scores"]["challenge F1"]
    assert challenge["mean"]["value"] == pytest.approx((1 + 0.6667) / 4) and challenge["images"] == 4     # 0 where empty
    assert report.overall["coco"]["AP50"] == pytest.approx(51 / 101)
    assert [(i["TP"], i["FP"], i["FN"]) for i in report.images] == [(1, 0, 0), (1, 0, 1), (0, 0, 0), (0, 0, 1)]
    assert np.isnan(report.images[2]["scores"]["F1@0.5"])
    errors = report.overall["errors"]
    assert (errors["correct"], errors["missed"], errors["gained"], errors["cells"]) == (2, 2, 0, 4)
    assert report.modalities["dark"]["errors"]["missed"] == 1 and report.images[1]["errors"]["correct"] == 1
    assert report.overall["scores"]["deepcell F1"]["pooled"]["value"] == pytest.approx(2 * 2 / (4 + 2))
    for kind in ("pooled", "mean", "median"):
        assert f1[kind]["low"] <= f1[kind]["value"] <= f1[kind]["high"]


def test_rows_carry_all_counts():
    rng = np.random.default_rng(0)
    truth = random_cells(rng, 9)
    prediction = jittered(rng, truth)
    counts = ImageCounts(match(truth, prediction, thresholds=THRESHOLDS), challenge_counts(truth, prediction),
                         pixel_counts(truth, prediction), error_counts(overlap_table(truth, prediction)),
                         overlap_counts(truth, prediction), region_counts(foreground(truth), foreground(prediction)))
    back = ImageCounts.of_rows(np.stack([counts.row(), 2 * counts.row()]))
    for part in ("matches", "challenge", "pixels", "errors", "overlaps", "regions"):
        for name, value in vars(getattr(counts, part)).items():
            np.testing.assert_array_equal(vars(getattr(back, part))[name], np.stack([value, 2 * value]))


def test_foregrounds_by_hand_in_both_meanings():
    """a: alike; b: half of two squares; c: nothing on either side; d: a cell and no prediction; e: the other way round."""
    report = evaluate([*by_hand(), ("e", "dark", NONE, ONE)], resamples=20)
    scores = {name: entry["mean"]["value"] for name, entry in report.overall["scores"].items()}
    each = [image["scores"] for image in report.images]
    height, width = ONE.shape
    diagonal = np.hypot(height, width)
    assert each[0]["HD95"] == 0 and np.isnan(each[2]["HD95"]) and each[3]["HD95"] == each[4]["HD95"] == pytest.approx(diagonal)
    assert scores["HD95"] == pytest.approx((0 + each[1]["HD95"] + 2 * diagonal) / 4) and each[1]["HD95"] > 10
    assert report.overall["scores"]["HD95"]["pooled"]["value"] == pytest.approx(scores["HD95"])
    assert [e["images IoU@0.5"] for e in each][:2] == [1, 1] and scores["images IoU@0.5"] == 2 / 4
    assert scores["images IoU@0.75"] == 1 / 4
    assert [e["MorphoSeg DSC"] for e in each] == pytest.approx([1, 2 / 3, 0, 0, 1])
    assert [e["MorphoSeg HD95"] for e in each] == pytest.approx([0, each[1]["HD95"], 0, 0, 0])
    assert scores["MorphoSeg IoU@0.5"] == pytest.approx(3 / 5) and scores["MorphoSeg IoU@0.9"] == pytest.approx(2 / 5)
    assert scores["MorphoSeg mAP"] == pytest.approx((3 + 2 + 2) / 15)


def test_scores_agree_with_their_source():
    rng = np.random.default_rng(0)
    truth = random_cells(rng, 20)
    prediction = jittered(rng, truth, step=1)
    scores = evaluate([("x", "m", truth, prediction)], resamples=2).images[0]["scores"]
    counts = match(truth, prediction, thresholds=THRESHOLDS)
    assert scores["Jaccard-AP@0.5:0.95"] == pytest.approx(counts.jaccard.mean())
    assert scores["PQ"] == pytest.approx(scores["SQ"] * scores["RQ"]) == pytest.approx(float(counts.pq[0]))
    assert scores["recall@0.8"] == pytest.approx(counts.recall[THRESHOLDS.index(0.8)])
    assert scores["Dice"] == pytest.approx(float(pixel_counts(truth, prediction).dice))


def test_label_images_and_settings():
    labels = np.zeros((20, 20), np.int32)
    labels[4:9, 4:9] = 3
    report = evaluate([("x", "m", labels, labels[..., None])], sizes=LIVECELL_SIZES, limits=(1, 5), resamples=2)
    assert report.pooled_f1 == 1 and report.overall["coco"]["AP small"] == pytest.approx(1) and "AR@5" in report.overall["coco"]
    assert report.settings["coco_sizes"]["medium"] == [324, 961]


def test_every_score_has_a_definition():
    report = evaluate(by_hand(), resamples=2)
    families = {name.split("@")[0] for name in SCORES}
    defined = {part.strip().split("@")[0] for names in DEFINITIONS for part in names.split(",")}
    assert families <= defined and {"pooled", "mean", "median", "ignored regions"} <= defined
    assert {name.split("@")[0] for name in report.overall["coco"]} <= defined
    assert all(text in to_table(report) for text in DEFINITIONS.values())


def test_json_holds_everything_and_no_nan():
    report = evaluate(by_hand(), resamples=10)
    content = json.loads(to_json(report), parse_constant=pytest.fail)
    assert content["images"][2]["scores"]["F1@0.5"] is None and content["definitions"] == DEFINITIONS
    assert content["overall"]["scores"]["F1@0.5"]["pooled"]["value"] == report.pooled_f1


def test_table_lines_up_and_plot_is_written(tmp_path):
    report = evaluate(by_hand(), resamples=10)
    table = to_table(report)
    for block in table.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(line) for line in lines}) <= 1 and len({line.count("|") for line in lines}) <= 1
    assert "0.667 [" in table and "phase" in table and "nan" not in table
    plot(report, tmp_path / "report.png")
    plot(evaluate([("c", "only empty", NONE, NONE)], resamples=2), tmp_path / "empty.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000 and (tmp_path / "empty.png").exists()


def test_overlaps_are_scored_pixel_by_pixel():
    truth = squares((10, 10, 20, 20), (15, 10, 25, 20))        # 5 rows of 10 pixels in both
    found = squares((10, 10, 20, 20), (18, 10, 28, 20))        # 2 of them
    scores = evaluate([("x", "m", truth, found)], resamples=2).images[0]["scores"]
    assert scores["overlap F1"] == pytest.approx(2 * 20 / (50 + 20))
    assert (scores["overlap precision"], scores["overlap recall"]) == (1.0, pytest.approx(0.4))
    report = evaluate([("x", "m", truth, ONE), ("y", "m", TWO, TWO)], resamples=2)
    assert report.overall["scores"]["overlap F1"]["images"] == 1 and report.images[0]["scores"]["overlap F1"] == 0


def test_error_analyses_stand_beside_the_scores():
    report = evaluate([("x", "m", TWO, squares((10, 10, 20, 17), (30, 0, 40, 5)))], resamples=2, analyses=ANALYSES)
    assert report.overall["coco"]["AP75"] == 0
    assert report.analyses["true masks"]["AP75"] == pytest.approx(51 / 101)     # the second touches no cell
    assert "| error analysis" in to_table(report) and set(report.analyses) == set(ANALYSES)
    assert "| error analysis" not in to_table(evaluate(by_hand(), resamples=2))
    assert json.loads(to_json(report))["analyses"]["best matched"]["AP50"] == pytest.approx(51 / 101)


def test_masks_are_released_image_by_image():
    alive = []

    def pairs():
        for seed in range(4):
            cells = random_cells(np.random.default_rng(seed), 5)
            alive.append(weakref.ref(cells))
            yield str(seed), "m", cells, cells
            del cells
            assert sum(reference() is not None for reference in alive) <= 1

    evaluate(pairs(), resamples=2)


def test_errors_name_the_image():
    with pytest.raises(ValueError, match="'x'.*same pixels"):
        evaluate([("x", "m", np.zeros((4, 4), np.int32), np.zeros((4, 5), np.int32))])
    with pytest.raises(ValueError, match="no images"):
        evaluate([])
