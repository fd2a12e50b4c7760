"""Schedules and optimizers against hand-computed values."""

from __future__ import annotations

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxcell.training.optimizer import make_optimizer, make_schedule, warmup_multistep


def test_warmup_multistep_by_hand():
    schedule = warmup_multistep(base=1.0, milestones=(10, 20), gamma=0.5, warmup_steps=4, warmup_factor=0.1)
    assert [float(schedule(t)) for t in (0, 2, 4, 9, 10, 19, 20)] == pytest.approx([0.1, 0.55, 1, 1, 0.5, 0.5, 0.25])


def test_first_adam_update_with_l2_is_minus_the_rate_times_the_sign_of_gradient_plus_decay():
    config = ml_collections.ConfigDict({"name": "adam", "l2": 0.5, "schedule": {"name": "constant", "base": 0.1}})
    transformation, _ = make_optimizer(config)
    params = {"w": jnp.asarray([2.0, -2.0, 2.0])}
    updates, _ = transformation.update({"w": jnp.asarray([1.0, 0.5, -1.5])}, transformation.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.1, 0.1, 0.1], atol=1e-6)     # signs of 2, -0.5, -0.5


def test_clip_norm_limits_the_gradient():
    config = ml_collections.ConfigDict({"name": "sgd", "momentum": 0.0, "clip_norm": 1.0,
                                        "schedule": {"name": "constant", "base": 1.0}})
    transformation, _ = make_optimizer(config)
    params = {"w": jnp.zeros(2)}
    updates, _ = transformation.update({"w": jnp.asarray([3.0, 4.0])}, transformation.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.6, -0.8], rtol=1e-6)


def test_options_of_another_optimizer_are_named():
    config = ml_collections.ConfigDict({"name": "sgd", "weight_decay": 0.1, "schedule": {"name": "constant", "base": 0.1}})
    with pytest.raises(ValueError, match="weight_decay.*momentum, nesterov, l2"):
        make_optimizer(config)


@pytest.mark.parametrize("table", ["optimizer", "schedule"])
def test_unknown_names_list_the_known_ones(table):
    if table == "schedule":
        with pytest.raises(ValueError, match="warmup_cosine"):
            make_schedule({"name": "cosin", "base": 1.0})
    else:
        with pytest.raises(ValueError, match="adamw"):
            make_optimizer(ml_collections.ConfigDict({"name": "adma", "schedule": {"name": "constant", "base": 1.0}}))


def test_step_decay_by_hand():
    schedule = make_schedule(ml_collections.ConfigDict({"name": "step_decay", "base": 1.0, "every": 10, "factor": 0.5}))
    assert [float(schedule(t)) for t in (0, 9, 10, 19, 20, 35)] == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.125])
