"""What a loss carries from step to step: it follows the steps, stays where an update is skipped, and survives a restart."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcell.system import StatefulLoss, System
from jaxcell.training.checkpoint import Checkpoints, restore_state
from jaxcell.training.mesh import make_mesh, replicated, shard_batch
from jaxcell.training.objectives import supervised
from jaxcell.training.state import TrainState, init_state, state_digest
from jaxcell.training.step import descending, make_train_step

OPTIMIZER = optax.sgd(0.1)


class Network(nn.Module):
    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> dict[str, jax.Array]:
        return {"scores": nn.Dense(1, use_bias=False)(image)}


def remember(outputs, batch, memory, step, rng):
    """Keeps the last three means of the outputs; the loss looks back at them."""
    mean = jnp.mean(outputs["scores"])
    loss = jnp.mean((outputs["scores"] - batch["wanted"] - jnp.mean(memory["means"])) ** 2)
    kept = {"means": jnp.roll(memory["means"], 1).at[0].set(mean), "steps": memory["steps"].at[step].set(step)}
    return loss, {"fit": loss, "draw": jax.random.uniform(rng)}, kept


def start() -> dict[str, jax.Array]:
    return {"means": jnp.zeros(3), "steps": jnp.full(6, -1)}


SYSTEM = System(Network(), lambda sample, rng: {}, lambda outputs, batch: {}, lambda outputs: None, 1,
                objective=StatefulLoss(start, remember))


def fresh() -> TrainState:
    return init_state(SYSTEM.model, OPTIMIZER, seed=0, image_shape=(1, 2, 2, 3), memory=start)


def batch(seed: int, *, poison: float = 0.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.random((4, 2, 2, 3), np.float32)
    image[0, 0, 0, 0] += poison
    return {"image": image, "wanted": rng.random((4, 2, 2, 1), np.float32)}


def run(state: TrainState, batches, devices: int = 1) -> tuple[TrainState, list[dict[str, Any]]]:
    mesh, metrics = make_mesh(jax.devices()[:devices]), []
    step, state = make_train_step(descending(supervised(SYSTEM), OPTIMIZER), mesh), jax.device_put(state, replicated(mesh))
    for one in batches:
        state, values = step(state, shard_batch(one, mesh))
        metrics.append(jax.device_get(values))
    return state, metrics


def test_memory_follows_the_steps_and_the_loss_sees_it():
    state, metrics = run(fresh(), [batch(0), batch(1)])
    assert state.memory["steps"].tolist() == [0, 1, -1, -1, -1, -1]
    first = float(jnp.mean(Network().apply({"params": fresh().params}, batch(0)["image"], True)["scores"]))
    np.testing.assert_allclose(state.memory["means"][1], first, rtol=1e-5)
    assert metrics[0]["loss"] == metrics[0]["loss/fit"] and metrics[0]["loss/draw"] != metrics[1]["loss/draw"]
    forgetful, _ = run(fresh().replace(memory=start()), [batch(0)])
    other, _ = run(forgetful.replace(memory=start()), [batch(1)])
    assert np.abs(other.params["Dense_0"]["kernel"] - state.params["Dense_0"]["kernel"]).max() > 0


def test_a_skipped_step_leaves_memory_alone():
    clean, _ = run(fresh(), [batch(0)])
    dirty, metrics = run(fresh(), [batch(0), batch(1, poison=np.nan)])
    assert metrics[-1]["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, dirty.memory, clean.memory)


def test_memory_survives_a_restart_bit_for_bit(tmp_path):
    state, _ = run(fresh(), [batch(0), batch(1)])
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state, {})
    checkpoints.close()
    expected = state_digest(run(state, [batch(2), batch(3)])[0], {})
    restored, _ = restore_state(checkpoints.directory, jax.eval_shape(fresh), replicated(make_mesh(jax.devices()[:1])))
    assert restored.memory["steps"].tolist() == [0, 1, -1, -1, -1, -1]
    assert state_digest(run(restored, [batch(2), batch(3)])[0], {}) == expected


def test_four_devices_remember_what_one_remembers():
    (one, _), (four, _) = (run(fresh(), [batch(i) for i in range(3)], devices) for devices in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5), one.memory, four.memory)


def test_a_memory_of_nothing_leaves_no_trace_in_a_checkpoint(tmp_path):
    """So that checkpoints from before there was a memory, and of systems without one, are alike."""
    plain = init_state(SYSTEM.model, OPTIMIZER, seed=0, image_shape=(1, 2, 2, 3))
    stored = {}
    for name, state in (("plain", plain), ("remembering", fresh())):
        checkpoints = Checkpoints(tmp_path / name, keep=1)
        checkpoints.save(state, {})
        checkpoints.close()
        stored[name] = (checkpoints.directory / "0" / "state" / "_METADATA").read_text()
    assert "opt_state" in stored["plain"] and "memory" not in stored["plain"] and "memory" in stored["remembering"]
    abstract = jax.eval_shape(lambda: plain)
    restored, _ = restore_state(tmp_path / "plain" / "checkpoints", abstract, replicated(make_mesh()))
    assert restored.memory == {}
