"""Parity of MAUNet: features and maps, losses, gradients and statistics of a training pass, two networks together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from loader import Case

from jaxcell.models.backend import compiler_options
from jaxcell.pretrained.maunet import load_maunet, maunet_paths
from jaxcell.systems.maunet import BRANCHES, ENCODERS, MAUNet, maunet_objective

TAPS = {
    "logits": "classes", "distance": "distance", "res.relu": "encoder.1",
    **{f"res.layer{i}": f"encoder.{i + 1}" for i in range(1, 5)},
    **{f"encoder{number}": f"skips.{i}" for i, number in enumerate((1, 2, 3, 4, 5, 10))},
    **{f"decoder{i + 1}{suffix}": f"{name}.{i}" for i in range(5) for name, suffix in (("classes", ""), ("distance", "_2"))},
}   # the reference's modules: what we call their outputs


def network_of(settings: Mapping[str, Any]) -> MAUNet:
    encoder = partial(ENCODERS[settings["encoder"]], width=settings.get("stem_width", 64))
    classes = settings.get("output_channels", settings["classes"] + settings["proxy"])
    return MAUNet(encoder=encoder, classes=classes, width=settings.get("width", 24))


def load(case: Case, network: MAUNet, image: np.ndarray, *, branch: str = "") -> dict[str, Any]:
    """The file's parameters, through the importer of published checkpoints."""
    return load_maunet(case.parameters(), jax.eval_shape(network.init, jax.random.key(0), image), branch=branch)


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.asarray(array), 1, -1)


def reference_named(outputs: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Outputs and features by the reference's names and in its layout, and summaries of the whole outputs."""
    ours = {name: value[0] for name, value in state["intermediates"].items() if isinstance(value, tuple)} | dict(outputs)
    named = {tap: np.moveaxis(ours[name], -1, 1) for tap, name in TAPS.items() if name in ours}
    return named | {f"{name}_summary": summary(named[name].astype(np.float64)) for name in ("logits", "distance")}


def summary(x: np.ndarray) -> np.ndarray:
    return np.asarray([x.mean(), x.std(), x.min(), x.max(), np.abs(x).mean()])


def forward(case: Case) -> dict[str, np.ndarray]:
    """Features and outputs in eval mode."""
    network, image = network_of(case.constructor), nhwc(case.inputs["x"])
    apply = jax.jit(partial(network.apply, mutable=["intermediates"]), compiler_options=compiler_options())
    return reference_named(*jax.device_get(apply(load(case, network, image), image)))


def training(case: Case) -> dict[str, Any]:
    """One forward pass with batch statistics, both losses, the gradient of their sum and the statistics afterwards.

    In float64 as in the recording: the reference's own float32 run is off by 6e-4 in single features and 1 % in gradients.
    """
    with jax.enable_x64(True):
        network, image = network_of(case.constructor).clone(dtype=jnp.float64), nhwc(case.inputs["x"])
        variables, paths = load(case, network, image), maunet_paths(case.parameters())
        batch = {"classes": case.inputs["label"][:, 0].astype(np.int32), "distance": nhwc(case.inputs["distance_target"]),
                 "annotated": np.ones((len(image), *image.shape[1:3]), np.float32)}

        @partial(jax.jit, compiler_options=compiler_options())
        @partial(jax.value_and_grad, has_aux=True)
        def objective(params: Any, image: jax.Array) -> tuple[jax.Array, Any]:
            outputs, state = network.apply({**variables, "params": params}, image, train=True,
                                           mutable=["batch_stats", "intermediates"])
            terms = maunet_objective(outputs, batch, weights={"dice": 1.0, "focal": 1.0, "distance": 1.0})
            return sum(terms.values()), (outputs, terms, state)

        (loss, (outputs, terms, state)), gradient = jax.device_get(objective(variables["params"], image))
    after = traverse_util.flatten_dict({"params": gradient, "batch_stats": state["batch_stats"]})
    norms = [np.linalg.norm(after[paths[name]].astype(np.float64)) for name in case.meta["gradient_order"]]
    statistics = {f"after:{name}": after[path] for name, path in paths.items() if path[0] == "batch_stats"}
    return reference_named(outputs, state) | statistics | {
        "losses": np.asarray([terms["dice"] + terms["focal"], terms["distance"], loss]), "gradient_norms": np.asarray(norms)}


def two_models(case: Case) -> dict[str, np.ndarray]:
    """The sums of both networks' outputs, each from its part of one checkpoint."""
    image, outputs = nhwc(case.inputs["x"]), {}
    for encoder, branch in BRANCHES.items():
        network = network_of({**case.constructor, "encoder": encoder})
        apply = jax.jit(network.apply, compiler_options=compiler_options())
        outputs[branch] = jax.device_get(apply(load(case, network, image, branch=branch), image))
    both = {name: sum(np.moveaxis(output[key], -1, 1) for output in outputs.values())
            for name, key in (("logits", "classes"), ("distance", "distance"))}
    return both | {"branch1_logits": np.moveaxis(outputs["branch1."]["classes"], -1, 1)}


ADAPTERS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "maunet/maunet_resnet50": forward,
    "maunet/maunet_wideresnet50": forward,
    "maunet/maunet_resnet50_train": training,
    "maunet/maunet_wideresnet50_train": training,
    "maunet/maunet_two_models": two_models,
}
TOLERANCES: dict[str, float] = {}
