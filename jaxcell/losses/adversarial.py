"""What a discriminator's logits cost it, and the generator that tries to mislead it; one value per patch, the caller averages."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jaxcell.losses.pixels import binary_cross_entropy
from jaxcell.losses.regression import squared_error

__all__ = ["ADVERSARIAL", "adversarial_cross_entropy", "adversarial_squares"]


def adversarial_cross_entropy(logits: jax.Array, truth: float) -> jax.Array:
    """Cross entropy of the verdict "real".

    Args:
      logits: any shape; above 0 for real.
      truth: 1 where the verdict should be "real" (of real images; for the generator, of its own), else 0.

    Returns:
      Same shape, >= 0.

    Source: Goodfellow et al., "Generative adversarial nets", NeurIPS 2014, in the form that does not saturate; the thesis,
    equation 4.6, writes the one that does.
    """
    return binary_cross_entropy(logits, jnp.full_like(logits, truth))


def adversarial_squares(logits: jax.Array, truth: float) -> jax.Array:
    """Squared distance of the verdict from `truth`; see `adversarial_cross_entropy`.

    Source: Mao et al., "Least squares generative adversarial networks", ICCV 2017.
    """
    return squared_error(logits, jnp.full_like(logits, truth))


ADVERSARIAL: Mapping[str, Callable[[jax.Array, float], jax.Array]] = {
    "vanilla": adversarial_cross_entropy, "lsgan": adversarial_squares}
"""Losses by the names of the released pix2pix."""
