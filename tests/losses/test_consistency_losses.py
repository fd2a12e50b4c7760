"""What two networks agree on: pseudo labels, logits, distances; and who learns from whom."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.losses.consistency import AGREEMENTS, distance_agreement, logit_agreement, pseudo_label_cross_entropy

RNG = np.random.default_rng(0)
ONE, TWO = (jnp.asarray(RNG.normal(size=(2, 3, 4, 4)), jnp.float32) for _ in range(2))


@pytest.mark.parametrize("proxies", (0, 1))
def test_pseudo_labels_by_hand(proxies):
    label = np.asarray(TWO)[..., :4 - proxies].argmax(-1)
    logs = np.asarray(jax.nn.log_softmax(ONE))
    np.testing.assert_allclose(pseudo_label_cross_entropy(ONE, TWO, proxies=proxies),
                               -np.take_along_axis(logs, label[..., None], -1)[..., 0], rtol=1e-5)


def test_logits_and_distances_by_hand():
    np.testing.assert_allclose(logit_agreement(ONE, TWO), np.square(ONE - TWO).mean(-1), rtol=1e-5)
    np.testing.assert_allclose(logit_agreement(ONE, TWO, proxies=1), np.square(ONE - TWO)[..., :3].mean(-1), rtol=1e-5)
    np.testing.assert_array_equal(distance_agreement(ONE, TWO), jnp.square(ONE - TWO))


@pytest.mark.parametrize("name", AGREEMENTS)
def test_one_learns_and_the_other_teaches(name):
    learns, teaches = jax.grad(lambda a, b: AGREEMENTS[name](a, b).sum(), argnums=(0, 1))(ONE, TWO)
    assert np.abs(learns).max() > 0 and not np.abs(teaches).any()
    assert AGREEMENTS[name](ONE, TWO).shape == ONE.shape[:-1]


def test_both_ways_distances_have_the_gradient_of_one_term():
    both = jax.grad(lambda a, b: distance_agreement(a, b).mean() + distance_agreement(b, a).mean(), argnums=(0, 1))(ONE, TWO)
    plain = jax.grad(lambda a, b: jnp.square(a - b).mean(), argnums=(0, 1))(ONE, TWO)
    for found, expected in zip(both, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
