"""Cross entropies by hand, at the ends of the number range and against finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxcell.losses.pixels import (
    binary_cross_entropy,
    categorical_cross_entropy,
    class_weights,
    softmax_cross_entropy,
    weighted_cross_entropy,
    weighted_focal,
)


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
    with pytest.raises(AssertionError):
        categorical_cross_entropy(jnp.zeros((2, 3)), jnp.zeros((1, 3)))


TARGET = jnp.asarray([[1, 0], [0, 1], [0, 1], [0, 1], [0, 0]], jnp.float32)      # the last pixel is ignored
PROBABILITIES = jnp.asarray([[0.5, 0.5], [0.2, 0.8], [1, 1], [1, 0], [0.9, 0.1]], jnp.float32)


def test_categorical_cross_entropy_by_hand():
    expected = [np.log(2), -np.log(0.8), np.log(2), -np.log(1e-7), 0]
    np.testing.assert_allclose(categorical_cross_entropy(PROBABILITIES, TARGET), expected, rtol=1e-6)
    np.testing.assert_allclose(categorical_cross_entropy(7 * PROBABILITIES, TARGET), expected, rtol=1e-6)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    classes = jnp.asarray([0, 1, 2, 2, 1, 0])
    np.testing.assert_allclose(categorical_cross_entropy(jax.nn.softmax(logits), jax.nn.one_hot(classes, 3)),
                               softmax_cross_entropy(logits, classes), rtol=1e-5)


def test_weights_make_classes_count_alike_and_leave_ignored_pixels_out():
    np.testing.assert_allclose(class_weights(TARGET), (4 / (2 * 2), 4 / (2 * 4)))
    plain = categorical_cross_entropy(PROBABILITIES, TARGET)
    expected = plain * jnp.asarray([1, 0.5, 0.5, 0.5, 0])
    np.testing.assert_allclose(weighted_cross_entropy(PROBABILITIES, TARGET), expected, rtol=1e-6)
    without = weighted_cross_entropy(PROBABILITIES[:4], TARGET[:4])
    np.testing.assert_array_equal(weighted_cross_entropy(PROBABILITIES, TARGET)[:4], without)
    doubled = weighted_cross_entropy(PROBABILITIES, TARGET, weights=jnp.asarray([2.0, 2.0]))
    np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-6)
    assert jnp.isfinite(weighted_cross_entropy(PROBABILITIES, jnp.zeros_like(TARGET))).all()


def test_focal_loss_counts_certain_pixels_less():
    np.testing.assert_allclose(weighted_focal(PROBABILITIES, TARGET, gamma=0.0), weighted_cross_entropy(PROBABILITIES, TARGET))
    ratio = weighted_focal(PROBABILITIES, TARGET, gamma=2.0)[:3] / weighted_cross_entropy(PROBABILITIES, TARGET)[:3]
    np.testing.assert_allclose(ratio, (0.25, 0.04, 0.25), rtol=1e-5)


def test_gradients_of_probabilities_are_finite():
    for loss in (categorical_cross_entropy, weighted_cross_entropy, weighted_focal):
        gradient = jax.grad(lambda p, f=loss: f(p, TARGET).sum())(PROBABILITIES)
        assert jnp.isfinite(gradient).all() and (gradient[4] == 0).all()
    inside = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (5, 2)), jnp.float32)
    check_grads(lambda p: weighted_cross_entropy(p, TARGET), (inside,), order=1, modes=["rev"], eps=1e-3, atol=1e-2, rtol=1e-2)
