"""Distances between predicted and true values: element by element, where the caller masks, weights and averages; and balanced."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

__all__ = ["BALANCED", "absolute_error", "balanced_absolute_error", "balanced_absolute_error_of_batch", "squared_error"]


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


def balanced_absolute_error(predictions: jax.Array, targets: jax.Array, *, counted: jax.Array | None = None) -> jax.Array:
    """The mean absolute error over the foreground plus that over the background, of each image; foreground is a target above 0.

    Args:
      predictions: [B, ...].
      targets: same shape, same unit, >= 0.
      counted: same shape, 1 where a pixel counts and 0 where not; None for all.

    Returns:
      [B], >= 0; a side without pixels adds nothing.

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.

    Source: MAUNet paper, equation 2.
    """
    error, inside, outside = _by_side(predictions, targets, counted)
    axes = tuple(range(1, error.ndim))
    means = [jnp.sum(error * side, axes) / jnp.maximum(jnp.sum(side, axes), 1) for side in (inside, outside)]
    return means[0] + means[1]


def balanced_absolute_error_of_batch(predictions: jax.Array, targets: jax.Array, *, counted: jax.Array | None = None,
                                     epsilon: float = 1e-3) -> jax.Array:
    """`balanced_absolute_error` with both means over all pixels of the batch together.

    Args:
      predictions: any shape.
      targets: same shape.
      counted: same shape, see there.
      epsilon: is added to both counts of pixels.

    Returns:
      Scalar, >= 0.

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.

    Source: Woof6/neurips22-cellseg_saltfish@c2b85d5, train.py wL1Loss.
    """
    error, inside, outside = _by_side(predictions, targets, counted)
    means = [jnp.sum(error * side) / (jnp.sum(side) + epsilon) for side in (inside, outside)]
    return means[0] + means[1]


def _by_side(predictions: jax.Array, targets: jax.Array, counted: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The absolute error, and which pixels are foreground and background (0 or 1)."""
    counted = jnp.ones_like(targets) if counted is None else counted
    chex.assert_equal_shape([targets, counted])
    foreground = (targets > 0).astype(targets.dtype)
    return absolute_error(predictions, targets), foreground * counted, (1 - foreground) * counted


BALANCED: Mapping[str, Callable[..., jax.Array]] = {
    "batch": balanced_absolute_error_of_batch,
    "image": balanced_absolute_error,
}
"""name -> (predictions, targets, counted) -> scalar over the batch (as released), or [B] by image (the paper), to be averaged."""
