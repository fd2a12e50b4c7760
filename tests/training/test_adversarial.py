"""Two networks in turn: what a step does, written out by hand; and images that are made and scored."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcell.losses.adversarial import ADVERSARIAL
from jaxcell.system import Adversary, System
from jaxcell.systems.pix2pix import drawn_planes, no_cells, plane_targets, shown_planes
from jaxcell.training.adversarial import alternating, init_adversarial_state
from jaxcell.training.mesh import make_mesh
from jaxcell.training.step import make_train_step
from jaxcell.translate import Features, score_images
from jaxcell.types import Sample

RATE = 0.1


class Maker(nn.Module):
    @nn.compact
    def __call__(self, image, train=False):
        return {"planes": jnp.tanh(nn.Dense(1)(image[..., :1]))}


class Judge(nn.Module):
    @nn.compact
    def __call__(self, image, train=False):
        return nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(1)(image))


def distance(outputs, batch):
    return {"l1": 10 * jnp.mean(jnp.abs(outputs["planes"] - batch["planes"]))}


ADVERSARY = Adversary(Judge(), partial(shown_planes, inputs=1), ADVERSARIAL["lsgan"])
SYSTEM = System(Maker(), partial(plane_targets, inputs=1), distance, no_cells, 1, adversary=ADVERSARY, draw=drawn_planes)


def batch_of(seed=0):
    image = np.random.default_rng(seed).random((2, 4, 4, 2)).astype(np.float32)
    return {"image": image, "planes": 2 * image[..., 1:] - 1}


def judged(variables, maps, batch):
    logits, new = Judge().apply(variables, shown_planes(maps, batch, inputs=1), True, mutable=["batch_stats"])
    return logits, new["batch_stats"]


def test_a_step_by_hand():
    """The discriminator first, on the outputs of the old generator; the generator against the new discriminator."""
    state = jax.jit(lambda: init_adversarial_state(SYSTEM, optax.sgd(RATE), seed=0, image_shape=(1, 4, 4, 2)))()
    batch, before = batch_of(), jax.device_get(state)
    maker, judge, stats = before.params["generator"], before.params["discriminator"], before.batch_stats["discriminator"]

    outputs = Maker().apply({"params": maker}, batch["image"])

    def verdicts(params):
        fake, after = judged({"params": params, "batch_stats": stats}, outputs, batch)
        real, after = judged({"params": params, "batch_stats": after}, batch, batch)
        return 0.5 * jnp.mean(fake ** 2) + 0.5 * jnp.mean((real - 1) ** 2), after

    (judge_loss, stats), slope = jax.value_and_grad(verdicts, has_aux=True)(judge)
    judge = jax.tree.map(lambda p, g: p - RATE * g, judge, slope)

    def misleading(params):
        made = Maker().apply({"params": params}, batch["image"])
        fake, after = judged({"params": judge, "batch_stats": stats}, made, batch)
        return jnp.mean((fake - 1) ** 2) + distance(made, batch)["l1"], after

    (loss, stats), slope = jax.value_and_grad(misleading, has_aux=True)(maker)
    maker = jax.tree.map(lambda p, g: p - RATE * g, maker, slope)

    step = make_train_step(alternating(SYSTEM, optax.sgd(RATE)), make_mesh(jax.devices()[:1]))
    after, metrics = jax.device_get(step(state, batch))
    assert float(metrics["loss"]) == pytest.approx(float(loss + judge_loss), rel=1e-5)
    assert {key.removeprefix("loss/") for key in metrics if key.startswith("loss/")} == {
        "generator/adversarial", "generator/l1", "discriminator/real", "discriminator/fake"}
    for got, wanted in ((after.params["generator"], maker), (after.params["discriminator"], judge),
                        (after.batch_stats["discriminator"], stats)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, wanted)
    assert after.predicting["params"].keys() == maker.keys()


def test_a_step_that_is_not_finite_changes_neither():
    state = jax.jit(lambda: init_adversarial_state(SYSTEM, optax.adam(RATE), seed=0, image_shape=(1, 4, 4, 2)))()
    batch, before = batch_of(), jax.device_get(state)
    batch["planes"][0, 0, 0, 0] = np.nan
    step = make_train_step(alternating(SYSTEM, optax.adam(RATE)), make_mesh(jax.devices()[:1]))
    after, metrics = jax.device_get(step(state, batch))
    assert metrics["skipped_in_a_row"] == 1
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (before.params, before.opt_state))


def test_a_system_without_an_adversary_is_refused():
    plain = System(Maker(), partial(plane_targets, inputs=1), distance, no_cells, 1)
    with pytest.raises(ValueError, match="no adversary"):
        alternating(plain, optax.sgd(RATE))


def test_images_are_scored_as_they_are_learnt(tmp_path):
    image = np.zeros((6, 8, 3), np.uint8)
    image[..., 1:] = 51
    made = np.full((6, 8, 2), 0.3, np.float32)
    samples = [Sample(image, name="one")] * 2
    error = score_images(lambda stored: made, samples, normalize={"name": "type_range"}, pictures=tmp_path, picture_count=1)
    assert error == {"l1": pytest.approx(0.1)}
    features = Features("distance", lambda planes: np.stack([planes.mean((1, 2)), planes[:, 0, 0] ** 2], axis=1))
    together = score_images(lambda stored: made, samples, normalize={"name": "type_range"}, features=features)
    assert together["distance"] == pytest.approx(0.1 ** 2 + (0.3 ** 2 - 0.2 ** 2) ** 2, rel=1e-4)      # no spread: means alone
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]
    turned = [Sample(np.roll(image, -1, axis=2), name="one")]
    shown = []
    assert score_images(lambda stored: shown.append(stored) or made, turned, normalize={"name": "type_range"},
                        planes=(2, 0, 1)) == error
    np.testing.assert_array_equal(shown[0], image)
    with pytest.raises(ValueError, match="no samples"):
        score_images(lambda stored: made, [], normalize={"name": "type_range"})


def test_it_finds_no_cells():
    with pytest.raises(ValueError, match="jaxcell synthesize"):
        SYSTEM.decode({})
