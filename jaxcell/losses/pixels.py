"""Classification losses, one value per pixel or proposal; the caller masks, weights and averages."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

__all__ = ["binary_cross_entropy", "softmax_cross_entropy"]


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy of independent yes/no decisions.

    Args:
      logits: any shape.
      targets: same shape, probabilities in [0, 1]; soft targets are allowed.

    Returns:
      Same shape, >= 0.

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.
    """
    chex.assert_equal_shape([logits, targets])
    return jax.nn.softplus(logits) - logits * targets


def softmax_cross_entropy(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Cross entropy of one choice among K classes.

    Args:
      logits: [..., K].
      classes: [...] integers in [0, K).

    Returns:
      [...], >= 0.

    Raises:
      AssertionError: if the leading shapes differ or `classes` are not integers.
    """
    chex.assert_shape(classes, logits.shape[:-1])
    chex.assert_type(classes, int)
    chosen = jnp.take_along_axis(logits, classes[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
