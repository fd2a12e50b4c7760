"""Distances between predicted and true values, element by element: the caller masks, weights and averages."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

__all__ = ["absolute_error", "squared_error"]


def absolute_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """|predictions - targets| (L1); the gradient where they are equal is 0.

    Args:
      predictions: any shape.
      targets: same shape, same unit.

    Returns:
      Same shape, >= 0.

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.
    """
    chex.assert_equal_shape([predictions, targets])
    difference = predictions - targets
    return difference * jax.lax.stop_gradient(jnp.sign(difference))   # jnp.abs would have the gradient 1 at 0


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """(predictions - targets) ** 2.

    Args:
      predictions: any shape.
      targets: same shape, same unit.

    Returns:
      Same shape, >= 0.

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.
    """
    chex.assert_equal_shape([predictions, targets])
    return jnp.square(predictions - targets)
