"""Parity of the contour proposal networks: features, dense outputs, detections and one training step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from cpn_targets import box_xy, firm_points, swapped, xy
from flax import traverse_util
from loader import Case
from scipy.special import expit

from jaxcell.decode.contours import nms, nms_weights, propose
from jaxcell.geometry.fourier import contours_from_fourier, uniform_sampling
from jaxcell.losses.contours import CHALLENGE_WEIGHTS, contour_objective
from jaxcell.models.resize import resize_bilinear
from jaxcell.pretrained.contour_proposal import contour_proposal_paths, load_contour_proposal
from jaxcell.systems.contour_proposal import DECODER_NORMS, DECODERS, ENCODERS, FUSIONS, POOLINGS, ContourProposalNetwork
from jaxcell.targets.contours import foreground_pixels, reduce_labels


def feature_names(keys: str | list[str]) -> tuple[str, ...]:
    """The reference's feature keys ("1", "encoder.1") as ours."""
    keys = [keys] if isinstance(keys, str) else keys
    return tuple(key if key.startswith("encoder.") else f"decoder.{key}" for key in keys)


def package_network(case: Case, *, encoder: str, decoder: str) -> ContourProposalNetwork:
    """The CPN of celldetection 0.4.9."""
    settings = case.constructor
    return ContourProposalNetwork(
        encoder=ENCODERS[encoder], pooling=None, decoder=DECODERS[decoder], decoder_norm=None, decoder_act=nn.relu,
        order=settings["order"], buckets=settings.get("refinement_buckets", 1), margin=settings.get("refinement_margin", 3.0),
        uncertainty=settings.get("uncertainty_head", False),
        contour_features=feature_names(settings.get("contour_features", "1")),
        location_features=feature_names(settings.get("location_features", "1")),
        uncertainty_features=feature_names(settings.get("uncertainty_features", "1")),
        score_features=feature_names(settings.get("score_features", "1")),
        refinement_features=feature_names(settings.get("refinement_features", "0")),
        fuse=FUSIONS["conv_norm_act"], resize="features", mean=(0.0,), std=(1.0,),
    )


CHALLENGE_ENCODERS = {
    "ResNeXt-101 32x8d U-Net": "resnext101_32x8d", "ResNet-18 U-Net": "resnet18", "ResNet-34 U-Net": "resnet34",
    "ResNet-50 U-Net": "resnet50", "ResNet-101 U-Net": "resnet101", "WideResNet-50-2 U-Net": "wide_resnet50_2",
}


def challenge_network(case: Case, *, dropout: float = 0.1) -> ContourProposalNetwork:
    """The uncertainty-aware CPN of the challenge."""
    settings = case.constructor
    pooling = settings["pyramid_pooling"]
    contour, refinement = settings["contour_features"], settings["refinement_features"]
    return ContourProposalNetwork(
        encoder=ENCODERS[CHALLENGE_ENCODERS[settings["backbone"]]],
        pooling=partial(POOLINGS["pyramid"], features=pooling["out_channels"] // len(pooling["scales"]),
                        scales=tuple(pooling["scales"])),
        decoder=DECODERS["residual_unet"], decoder_norm=DECODER_NORMS["group"], decoder_act=nn.leaky_relu,
        order=settings["order"], buckets=settings["refinement_buckets"], margin=settings["refinement_margin"],
        uncertainty=settings["uncertainty_head"],
        contour_features=(f"decoder.{contour}",), score_features=(f"decoder.{contour}", f"encoder.{contour}"),
        refinement_features=(f"decoder.{refinement}", f"encoder.{refinement}"), fuse=FUSIONS["reduce"], dropout=dropout,
        mean=tuple(settings["image_mean"]), std=tuple(settings["image_std"]),
    )


def load(case: Case, network: ContourProposalNetwork, image: np.ndarray) -> dict[str, Any]:
    """The file's parameters, through the importer of published checkpoints."""
    return load_contour_proposal(case.parameters(), jax.eval_shape(network.init, jax.random.key(0), image))


def predict(network: ContourProposalNetwork, variables: dict[str, Any],
            image: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Dense outputs and features in eval mode."""
    apply = jax.jit(partial(network.apply, train=False, mutable=["intermediates"]))
    outputs, state = apply(variables, jnp.asarray(image))
    return jax.device_get((dict(outputs), {name: value[0] for name, value in state["intermediates"].items()}))


def nchw(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.asarray(array), -1, 1)


def reference_layout(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """NHWC in (y, x) -> NCHW in (x, y)."""
    def swap_pairs(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)

    def swap_halves(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:-1], -1, 2, 2)[..., ::-1, :].reshape(x.shape)

    change = {"locations": swap_pairs, "refinement": swap_pairs, "uncertainty": swap_pairs, "fourier": swap_halves}
    return {name: nchw(change.get(name, np.asarray)(np.asarray(value))) for name, value in outputs.items()}


def package_eval(case: Case, *, encoder: str, decoder: str) -> dict[str, np.ndarray]:
    """Dense outputs and features; the package's uncertainty has its sigmoid already."""
    network = package_network(case, encoder=encoder, decoder=decoder)
    image = np.moveaxis(case.inputs["inputs"], 1, -1)
    outputs, features = predict(network, load(case, network, image), image)
    results = reference_layout(outputs)
    if "uncertainty" in results:
        results["uncertainty"] = np.asarray(jax.nn.sigmoid(results["uncertainty"]))
    return results | package_features(features, image.shape[1:3])


def package_features(features: dict[str, np.ndarray], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """"feature_<key>" as the package names them; the last level of a pyramid is also called "pool"."""
    levels = [name for name in features if name.startswith("decoder.")]
    named = {name.removeprefix("decoder."): value for name, value in features.items()}
    named["out"] = np.asarray(resize_bilinear(jnp.asarray(features["decoder.0"]), shape))
    named["pool"] = features[f"decoder.{len(levels) - 1}"]
    return {f"feature_{name}": nchw(value) for name, value in named.items()}


def challenge_eval(case: Case) -> dict[str, np.ndarray]:
    """Dense outputs and features of the challenge's network."""
    network = challenge_network(case)
    image = np.moveaxis(case.inputs["inputs"], 1, -1)
    outputs, features = predict(network, load(case, network, image), image)
    named = {name.replace(".", "_"): nchw(value) for name, value in features.items()}
    named["decoder_out"] = nchw(np.asarray(resize_bilinear(jnp.asarray(features["decoder.0"]), image.shape[1:3])))
    return reference_layout(outputs) | named


def package_detections(case: Case, *, encoder: str, decoder: str) -> dict[str, Any]:
    """Dense outputs, features and detections of a picture."""
    network = package_network(case, encoder=encoder, decoder=decoder)
    image = (case.inputs["image_uint8"] / 255).astype(np.float32)[None]
    outputs, features = predict(network, load(case, network, image), image)
    results: dict[str, Any] = reference_layout(outputs) | package_features(features, image.shape[1:3])
    settings = case.constructor
    kind = "certainty" if settings.get("uncertainty_nms", False) else "score"
    found, firm = proposals(case, outputs)
    weights = nms_weights(found["scores"], found.get("uncertainty"), kind=kind)
    keep = nms(found["float_boxes"], weights, iou_threshold=settings["nms_thresh"])
    start = contours_from_fourier(found["fourier"], found["locations"], uniform_sampling(settings["samples"]))
    kept = detections(found, firm, keep) | {"locations": xy(found["locations"][keep]), "fourier": swapped(found["fourier"][keep]),
                                            "contour_proposals": xy(start[keep])}
    return (results | {f"detected_{name}": value for name, value in kept.items()}
            | {"keep": keep, "proposal_boxes": box_xy(found["float_boxes"]), "proposal_weight": weights})


def challenge_detections(case: Case) -> dict[str, Any]:
    """Detections of a picture after NMS by score times certainty and by score alone."""
    network = challenge_network(case)
    image = (case.inputs["image_uint8"] / 255).astype(np.float32)[None]
    outputs, _ = predict(network, load(case, network, image), image)
    found, firm = proposals(case, outputs)
    results: dict[str, Any] = {"proposal_boxes": box_xy(found["float_boxes"]), "proposal_scores": found["scores"],
                               "score_map": nchw(expit(outputs["scores"]))}
    for name, kind in (("ua", "certainty"), ("plain", "score")):
        if kind == "certainty" and "uncertainty" not in found:
            continue
        weights = nms_weights(found["scores"], found.get("uncertainty"), kind=kind)
        keep = nms(found["float_boxes"], weights, iou_threshold=case.constructor["nms_thresh"])
        results |= {f"{name}_{key}": value for key, value in detections(found, firm, keep).items()} | {f"{name}_keep": keep}
        results[f"proposal_{name}_weight"] = weights
    return results


def proposals(case: Case, outputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Proposals of the first image, and which contour points no rounding can flip."""
    settings = {"samples": case.constructor["samples"], "iterations": case.constructor.get("refinement_iterations", 4)}
    first = {name: value[0] for name, value in outputs.items()}
    found = propose(first, score_threshold=case.constructor["score_thresh"], **settings)
    return found, firm_points(found, first, margin=1e-3, **settings)


def detections(found: dict[str, np.ndarray], firm: np.ndarray, keep: np.ndarray) -> dict[str, Any]:
    """Kept proposals in the reference's layout."""
    contours = xy(found["contours"][keep])
    kept = {"contours": (contours, np.broadcast_to(firm[keep], contours.shape)), "boxes": box_xy(found["float_boxes"][keep]),
            "scores": found["scores"][keep]}
    return kept | ({"uncertainty_raw": box_xy(found["uncertainty"][keep])} if "uncertainty" in found else {})


LOSSES = {"fourier": "fourier", "location": "locations", "contour": "contours", "score": "scores", "refinement": "refinement",
          "boxes": "boxes", "iou": "iou", "uncertainty": "uncertainty"}   # the reference's terms: ours


def training_batch(case: Case, head_grid: int) -> dict[str, np.ndarray]:
    """The file's targets as a batch."""
    settings, inputs = case.constructor, case.inputs
    count, height, _ = inputs["labels"].shape
    labels = np.stack([reduce_labels(labels, height // head_grid) for labels in inputs["labels"]])
    rng = np.random.default_rng(0)
    return {
        "labels": labels,
        "foreground": np.stack([foreground_pixels(grid, grid.size, rng) for grid in labels]),
        "fourier": swapped(inputs["fourier"]), "locations": xy(inputs["locations"]), "contours": xy(inputs["sampled_contours"]),
        "sampling": inputs["sampling"],
        "iterations": np.full(count, settings["refinement_iterations_drawn"], np.int32),
    }


def challenge_training(case: Case) -> dict[str, Any]:
    """One forward pass with batch statistics, the objective, its gradients and the running statistics afterwards."""
    network = challenge_network(case, dropout=0.0)
    image = (case.inputs["images_uint8"] / 255).astype(np.float32)
    parameters = case.parameters()
    variables = load_contour_proposal(parameters, jax.eval_shape(network.init, jax.random.key(0), image))
    head_grid = jax.eval_shape(network.apply, variables, image)["scores"].shape[1]
    weights = {LOSSES[name]: CHALLENGE_WEIGHTS[LOSSES[name]] for name in case.meta["loss_names"]}

    def objective(params: Any, statistics: Any, image: jax.Array, batch: Any) -> tuple[jax.Array, Any]:
        outputs, state = network.apply({"params": params, "batch_stats": statistics}, image, train=True, mutable=["batch_stats"])
        terms = contour_objective(outputs, batch, weights=weights,
                                  refinement_iterations=case.constructor["refinement_iterations"],
                                  uncertainty_factor=case.constructor["uncertainty_factor"])
        return sum(terms.values()), (outputs, terms, state["batch_stats"])

    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, (outputs, terms, statistics)), gradients = jax.device_get(
        step(variables["params"], variables["batch_stats"], image, training_batch(case, head_grid)))

    paths = contour_proposal_paths(parameters)
    after = traverse_util.flatten_dict({"params": gradients, "batch_stats": statistics})
    norms = [np.sqrt(sum(np.sum(np.square(after[path], dtype=np.float64)) for name, path in paths.items()
                         if path[0] == "params" and name.startswith(f"core.{group}."))) for group in case.meta["grad_groups"]]
    losses = np.asarray([terms[LOSSES[name]] for name in case.meta["loss_names"]])
    return reference_layout(outputs) | {"losses": losses, "loss": np.asarray([loss]), "grad_norms": np.asarray(norms)} | {
        f"after:{name}": after[path] for name, path in paths.items() if path[0] == "batch_stats"}


ADAPTERS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "cpn/cpn_u22_eval": partial(package_detections, encoder="unet22", decoder="unet"),
    "cpn/cpn_resnet50_unet_eval": partial(package_eval, encoder="resnet50", decoder="full_resolution_unet"),
    "cpn/cpn_resnet50_fpn_eval": partial(package_eval, encoder="resnet50", decoder="fpn"),
    "cpn/ua_resnext101_unet_eval": challenge_eval,
    "cpn/ua_resnext101_unet_detect": challenge_detections,
    "cpn/ua_resnext101_unet_train": challenge_training,
}

# "_train: [...] (float64 reference values; float32 noise is about 1e-4, 1e-3 for gradient norms, use 1e-3 / 1e-2)"
TOLERANCES: dict[str, float] = {
    "cpn/ua_resnext101_unet_train": 1e-3,
    "cpn/ua_resnext101_unet_train:grad_norms": 1e-2,
}
