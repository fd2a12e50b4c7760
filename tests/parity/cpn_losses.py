"""Parity adapters of the contour network's geometry and losses: the reference has (x, y) and NCHW, jaxcell (y, x) and NHWC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from loader import Case

from jaxcell.geometry.boxes import boxes_from_contours, paired_giou, paired_iou, valid_boxes
from jaxcell.geometry.fourier import (
    absolute_locations,
    contours_from_fourier,
    order_weights,
    scale_contours,
    scale_fourier,
    uniform_sampling,
)
from jaxcell.geometry.refinement import bucket_weights, refine_contours
from jaxcell.losses.boxes import iou_loss, power_likelihood_loss
from jaxcell.losses.contours import (
    CHALLENGE_WEIGHTS,
    PACKAGE_WEIGHTS,
    TeacherThresholds,
    contour_objective,
    propose,
    supervise,
)
from jaxcell.targets.contours import foreground_pixels, reduce_labels

TERM = {"score": "scores", "location": "locations", "contour": "contours"}     # their names of the terms that differ
BOX = [1, 0, 3, 2]                                                             # (x0, y0, x1, y1) <-> (y0, x0, y1, x1)
ORDER = [2, 3, 0, 1]                                                           # (x cos, x sin, y cos, y sin) <-> y first


def swap(points: np.ndarray) -> np.ndarray:
    """(x, y) <-> (y, x) in the last axis."""
    return np.asarray(points)[..., ::-1]


def channels_last(maps: np.ndarray, pairs: list[int]) -> np.ndarray:
    """[N, C, H, W] -> [N, H, W, C] with each group of channels reordered by `pairs`."""
    maps = np.moveaxis(maps, 1, -1)
    return maps.reshape(*maps.shape[:-1], -1, len(pairs))[..., pairs].reshape(maps.shape)


def channels_first(maps: Any, pairs: list[int]) -> np.ndarray:
    maps = np.asarray(maps)
    return np.moveaxis(maps.reshape(*maps.shape[:-1], -1, len(pairs))[..., pairs].reshape(maps.shape), -1, 1)


def box_losses(case: Case) -> dict[str, np.ndarray]:
    options = case.constructor
    boxes, targets = case.inputs["boxes"][:, BOX], case.inputs["target_boxes"][:, BOX]
    uncertainty = case.inputs["uncertainty_raw"][:, BOX]
    keep = np.flatnonzero(valid_boxes(boxes, min_size=options["min_size"]))
    results: dict[str, np.ndarray] = {
        "keep_min_size_1": keep, "iou": paired_iou(boxes, targets), "giou": paired_giou(boxes, targets)}
    for name, kind in (("giou_linear", "giou"), ("giou_log", "log-giou"), ("iou_linear", "iou"), ("iou_log", "log-iou")):
        def mean(boxes: jax.Array, kind: str = kind) -> jax.Array:
            return iou_loss(boxes[keep], jnp.asarray(targets[keep]), kind=kind).mean()

        value, gradient = jax.value_and_grad(mean)(jnp.asarray(boxes))
        results[f"loss_{name}"] = np.asarray(value).reshape(1)
        results[f"grad_{name}"] = np.asarray(gradient)[:, BOX]

    def each(logits: jax.Array) -> jax.Array:
        return power_likelihood_loss(logits[keep], jnp.asarray(boxes[keep]), jnp.asarray(targets[keep]),
                                     factor=options["sigmoid_factor"])

    value, gradient = jax.value_and_grad(lambda logits: each(logits).mean())(jnp.asarray(uncertainty))
    results |= {"loss_npll": np.asarray(value).reshape(1), "grad_npll_uncertainty": np.asarray(gradient)[:, BOX],
                "npll_each": np.asarray(each(jnp.asarray(uncertainty)))}
    return results


def contour_sampling(case: Case) -> dict[str, np.ndarray]:
    inputs, options = case.inputs, case.constructor
    fourier, locations = inputs["fourier"][..., ORDER], swap(inputs["locations"])
    grid, image = options["actual_size (h,w)"], options["original_size (h,w)"]
    scale = (image[0] / grid[0], image[1] / grid[1])
    sampling = uniform_sampling(options["samples"])
    contours = contours_from_fourier(fourier, locations, sampling)
    relative = channels_last(inputs["relative_locations"], [1, 0])
    return {
        "contours_uniform": swap(contours), "sampling_uniform": sampling,
        "contours_sampled": swap(contours_from_fourier(fourier, locations, inputs["sampling"])),
        "contours_scaled": swap(scale_contours(contours, scale)),
        "fourier_scaled": scale_fourier(fourier, scale)[..., ORDER],
        "locations_scaled": swap(scale_contours(locations, scale)),
        "absolute_locations": channels_first(absolute_locations(relative), [1, 0]),
        "order_weights": order_weights(options["order"])[:, None],
        "boxes": boxes_from_contours(contours)[:, BOX],
    }


def local_refinement(case: Case) -> dict[str, Any]:
    inputs, options = case.inputs, case.constructor
    contours, field = swap(inputs["contours"]), channels_last(inputs["refinement"], [1, 0])
    sampling, owner = inputs["sampling"], inputs["image_of_contour"]
    refined = np.empty((options["iterations"], *contours.shape), np.float32)
    for image in np.unique(owner):
        mine = owner == image
        own_sampling = sampling if sampling.ndim == 1 else sampling[mine]
        refined[:, mine] = refine_contours(contours[mine], own_sampling, field[image], iterations=options["iterations"])
    index, weight = bucket_weights(sampling, options["buckets"])
    exact = np.ones(case.outputs["rounding_margin"].shape, bool)
    exact &= case.outputs["rounding_margin"] >= 1e-4      # the notes: float noise could flip the rounding of the others
    mask = np.broadcast_to(exact[..., None], refined.shape).copy()
    mask[0] = True                                        # the inputs are exact, so the first iteration cannot flip
    return {"after_each_iteration": (swap(refined), mask), "bucket_index": index, "bucket_weight": weight}


def objective(case: Case, *, package: bool) -> dict[str, np.ndarray]:
    inputs, options = case.inputs, case.constructor
    outputs = {"scores": channels_last(inputs["map_scores"], [0]),
               "locations": channels_last(inputs["map_relative_locations"], [1, 0]),
               "refinement": channels_last(inputs["map_refinement"], [1, 0]),
               "fourier": channels_last(inputs["map_fourier_map"], ORDER)}
    if "map_uncertainty_raw" in inputs:
        outputs["uncertainty"] = channels_last(inputs["map_uncertainty_raw"], BOX)
    batch = objective_batch(case, stride=options["stride"])
    teacher = None
    if "teacher_scores" in inputs:
        teacher = TeacherThresholds(
            foreground_score=options["teacher_score_thresh_fg"], background_score=options["teacher_score_thresh_bg"],
            uncertainty_margin=options["teacher_uncertainty_margin"], student_uncertainty=options["student_uncertainty_margin"])

    names = case.meta["loss_names"]
    weights = {**CHALLENGE_WEIGHTS, **(PACKAGE_WEIGHTS if package else {})}
    weights = {TERM.get(name, name): weights[TERM.get(name, name)] for name in names}

    def terms(maps: Any, *, box_confidence: bool) -> dict[str, jax.Array]:
        return contour_objective(
            maps, batch, weights=weights, background_weight=1.0 if package else 2.0, box_confidence=box_confidence,
            order_weighting=options.get("order_weights", True), refinement="sum" if package else "last",
            refinement_iterations=options["refinement_iterations"], iou_kind=options.get("iou_loss") or "giou",
            uncertainty_factor=options["uncertainty_factor"], teacher=teacher)

    def total(maps: Any, *, box_confidence: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        values = terms(maps, box_confidence=box_confidence)
        return jnp.stack(list(values.values())).sum(), values

    maps = {name: jnp.asarray(value) for name, value in outputs.items()}
    confident = options.get("box_confidence", not package) and maps["scores"].shape[-1] == 1
    (loss, values), gradient = jax.value_and_grad(total, has_aux=True)(maps, box_confidence=confident)
    plain, plain_values = total(maps, box_confidence=False)

    found = propose(maps, batch, refinement="sum" if package else "last", refinement_iterations=options["refinement_iterations"])
    learn = supervise(found, batch, teacher=teacher)
    valid = np.asarray(found.valid)
    image, slot = np.nonzero(valid)
    pixel = np.asarray(batch["foreground"])[image, slot]
    refined = np.asarray(found.refined)[:, valid]
    pairs = {"scores": [0], "locations": [1, 0], "refinement": [1, 0], "fourier": ORDER, "uncertainty": BOX}
    return {
        "losses": np.asarray([values[TERM.get(name, name)] for name in names]), "loss": np.asarray(loss).reshape(1),
        "score_loss_without_box_confidence": np.asarray(plain_values["scores"]).reshape(1),
        "loss_without_box_confidence": np.asarray(plain).reshape(1),
        "foreground": np.stack([image, *np.unravel_index(pixel, batch["labels"].shape[1:])], axis=1),
        "contours": swap(np.asarray(found.contours)[valid]), "refined_contours": swap(refined[-1]),
        "refined_each_iteration": swap(refined), "boxes": np.asarray(found.boxes)[valid][:, BOX],
        "keep_boundary": np.asarray(learn.boundaries)[valid][:, BOX], "keep_contour": np.asarray(learn.contours)[valid],
    } | {f"grad_{name}": channels_first(value, pairs[name]) for name, value in gradient.items()}


def objective_batch(case: Case, *, stride: int) -> dict[str, jax.Array]:
    """The targets as the pipeline lays them out."""
    inputs = case.inputs
    labels = np.stack([reduce_labels(image, stride) for image in inputs["labels"]])
    rng = np.random.default_rng(0)     # draws nothing: all pixels fit
    slots = max(1, *(int((image > 0).sum()) for image in labels))
    batch = {
        "labels": labels, "foreground": np.stack([foreground_pixels(image, slots, rng) for image in labels]),
        "fourier": inputs["fourier"][..., ORDER], "locations": swap(inputs["locations"]),
        "contours": swap(inputs["sampled_contours"]), "sampling": inputs["sampling"],
        "iterations": np.full(len(labels), case.constructor["refinement_iterations"], np.int32),
    }
    if inputs["map_scores"].shape[1] > 1:     # without classes in the file every cell is of class 1, as in the reference
        batch["classes"] = inputs.get("classes", np.ones(inputs["fourier"].shape[:2])).astype(np.int32)
    if "teacher_scores" in inputs:
        batch |= {"teacher_scores": inputs["teacher_scores"], "teacher_uncertainty": inputs["teacher_uncertainty"][..., BOX],
                  "teacher_score_maps": np.moveaxis(inputs["teacher_score_maps"], 1, -1)}
    return {name: jnp.asarray(np.ascontiguousarray(value)) for name, value in batch.items()}


def challenge_objective(case: Case) -> dict[str, np.ndarray]:
    return objective(case, package=False)


def package_objective(case: Case) -> dict[str, np.ndarray]:
    return objective(case, package=True)


ADAPTERS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "cpn/box_losses": box_losses,
    "cpn/contour_sampling": contour_sampling,
    "cpn/local_refinement": local_refinement,
    "cpn/local_refinement_single_bucket": local_refinement,
    "cpn/ua_objective": challenge_objective,
    "cpn/ua_objective_listen2student": challenge_objective,
    "cpn/cpn_objective": package_objective,
}
TOLERANCES: dict[str, float] = {}
