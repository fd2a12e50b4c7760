"""L1, squared and balanced error by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.losses.regression import (
    BALANCED,
    absolute_error,
    balanced_absolute_error,
    balanced_absolute_error_of_batch,
    squared_error,
)


def test_absolute_error_by_hand():
    predictions, targets = jnp.array([1.0, -2.0, 3.0]), jnp.array([4.0, -2.0, 1.0])
    np.testing.assert_array_equal(absolute_error(predictions, targets), (3, 0, 2))
    np.testing.assert_array_equal(jax.grad(lambda p: absolute_error(p, targets).sum())(predictions), (-1, 0, 1))


def test_squared_error_by_hand():
    predictions, targets = jnp.array([1.0, -2.0, 3.0]), jnp.array([4.0, -2.0, 1.0])
    np.testing.assert_array_equal(squared_error(predictions, targets), (9, 0, 4))
    np.testing.assert_array_equal(jax.grad(lambda p: squared_error(p, targets).sum())(predictions), (-6, 0, 4))


def test_nothing_is_broadcast():
    with pytest.raises(AssertionError):
        absolute_error(jnp.zeros((3, 2)), jnp.zeros(2))
    with pytest.raises(AssertionError):
        squared_error(jnp.zeros((3, 2)), jnp.zeros(2))


def test_balanced_error_by_hand():
    targets = jnp.array([[0.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.0, 0.0]])
    predictions = targets + jnp.array([[0.1, -0.2, 0.3, 0.5], [0.1, 0.3, 0.0, 0.6]])
    np.testing.assert_allclose(balanced_absolute_error(predictions, targets), [0.2 + 0.5, 0.2 + 0.3], rtol=1e-5)
    np.testing.assert_allclose(balanced_absolute_error_of_batch(predictions, targets, epsilon=0.0), 0.9 / 3 + 1.2 / 5, rtol=1e-5)


@pytest.mark.parametrize("name", BALANCED)
def test_pixels_that_do_not_count_and_images_of_one_kind(name):
    targets, predictions = jnp.array([[0.0, 0.0, 1.0]]), jnp.array([[0.5, 9.0, 2.0]])
    counted = jnp.array([[1.0, 0.0, 1.0]])
    np.testing.assert_allclose(BALANCED[name](predictions, targets, counted=counted).mean(), 1.5, rtol=2e-3)
    for alone in (jnp.zeros((1, 3)), jnp.ones((1, 3))):
        value, gradient = jax.value_and_grad(lambda p, t=alone: BALANCED[name](p, t).mean())(alone + 2)
        assert value == pytest.approx(2, rel=1e-3) and np.isfinite(gradient).all()
    assert BALANCED[name](predictions, targets, counted=jnp.zeros((1, 3))).mean() == 0
    with pytest.raises(AssertionError):
        BALANCED[name](predictions, targets[:, :1])
