"""From pairs of true and predicted cells to a report: every score per image, pooled, mean and median, overall and by modality.

An image is reduced to one row of counts and the fate of its ranked detections, so masks are held one image at a time. Per image,
pooled and resampled scores come from the same functions (`SCORES`), applied to one row, to the sum of rows, or to sums of
resampled rows.
"""

from __future__ import annotations

import json
import math
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcell.metrics.bootstrap import bootstrap_interval
from jaxcell.metrics.errors import ErrorCounts, error_counts
from jaxcell.metrics.masks import COCO_SIZES, LIVECELL_DETECTIONS, RankedDetections, coco_scores, rank_detections
from jaxcell.metrics.matching import ChallengeCounts, Counts, as_instances, challenge_counts, divide, match_counts, overlap_table
from jaxcell.metrics.pixels import PixelCounts, foreground, overlap_counts, pixel_counts
from jaxcell.metrics.regions import IOU_THRESHOLDS, RegionCounts, region_counts
from jaxcell.types import Instances

__all__ = ["DEFINITIONS", "SCORES", "THRESHOLDS", "ImageCounts", "Report", "evaluate", "plot", "to_json", "to_table"]

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)

DEFINITIONS: dict[str, str] = {
    "matching": "One predicted cell matches one true cell if the IoU of their masks reaches the threshold (equality "
                "counts). The matching with the most pairs is taken, of those the one with the largest IoU. TP: "
                "matched pairs; FP, FN: predicted and true cells left over.",
    "ignored regions": "Where the annotation says \"ignore\" (label -1, COCO crowd) there are no true cells; a prediction "
                       "with more than half of its pixels there, and on no true cell, counts neither for nor against.",
    "F1@t": "2 TP / (2 TP + FP + FN) at IoU t. F1@0.5:0.95 is the mean over t = 0.50, 0.55, ..., 0.95.",
    "precision@t": "TP / (TP + FP) at IoU t.",
    "recall@t": "TP / (TP + FN) at IoU t.",
    "Jaccard-AP@t": "TP / (TP + FP + FN) at IoU t, which StarDist, Cellpose and the 2018 Data Science Bowl call AP; "
                    "not COCO's AP. Jaccard-AP@0.5:0.95 is the mean over t = 0.50, 0.55, ..., 0.95.",
    "PQ": "Panoptic quality at IoU 0.5: sum of matched IoU / (TP + FP/2 + FN/2) = SQ * RQ.",
    "SQ": "Segmentation quality at IoU 0.5: mean IoU of matched pairs.",
    "RQ": "Recognition quality: the same number as F1@0.5.",
    "challenge F1": "F1 at IoU 0.5 by the protocol of the NeurIPS 2022 cell segmentation challenge: cells within 2 px "
                    "of the edge of the image are removed from truth and prediction separately, images of 25 million "
                    "pixels or more are scored in patches of 2000 px, an image without a match (an empty one "
                    "included) scores 0, rounded to four digits. The challenge quotes mean and median.",
    "Dice": "2 |A and B| / (|A| + |B|) of foreground pixels, whatever cell they belong to.",
    "IoU": "|A and B| / |A or B| of foreground pixels, whatever cell they belong to; its mean over images is the \"average pixel "
           "IoU\" of Mesmer's papers.",
    "HD95": "95th percentile of the distances, in pixels, from every pixel of the outlines of both foregrounds to the other "
            "outline. Where only one side has foreground: the image's diagonal. Less is better; pooled is the mean over images.",
    "images IoU@t": "Share of the images whose foreground IoU reaches t; images without foreground on either side are left out. "
                    "Pooled is the same share.",
    "MorphoSeg DSC, MorphoSeg HD95, MorphoSeg IoU@t, MorphoSeg mAP":
        "What MorphoSeg's test script prints (as fractions, HD95 in pixels), of the foregrounds of whole images. An image "
        "without prediction has DSC 0 and HD95 0, one with a prediction but no cell DSC 1 and HD95 0, one with neither DSC 0 "
        "and IoU 1. IoU@t is the share of images that reach t, and mAP the mean of those shares at 0.5, 0.75 and 0.9: none "
        "of it counts cells, and it is no average precision (for that see AP). Pooled is the mean over images.",
    "overlap F1, overlap precision, overlap recall": "F1 (Dice), precision and recall of the pixels that lie in two cells or "
                                                     "more. Undefined where neither side has such pixels; a method that cannot "
                                                     "overlap scores 0.",
    "error types": "By deepcell's ObjectMetrics. A pair is correct if its IoU exceeds 0.6 (cutoff 0.4). Cells left over hang "
                   "together from IoU 0.1 on, or if one lies to more than half in the other: several true cells and one "
                   "predicted are a merge, one true and several predicted a split, several of both a catastrophe. All others "
                   "are missed or gained, also two that overlap too little to match. Lost, surplus: one less than each merge "
                   "or split has.",
    "deepcell F1, deepcell precision, deepcell recall": "2 d / (cells + predicted), d / predicted, d / cells, where d are the "
                                                        "correct pairs and, as deepcell counts them, one for each catastrophe.",
    "AP, AP50, AP75": "COCO mask AP: predictions of all images ranked by score, area under interpolated precision "
                      "over recall; mean over IoU 0.50:0.95, at 0.50, at 0.75. Predictions per image and size bands "
                      "as in the settings (COCO itself allows 100 predictions). Overlapping cells keep their masks. "
                      "Cells of label images carry no score and rank equal, in file order.",
    "AP small, AP medium, AP large": "AP of the true cells whose area lies in that band (limits: see the settings). A "
                                     "prediction counts neither for nor against if it found a cell outside the band, or "
                                     "none and is outside itself. Undefined without true cells in the band.",
    "error analysis": "COCO scores of changed predictions. True masks: each has the mask of the true cell with which its Dice is "
                      "largest, so that what is still missing is not lost in drawing. Best matched: only those of the "
                      "one-to-one matching with the true cells of largest Dice (0.5 at least), so that no ranking is at fault.",
    "AR@n": "COCO average recall with at most n predictions per image, mean over IoU 0.50:0.95.",
    "AR small, AR medium, AR large": "AR of the true cells whose area lies in that band, with at most as many predictions "
                                     "per image as AP allows.",
    "pooled": "Counts of all images added up, then the ratio: every cell weighs the same.",
    "mean, median": "Over the images' own scores: every image weighs the same. Images in which a score is undefined "
                    "are left out (F1, Jaccard-AP, PQ, Dice, IoU: no cell in truth and prediction; precision: no "
                    "prediction; recall: no true cell; SQ: no match); StarDist counts them as 0.",
    "interval": "Percentile bootstrap over images, resampled with replacement as if independent.",
}


# ---------------------------------------------------------------------------------------------------- what an image leaves


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """All counts of an image, or of many: the leading axes of every array are the same. `matches` has T = len(THRESHOLDS)."""

    matches: Counts
    challenge: ChallengeCounts
    pixels: PixelCounts
    errors: ErrorCounts
    overlaps: PixelCounts
    regions: RegionCounts

    def row(self) -> np.ndarray:
        """[..., K] float64: the counts side by side (exact up to 2**53), to add up and to resample."""
        m, c, p = self.matches, self.challenge, self.pixels
        areas = [x[..., None] for part in (p, self.overlaps) for x in (part.intersection, part.truth, part.prediction)]
        last = [c.tp, c.fp, c.fn, c.truth, c.prediction, *areas]
        return np.concatenate([m.tp, m.fp, m.fn, m.iou, *last, self.errors.row(), self.regions.row()], axis=-1, dtype=np.float64)

    @staticmethod
    def of_rows(rows: np.ndarray) -> ImageCounts:
        """The inverse of `row`; [..., K]."""
        count = len(THRESHOLDS)
        matches = Counts(*(rows[..., i * count:(i + 1) * count] for i in range(4)))
        rest = rows[..., 4 * count:]
        challenge = ChallengeCounts(*(rest[..., i:i + 1] for i in range(5)))
        pixels, overlaps = (PixelCounts(*(rest[..., i] for i in range(start, start + 3))) for start in (5, 8))
        return ImageCounts(matches, challenge, pixels, ErrorCounts.of_rows(rest[..., 11:-_REGIONS]), overlaps,
                           RegionCounts.of_rows(rest[..., -_REGIONS:]))


_REGIONS = 5 + 2 * len(IOU_THRESHOLDS)     # numbers of `RegionCounts.row`

Score = Callable[[ImageCounts], np.ndarray]


def _at(score: Callable[[Counts], np.ndarray], index: int) -> Score:
    """A score of `Counts` at the threshold of that index."""
    return lambda counts: score(counts.matches)[..., index]


def _passed(score: Callable[[RegionCounts], np.ndarray], index: int) -> Score:
    """A share of `RegionCounts` at the threshold of that index."""
    return lambda counts: score(counts.regions)[..., index]


_BY_THRESHOLD: dict[str, Callable[[Counts], np.ndarray]] = {
    "F1": lambda c: c.f1, "precision": lambda c: c.precision, "recall": lambda c: c.recall, "Jaccard-AP": lambda c: c.jaccard}

# Name -> score of shape [...] from counts of shape [..., *]; DEFINITIONS says what each is.
SCORES: dict[str, Score] = {
    **{f"{name}@{t:g}": _at(score, i) for name, score in _BY_THRESHOLD.items() for i, t in enumerate(THRESHOLDS)},
    "F1@0.5:0.95": lambda counts: counts.matches.f1.mean(-1),
    "Jaccard-AP@0.5:0.95": lambda counts: counts.matches.jaccard.mean(-1),
    "PQ": _at(lambda c: c.pq, 0),
    "SQ": _at(lambda c: c.sq, 0),
    "RQ": _at(lambda c: c.f1, 0),
    "challenge F1": lambda counts: np.round(counts.challenge.f1[..., 0], 4),
    "Dice": lambda counts: counts.pixels.dice,
    "IoU": lambda counts: counts.pixels.iou,
    "HD95": lambda counts: counts.regions.hd95,
    **{f"images IoU@{t:g}": _passed(lambda r: r.fractions, i) for i, t in enumerate(IOU_THRESHOLDS)},
    "MorphoSeg DSC": lambda counts: divide(counts.regions.released_dsc, counts.regions.images),
    "MorphoSeg HD95": lambda counts: divide(counts.regions.released_hd95, counts.regions.images),
    **{f"MorphoSeg IoU@{t:g}": _passed(lambda r: r.released_fractions, i) for i, t in enumerate(IOU_THRESHOLDS)},
    "MorphoSeg mAP": lambda counts: counts.regions.released_fractions.mean(-1),
    "overlap F1": lambda counts: counts.overlaps.dice,
    "overlap precision": lambda counts: counts.overlaps.precision,
    "overlap recall": lambda counts: counts.overlaps.recall,
    "deepcell F1": lambda counts: counts.errors.f1,
    "deepcell precision": lambda counts: counts.errors.precision,
    "deepcell recall": lambda counts: counts.errors.recall,
}

_TABLE = ("F1@0.5", "precision@0.5", "recall@0.5", "F1@0.75", "F1@0.5:0.95", "Jaccard-AP@0.5", "Jaccard-AP@0.75",
          "Jaccard-AP@0.9", "Jaccard-AP@0.5:0.95", "PQ", "SQ", "RQ", "challenge F1", "Dice", "IoU", "overlap F1")
# Column -> count of `ErrorCounts`.
_ERROR_TABLE = {"cells": "cells", "predicted": "predictions", "correct": "correct", "missed": "missed", "gained": "gained",
                "merges": "merges", "lost": "missed_in_merges", "splits": "splits", "surplus": "gained_in_splits",
                "catastrophes": "catastrophes"}
_REGION_TABLE = ("Dice", "IoU", "HD95", *(f"images IoU@{t:g}" for t in IOU_THRESHOLDS))
_RELEASED_TABLE = ("MorphoSeg DSC", "MorphoSeg HD95", *(f"MorphoSeg IoU@{t:g}" for t in IOU_THRESHOLDS), "MorphoSeg mAP")
_MODALITY_TABLE = ("F1@0.5", "precision@0.5", "recall@0.5", "Jaccard-AP@0.5", "Jaccard-AP@0.75", "PQ")


def _scores(rows: np.ndarray) -> np.ndarray:
    """[..., K] counts -> [..., len(SCORES)] scores."""
    counts = ImageCounts.of_rows(rows)
    return np.stack([score(counts) for score in SCORES.values()], axis=-1)


# ------------------------------------------------------------------------------------------------------------- the report


@dataclass(frozen=True)
class Report:
    """Scores of a set of images; plain values throughout, NaN where a score is undefined.

    Attributes:
      settings: thresholds, COCO's bands and limits, and how intervals were drawn.
      overall: {"images", "cells", "predictions", "scores": {name: {"pooled", "mean", "median": {"value", "low", "high"},
        "images": those in which it is defined}}, "errors": {name of `ErrorCounts`: count}, "coco": {name: value}}.
      modalities: the same for each modality.
      images: per image "name", "modality", "cells", "predictions", "TP", "FP", "FN" (at IoU 0.5), "errors" and "scores": {name:
        value}.
      definitions: what each name means.
      analyses: name -> COCO's numbers of all images after predictions were changed by an analysis; empty if none was asked for.
    """

    settings: Mapping[str, Any]
    overall: Mapping[str, Any]
    modalities: Mapping[str, Mapping[str, Any]]
    images: Sequence[Mapping[str, Any]]
    definitions: Mapping[str, str]
    analyses: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def pooled_f1(self) -> float:
        """F1 at IoU 0.5 over all cells: the number by which a run keeps its best checkpoint."""
        return self.overall["scores"]["F1@0.5"]["pooled"]["value"]


def evaluate(pairs: Iterable[tuple[str, str, Instances | np.ndarray, Instances | np.ndarray]], *,
             sizes: Mapping[str, tuple[float, float]] = COCO_SIZES, limits: Sequence[int] = LIVECELL_DETECTIONS,
             confidence: float = 0.95, resamples: int = 1000, seed: int = 0,
             analyses: Mapping[str, Callable[[Instances, Instances], Instances]] | None = None) -> Report:
    """Scores predictions image by image; only counts stay in memory.

    Args:
      pairs: (name, modality, truth, prediction) of each image; cells as Instances, or label images [H, W] or layers [H, W, D].
      sizes: bands of area for COCO AP, name -> (smallest, largest) in pixels; the first one must hold everything.
      limits: predictions per image for COCO AP and AR. Not COCO's own (1, 10, 100): images with more cells are common.
      confidence: of the bootstrap intervals, in (0, 1).
      resamples: sets of images drawn for them.
      seed: of the draw.
      analyses: name -> (truth, prediction) -> changed prediction, whose COCO scores are wanted too; such as `analysis.ANALYSES`.

    Raises:
      ValueError: no pairs, or truth and prediction of different sizes (the message names the image).
    """
    images: list[dict[str, Any]] = []
    rows, ranked = [], []
    analyses = {} if analyses is None else analyses
    changed: dict[str, list[RankedDetections]] = {name: [] for name in analyses}
    for name, modality, truth_cells, predicted_cells in pairs:
        truth, prediction = as_instances(truth_cells), as_instances(predicted_cells)
        if truth.shape != prediction.shape:
            raise ValueError(f"evaluate: image {name!r} has a truth of {truth.shape} pixels and a prediction of "
                             f"{prediction.shape}; they must cover the same pixels. Check that both belong to this image and "
                             "that neither was resized.")
        table = overlap_table(truth, prediction)
        counts = ImageCounts(match_counts(table, thresholds=THRESHOLDS), challenge_counts(truth, prediction),
                             pixel_counts(truth, prediction), error_counts(table), overlap_counts(truth, prediction),
                             region_counts(foreground(truth), foreground(prediction)))
        rows.append(counts.row())
        rank = partial(rank_detections, truth, thresholds=THRESHOLDS, sizes=sizes, limit=max(limits))
        ranked.append(rank(prediction))
        for analysis, change in analyses.items():
            changed[analysis].append(rank(change(truth, prediction)))
        images.append({"name": name, "modality": modality, "cells": len(truth), "predictions": len(prediction)}
                      | {"TP": int(counts.matches.tp[0]), "FP": int(counts.matches.fp[0]), "FN": int(counts.matches.fn[0])}
                      | {"errors": _named(counts.errors)}
                      | {"scores": dict(zip(SCORES, _scores(rows[-1]).tolist(), strict=True))})
    if not images:
        raise ValueError("evaluate: no images to score; the data source or the folder of predictions is empty.")

    def summary(index: Sequence[int]) -> dict[str, Any]:
        chosen = [images[i] for i in index]
        return {"images": len(chosen), "cells": sum(i["cells"] for i in chosen),
                "predictions": sum(i["predictions"] for i in chosen),
                "errors": _named(ImageCounts.of_rows(np.sum([rows[i] for i in index], axis=0)).errors),
                "scores": _summary(np.stack([rows[i] for i in index]), confidence=confidence, resamples=resamples, seed=seed),
                "coco": coco_scores([ranked[i] for i in index], thresholds=THRESHOLDS, sizes=sizes, limits=limits)}

    return Report(
        settings={"thresholds": list(THRESHOLDS), "coco_sizes": {k: list(v) for k, v in sizes.items()},
                  "coco_limits": list(limits), "confidence": confidence, "resamples": resamples, "seed": seed},
        overall=summary(range(len(images))),
        modalities={m: summary([i for i, image in enumerate(images) if image["modality"] == m])
                    for m in sorted({image["modality"] for image in images})},
        images=images, definitions=DEFINITIONS,
        analyses={name: coco_scores(images_of, thresholds=THRESHOLDS, sizes=sizes, limits=limits)
                  for name, images_of in changed.items()})


def _named(errors: ErrorCounts) -> dict[str, int]:
    return {name: int(count) for name, count in asdict(errors).items()}


def _summary(rows: np.ndarray, *, confidence: float, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Pooled, mean and median of every score over images, with intervals.

    Args:
      rows: [N, K] counts.
    """
    per_image = _scores(rows)
    kinds: dict[str, tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]] = {
        "pooled": (rows, lambda drawn: _scores(drawn.sum(1))),
        "mean": (per_image, lambda drawn: np.nanmean(drawn, axis=1)),
        "median": (per_image, lambda drawn: np.nanmedian(drawn, axis=1)),
    }
    result: dict[str, dict[str, Any]] = {name: {} for name in SCORES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)     # a score that no image defines has mean NaN, as it should
        for kind, (values, statistic) in kinds.items():
            value = statistic(values[None])[0]
            low, high = bootstrap_interval(values, statistic, confidence=confidence, resamples=resamples, seed=seed)
            for i, name in enumerate(SCORES):
                result[name][kind] = {"value": float(value[i]), "low": float(low[i]), "high": float(high[i])}
    for name, count in zip(SCORES, np.isfinite(per_image).sum(0).tolist(), strict=True):
        result[name]["images"] = count
    return result


# ------------------------------------------------------------------------------------------------------ text, JSON, picture


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _estimate(entry: Mapping[str, float]) -> str:
    return "-" if math.isnan(entry["value"]) else f"{entry['value']:.3f} [{_number(entry['low'])}, {_number(entry['high'])}]"


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table that lines up as plain text and renders as Markdown; the first column is words, the others are numbers."""
    widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "| " + " | ".join("-" * (w - 1) + ":" if i else "-" * w for i, w in enumerate(widths)) + " |"
    return "\n".join([line(header), rule, *map(line, body)])


def to_table(report: Report) -> str:
    """The report as Markdown that also reads well in a terminal: all images, by modality, kinds of errors, COCO, and what
    each number means."""
    overall, settings = report.overall, report.settings
    percent = f"{100 * settings['confidence']:g} % interval"
    scores = overall["scores"]
    body = [[name, *(_estimate(scores[name][kind]) for kind in ("pooled", "mean", "median")), str(scores[name]["images"])]
            for name in _TABLE]
    parts = [f"{overall['images']:,} images, {overall['cells']:,} cells, {overall['predictions']:,} predicted cells. "
             f"In brackets: {percent}.", _markdown(["all images", "pooled", "mean", "median", "images"], body)]

    def modality_row(name: str, group: Mapping[str, Any]) -> list[str]:
        return [name, f"{group['images']:,}", f"{group['cells']:,}", *(_number(group["scores"][s]["pooled"]["value"]) for s in
                _MODALITY_TABLE), _number(group["scores"]["challenge F1"]["median"]["value"]), _number(group["coco"]["AP"])]

    groups = [*report.modalities.items(), *([("all", overall)] if len(report.modalities) > 1 else [])]
    parts.append(_markdown(["modality (pooled)", "images", "cells", *_MODALITY_TABLE, "median challenge F1", "COCO AP"],
                           [modality_row(name, group) for name, group in groups]))

    parts.append(_markdown(["error types", *_ERROR_TABLE, "deepcell F1"],
                           [[name, *(f"{group['errors'][key]:,}" for key in _ERROR_TABLE.values()),
                             _number(group["scores"]["deepcell F1"]["pooled"]["value"])] for name, group in groups]))

    for title, names in (("foreground (mean of images)", _REGION_TABLE), ("as MorphoSeg's script", _RELEASED_TABLE)):
        body = [[name, *(_number(group["scores"][key]["mean"]["value"]) for key in names)] for name, group in groups]
        parts.append(_markdown([title, *names], body))

    parts.append(_markdown(["COCO masks", *overall["coco"]],
                           [[name, *map(_number, group["coco"].values())] for name, group in groups]))
    if report.analyses:
        parts.append(_markdown(["error analysis", *overall["coco"]], [
            ["predictions as they are", *map(_number, overall["coco"].values())],
            *([name, *map(_number, coco.values())] for name, coco in report.analyses.items())]))
    bands = ", ".join(f"{name} {low:g} to {high:g}" if high < 1e9 else f"{name} from {low:g}"
                      for name, (low, high) in settings["coco_sizes"].items())
    parts.append(f"COCO settings: at most {max(settings['coco_limits'])} predictions per image; areas in px: {bands}. "
                 f"Intervals: {settings['resamples']} resamples, seed {settings['seed']}.")
    parts.append("\n".join(["What the numbers mean:", *(f"- {name}: {text}" for name, text in report.definitions.items())]))
    return "\n\n".join(parts)


def _finite(value: Any) -> Any:
    """The same value with NaN as None: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(report: Report) -> str:
    """The whole report, per image rows and definitions included; undefined scores are null."""
    return json.dumps(_finite(asdict(report)), indent=1) + "\n"


_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f", "#8c6d31")     # told apart by all eyes
_INK = "#333333"


def plot(report: Report, path: str | Path) -> None:
    """Draws F1 over IoU thresholds by modality, and the images' own F1 at 0.5.

    Args:
      report: what to draw.
      path: of the picture; the ending says the format (.png, .pdf, .svg).
    """
    figure = Figure(figsize=(11, max(4.2, 1.2 + 0.6 * len(report.modalities))), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_thresholds(left, report)
    _draw_images(right, report)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.title.set_size(10)
    figure.savefig(path)


def _draw_thresholds(axes: Axes, report: Report) -> None:
    """Pooled F1 over the IoU threshold: a line and its bootstrap band for each modality, dashed for all."""
    for (name, group), colour in zip(report.modalities.items(), cycle(_COLOURS), strict=False):
        pooled = [group["scores"][f"F1@{t:g}"]["pooled"] for t in THRESHOLDS]
        low, value, high = ([p[key] for p in pooled] for key in ("low", "value", "high"))
        axes.fill_between(THRESHOLDS, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(THRESHOLDS, value, "o-", color=colour, markersize=4, label=f"{name} ({group['images']} images)")
    if len(report.modalities) > 1:
        value = [report.overall["scores"][f"F1@{t:g}"]["pooled"]["value"] for t in THRESHOLDS]
        axes.plot(THRESHOLDS, value, "--", color=_INK, label=f"all ({report.overall['images']} images)")
    axes.set(xlabel="IoU threshold", ylabel="F1, pooled over cells", xlim=(0.49, 0.96), ylim=(0, 1.02),
             title=f"F1 and its {100 * report.settings['confidence']:g} % bootstrap band")


def _draw_images(axes: Axes, report: Report) -> None:
    """One dot an image, one row a modality, with median and quartiles."""
    rng = np.random.default_rng(0)
    for i, (name, colour) in enumerate(zip(report.modalities, cycle(_COLOURS), strict=False)):
        values = np.asarray([image["scores"]["F1@0.5"] for image in report.images if image["modality"] == name])
        values = values[np.isfinite(values)]
        axes.scatter(values, i + rng.uniform(-0.22, 0.22, len(values)), s=14, color=colour, alpha=0.55, linewidth=0)
        if len(values):
            low, median, high = np.percentile(values, [25, 50, 75])
            axes.plot([low, high], [i, i], color=_INK, linewidth=2, solid_capstyle="butt")
            axes.plot([median, median], [i - 0.3, i + 0.3], color=_INK, linewidth=2)
    axes.set(xlabel="F1 at IoU 0.5 of each image", xlim=(-0.02, 1.02), ylim=(len(report.modalities) - 0.5, -0.5),
             title="Images one by one, median and quartiles")
    axes.set_yticks(range(len(report.modalities)), [textwrap.fill(name, 22) for name in report.modalities], fontsize=8)
