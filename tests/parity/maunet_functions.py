"""Parity of maunet's functions: intensities, targets, losses, rate, windows and scales, post-processing, F1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from loader import Case

from jaxcell.data.normalize import fit_normalizer, maunet_eight_bits, to_channels
from jaxcell.decode.three_watersheds import class_probabilities, three_watersheds, watershed_stages
from jaxcell.geometry.boundaries import distances_inside
from jaxcell.inference.ensemble import mean_outputs, merged_blocks, step_of_overlap
from jaxcell.losses.consistency import distance_agreement, pseudo_label_cross_entropy
from jaxcell.losses.masks import dice_loss, focal_of_logits, focal_twice_squashed
from jaxcell.losses.regression import balanced_absolute_error, balanced_absolute_error_of_batch
from jaxcell.metrics.matching import ChallengeCounts, challenge_counts, remove_border_cells
from jaxcell.targets.boundaries import boundary_radius, distance_target, three_classes
from jaxcell.training.optimizer import make_optimizer
from jaxcell.types import Instances

TOLERANCES: dict[str, float] = {}

Results = dict[str, np.ndarray]


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1)


def nchw(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.asarray(array), -1, 1)


# ------------------------------------------------------------------------------------------------------ data and targets
def normalise(case: Case) -> Results:
    percentiles = {key: case.constructor[key] for key in ("lower", "upper")}
    out: Results = {}
    for name, image in case.inputs.items():
        image = image[..., :3] if image.ndim == 3 else image[..., None]
        grey = maunet_eight_bits(image, **percentiles)(image)
        out[f"{name}_uint8"] = to_channels(grey.astype(np.uint8), 3)
        for kind, scale in (("inference", "maximum"), ("training", "range")):
            out[f"{name}_{kind}"] = fit_normalizer(image, {"name": "maunet", "scale": scale, **percentiles}, channels=3)(image)
    return out


def label_target(case: Case) -> Results:
    c, labels = case.constructor, case.inputs["instances"].astype(np.int32)
    classes = three_classes(labels, divisor=c["thickness_divisor"], least_interior=c["min_interior"])
    radii = [boundary_radius(int(area), divisor=c["thickness_divisor"]) for area in np.bincount(labels.ravel())[1:]]
    return {"radius": np.asarray(radii), "three_class": classes, "distance_to_edge": distances_inside(classes == 1),
            "distance_target": distance_target(labels, classes, beta=c["beta"])}


# ------------------------------------------------------------------------------------------------------ losses, optimizer
def dice_focal(case: Case) -> Results:
    c, logits = case.constructor, nhwc(case.inputs["logits"])
    target = np.eye(c["classes"], dtype=np.float32)[case.inputs["label"][:, 0]]

    def terms(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        probabilities = jax.nn.softmax(x)[..., :c["classes"]]
        return dice_loss(probabilities, target, smooth=c["smooth"]), focal_twice_squashed(x, target, gamma=c["gamma"]).mean()

    dice, focal = terms(logits)
    gradient = jax.grad(lambda x: terms(x)[0].mean() + terms(x)[1])(logits)
    return {"dice_per_item": dice, "dice": dice.mean(), "focal": focal, "total": dice.mean() + focal, "gradient": nchw(gradient),
            "focal_on_logits": focal_of_logits(logits, target, gamma=c["gamma"]).mean()}


def weighted_l1(case: Case) -> Results:
    prediction, target = case.inputs["prediction"], case.inputs["target"]
    loss, gradient = jax.value_and_grad(balanced_absolute_error_of_batch)(prediction, target, epsilon=case.constructor["eps"])
    return {"loss": loss, "gradient": gradient, "paper_form": balanced_absolute_error(prediction, target).mean()}


def consistency(case: Case) -> Results:
    logits = [nhwc(case.inputs[f"logits{i}"]) for i in (1, 2)]
    distances = [nhwc(case.inputs[f"distance{i}"]) for i in (1, 2)]
    out: Results = {}
    for name, (own, other) in (("ce12", logits), ("ce21", logits[::-1])):
        out[name] = pseudo_label_cross_entropy(own, other).mean()
        out[f"{name}_without_proxy"] = pseudo_label_cross_entropy(own, other, proxies=1).mean()
    out["l2"] = distance_agreement(*distances).mean()
    out["total"] = out["ce12"] + out["ce21"] + out["l2"]
    return out | {"weighted": case.constructor["weight"] * out["total"]}


def adamw_schedule(case: Case) -> Results:
    c, epoch = case.constructor, case.constructor["steps_per_epoch"]
    optimizer, schedule = make_optimizer(ml_collections.ConfigDict({
        "name": "adamw", "b1": c["betas"][0], "b2": c["betas"][1], "eps": c["eps"], "weight_decay": c["weight_decay"],
        "schedule": {"name": "step_decay", "base": c["lr"], "every": c["step"] * epoch, "factor": c["gamma"]}}))
    weight = jnp.asarray(case.inputs["weight"])
    state, weights = optimizer.init(weight), []
    count = len(case.outputs["learning_rates"])
    for step in range(count * epoch):
        gradient = jax.grad(lambda w: jnp.sum((w - case.inputs["target"]) ** 2))(weight)
        updates, state = optimizer.update(gradient, state, weight)
        weight = optax.apply_updates(weight, updates)
        if step % epoch == epoch - 1:
            weights.append(np.asarray(weight))
    return {"learning_rates": np.asarray([schedule(e * epoch) for e in range(count)]), "weights": np.stack(weights)}


# --------------------------------------------------------------------------------------------------------------- inference
def stand_in(case: Case, name: str) -> Callable[[np.ndarray], Mapping[str, Any]]:
    """The network that the case describes: a convolution for the logits and one for the distance."""
    kernels = {key: case.parameters()[f"{name}.{key}.weight"].transpose(2, 3, 1, 0) for key in ("class", "distance")}

    @jax.jit
    def apply(images: jax.Array) -> dict[str, jax.Array]:
        maps = {key: jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
                for key, kernel in kernels.items()}
        return {"logits": 4 * maps["class"], "distance": maps["distance"]}

    return apply


def whole(apply: Callable[[np.ndarray], Mapping[str, Any]], images: np.ndarray, case: Case, *, batch: int, **options: Any
          ) -> Results:
    """Maps [N, C, H, W] of images [N, C, H, W], each predicted in one block."""
    found = []
    for image in nhwc(images):
        c = case.constructor
        (_, maps), = merged_blocks(apply, image, window=c["window"], step=step_of_overlap(c["window"], c["overlap"]),
                                   edges="centred", block=max(image.shape), halo=0, batch=batch, divisor=1, **options)
        found.append(maps)
    return {key: nchw(np.stack([maps[key] for maps in found])) for key in found[0]}


def sliding_window(case: Case) -> Results:
    name = case.meta["constructor"]["network"].split("conv2d(x, ")[1].split(".class")[0]
    run = partial(whole, stand_in(case, name), case.inputs["x"], case, batch=case.constructor["window_batch"], scales=(1,))
    plain = run(blend=case.constructor["blend"])
    return plain | {f"gaussian_{key}": value for key, value in run(blend="gaussian").items()}


def tta_two_models(case: Case) -> Results:
    names = sorted({key.split(".class")[0] for key in case.parameters() if ".class" in key})
    networks = [stand_in(case, name) for name in names]
    run = partial(whole, lambda x: mean_outputs([network(x) for network in networks]), case.inputs["x"], case, batch=3,
                  blend="constant")
    merged, single = run(scales=tuple(case.constructor["scales"])), run(scales=(1,))
    probabilities = class_probabilities(nhwc(merged["logits"])[0])
    return {"logits": merged["logits"], "background": probabilities[..., 0], "interior": probabilities[..., 1],
            "distance": merged["distance"][0, 0], "single_scale_logits": single["logits"],
            "single_scale_distance": single["distance"][0, 0]}


# ------------------------------------------------------------------------------------------------- post-processing, scores
def postprocess(case: Case) -> Results:
    c, given = case.constructor, case.inputs
    probabilities = np.stack([given["background"], given["interior"]], axis=-1)
    options = {"background_below": c["background_below"], "interior_above": c["interior_above"],
               "skeleton_threshold": c["skeleton_fraction"], "peak_threshold": c["peak_threshold_rel"]}
    stages = watershed_stages(probabilities, given["distance"], **options)
    assert stages is not None
    return {"sizes": np.asarray([stages.area, stages.kernel, stages.distance]), "blurred": stages.blurred,
            "skeleton_markers": stages.skeletons, "watershed1": stages.first, "peaks": stages.peaks,
            "peak_markers": stages.peak_markers, "watershed2": stages.second, "watershed3": stages.third,
            "final": three_watersheds(probabilities, given["distance"], **options)}


def row(counts: ChallengeCounts) -> list[int]:
    return [int(x[0]) for x in (counts.tp, counts.fp, counts.fn, counts.truth, counts.prediction)]


def options_of(case: Case) -> dict[str, Any]:
    c = case.constructor
    return {"thresholds": (c["threshold"],), "margin": c["frame"], "large": c["small_below_pixels"]}


def painted(cells: Instances) -> np.ndarray:
    labels = np.zeros(cells.shape, np.int32)
    for number, ((y0, x0, y1, x1), mask) in enumerate(zip(cells.boxes, cells.masks, strict=True), start=1):
        labels[y0:y1, x0:x1][mask] = number
    return labels


def f1_small(case: Case) -> Results:
    truth, prediction = (case.inputs[key].astype(np.int32) for key in ("truth", "prediction"))
    counts = [challenge_counts(t, p, **options_of(case)) for t, p in zip(truth, prediction, strict=True)]
    return {"counts": np.asarray([row(c) for c in counts]), "f1": np.asarray([np.round(c.counted_f1[0], 4) for c in counts]),
            "truth_cleaned": np.stack([painted(remove_border_cells(t, margin=case.constructor["frame"])) for t in truth])}


def ellipses(rows: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    labels = np.zeros(shape, np.int32)
    for number, (cy, cx, ry, rx) in enumerate(rows.astype(np.int64), start=1):
        window = np.s_[max(0, cy - ry):min(shape[0], cy + ry + 1), max(0, cx - rx):min(shape[1], cx + rx + 1)]
        y, x = np.ogrid[window]
        labels[window][(y - cy) ** 2 * rx ** 2 + (x - cx) ** 2 * ry ** 2 <= rx ** 2 * ry ** 2] = number
    return labels


def f1_large(case: Case) -> Results:
    """Counts block by block, each as an image of its own, and of the image as a whole, which must add up to the same."""
    entry, block = case.meta["inputs"]["truth"], case.constructor["block"]
    shape = entry["height"], entry["width"]
    truth, prediction = (ellipses(case.inputs[key], shape) for key in ("truth", "prediction"))
    whole_image = challenge_counts(truth, prediction, patch=block, **options_of(case))
    sides = [np.pad(labels, [(0, -n % block) for n in shape]) for labels in (truth, prediction)]
    counts = [row(challenge_counts(*(side[y:y + block, x:x + block] for side in sides), **options_of(case)))
              for y in range(0, shape[0], block) for x in range(0, shape[1], block)]
    assert np.sum(counts, axis=0).tolist() == row(whole_image)
    return {"counts": np.asarray(counts), "f1": np.round(whole_image.counted_f1[0], 4)}


ADAPTERS = {
    "maunet/normalise": normalise,
    "maunet/label_target_large": label_target,
    "maunet/label_target_small": label_target,
    "maunet/dice_focal_loss": dice_focal,
    "maunet/weighted_l1_loss": weighted_l1,
    "maunet/consistency_loss_paper": consistency,
    "maunet/adamw_schedule": adamw_schedule,
    "maunet/sliding_window": sliding_window,
    "maunet/sliding_window_small_image": sliding_window,
    "maunet/tta_two_models": tta_two_models,
    **{f"maunet/postprocess_{kind}": postprocess for kind in ("round", "elongated", "small")},
    "maunet/f1_small": f1_small,
    "maunet/f1_large": f1_large,
}
