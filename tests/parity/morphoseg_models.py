"""Parity of TransUNet and its training: networks, checkpoints, losses, outliers, weightings, the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import traverse_util
from loader import Case

from jaxcell.losses.dice import squared_dice
from jaxcell.losses.outliers import (
    PLACEMENTS,
    batch_gaussian,
    batch_outliers,
    class_gaussians,
    enqueue,
    least_likely,
    log_density,
    new_queues,
)
from jaxcell.losses.weighting import WEIGHTINGS, total_loss
from jaxcell.models.backend import compiler_options
from jaxcell.models.encoders.vit import VISION_SIZES, VisionSize
from jaxcell.pretrained.morphoseg import load_morphoseg, morphoseg_paths
from jaxcell.systems.morphoseg import STEMS, TransUNet, segmentation_losses, segmentation_terms
from jaxcell.training.optimizer import make_optimizer

ENCODERS = {"ViT-B_16": ("none", "base"), "R50-ViT-B_16": ("r50", "base"), "ViT-L_16": ("none", "large")}


# ---------------------------------------------------------------- networks
def transunet(case: Case) -> TransUNet:
    """The network that the file's constructor describes."""
    settings = case.constructor
    stem, size = ENCODERS[settings["encoder"]]
    sizes = VISION_SIZES[size]
    if "hidden" in settings:
        sizes = VisionSize(*(settings[key] for key in ("hidden", "mlp", "heads", "layers")))
    widths = tuple(settings.get("decoder_channels", (256, 128, 64, 16)))
    return TransUNet(classes=settings["classes"], transformer=sizes, stem=STEMS[stem], skips=settings["skips"],
                     grid=settings["image_size"] // 2 ** len(widths), widths=widths, dropout=settings.get("dropout", 0.1))


def load(case: Case, network: TransUNet) -> dict[str, Any]:
    """The file's parameters (and, where it has one, its checkpoint's) through the importer of published checkpoints."""
    side = case.constructor["image_size"]
    shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32))
    return load_morphoseg(case.parameters() | case.checkpoint(), shapes)


def channels_first(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1)


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


def features(captured: dict[str, Any], logits: np.ndarray) -> dict[str, np.ndarray]:
    """What flax captured of the modules, by the reference's names and in its layouts."""
    flat = {"/".join(path[:-1]): value[0] for path, value in traverse_util.flatten_dict(captured).items()}
    found = {"logits": channels_first(logits), "conv_more": channels_first(flat["cascade/input"]),
             "embeddings": flat["transformer/embedding"], "encoded": flat["transformer"].reshape(len(logits), -1, flat[
                 "transformer"].shape[-1])}
    for name, value in flat.items():
        first, _, rest = name.partition("/")
        if first == "transformer" and rest.startswith("layer"):
            found[rest] = value
        elif first == "cascade" and rest.startswith("level"):
            found[f"blocks.{rest.removeprefix('level')}"] = channels_first(value)
        elif first == "stem" and "_unit" in rest:     # in order: the last unit of a block stays
            block = rest.split("_")[0]
            last = max(int(other.rpartition("unit")[2]) for other in flat if f"/{block}_unit" in other)
            found[f"resnet.{block}"] = channels_first(flat[f"stem/{block}_unit{last}"])
    if "stem" in flat:
        found["resnet.root"] = channels_first(flat["stem"][0])
    values = np.asarray(logits, np.float64)
    found["logits_summary"] = np.asarray([values.mean(), values.std(), values.min(), values.max(), np.abs(values).mean()])
    return found


def forward(case: Case) -> dict[str, np.ndarray]:
    """Features and logits in prediction.

    In float64 as in the recording: in float32 the deep ResNet features of the reference itself are 4e-4 of their deviation off.
    """
    with jax.enable_x64(True):
        network = transunet(case).clone(dtype=jnp.float64)
        variables = jax.tree.map(partial(jnp.asarray, dtype=jnp.float64), load(case, network))
        apply = jax.jit(partial(network.apply, capture_intermediates=lambda module, _: len(module.path) <= 2,
                                mutable=["intermediates"]), compiler_options=compiler_options())
        outputs, state = jax.device_get(apply(variables, channels_last(case.inputs["x"]).astype(np.float64)))
    positions = np.asarray(variables["params"]["transformer"]["embedding"]["positions"])
    return features(state["intermediates"], outputs["classes"]) | {
        "position_embeddings": positions.reshape(1, -1, positions.shape[-1])}


def training(case: Case) -> dict[str, Any]:
    """Features, losses, norms of the gradient and running statistics of a training pass.

    In float64 as in the recording: norms of a few numbers are differences of large ones.
    """
    with jax.enable_x64(True):
        network = transunet(case).clone(dtype=jnp.float64)
        variables = jax.tree.map(partial(jnp.asarray, dtype=jnp.float64), load(case, network))
        image = channels_last(case.inputs["x"]).astype(np.float64)
        batch = {"classes": case.inputs["label"].astype(np.int32)}

        @partial(jax.jit, compiler_options=compiler_options())
        @partial(jax.value_and_grad, has_aux=True)
        def objective(params: Any, image: jax.Array) -> tuple[jax.Array, Any]:
            outputs, state = network.apply({**variables, "params": params}, image, True, rngs={"dropout": jax.random.key(0)},
                                           capture_intermediates=lambda module, _: len(module.path) <= 2,
                                           mutable=["intermediates", "batch_stats"])
            terms = segmentation_terms(outputs, batch)
            return sum(terms.values()), (outputs, state, terms)

        (total, (outputs, state, terms)), gradient = jax.device_get(objective(variables["params"], image))
    results = features(state["intermediates"], outputs["classes"])
    results["losses"] = np.asarray([2 * terms["cross_entropy"], 2 * terms["dice"], total])
    gradients = torch_named(case, {"params": gradient})
    results["gradient_norms"] = np.asarray([np.linalg.norm(gradients[name]) for name in case.meta["gradient_order"]])
    return results | {f"after:{name}": value for name, value in torch_named(case, {"batch_stats": state["batch_stats"]}).items()}


def torch_named(case: Case, variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Variables of ours by PyTorch's names, in our layout."""
    flat = traverse_util.flatten_dict(variables)
    return {name: flat[path] for name, path in morphoseg_paths(case.parameters()).items() if path in flat}


# ---------------------------------------------------------------- losses
def dice_ce_loss(case: Case) -> dict[str, Any]:
    logits, classes = channels_last(case.inputs["logits"]), case.inputs["label"].astype(np.int32)
    weights, smooth = np.asarray(case.constructor["class_weights"], np.float32), case.constructor["smooth"]
    target = jax.nn.one_hot(classes, case.constructor["classes"])
    probabilities = jax.nn.softmax(logits)
    per_class = squared_dice(probabilities, target, smooth=smooth)
    cross_entropy, dice = segmentation_losses(jnp.asarray(logits), classes)
    total, gradient = jax.value_and_grad(lambda x: sum(segmentation_terms({"classes": x}, {"classes": classes}).values()))(
        jnp.asarray(logits))
    return {"dice": dice, "dice_per_class": per_class, "dice_weighted": jnp.mean(per_class * weights),
            "dice_no_softmax": jnp.mean(squared_dice(0.9 * probabilities + 0.05, target, smooth=smooth)),
            "cross_entropy": cross_entropy, "total": total, "gradient": channels_first(np.asarray(gradient))}


def virtual_outliers(case: Case) -> dict[str, Any]:
    settings = case.constructor
    logits, classes = jnp.asarray(channels_last(case.inputs["logits"])), case.inputs["label"].astype(np.int32)
    draws, positions = jnp.asarray(case.inputs["normal_draws"]), case.inputs["positions"]
    everywhere = jnp.ones(classes.shape)

    def updated(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        outliers = batch_outliers(logits, everywhere, draws, select=settings["select"], ridge=settings["covariance_ridge"])
        return PLACEMENTS["memory"](logits, outliers, positions), outliers

    mean, covariance = batch_gaussian(logits, everywhere, ridge=settings["covariance_ridge"])
    cholesky = jnp.linalg.cholesky(covariance)
    replaced, outliers = updated(logits)
    gradient = jax.grad(lambda x: segmentation_losses(updated(x)[0], classes).sum())(logits)
    return {"mean": mean, "covariance": covariance, "cholesky": cholesky, "outliers": outliers,
            "selected": least_likely(draws, settings["select"]), "loss": segmentation_losses(replaced, classes),
            "log_prob": log_density(mean + draws @ cholesky.T, mean, cholesky),
            "updated": channels_first(np.asarray(replaced)), "gradient": channels_first(np.asarray(gradient))}


def paper_class_gaussian(case: Case) -> dict[str, Any]:
    settings = case.constructor
    queues = new_queues(settings["classes"], settings["dimension"], settings["queue"])
    queues = enqueue(queues, case.inputs["vectors"], case.inputs["classes"])
    means, covariance = class_gaussians(queues)
    cholesky = jnp.linalg.cholesky(covariance)
    density = [log_density(case.inputs["points"], mean, cholesky) for mean in means]
    return {"queue_lengths": jnp.minimum(queues["arrived"], settings["queue"]), "means": means, "covariance": covariance,
            "log_density": jnp.stack(density, -1)}


def loss_weighting(case: Case) -> dict[str, Any]:
    """Every weighting on every row of losses; the losses themselves stand for a network's outputs."""
    rows = jnp.asarray(case.inputs["losses"])
    results: dict[str, Any] = {}
    for name in ("balance", "norm", "pareto"):
        for label, count in (("without", 2), ("with", 4)):
            def total(row: jax.Array, name: str = name, count: int = count) -> jax.Array:
                return total_loss(lambda x: x, row[:count], jnp.ones(count), WEIGHTINGS[name])[0]

            results[f"{name}_{label}_outliers"] = jax.vmap(total)(rows)
            results[f"{name}_{label}_outliers_weights"] = jax.vmap(jax.grad(total))(rows)[:, :count]
    held, kept = jnp.ones(rows.shape[1]), []
    for row in rows:
        value, _, _, held = total_loss(lambda x: x, row, held, WEIGHTINGS["pareto_kept"])
        kept.append((value, held))
    return results | {"pareto_kept_handler": jnp.stack([value for value, _ in kept]),
                      "pareto_kept_weights": jnp.stack([weights for _, weights in kept])}


# ---------------------------------------------------------------- optimizer
def sgd_schedule(case: Case) -> dict[str, Any]:
    settings = case.constructor
    config = ml_collections.ConfigDict({
        "name": "sgd", "momentum": settings["momentum"], "l2": settings["weight_decay"],
        "schedule": {"name": "polynomial", "base": settings["base_lr"], "steps": settings["max_iterations"],
                     "power": settings["power"]}})
    transformation, schedule = make_optimizer(config)
    weight, target = jnp.asarray(case.inputs["weight"]), case.inputs["target"]
    state, steps = transformation.init(weight), len(case.outputs["learning_rates"])
    weights = []
    for _ in range(steps):
        gradient = jax.grad(lambda w: jnp.sum((w - target) ** 4))(weight)
        updates, state = transformation.update(gradient, state, weight)
        weight = optax.apply_updates(weight, updates)
        weights.append(weight)
    return {"learning_rates": np.asarray([schedule(i) for i in range(steps)]), "weights": np.stack(weights)}


ADAPTERS: dict[str, Callable[[Case], dict[str, Any]]] = {
    **{f"morphoseg/{name}": forward for name in (
        "transunet_vit_b16", "transunet_r50_vit_b16_skip0", "transunet_r50_vit_b16_skip3", "checkpoint_vit_b16_same_grid",
        "checkpoint_r50_vit_b16_resized")},
    **{f"morphoseg/{name}": training for name in ("transunet_vit_b16_train", "transunet_r50_vit_b16_skip3_train")},
    "morphoseg/dice_ce_loss": dice_ce_loss,
    "morphoseg/virtual_outliers": virtual_outliers,
    "morphoseg/paper_class_gaussian": paper_class_gaussian,
    "morphoseg/loss_weighting": loss_weighting,
    "morphoseg/sgd_schedule": sgd_schedule,
}

TOLERANCES: dict[str, float] = {}
