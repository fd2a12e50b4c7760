"""Dice losses: how well the regions of classes overlap."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

__all__ = ["squared_dice"]


def squared_dice(probabilities: jax.Array, target: jax.Array, *, smooth: float = 1e-5) -> jax.Array:
    """1 - (2 sum(p y) + smooth) / (sum(p^2) + sum(y^2) + smooth), the sums over all pixels of the batch together.

    Args:
      probabilities: [..., K] in [0, 1]; 0 in all channels where a pixel is to be ignored.
      target: [..., K] one-hot; all zeros there too.
      smooth: > 0; a class that is neither there nor predicted costs nothing.

    Returns:
      [K] in [0, 1].

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.

    Source: MorphoSeg, equation 10; RanchoGoose/MorphoSeg@a2ab9fe, utils.py DiceLoss.
    """
    chex.assert_equal_shape([probabilities, target])
    pixels = tuple(range(target.ndim - 1))
    shared = jnp.sum(probabilities * target, pixels)
    both = jnp.sum(jnp.square(probabilities) + jnp.square(target), pixels)
    return 1 - (2 * shared + smooth) / (both + smooth)
