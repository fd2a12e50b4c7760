"""One update, by hand: what is not finite is skipped, averages follow, gradients accumulate and are clipped."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from jaxcell.system import System
from jaxcell.training.mesh import make_mesh, shard_batch
from jaxcell.training.objectives import NETWORKS, carried_of, cross_supervised, supervised
from jaxcell.training.optimizer import clip_each, make_optimizer
from jaxcell.training.state import init_state
from jaxcell.training.step import descending, make_train_step

MESH = make_mesh(jax.devices()[:1])


class Network(nn.Module):
    """One weight a channel, batch norm, a dropped-out copy: enough for every kind of state."""

    @nn.compact
    def __call__(self, image, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5, use_bias=False, use_scale=False)(image)
        return {"scores": nn.Dense(1, use_bias=False)(x + 1)}


def loss(outputs, batch):
    return {"fit": jnp.mean((outputs["scores"] - batch["wanted"]) ** 2)}


def consistency(outputs, others):
    return {"agree": jnp.mean((outputs["scores"] - others["scores"]) ** 2)}


SYSTEM = System(Network(), lambda sample, rng: {}, loss, lambda outputs: None, 1, consistency=consistency)


def batch(seed: int = 0, *, poison: float = 0.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.random((4, 2, 2, 3), np.float32)
    image[0, 0, 0, 0] += poison
    return {"image": image, "wanted": rng.random((4, 2, 2, 1), np.float32), "unlabelled": rng.random((2, 2, 2, 3), np.float32)}


def run(batches, *, objective=None, transformation=None, average: float = 0.0, networks=()) -> tuple[Any, list[dict]]:
    transformation = transformation or optax.adam(0.1)
    state = init_state(SYSTEM.model, transformation, seed=0, image_shape=(1, 2, 2, 3), average=bool(average), networks=networks)
    step = make_train_step(descending(objective or supervised(SYSTEM), transformation), MESH, average_decay=average)
    metrics = []
    for one in batches:
        state, values = step(state, shard_batch(one, MESH))
        metrics.append(jax.device_get(values))
    return state, metrics


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])      # (the last has a finite loss, and a gradient whose norm is not)
def test_what_is_not_finite_changes_nothing_but_the_counts(poison):
    clean, _ = run([batch(0), batch(2)], average=0.9)
    dirty, metrics = run([batch(0), batch(1, poison=poison), batch(1, poison=poison), batch(2)], average=0.9)
    assert [m["skipped"] for m in metrics] == [0, 1, 2, 2]
    assert [m["skipped_in_a_row"] for m in metrics] == [0, 1, 2, 0]
    assert int(dirty.step) == 4
    for name in ("params", "batch_stats", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(dirty, name), getattr(clean, name))


def test_averages_follow_with_the_step_and_predict():
    states = [run([batch(i) for i in range(count)], average=0.5)[0] for count in (1, 2, 3)]
    kernel = [np.asarray(s.params["Dense_0"]["kernel"]) for s in states]
    start = init_state(SYSTEM.model, optax.adam(0.1), seed=0, image_shape=(1, 2, 2, 3)).params["Dense_0"]["kernel"]
    expected = np.asarray(start)
    for step, new in enumerate(kernel):
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * new
    np.testing.assert_allclose(states[-1].predicting["params"]["Dense_0"]["kernel"], expected, rtol=1e-6)
    assert states[-1].predicting.keys() == {"params", "batch_stats"}
    assert not run([batch()])[0].average


def test_accumulated_batches_are_one_update_by_their_mean_gradient():
    schedule = {"name": "constant", "base": 0.1}
    options = {"name": "sgd", "schedule": schedule, "momentum": 0.0}
    twice, rate = make_optimizer(ml_collections.ConfigDict({**options, "accumulate": 2}))
    accumulated, _ = run([batch(0), batch(1)], transformation=twice)
    once, _ = make_optimizer(ml_collections.ConfigDict(options))
    first = run([batch(0)], transformation=once)[0].params["Dense_0"]["kernel"]
    second = run([batch(1)], transformation=once)[0].params["Dense_0"]["kernel"]
    np.testing.assert_allclose(accumulated.params["Dense_0"]["kernel"], (first + second) / 2, rtol=1e-5)
    assert float(rate(3)) == pytest.approx(0.1)
    falling = {"name": "polynomial", "base": 0.1, "steps": 8, "power": 1.0}      # steps are batches, however many make an update
    _, rates = make_optimizer(ml_collections.ConfigDict({**options, "schedule": falling, "accumulate": 4}))
    _, plain = make_optimizer(ml_collections.ConfigDict({**options, "schedule": falling}))
    assert [float(rates(step)) for step in range(8)] == [float(plain(step // 4 * 4)) for step in range(8)]
    moved, _ = make_optimizer(ml_collections.ConfigDict({**options, "schedule": falling, "accumulate": 4}))
    state, gradient = moved.init({"w": jnp.zeros(1)}), {"w": jnp.ones(1)}
    steps = []
    for _ in range(8):
        update, state = moved.update(gradient, state, {"w": jnp.zeros(1)})
        steps.append(-float(update["w"][0]))
    np.testing.assert_allclose(steps, [0, 0, 0, plain(0), 0, 0, 0, plain(4)], rtol=1e-6)
    with pytest.raises(ValueError, match="accumulate=0"):
        make_optimizer(ml_collections.ConfigDict({**options, "accumulate": 0}))


def test_each_array_is_clipped_by_itself():
    grads = {"long": jnp.array([3.0, 4.0]), "short": jnp.array([0.3, 0.4]), "none": jnp.zeros(2)}
    clipped, _ = clip_each(1.0).update(grads, optax.EmptyState())
    np.testing.assert_allclose(clipped["long"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(clipped["short"], grads["short"])
    np.testing.assert_array_equal(clipped["none"], 0)


def test_two_networks_teach_each_other_without_gradient_into_the_teacher():
    objective = cross_supervised(SYSTEM, weight=1.5)
    state, metrics = run([batch()], objective=objective, networks=NETWORKS)
    assert set(metrics[0]) >= {f"loss/{name}/{term}" for name in NETWORKS for term in ("fit", "consistency/agree")}
    agree = [metrics[0][f"loss/{name}/consistency/agree"] for name in NETWORKS]
    assert agree[0] == pytest.approx(agree[1]) and agree[0] > 0
    fresh = init_state(SYSTEM.model, optax.adam(0.1), seed=0, image_shape=(1, 2, 2, 3), networks=NETWORKS)
    kernels = [fresh.params[name]["Dense_0"]["kernel"] for name in NETWORKS]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01, "the two began alike"

    def agreement_of_the_first(second):
        params = {**fresh.params, "second": second}
        _, (terms, _) = objective(params, carried_of(fresh), batch(), jax.random.PRNGKey(0))
        return terms["first/consistency/agree"]

    gradient = jax.grad(agreement_of_the_first)(fresh.params["second"])
    np.testing.assert_array_equal(jax.tree.leaves(gradient)[0], 0)
    assert jax.tree.structure(state.predicting["params"]) == jax.tree.structure(fresh.params["first"])


def test_two_networks_learn_apart_until_images_without_annotation_come():
    later = batch()
    before = {key: value for key, value in later.items() if key != "unlabelled"}
    state, metrics = run([before, later], objective=cross_supervised(SYSTEM, weight=1.5), networks=NETWORKS)
    terms = [{key for key in row if key.startswith("loss/")} for row in metrics]
    assert terms[0] == {f"loss/{name}/fit" for name in NETWORKS}
    assert terms[1] == terms[0] | {f"loss/{name}/consistency/agree" for name in NETWORKS}
    assert int(state.step) == 2


def test_a_system_without_consistency_cannot_cross():
    import dataclasses
    with pytest.raises(ValueError, match="no"):
        cross_supervised(dataclasses.replace(SYSTEM, consistency=None), weight=1.0)
