"""jaxcell's side of the race: its own train step and its own forward pass, as `train.py` and `evaluate.py` use them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from benchmarks.worker import Call, images, seconds_of
from jaxcell.data.pipeline import make_train_iterator
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.geometry.fourier import scale_contours, scale_fourier
from jaxcell.models.backend import compiler_options
from jaxcell.models.decoders.instances import InstanceDecoder, InstanceHead
from jaxcell.models.encoders.hybrid_resnet import StandardisedConv
from jaxcell.models.encoders.vit import Attention, PatchEmbedding
from jaxcell.models.layers import Conv, ConvTranspose
from jaxcell.system import System
from jaxcell.systems import build_system
from jaxcell.training.checkpoint import Checkpoints, restore_state
from jaxcell.training.mesh import make_mesh, replicated, shard_batch
from jaxcell.training.objectives import supervised
from jaxcell.training.state import TrainState, init_state, parameter_count
from jaxcell.training.step import descending, make_apply, make_train_step
from jaxcell.types import Sample

__all__ = ["calls", "forward_operations", "squares"]


def squares(outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The loss of the race: the mean square of each output, equally little work in both frameworks."""
    return {name: jnp.mean(jnp.square(value)) for name, value in outputs.items()}


def calls(config: Any, *, place: str, precision: str, compiled: bool) -> dict[str, Call]:
    """The commands of a worker.

    device: its name. save: writes variables and outputs of the network to a file. parameters: their number. step, infer: seconds.
    objective: seconds of a step with the system's own objective. decode: seconds from maps to cells, and how many.
    checkpoint: seconds until the step goes on, until all is on disk, and to restore; megabytes. operations: multiplications and
    additions of a forward pass. peak: operations a second of a large matrix product. memory (on a GPU): most in use, GB.
    """
    if (place == "cpu") != (jax.default_backend() == "cpu"):
        raise SystemExit(f"jax runs on {jax.default_backend()}, not on the {place} that was asked for; install jaxcell[cuda].")
    config.model.dtype = precision
    system, mesh, image = build_system(config), make_mesh(jax.devices()[:1]), images(config)
    transformation = optax.adamw(1e-3, weight_decay=1e-4)
    small = (1, 2 * system.divisor, 2 * system.divisor, config.data.channels)
    memory = system.objective.start if system.objective else dict
    state = jax.jit(lambda: init_state(system.model, transformation, seed=0, image_shape=small, memory=memory),
                    out_shardings=replicated(mesh))()
    apply = make_apply(system.model)
    placed = shard_batch({"image": image}, mesh)
    held = {"state": state}

    def infer() -> None:
        jax.block_until_ready(apply(held["state"].variables, placed["image"]))

    def save(path: str) -> dict[str, list[int]]:
        variables = traverse_util.flatten_dict(jax.device_get(held["state"].variables), sep="/")
        outputs = jax.device_get(apply(held["state"].variables, placed["image"]))
        np.savez(path, **{f"variables/{k}": v for k, v in variables.items()}, **{f"outputs/{k}": v for k, v in outputs.items()})
        return {name: list(value.shape) for name, value in outputs.items()}

    def step(**options: Any) -> Callable[..., Any]:
        return make_train_step(descending(supervised(system, **options), transformation), mesh)

    on_gpu: dict[str, Call] = {"memory": lambda _: (jax.devices()[0].memory_stats() or {})["peak_bytes_in_use"] / 1e9}
    return {
        "device": lambda _: jax.devices()[0].device_kind,
        "save": save,
        "parameters": lambda _: parameter_count(held["state"].params),
        "step": seconds_of(_Step(step(loss=squares), held, placed)),
        "infer": seconds_of(infer),
        "objective": seconds_of(_Step(step(), held, shard_batch(_labelled_batch(config, system), mesh))),
        "decode": lambda count: _decode(config, int(count)),
        "checkpoint": lambda folder: _checkpoint(held["state"], folder),
        "operations": lambda _: forward_operations(system.model, image.shape),
        "peak": lambda size: _peak(int(size), precision),
    } | (on_gpu if place == "gpu" else {})


class _Step:
    """One update of the state that all commands share: a step donates the old one."""

    def __init__(self, step: Any, held: dict[str, TrainState], batch: Mapping[str, jax.Array]) -> None:
        self.step, self.held, self.batch = step, held, batch

    def __call__(self) -> None:
        self.held["state"], metrics = self.step(self.held["state"], self.batch)
        float(metrics["loss"])


def _labelled_batch(config: Any, system: System) -> dict[str, np.ndarray]:
    """Synthetic cells with the system's targets: fewer than 50 in a crop, two planes for a network of two channels."""
    radius = max(3.0, config.data.crop / 20)
    source = SyntheticSource(config.data.batch_size, size=config.data.crop, seed=1, radius=(radius, 1.25 * radius),
                             modality="brightfield" if config.data.channels == 2 else "fluorescence")
    batches = make_train_iterator(source, targets=system.targets, batch_size=config.data.batch_size, crop=config.data.crop,
                                  augment="none", normalize=dict(config.data.normalize), channels=config.data.channels, seed=0)
    batch, _ = next(batches)
    batches.close()
    return batch


def _decode(config: Any, count: int) -> dict[str, Any]:
    """Decoding of the maps that a perfect network would give for 1024 x 1024 pixels of synthetic cells."""
    decode, maps = DECODES[config.system](copy.deepcopy(config))
    found: list[int] = []
    return {"seconds": seconds_of(lambda: found.append(len(decode(maps))))(str(count)), "cells": found[-1]}


def _cells(radius: tuple[float, float] = (8.0, 10.0)) -> Sample:
    return SyntheticSource(1, size=1024, seed=1, radius=radius, coverage=(0.12, 0.13))[0]


def _contour_proposal_maps(config: Any) -> tuple[Callable[[Any], Any], dict[str, np.ndarray]]:
    config.targets.max_cells, config.targets.max_foreground = 1024, 4096
    system = build_system(config)
    target = system.targets(_cells(), np.random.default_rng(0))
    labels, stride = target["labels"], 1024 // len(target["labels"])
    row, cells, small = np.maximum(labels - 1, 0), labels[..., None] > 0, (1 / stride, 1 / stride)
    offsets = scale_contours(target["locations"], small)[row] - np.stack(np.indices(labels.shape), axis=-1)
    fourier = scale_fourier(target["fourier"], small)[row].reshape(*labels.shape, -1)
    maps = {"scores": np.where(cells, 10.0, -10.0), "locations": np.where(cells, offsets, 0),
            "fourier": np.where(cells, fourier, 0), "refinement": np.zeros((1024, 1024, 2 * config.model.buckets))}
    if config.model.uncertainty:
        maps["uncertainty"] = np.full((*labels.shape, 4), -10.0)
    return system.decode, {name: value.astype(np.float32) for name, value in maps.items()}


def _mesmer_maps(config: Any) -> tuple[Callable[[Any], Any], dict[str, np.ndarray]]:
    system = build_system(config)
    target = system.targets(_cells(), np.random.default_rng(0))
    return system.decode, {head: target[head] for head in config.model.heads}


def _maunet_maps(config: Any) -> tuple[Callable[[Any], Any], dict[str, np.ndarray]]:
    system = build_system(config)
    target = system.targets(_cells(), np.random.default_rng(0))
    classes = np.where(target["classes"][..., None] == np.arange(3 + config.model.proxies), 10, -10)
    return system.decode, {"classes": classes.astype(np.float32), "distance": target["distance"]}


def _morphoseg_maps(config: Any) -> tuple[Callable[[Any], Any], dict[str, np.ndarray]]:
    system = build_system(config)
    classes = system.targets(_cells(), np.random.default_rng(0))["classes"]
    return system.decode, {"classes": _sure(classes[..., None] == np.arange(2))}


def _sparse_seunet_maps(config: Any) -> tuple[Callable[[Any], Any], dict[str, np.ndarray]]:
    system = build_system(config)
    target = system.targets(_cells(radius=(22.0, 26.0)), np.random.default_rng(0))      # fewer than 100
    if config.model.branches == "none":
        return system.decode, {head: _sure(target[head] > 0.5) for head in config.model.heads}
    return system.decode, {"masks": _sure(target["masks"] > 0), "scores": _sure(target["present"])}


def _sure(truth: np.ndarray) -> np.ndarray:
    """Logits."""
    return np.where(truth, np.float32(10), np.float32(-10))


DECODES: Mapping[str, Callable[[Any], tuple[Callable[[Any], Any], dict[str, np.ndarray]]]] = {
    "contour_proposal": _contour_proposal_maps, "maunet": _maunet_maps, "mesmer": _mesmer_maps, "morphoseg": _morphoseg_maps,
    "sparse_seunet": _sparse_seunet_maps}
"""System -> its decoding and the maps to decode, of a config."""


def _checkpoint(state: TrainState, folder: str) -> dict[str, float]:
    directory, times = Path(folder) / "checkpoints", [time.perf_counter()]
    checkpoints = Checkpoints(folder, keep=1)
    times[0] = time.perf_counter()
    checkpoints.save(state, {})
    times.append(time.perf_counter())
    checkpoints.close()
    times.append(time.perf_counter())
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    jax.block_until_ready(restore_state(directory, abstract, jax.tree.leaves(state)[0].sharding)[0])
    times.append(time.perf_counter())
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    return {"waiting": times[1] - times[0], "save": times[2] - times[0], "restore": times[3] - times[2], "MB": size / 1e6}


def _of_convolution(layer: Any, x: Any, y: Any) -> int:
    return 2 * y.size * layer.kernel ** 2 * x.shape[-1]


def _of_linear(layer: Any, x: Any, y: Any) -> int:
    """Every value that comes in goes into every feature."""
    return 2 * x.size * int(np.prod(layer.features))


OPERATIONS: Mapping[type[nn.Module], Callable[[Any, Any, Any], int]] = {
    Conv: lambda layer, x, y: _of_convolution(layer, x, y) // layer.groups,
    StandardisedConv: _of_convolution,
    ConvTranspose: lambda layer, x, y: 2 * y.size * x.shape[-1] * (layer.kernel // (layer.stride or layer.kernel)) ** 2,
    nn.Dense: _of_linear, nn.DenseGeneral: _of_linear, PatchEmbedding: _of_linear,
    Attention: lambda layer, x, y: 2 * 2 * x.size * x.shape[1],     # of all pairs of tokens; its linear layers count apart
    InstanceHead: lambda layer, x, y: 2 * x.size * layer.groups * layer.queries,
    InstanceDecoder: lambda layer, x, y: 2 * y["masks"].size * y["kernels"].shape[-1],
}
"""Layer -> (layer, what comes in, what goes out) -> multiplications and additions of its own products."""


def forward_operations(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiplications and additions of all convolutions and other products of one forward pass; a training step takes three
    times as many.

    Counted from the layers' sizes, not from what is compiled, which may do more. Norms, activations and resizes are left out.
    """
    found: list[int] = []

    def count(call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        result = call(*arguments, **options)
        if type(context.module) in OPERATIONS:
            found.append(OPERATIONS[type(context.module)](context.module, arguments[0], result))
        return result

    with nn.intercept_methods(count):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    return sum(found)


def _peak(size: int, precision: str) -> float:
    """Operations a second of [n, n] @ [n, n], the best of some."""
    matrix = jnp.ones((size, size), precision)
    product = jax.jit(jnp.matmul, compiler_options=compiler_options())
    product(matrix, matrix).block_until_ready()
    return 2 * size ** 3 / min(seconds_of(lambda: product(matrix, matrix).block_until_ready())("8"))
