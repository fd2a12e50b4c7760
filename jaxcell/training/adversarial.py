"""Two networks against each other: one learns to tell images that the other made from real ones, which learns to mislead it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

__all__ = ["discriminator_terms", "generator_terms"]

Adversarial = Callable[[jax.Array, float], jax.Array]


def discriminator_terms(real: jax.Array, fake: jax.Array, *, adversarial: Adversarial) -> dict[str, jax.Array]:
    """What its verdicts cost a discriminator; half of each, which slows it down beside the generator.

    Args:
      real, fake: logits of real images and of made ones, any shape.
      adversarial: an entry of `jaxcell.losses.adversarial.ADVERSARIAL`.

    Source: Isola et al. 2017, section 3.3.
    """
    return {"real": 0.5 * jnp.mean(adversarial(real, 1.0)), "fake": 0.5 * jnp.mean(adversarial(fake, 0.0))}


def generator_terms(fake: jax.Array, *, adversarial: Adversarial) -> dict[str, jax.Array]:
    """What the verdicts on its images cost a generator: they should be "real"."""
    return {"adversarial": jnp.mean(adversarial(fake, 1.0))}
