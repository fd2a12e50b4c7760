"""L1 and squared error by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.losses.regression import absolute_error, squared_error


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
