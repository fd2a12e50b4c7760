"""Dice and focal losses by hand, against each other, and in one dimension."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.losses.masks import FOCALS, dice_loss, focal_loss, focal_of_probabilities, focal_twice_squashed

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(2, 5, 6, 4)), jnp.float32)
TARGET = jax.nn.one_hot(RNG.integers(0, 3, (2, 5, 6)), 3)


def test_dice_by_hand():
    p, y = jnp.array([0.5, 0.5, 0.0, 1.0]).reshape(1, 2, 2, 1), jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 2, 2, 1)
    assert dice_loss(p, y, smooth=1.0)[0, 0] == pytest.approx(1 - (2 * 1.5 + 1) / (4 + 1))
    np.testing.assert_allclose(dice_loss(TARGET, TARGET), 0, atol=1e-6)
    assert dice_loss(jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 3))).tolist() == [[0, 0, 0]]


def test_dice_is_of_each_image_and_class():
    p = jax.nn.softmax(LOGITS)[..., :3]
    alone = np.stack([dice_loss(p[i:i + 1, ..., k:k + 1], TARGET[i:i + 1, ..., k:k + 1])[0, 0]
                      for i in range(2) for k in range(3)])
    np.testing.assert_allclose(dice_loss(p, TARGET).ravel(), alone, rtol=1e-6)


def test_focal_by_hand():
    q = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(focal_loss(jnp.array([2.0, 2.0]), jnp.array([1.0, 0.0]), gamma=3.0),
                               [-(1 - q) ** 3 * np.log(q), -q ** 3 * np.log(1 - q)], rtol=1e-5)


def test_a_perfect_prediction_costs_what_the_release_makes_it_cost():
    perfect = 100 * jnp.pad(TARGET, [(0, 0)] * 3 + [(0, 1)])
    assert float(focal_twice_squashed(perfect, TARGET).mean()) == pytest.approx(0.1231 * 1, abs=2e-4)
    assert float(focal_of_probabilities(perfect, TARGET).mean()) == pytest.approx(0, abs=1e-6)


def test_focal_of_probabilities_is_their_binary_focal_loss():
    p = np.asarray(jax.nn.softmax(LOGITS), np.float64)[..., :3]
    truth = np.where(TARGET > 0, p, 1 - p)
    np.testing.assert_allclose(focal_of_probabilities(LOGITS, TARGET), -(1 - truth) ** 2 * np.log(truth), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", FOCALS)
def test_gradients_are_finite_at_extreme_logits(name):
    for scale in (0.0, 1.0, 200.0):
        gradient = jax.grad(lambda x: FOCALS[name](x, TARGET).mean())(scale * LOGITS)
        assert np.isfinite(gradient).all()
    assert FOCALS[name](LOGITS, TARGET).shape == TARGET.shape


def test_nothing_is_broadcast():
    with pytest.raises(AssertionError):
        dice_loss(LOGITS, TARGET)
    with pytest.raises(AssertionError):
        focal_loss(jnp.zeros((2, 3)), jnp.zeros(3))
