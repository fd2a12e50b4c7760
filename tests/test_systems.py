"""What must hold for EVERY system, at the toy width of its own config, on synthetic cells."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import optax
import pytest
from targets.perfect import PERFECT_OUTPUTS

from jaxcell.data.pipeline import make_train_iterator
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.evaluate import make_predict
from jaxcell.inference.blocks import dense_blocks, predict_image
from jaxcell.inference.windows import predict_image_by_windows
from jaxcell.metrics.matching import match
from jaxcell.system import System
from jaxcell.systems import SYSTEMS, build_system
from jaxcell.train import no_targets
from jaxcell.training.adversarial import alternating, init_adversarial_state
from jaxcell.training.checkpoint import Checkpoints, restore_state
from jaxcell.training.mesh import make_mesh, replicated, shard_batch
from jaxcell.training.objectives import NETWORKS, carried_of, cross_supervised, supervised
from jaxcell.training.optimizer import make_optimizer
from jaxcell.training.state import TrainState, init_state, state_digest
from jaxcell.training.step import Update, descending, make_apply, make_train_step
from jaxcell.types import Instances, Sample

BATCH = 4
SCHEMES: dict[str, Callable[[System, optax.GradientTransformation], Update]] = {
    "supervised": lambda system, optimizer: descending(supervised(system), optimizer),
    "cross": lambda system, optimizer: descending(cross_supervised(system, weight=1.5), optimizer),
    "adversarial": alternating,
}
"""Ways to train -> (system, optimizer) -> update."""

pytestmark = pytest.mark.parametrize("name", sorted(SYSTEMS))


@pytest.fixture(params=SCHEMES)
def scheme(request, name) -> str:
    """Every way to train for which the system has the parts."""
    system = system_of(name)
    can = {"supervised": system.adversary is None, "cross": system.consistency is not None,
           "adversarial": system.adversary is not None}
    if not can[request.param]:
        pytest.skip(f"{name} does not train like this")
    return request.param


@pytest.fixture
def finder(name) -> System:
    """A system that finds cells."""
    if system_of(name).draw is not None:
        pytest.skip(f"{name} makes images, not cells")
    return system_of(name)


@cache
def config_of(name: str) -> Any:
    return importlib.import_module(f"configs.{name}").get_config("toy")


@cache
def system_of(name: str):
    return build_system(config_of(name))


def fresh_state(name: str, devices: int = 1, scheme: str = "supervised") -> tuple[TrainState, Any, Any]:
    """(state, compiled step, mesh) of a new run on the first `devices` devices."""
    return compiled_init(name, devices, scheme)(), compiled_step(name, devices, scheme), make_mesh(jax.devices()[:devices])


@cache
def compiled_init(name: str, devices: int, scheme: str):
    config, system = config_of(name), system_of(name)
    transformation, _ = make_optimizer(config.optimizer)
    shape = (1, config.data.crop, config.data.crop, config.data.channels)
    memory = system.objective.start if system.objective else dict
    fresh = (partial(init_adversarial_state, system, transformation, seed=0, image_shape=shape) if scheme == "adversarial" else
             partial(init_state, system.model, transformation, seed=0, image_shape=shape, memory=memory,
                     networks=NETWORKS if scheme == "cross" else ()))
    return jax.jit(fresh, out_shardings=replicated(make_mesh(jax.devices()[:devices])))


@cache
def compiled_step(name: str, devices: int, scheme: str):
    transformation, _ = make_optimizer(config_of(name).optimizer)
    return make_train_step(SCHEMES[scheme](system_of(name), transformation), make_mesh(jax.devices()[:devices]))


class Stream:
    """The batches of a scheme: annotated images and, where networks train together, twice as many without annotation."""

    def __init__(self, name: str, scheme: str):
        config = config_of(name)
        reading = partial(make_train_iterator, SyntheticSource(8, size=config.data.crop, seed=1), crop=config.data.crop,
                          augment=config.data.augment, normalize=dict(config.data.normalize), channels=config.data.channels)
        self.parts = {"annotated": reading(targets=system_of(name).targets, batch_size=BATCH, seed=0)}
        if scheme == "cross":
            self.parts["unlabelled"] = reading(targets=no_targets, batch_size=2 * BATCH, seed=1)

    def __next__(self) -> dict[str, np.ndarray]:
        batches = {part: next(iterator)[0] for part, iterator in self.parts.items()}
        return batches.pop("annotated") | {part: batch["image"] for part, batch in batches.items()}

    def get_state(self) -> dict[str, Any]:
        return {part: iterator.get_state() for part, iterator in self.parts.items()}

    def set_state(self, cursor: dict[str, Any]) -> None:
        for part, iterator in self.parts.items():
            iterator.set_state(cursor[part])


@cache
def batch_of(name: str, scheme: str = "supervised") -> dict[str, np.ndarray]:
    return next(Stream(name, scheme))


def f1(truth: Instances, prediction: Instances) -> float:
    return float(match(truth, prediction, thresholds=(0.5,)).f1[0])


def synthetic_sample(size: int, index: int = 0) -> Sample:
    sample = SyntheticSource(4, size=size, seed=7)[index]
    return dataclasses.replace(sample, image=sample.image.astype(np.float32) / 255)


def test_perfect_outputs_decode_to_the_truth(name, finder):
    system = system_of(name)
    for index in range(3):
        sample = synthetic_sample(config_of(name).data.crop, index)
        outputs = PERFECT_OUTPUTS[name](system.targets(sample, np.random.default_rng(0)), config_of(name))
        assert f1(Instances.from_labels(sample.labels), system.decode(outputs)) == 1.0


def test_perfect_outputs_draw_the_planes_that_are_true(name):
    system, sample = system_of(name), synthetic_sample(config_of(name).data.crop)
    if system.planes is None:
        pytest.skip(f"{name} draws no planes")
    drawn = system.planes.drawn(PERFECT_OUTPUTS[name](system.targets(sample, np.random.default_rng(0)), config_of(name)))
    truth = system.planes.truth(sample, tuple(drawn))
    assert drawn.keys() == truth.keys() and drawn
    for plane, values in drawn.items():
        np.testing.assert_array_equal(values > 0.5, truth[plane] > 0, err_msg=plane)


def test_outputs_have_the_same_keys_and_shapes_in_train_and_eval(name):
    model, image = system_of(name).model, batch_of(name)["image"]
    variables = jax.eval_shape(lambda: fresh_state(name)[0].variables)

    def both(variables):
        train, _ = model.apply(variables, image, True, rngs={"dropout": jax.random.PRNGKey(0)}, mutable=["batch_stats"])
        return train, model.apply(variables, image, False)

    train, evaluation = jax.eval_shape(both, variables)
    assert {k: (v.shape, v.dtype) for k, v in train.items()} == {k: (v.shape, v.dtype) for k, v in evaluation.items()}


def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(name):
    state, _, _ = fresh_state(name)
    objective = jax.jit(jax.grad(supervised(system_of(name)), has_aux=True))
    grads, _ = objective(state.params, carried_of(state), batch_of(name), jax.random.PRNGKey(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        where = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), where
        # A bias of attention's keys shifts all likenesses of a query alike, which softmax takes out again: its gradient is 0.
        if not where.endswith("['attention']['key']['bias']"):
            assert np.abs(leaf).max() > 0, f"{where} is not trained"


def test_steps_on_one_batch_lower_the_loss_with_one_trace(name):
    state, step, mesh = fresh_state(name)
    losses = []
    for _ in range(20):
        state, metrics = step(state, shard_batch(batch_of(name), mesh))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    assert step._cache_size() == 1


def test_four_devices_compute_what_one_computes(name, scheme):
    results = []
    for devices in (1, 4):
        state, step, mesh = fresh_state(name, devices, scheme)
        state, metrics = step(state, shard_batch(batch_of(name, scheme), mesh))
        results.append((jax.device_get(metrics), jax.device_get(state.batch_stats)))
    (one, one_stats), (four, four_stats) = results
    for key in one:     # every loss term, their sum, and the norm of the gradient
        np.testing.assert_allclose(four[key], one[key], rtol=1e-5, err_msg=key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6), one_stats, four_stats)


def test_tiled_image_equals_whole_image(name, finder):
    """Perfect answers for tiles: every object once and as in one piece, wherever the seams fall."""
    (check_tiled_lists if config_of(name).inference.mode == "windows" else check_tiled_maps)(name)


def coordinates(size: int) -> np.ndarray:
    """[size, size, 2], an image that carries its own coordinates, so that a look-up can stand for a network."""
    rows, columns = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32), indexing="ij")
    return np.stack([rows, columns], axis=-1)


def check_tiled_maps(name):
    """The whole image's maps, cut into tiles and put together again, in one block and in several. A decoder that measures all
    cells of a region (maunet; its block is for images of usual sizes) draws some pixels otherwise in several, but every cell
    once."""
    config, system = config_of(name), system_of(name)
    size, tile = 4 * config.data.crop, 2 * config.data.crop
    big = synthetic_sample(size)
    maps = PERFECT_OUTPUTS[name](system.targets(big, np.random.default_rng(0)), config)

    def look_up(tiles: np.ndarray) -> dict[str, np.ndarray]:
        out: dict[str, list[np.ndarray]] = {k: [] for k in maps}
        for corner in tiles[:, 0, 0].astype(int):
            for key, value in maps.items():
                stride = size // len(value)
                y, x, side = corner[0] // stride, corner[1] // stride, tile // stride
                out[key].append(value[y:y + side, x:x + side])
        return {k: np.stack(v) for k, v in out.items()}

    whole = system.decode(maps)
    for block in (tile // 2, tile, size):
        tiled = predict_image(look_up, coordinates(size), maps=partial(dense_blocks, tile=tile, margin=tile // 4),
                              decode=system.decode, block=block, halo=tile // 4, batch=3, divisor=system.divisor)
        if block < size <= config.inference.block:
            assert f1(whole, tiled) == 1.0
        else:
            assert cells_of(tiled) == cells_of(whole)


def check_tiled_lists(name):
    """Outputs that belong to one tile alone: what is perfect for its crop."""
    config, system = config_of(name), system_of(name)
    tile, size = config.data.crop, 2 * config.data.crop
    big = synthetic_sample(size)

    def look_up(tiles: np.ndarray) -> dict[str, np.ndarray]:
        perfect = []
        for y, x in tiles[:, 0, 0].astype(int):
            window = np.s_[y:y + tile, x:x + tile]
            crop = dataclasses.replace(big, image=big.image[window], labels=big.labels[window], nuclei=big.nuclei[window])
            perfect.append(PERFECT_OUTPUTS[name](system.targets(crop, np.random.default_rng(0)), config))
        return {key: np.stack([outputs[key] for outputs in perfect]) for key in perfect[0]}

    tiled = predict_image_by_windows(look_up, coordinates(size), decode=system.decode, tile=tile, margin=5 * tile // 12, batch=3,
                                     divisor=system.divisor)
    assert cells_of(tiled) == cells_of(Instances.from_labels(big.labels))


def cells_of(instances: Instances) -> list[tuple[tuple[int, ...], bytes]]:
    """Every cell's box and exact mask, in an order that does not depend on blocks."""
    return sorted((tuple(box), mask.tobytes()) for box, mask in zip(instances.boxes.tolist(), instances.masks, strict=True))


def edge_cases(size: int) -> dict[str, Sample]:
    image = np.random.default_rng(0).random((size, size, 3), np.float32)
    none = np.zeros((size, size, 1), np.int32)
    return {"blank image": Sample(np.zeros_like(image), none, name="blank"), "no cells": Sample(image, none, name="none"),
            "one cell covering all": Sample(image, none + 1, name="all")}


@pytest.mark.parametrize("case", ["blank image", "no cells", "one cell covering all"])
def test_edge_cases_train_and_decode(name, finder, case):
    system, sample = system_of(name), edge_cases(config_of(name).data.crop)[case]
    target = system.targets(sample, np.random.default_rng(0))
    batch = {k: np.stack([v] * BATCH) for k, v in ({"image": sample.image} | target).items()}
    assert {k: v.shape for k, v in batch.items()} == {k: v.shape for k, v in batch_of(name).items()}
    state, step, mesh = fresh_state(name)
    state, metrics = step(state, shard_batch(batch, mesh))
    assert all(np.isfinite(v) for v in jax.device_get(metrics).values())
    decoded = system.decode(PERFECT_OUTPUTS[name](target, config_of(name)))
    assert f1(Instances.from_labels(sample.labels), decoded) == 1.0 if case == "one cell covering all" else len(decoded) == 0


def test_restored_run_continues_bit_equal(name, scheme, tmp_path):
    state, step, mesh = fresh_state(name, scheme=scheme)
    data = Stream(name, scheme)
    for _ in range(2):
        state, _ = step(state, shard_batch(next(data), mesh))
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state, data.get_state())       # (the step below donates what is still being written)
    expected, _ = step(state, shard_batch(next(data), mesh))
    digest = state_digest(expected, data.get_state())
    checkpoints.close()

    again = Stream(name, scheme)
    abstract = jax.eval_shape(lambda: fresh_state(name, scheme=scheme)[0])
    restored, cursor = restore_state(checkpoints.directory, abstract, replicated(mesh))
    again.set_state(cursor)
    continued, _ = step(restored, shard_batch(next(again), mesh))
    assert state_digest(continued, again.get_state()) == digest


def test_checkpoint_of_one_device_continues_on_four(name, tmp_path):
    state, step, mesh = fresh_state(name)
    state, _ = step(state, shard_batch(batch_of(name), mesh))
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state, {})
    checkpoints.close()
    _, expected = step(state, shard_batch(batch_of(name), mesh))
    _, step_of_four, four = fresh_state(name, 4)
    restored, _ = restore_state(checkpoints.directory, jax.eval_shape(lambda: fresh_state(name)[0]), replicated(four))
    _, metrics = step_of_four(restored, shard_batch(batch_of(name), four))
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)


def test_prediction_compiles_once_for_every_image_size(name, finder):
    config, system = config_of(name), system_of(name)
    state, _, mesh = fresh_state(name)
    apply = make_apply(system.model)
    predict = make_predict(system, apply, mesh, config)
    for shape in ((50, 70), (128, 128), (200, 90)):
        image = np.random.default_rng(0).random((*shape, config.data.channels), np.float32)
        assert predict(state.variables, image).shape == shape
    assert apply._cache_size() == 1
