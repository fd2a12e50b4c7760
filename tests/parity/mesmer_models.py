"""Parity of PanopticNet: features, heads, statistics after a training pass, losses and gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from loader import Case

from jaxcell.models.backend import compiler_options
from jaxcell.pretrained.mesmer import load_mesmer, mesmer_paths
from jaxcell.systems.mesmer import ENCODERS, NORMALIZERS, RESIZES, PanopticNetwork, panoptic_objective, panoptic_targets
from jaxcell.targets.distance import inner_distance
from jaxcell.targets.pixels import foreground, pixelwise
from jaxcell.types import Sample

TAPS = {
    "resnet50": ("conv1_relu", "conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out"),
    "densenet201": ("conv1/relu", "conv2_block6_concat", "conv3_block12_concat", "conv4_block48_concat", "conv5_block32_concat"),
    "efficientnetb7": ("block2a_expand_activation", "block3a_expand_activation", "block4a_expand_activation",
                       "block6a_expand_activation", "top_activation"),
}   # Keras' layers of strides 2, 4, 8, 16, 32


def panoptic_network(case: Case, heads: tuple[str, ...]) -> PanopticNetwork:
    settings = case.constructor
    return PanopticNetwork(
        heads=tuple(zip(heads, settings["num_semantic_classes"], strict=True)), encoder=ENCODERS[settings["backbone"]],
        levels=tuple(int(level[1:]) for level in settings.get("backbone_levels", ("C3", "C4", "C5"))),
        depthwise=settings.get("lite", False), resize=RESIZES[settings.get("interpolation", "bilinear")],
        normalize=NORMALIZERS[settings.get("norm_method") or "none"], location=settings["location"])


def load(case: Case, network: PanopticNetwork) -> dict[str, Any]:
    """The file's parameters, through the importer of published checkpoints."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), case.inputs["image"])
    return load_mesmer(case.parameters(), shapes, heads=[name for name, _ in network.heads])


def forward(case: Case) -> dict[str, np.ndarray]:
    """Features, logits and outputs; after a training pass the moving statistics too."""
    train = case.meta["mode"].startswith("train")
    heads = tuple(f"semantic_{i}" for i in range(len(case.constructor["num_semantic_classes"])))
    network = panoptic_network(case, heads)
    apply = jax.jit(partial(network.apply, train=train, mutable=["intermediates", "batch_stats"]),
                    compiler_options=compiler_options())
    outputs, state = jax.device_get(apply(load(case, network), case.inputs["image"]))
    seen = {name: value[0] for name, value in state["intermediates"].items() if isinstance(value, tuple)}
    results = dict(outputs) | {"conv_channels": seen["input"], f"P{network.levels[0]}": seen["pyramid"]}
    results |= {name: seen[f"encoder.{i}"] for i, name in enumerate(TAPS[case.constructor["backbone"]], start=1)}
    results |= {f"conv_1_{head}": seen[f"logits.{head}"] for head in heads}
    return results | keras_named(case, {"batch_stats": state["batch_stats"]}, heads, prefix="state_after/")


def keras_named(case: Case, variables: dict[str, Any], heads: tuple[str, ...], *, prefix: str) -> dict[str, np.ndarray]:
    """Variables of ours by Keras' names and in its layout."""
    flat = traverse_util.flatten_dict(variables)
    paths = mesmer_paths(case.parameters(), heads=heads)
    return {f"{prefix}{name}": flat[path].transpose(0, 1, 3, 2) if name.endswith("depthwise_kernel") else flat[path]
            for name, path in paths.items() if path in flat}


HEADS = {1: "inner_distance", 2: "fgbg", 3: "pixelwise"}    # of so many channels


def loss_gradient(case: Case) -> dict[str, Any]:
    """The objective on the file's labels and its gradient, with moving statistics.

    Convolutions compute in float64 as in the recording: in float32 one rectifier of a million, on the edge, can be open here and
    closed there, which moves norms by as much as their tolerance (1e-5).
    """
    with jax.enable_x64(True):
        return loss_gradient_of(case, jnp.float64)


def loss_gradient_of(case: Case, dtype: Any) -> dict[str, Any]:
    heads = tuple(HEADS[channels] for channels in case.constructor["num_semantic_classes"])
    network = panoptic_network(case, heads).clone(dtype=dtype)
    makers = {"inner_distance": partial(inner_distance, alpha="auto", beta=1.0), "fgbg": foreground, "pixelwise": pixelwise}
    made = [panoptic_targets(Sample(image, labels[..., None].astype(np.int32)), np.random.default_rng(0),
                             makers={head: makers[head] for head in heads})
            for image, labels in zip(case.inputs["image"], case.inputs["labels"], strict=True)]
    batch = {key: np.stack([maps[key] for maps in made]) for key in made[0]}
    weights = {head: 1.0 if head == "inner_distance" else 0.01 for head in heads}
    variables = load(case, network)

    @partial(jax.jit, compiler_options=compiler_options())
    @partial(jax.value_and_grad, has_aux=True)
    def objective(params: Any, image: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        terms = panoptic_objective(network.apply({**variables, "params": params}, image), batch, weights=weights)
        return sum(terms.values()), terms

    (total, terms), gradient = jax.device_get(objective(variables["params"], case.inputs["image"]))
    gradients = keras_named(case, {"params": gradient}, heads, prefix="")
    norms = np.asarray([np.linalg.norm(gradients[name].astype(np.float64)) for name in case.meta["outputs"]["param_norms"]])
    classes = sum(term for head, term in terms.items() if head != "inner_distance")
    return {"mse": terms["inner_distance"], "wce_scaled": classes, "total": total,
            "param_norms": norms, "global_norm": np.linalg.norm(norms)} | {f"grad/{k}": v for k, v in gradients.items()}


ADAPTERS: dict[str, Callable[[Case], dict[str, Any]]] = {
    **{f"mesmer/net_{name}": forward for name in (
        "resnet50", "densenet201", "efficientnetb7", "resnet50_lite", "resnet50_levels", "resnet50_train")},
    "mesmer/net_loss_gradient": loss_gradient,
}

# "Outputs of the train cases were computed in float64 [...] compare at 1e-3"; norms of the gradient: 1e-5 of the largest.
TOLERANCES: dict[str, float] = {"mesmer/net_resnet50_train": 1e-3, "mesmer/net_loss_gradient:param_norms": 1e-5}
