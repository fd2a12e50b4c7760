"""Parity of labels, targets and decoding of the contour proposal network."""

from __future__ import annotations

from typing import Any

import numpy as np
from loader import Case

from jaxcell.decode.contours import nms, nms_weights, propose, rasterize
from jaxcell.geometry.fourier import contours_from_fourier, fit_fouriers, uniform_sampling
from jaxcell.geometry.labels import close_gaps, outlines, replace_ids, resolve_overlaps, to_layers
from jaxcell.geometry.refinement import clip_contours, refine_contours
from jaxcell.targets.contours import (
    centric_labels,
    clean_labels,
    relative_distances,
    single_owner,
)
from jaxcell.types import Instances

TOLERANCES: dict[str, float] = {}

Results = dict[str, Any]


def xy(points: np.ndarray) -> np.ndarray:
    """(y, x) <-> (x, y)."""
    return points[..., ::-1]


def swapped(last: np.ndarray) -> np.ndarray:
    """A last axis of two pairs, pairs exchanged: (y cos, y sin, x cos, x sin) <-> (x cos, x sin, y cos, y sin)."""
    return last[..., [2, 3, 0, 1]]


def box_xy(last: np.ndarray) -> np.ndarray:
    """(y0, x0, y1, x1) <-> (x0, y0, x1, y1)."""
    return last[..., [1, 0, 3, 2]]


def single_lines(labels: np.ndarray) -> dict[int, np.ndarray]:
    return {number: pieces[0] for number, pieces in outlines(labels).items()}


def packaged_labels(labels: np.ndarray) -> np.ndarray:
    """The clean-up of the package from 0.4.9 on: fragmented objects go last and leave a gap."""
    labels = close_gaps(labels)
    fragmented = np.asarray([number for number, pieces in outlines(labels).items() if len(pieces) > 1], np.int32)
    return replace_ids(labels, fragmented, np.full(len(fragmented), -1, np.int32))


def fourier_rows(lines: dict[int, np.ndarray], order: int, closed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Series of the outlines, row = label - 1."""
    empty = np.zeros((0, 2))
    rows = [lines.get(k, empty) for k in range(1, max(lines, default=0) + 1)]
    fourier, locations = np.zeros((len(rows), order, 4), np.float32), np.zeros((len(rows), 2), np.float32)
    full = [row for row, line in enumerate(rows) if len(line)]
    fourier[full], locations[full] = fit_fouriers([rows[row] for row in full], order, closed=closed)
    return fourier, locations


def fourier_fit(case: Case) -> Results:
    order = case.constructor["order"]
    out: Results = {}
    for closed, prefix in ((False, "contour"), (True, "closed_contour")):
        labels = packaged_labels(case.inputs["labels"]) if closed else clean_labels(case.inputs["labels"], min_area=5)
        lines = single_lines(labels)
        fourier, locations = fit_fouriers(list(lines.values()), order, closed=closed)
        out["closed_keys" if closed else "contour_keys"] = np.asarray(list(lines), np.int32)
        out[f"{prefix}_offsets"] = np.cumsum([0, *map(len, lines.values())])
        out[f"{prefix}_points"] = xy(np.concatenate(list(lines.values())))
        out["fourier_closed" if closed else "fourier_open"] = swapped(fourier)
        out["location_closed" if closed else "location_open"] = xy(locations)
        if not closed:
            out["sampled_open"] = xy(contours_from_fourier(*fourier_rows(lines, order, closed), case.inputs["sampling"]))
    return out


def targets(case: Case) -> Results:
    order, distances = case.constructor["order"], case.constructor["max_bg_dist,min_fg_dist of reduced_<i>"]
    out: Results = {}
    for version, distance in (("v040", "foreground"), ("v049", "object")):
        source = case.inputs["labels"]
        labels = clean_labels(source, min_area=5) if version == "v040" else packaged_labels(source)
        owner = single_owner(labels)
        relative = relative_distances(owner, distance=distance)
        for index, (background, foreground) in enumerate(distances):
            out[f"{version}_reduced_{index}"] = centric_labels(
                owner, relative, max_background_distance=background, min_foreground_distance=foreground)
        fourier, locations = fourier_rows(single_lines(labels), order, closed=False)
        out |= {f"{version}_labels": labels, f"{version}_distances": relative, f"{version}_fourier": swapped(fourier),
                f"{version}_locations": xy(locations),
                f"{version}_sampled_contours": xy(contours_from_fourier(fourier, locations, case.inputs["sampling"]))}
    return out


def labels_from_contours(case: Case) -> Results:
    c = case.constructor
    shape = tuple(c["size (h,w)"])
    boxes, masks = rasterize(xy(case.inputs["contours"]), shape)
    layers = to_layers(Instances(shape, boxes, masks, np.ones(len(boxes), np.float32)), gap=c["gap"], depth=c["initial_depth"])
    return {"stack": layers, "labels": resolve_overlaps(layers, max_iterations=c["max_iter"])}


def suppression(case: Case) -> Results:
    boxes, scores = box_xy(case.inputs["boxes"]), case.inputs["scores"]
    out: Results = {}
    for name, kind in (("plain", "score"), ("ua", "certainty"), ("tile", "tile")):
        weights = nms_weights(scores, box_xy(case.inputs["uncertainty_raw"]), kind=kind)
        if name != "plain":
            out[f"weight_{name}"] = weights
        for index, threshold in enumerate(case.constructor["iou_thresholds (suffix _i)"]):
            out[f"keep_{name}_{index}"] = nms(boxes, weights, iou_threshold=threshold)
    return out


def dense_outputs(inputs: dict[str, np.ndarray], image: int) -> dict[str, np.ndarray]:
    """The reference's dense maps of one image in our layout."""
    def last(name: str) -> np.ndarray:
        return np.moveaxis(inputs[name][image], 0, -1)

    def pairs(array: np.ndarray, change: Any, size: int) -> np.ndarray:
        return np.ascontiguousarray(change(array.reshape(*array.shape[:2], -1, size)).reshape(array.shape))

    out = {"scores": last("map_scores"), "locations": xy(last("map_relative_locations")),
           "fourier": pairs(last("map_fourier_map"), swapped, 4)}
    if "map_refinement" in inputs:
        out["refinement"] = pairs(last("map_refinement"), xy, 2)
    if "map_uncertainty_raw" in inputs:
        out["uncertainty"] = box_xy(last("map_uncertainty_raw"))
    return out


def firm_points(found: dict[str, np.ndarray], outputs: dict[str, np.ndarray], *, samples: int, iterations: int,
                margin: float) -> np.ndarray:
    """[N, T, 1]: points that stay `margin` away from a rounding flip in every iteration."""
    sampling = uniform_sampling(samples)
    start = contours_from_fourier(found["fourier"], found["locations"], sampling)
    steps = refine_contours(start, sampling, outputs["refinement"], iterations=iterations)
    before = clip_contours(np.concatenate([start[None], steps[:-1]]), outputs["refinement"].shape[:2])
    return (np.abs(before - np.floor(before) - 0.5).min(axis=(0, -1)) >= margin)[..., None]


def ua_decode(case: Case) -> Results:
    c = case.constructor
    out: Results = {}
    for image in range(len(case.inputs["map_scores"])):
        outputs = dense_outputs(case.inputs, image)
        contour = {"samples": c["samples"], "iterations": c["refinement_iterations"]}
        settings = contour | {"score_threshold": c["score_thresh"], "shape": tuple(c["image size (h,w)"])}
        found = propose(outputs, **settings)
        firm = firm_points(found, outputs, margin=1e-3, **contour)
        keeps = {"all": np.arange(len(found["scores"]))}
        kinds = {"plain": "score"} | ({"ua": "certainty"} if "uncertainty" in outputs else {})
        for name, kind in kinds.items():
            weights = nms_weights(found["scores"], found.get("uncertainty"), kind=kind)
            keeps[name] = nms(found["float_boxes"], weights, iou_threshold=c["nms_thresh"])
        for name, keep in keeps.items():
            out |= detections(f"{name}_{image}", {k: v[keep] for k, v in found.items()}, firm[keep])
        if "uncertainty" in outputs:
            certain = propose(outputs, certainty_threshold=c["certainty_thresh of certain_"], **settings)
            out |= detections(f"certain_{image}", certain, firm_points(certain, outputs, margin=1e-3, **contour))
    return out


def detections(prefix: str, found: dict[str, np.ndarray], firm: np.ndarray) -> Results:
    contours = xy(found["contours"])
    out: Results = {f"{prefix}_contours": (contours, np.broadcast_to(firm, contours.shape)),
                    f"{prefix}_boxes": box_xy(found["float_boxes"]), f"{prefix}_scores": found["scores"]}
    if "uncertainty" in found:
        out[f"{prefix}_uncertainty_raw"] = box_xy(found["uncertainty"])
    return out


ADAPTERS = {
    "cpn/fourier_fit": fourier_fit,
    "cpn/targets": targets,
    "cpn/labels_from_contours": labels_from_contours,
    "cpn/nms": suppression,
    "cpn/ua_decode": ua_decode,
}
