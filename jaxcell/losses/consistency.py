"""What two networks that look at the same image without annotation shall agree on, element by element; the caller averages.

The other network's outputs are taken as given: no gradient goes into what a term learns from (`training.objectives` calls each
term both ways).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from jaxcell.losses.pixels import softmax_cross_entropy
from jaxcell.losses.regression import squared_error

__all__ = ["AGREEMENTS", "distance_agreement", "logit_agreement", "pseudo_label_cross_entropy"]


def pseudo_label_cross_entropy(logits: jax.Array, other: jax.Array, *, proxies: int = 0) -> jax.Array:
    """Cross entropy against the class that the other network finds most probable.

    Args:
      logits: [..., K].
      other: [..., K], the other network's logits.
      proxies: how many of the last channels are never a pseudo label (they still take their share of the softmax).

    Returns:
      [...], >= 0.

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.

    Source: MAUNet paper, equation 3; Chen et al. 2021, Cross Pseudo Supervision. The paper leaves open whether the proxy may be
      a pseudo label.
    """
    classes = other.shape[-1] - proxies
    return softmax_cross_entropy(logits, jnp.argmax(jax.lax.stop_gradient(other)[..., :classes], axis=-1))


def logit_agreement(logits: jax.Array, other: jax.Array, *, proxies: int = 0) -> jax.Array:
    """Mean squared difference of the logits: agreement without pseudo labels ("CR*" in MAUNet's Table 4, one reading of it).

    Args:
      logits: [..., K].
      other: [..., K], the other network's logits.
      proxies: how many of the last channels are left out.

    Returns:
      [...], >= 0.

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.
    """
    classes = other.shape[-1] - proxies
    return jnp.mean(squared_error(logits, jax.lax.stop_gradient(other))[..., :classes], axis=-1)


def distance_agreement(distance: jax.Array, other: jax.Array) -> jax.Array:
    """Squared difference of the distances of two networks; any shape -> the same.

    Called both ways, the two terms together have the gradient of equation 3's single L2 term and twice its value.

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.

    Source: MAUNet paper, equation 3.
    """
    return squared_error(distance, jax.lax.stop_gradient(other))


AGREEMENTS: Mapping[str, Callable[..., jax.Array]] = {
    "pseudo_labels": pseudo_label_cross_entropy,
    "pseudo_labels_without_proxy": partial(pseudo_label_cross_entropy, proxies=1),
    "logits": logit_agreement,
    "logits_without_proxy": partial(logit_agreement, proxies=1),
}
"""name -> (logits [..., K], the other network's logits) -> [...]; those "without_proxy" take the last channel for the proxy."""
