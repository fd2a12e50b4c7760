"""Cross entropies by hand, at the ends of the number range and against finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxcell.losses.pixels import binary_cross_entropy, softmax_cross_entropy


def test_binary_cross_entropy_by_hand():
    logits, targets = jnp.array([0.0, 0.0, np.log(3.0), 2.0]), jnp.array([0.0, 1.0, 1.0, 0.25])
    soft = -0.25 * np.log(1 / (1 + np.exp(-2))) - 0.75 * np.log(1 / (1 + np.exp(2)))
    np.testing.assert_allclose(binary_cross_entropy(logits, targets), (np.log(2), np.log(2), np.log(4 / 3), soft), rtol=1e-6)


def test_binary_cross_entropy_is_symmetric_and_finite():
    logits, targets = jnp.array([-1e4, -3.0, 0.5, 1e4]), jnp.array([1.0, 0.3, 0.6, 0.0])
    loss = binary_cross_entropy(logits, targets)
    np.testing.assert_allclose(loss, binary_cross_entropy(-logits, 1 - targets), rtol=1e-5)
    np.testing.assert_allclose(loss[jnp.array([0, 3])], 1e4)
    gradient = jax.grad(lambda x: binary_cross_entropy(x, targets).sum())(logits)
    np.testing.assert_allclose(gradient, jax.nn.sigmoid(logits) - targets, atol=1e-6)


def test_softmax_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [4.0, 3.0, 1.0]]))
    np.testing.assert_allclose(softmax_cross_entropy(logits, jnp.array([2, 0])), -np.log([5 / 8, 4 / 8]), rtol=1e-6)
    two = jnp.array([[0.0, 1.7]])
    one = binary_cross_entropy(two[:, 1], jnp.ones(1))
    np.testing.assert_allclose(softmax_cross_entropy(two, jnp.array([1])), one, rtol=1e-6)


def test_gradients():
    rng = np.random.default_rng(0)
    logits, targets = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), jnp.asarray(rng.uniform(size=(3, 4)), jnp.float32)
    check_grads(lambda x: binary_cross_entropy(x, targets), (logits,), order=1, modes=["rev"], eps=1e-2, atol=1e-2, rtol=1e-2)
    classes = jnp.array([3, 0, 1])
    check_grads(lambda x: softmax_cross_entropy(x, classes), (logits,), order=1, modes=["rev"], eps=1e-2, atol=1e-2, rtol=1e-2)


def test_nothing_is_broadcast():
    with pytest.raises(AssertionError):
        binary_cross_entropy(jnp.zeros((3, 1)), jnp.zeros(3))
    with pytest.raises(AssertionError):
        softmax_cross_entropy(jnp.zeros((2, 3)), jnp.zeros((1,), jnp.int32))
    with pytest.raises(AssertionError):
        softmax_cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2))
