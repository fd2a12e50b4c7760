"""Adversarial losses by hand, and whom their gradients push where."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.losses.adversarial import ADVERSARIAL
from jaxcell.training.adversarial import discriminator_terms, generator_terms

LOGITS = jnp.asarray([-2.0, 0.0, 3.0])


def test_by_hand():
    sigmoid = 1 / (1 + np.exp(-np.asarray(LOGITS)))
    np.testing.assert_allclose(ADVERSARIAL["vanilla"](LOGITS, 1.0), -np.log(sigmoid), rtol=1e-6)
    np.testing.assert_allclose(ADVERSARIAL["vanilla"](LOGITS, 0.0), -np.log(1 - sigmoid), rtol=1e-6)
    np.testing.assert_allclose(ADVERSARIAL["lsgan"](LOGITS, 1.0), [9, 1, 4])
    np.testing.assert_allclose(ADVERSARIAL["lsgan"](LOGITS, 0.0), [4, 0, 9])
    terms = discriminator_terms(LOGITS, jnp.asarray([1.0]), adversarial=ADVERSARIAL["lsgan"])
    assert {name: float(value) for name, value in terms.items()} == pytest.approx({"real": 14 / 6, "fake": 0.5})


@pytest.mark.parametrize("name", sorted(ADVERSARIAL))
def test_the_generator_wants_what_the_discriminator_does_not(name):
    """The generator still learns where its images are surely rejected: the loss does not saturate."""
    fake = jnp.full(4, -8.0)
    for_generator = jax.grad(lambda x: generator_terms(x, adversarial=ADVERSARIAL[name])["adversarial"])(fake)
    for_discriminator = jax.grad(lambda x: discriminator_terms(x, x, adversarial=ADVERSARIAL[name])["fake"])(jnp.full(4, 8.0))
    assert (for_generator < -0.1).all() and (for_discriminator > 0.1).all()
