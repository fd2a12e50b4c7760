"""Losses of masks: how well regions overlap (Dice), and focal losses of classes of which each is a decision of its own.

Classes are the first K of the network's channels; channels beyond them (an anti-ambiguity proxy) take their share of the softmax
and are never a target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from jaxcell.losses.pixels import binary_cross_entropy

__all__ = ["FOCALS", "dice_loss", "focal_loss", "focal_of_logits", "focal_of_probabilities", "focal_twice_squashed"]


def dice_loss(probabilities: jax.Array, target: jax.Array, *, smooth: float = 1e-5) -> jax.Array:
    """1 - (2 sum(p y) + smooth) / (sum(p) + sum(y) + smooth) over the pixels of each image and class; sums are not squared.

    Args:
      probabilities: [B, H, W, K] in [0, 1]; 0 in all channels where a pixel is to be ignored.
      target: [B, H, W, K] one-hot; all zeros there too.
      smooth: > 0; a class that is neither there nor predicted costs nothing.

    Returns:
      [B, K] in [0, 1].

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.

    Source: Milletari et al. 2016, V-Net; MONAI 1.6, DiceLoss(include_background=True, squared_pred=False).
    """
    chex.assert_equal_shape([probabilities, target])
    chex.assert_rank(probabilities, 4)
    shared, both = (jnp.sum(x, (1, 2)) for x in (probabilities * target, probabilities + target))
    return 1 - (2 * shared + smooth) / (both + smooth)


def focal_loss(logits: jax.Array, targets: jax.Array, *, gamma: float = 2.0) -> jax.Array:
    """Cross entropy of independent yes/no decisions, times (1 - probability of the truth) ** gamma.

    Args:
      logits: any shape; probabilities are their sigmoid.
      targets: same shape, 0 or 1.
      gamma: >= 0.

    Returns:
      Same shape, >= 0.

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, equation 4, without alpha; MONAI 1.6, FocalLoss.
    """
    rest = jax.nn.sigmoid(logits * (1 - 2 * targets))
    return rest ** gamma * binary_cross_entropy(logits, targets)


def focal_twice_squashed(logits: jax.Array, target: jax.Array, *, gamma: float = 2.0) -> jax.Array:
    """`focal_loss` that takes the softmax probabilities for logits, so that a perfect prediction still costs 0.1231.

    Args:
      logits: [..., K + proxies].
      target: [..., K] one-hot.
      gamma: >= 0.

    Returns:
      [..., K], >= 0.

    Source: Woof6/neurips22-cellseg_saltfish@c2b85d5, train.py: MONAI's DiceFocalLoss is given probabilities.
    """
    return focal_loss(jax.nn.softmax(logits)[..., :target.shape[-1]], target, gamma=gamma)


def focal_of_logits(logits: jax.Array, target: jax.Array, *, gamma: float = 2.0) -> jax.Array:
    """`focal_loss` of the logits of the classes, without the softmax; arguments and result as in `focal_twice_squashed`."""
    return focal_loss(logits[..., :target.shape[-1]], target, gamma=gamma)


def focal_of_probabilities(logits: jax.Array, target: jax.Array, *, gamma: float = 2.0) -> jax.Array:
    """The focal loss of the softmax probabilities themselves, each a yes/no decision, as the paper's equation 1 reads.

    Arguments and result as in `focal_twice_squashed`.
    """
    logs = jax.nn.log_softmax(logits)
    # The log of one class against all others together, whose sigmoid is the softmax probability.
    others = _log_of_rest(logs)
    odds = (logs - others)[..., :target.shape[-1]]
    return focal_loss(odds, target, gamma=gamma)


def _log_of_rest(logs: jax.Array) -> jax.Array:
    """log(1 - p) of log-probabilities [..., K]: the log-sum of the other channels, which is exact where p is nearly 1."""
    channels = logs.shape[-1]
    own = jnp.eye(channels, dtype=bool)
    return jax.nn.logsumexp(jnp.where(own, -jnp.inf, logs[..., None, :]), axis=-1)


FOCALS: Mapping[str, Callable[..., jax.Array]] = {
    "released": focal_twice_squashed, "logits": focal_of_logits, "probabilities": focal_of_probabilities}
"""name -> (logits [..., K + proxies], target [..., K] one-hot, gamma) -> [..., K]; the authors trained with "released"."""
