"""Parity of mesmer's functions: targets, normalisations, losses, post-processing, metrics, LIVECell."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile
from loader import Case

from jaxcell.data.normalize import clip_bright, equalise_locally, standardise
from jaxcell.data.sources.livecell import LiveCellSource, every_nth
from jaxcell.decode.deep_watershed import deep_watershed
from jaxcell.geometry.boundaries import erode_labels
from jaxcell.losses.pixels import categorical_cross_entropy, weighted_cross_entropy, weighted_focal
from jaxcell.losses.regression import squared_error
from jaxcell.metrics.errors import ErrorCounts, error_counts, raised_iou
from jaxcell.metrics.matching import match, overlap_table
from jaxcell.metrics.pixels import pixel_counts
from jaxcell.models.inputs import append_location, divide_by_maximum, standardise_windows
from jaxcell.models.inputs import standardise as standardise_inside
from jaxcell.targets.distance import distance_classes, inner_distance, outer_distance
from jaxcell.targets.pixels import foreground, pixelwise

TOLERANCES: dict[str, float] = {}

Results = dict[str, np.ndarray]


def each(function: Callable[..., np.ndarray], *batches: np.ndarray) -> np.ndarray:
    """`function` of every image of a batch."""
    return np.stack([function(*images) for images in zip(*batches, strict=True)])


def transforms(case: Case) -> Results:
    c, labels = case.constructor, case.inputs["labels"].astype(np.int32)
    out: Results = {}
    for erosion in c["erosion"]:
        out[f"erode_{erosion}"] = each(lambda x, e=erosion: erode_labels(x, e), labels)
        out[f"outer_e{erosion}"] = each(lambda x, e=erosion: outer_distance(x, erosion=e), labels)
        for alpha in c["alpha"]:
            out[f"inner_a{alpha}_b{c['beta']}_e{erosion}"] = each(
                lambda x, a=alpha, e=erosion: inner_distance(x, alpha=a, beta=c["beta"], erosion=e), labels)
    bins = c["bins"]
    out[f"inner_bins{bins}"] = each(lambda x: distance_classes(inner_distance(x, beta=c["beta"]), bins), labels)
    out[f"outer_bins{bins}"] = each(lambda x: distance_classes(outer_distance(x), bins), labels)
    out["fgbg"] = each(foreground, labels)
    for radius in c["dilation"]:
        for name, separate in (("pixelwise", False), ("pixelwise4", True)):
            out[f"{name}_d{radius}"] = each(
                lambda x, r=radius, s=separate: pixelwise(x, dilation=r or 0, separate_edges=s), labels)
    return out


def normalisation(case: Case) -> Results:
    c, image = case.constructor, case.inputs["image"]
    floats = image.astype(np.float32)
    return {
        "normalize": each(lambda x: standardise(x)(x), image),
        "clahe": each(lambda x: equalise_locally(x, kernel=c["clahe_kernel_size"]), image),
        "clahe_default": each(equalise_locally, image),
        "percentile": each(lambda x: clip_bright(x, percentile=c["percentile"])(x), image),
        "layer_whole_image": np.asarray(standardise_inside(floats)),
        "layer_std": np.asarray(standardise_windows(floats, size=c["filter_size"])),
        "layer_max": np.asarray(divide_by_maximum(floats, size=c["filter_size"])),
        "location": np.asarray(append_location(floats[:1]))[..., image.shape[-1]:],
    }


def losses(case: Case) -> Results:
    c, labels, probabilities = case.constructor, case.inputs["labels"].astype(np.int32), case.inputs["softmax"]
    target = each(lambda x: pixelwise(x, separate_edges=c["n_classes"] == 4), labels)
    inner = each(inner_distance, labels)
    weighted = np.asarray(weighted_cross_entropy(probabilities, target))
    error = squared_error(case.inputs["inner_pred"], inner).mean()
    return {
        "wce": weighted,
        "wce_mean_scaled": c["scale"] * weighted.mean(),
        "wce_unnormalised": np.asarray(weighted_cross_entropy(case.inputs["unnormalised"], target[:1])),
        "focal_mean": np.asarray(weighted_focal(probabilities, target, gamma=c["focal_gamma"]).mean()),
        "cce_mean": np.asarray(categorical_cross_entropy(probabilities, target).mean()),
        "mse_mean": np.asarray(error),
        "total": np.asarray(c["scale"] * weighted.mean() + error),
        "class_sum": target.sum((0, 1, 2)),
        "wce_swapped_mean_scaled": c["scale"] * np.asarray(weighted_cross_entropy(target, probabilities)).mean(),
    }


NAMES = {"maxima_smooth": "maxima_smoothing", "interior_smooth": "interior_smoothing", "label_erosion": "erosion",
         "small_objects_threshold": "small_objects", "fill_holes_threshold": "holes", "pixel_expansion": "expansion",
         "maxima_algorithm": "maxima"}


def watershed(case: Case) -> Results:
    out: Results = {}
    for number, changed in enumerate(case.constructor["settings"]):
        settings = case.constructor["defaults"] | changed
        settings["pixel_expansion"] = settings["pixel_expansion"] or 0
        options = {NAMES.get(name, name): value for name, value in settings.items()}
        out[f"labels{number}"] = each(partial(deep_watershed, **options), case.inputs["inner"], case.inputs["interior"])
    return out


def assignment_cost(iou: np.ndarray, cutoff1: float = 0.4, **_: float) -> np.ndarray:
    """The reference's dense costs, from the IoU [M, N] that jaxcell works with: it never builds them."""
    alone = [np.where(np.eye(n), cutoff1 + 1 - 1, 1.0) for n in iou.shape]
    return np.block([[1 - iou, alone[0]], [alone[1], 1 - iou.T]])


def recorded(counts: ErrorCounts) -> list[float]:
    """The reference's columns: its correct_detections are our `detections`."""
    return [*replace(counts, correct=counts.detections).row(), counts.precision, counts.recall, counts.f1]


def metrics(case: Case) -> Results:
    truth, prediction = case.inputs["true"].astype(np.int32), case.inputs["pred"].astype(np.int32)
    pairs = list(zip(truth, prediction, strict=True))
    out: Results = {}
    for number, options in enumerate(case.constructor["options"]):
        found = [error_counts(overlap_table(t, p), **options) for t, p in pairs]
        total = found[0]
        for counts in found[1:]:
            total = total + counts
        pixels = [pixel_counts(t, p) for t, p in pairs]
        out[f"object{number}"] = np.nan_to_num(
            [[*recorded(e), p.iou, p.dice] for e, p in zip(found, pixels, strict=True)])
        out[f"summary{number}"] = np.nan_to_num(recorded(total))
    table, options = overlap_table(*pairs[0]), case.constructor["options"][0]
    shape = len(table.truth_areas), len(table.prediction_areas)
    for name, values in (("iou", table.iou), ("iou_modified", raised_iou(table, **options))):
        dense = np.zeros(shape)
        dense[tuple(table.pairs.T)] = values
        out[f"{name}_first"] = dense
    out["cost_first"] = assignment_cost(out["iou_modified_first"], **options)
    whole = pixel_counts(np.concatenate(truth), np.concatenate(prediction))
    per_image = [pixel_counts(t, p) for t, p in pairs]
    rows = [[p.iou, p.recall, p.precision, p.dice, p.dice] for p in (*per_image, whole)]     # F1 of pixels is Dice
    out["pixel"], out["pixel_batch"] = np.asarray(rows[:-1]), np.asarray(rows[-1])
    above = [t + 1e-9 for t in (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)]      # strictly above: there IoU > t
    out["f1_iou"] = np.stack([match(t, p, thresholds=above).f1 for t, p in pairs])
    return out


def write_livecell(root: Path, case: Case) -> dict[str, list[int]]:
    """LIVECell's layout with the case's annotations; returns the annotation ids of each image.

    Crowd regions become cells, as in the recorded label images; jaxcell itself ignores them.
    """
    content = json.loads(str(case.inputs["json"]))
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    table = root / "annotations" / "LIVECell" / "livecell_coco_train.json"
    images = root / "images" / "livecell_train_val_images"
    table.parent.mkdir(parents=True)
    images.mkdir(parents=True)
    table.write_text(json.dumps(content))
    shape = case.constructor["height"], case.constructor["width"]
    for number, image in enumerate(content["images"]):
        pixels = case.inputs[f"image{number}"] if f"image{number}" in case.inputs else np.zeros(shape, np.uint8)
        tifffile.imwrite(images / image["file_name"], pixels)
    return {image["file_name"]: [a["id"] for a in content["annotations"] if a["image_id"] == image["id"]]
            for image in content["images"]}


def livecell_json(case: Case) -> Results:
    out: Results = {}
    with TemporaryDirectory() as folder:
        ids = write_livecell(Path(folder), case)
        source = LiveCellSource(folder, split="train")
        resized = LiveCellSource(folder, split="train", size=case.constructor["out"])
        for number, (sample, small) in enumerate(zip(source, resized, strict=True)):
            assert sample.labels is not None and small.labels is not None
            listed = ids[sample.name]
            masks = [(sample.labels == k).any(axis=-1) for k in range(1, len(listed) + 1)]
            areas = np.asarray([mask.sum() for mask in masks])
            out |= {f"annotation_ids{number}": np.asarray(listed), f"area{number}": areas, f"area_rle{number}": areas,
                    f"masks{number}": np.stack([np.packbits(mask) for mask in masks]),
                    f"labels{number}": sample.labels.max(axis=-1), f"resized_labels{number}": small.labels.max(axis=-1),
                    f"resized_image{number}": small.image[..., 0]}
    return out


def subsets(case: Case) -> Results:
    out: Results = {}
    for name in case.outputs:
        count, step = (int(part.strip("nevry")) for part in name.split("_"))
        out[name] = np.asarray(every_nth(range(count), step))
    return out


ADAPTERS = {
    "mesmer/fn_transforms": transforms,
    "mesmer/fn_normalisation": normalisation,
    "mesmer/fn_losses": losses,
    "mesmer/fn_deep_watershed": watershed,
    "mesmer/fn_metrics": metrics,
    "mesmer/fn_livecell_json": livecell_json,
    "mesmer/fn_subsets": subsets,
}
