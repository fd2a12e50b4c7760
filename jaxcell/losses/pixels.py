"""Classification losses, one value per pixel or proposal; the caller masks, weights and averages."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

__all__ = ["binary_cross_entropy", "binary_focal", "categorical_cross_entropy", "class_weights", "softmax_cross_entropy",
           "weighted_cross_entropy", "weighted_focal"]

_CLIP = 1e-7     # of probabilities, so that a logarithm stays finite


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


def binary_focal(logits: jax.Array, targets: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """Cross entropy of independent yes/no decisions in which what is nearly certain counts little, and yes and no differently.

    Args:
      logits: any shape; probabilities p are their sigmoid.
      targets: same shape, in [0, 1]; a soft target y is y of a yes and 1 - y of a no.
      alpha: factor of a yes, 1 - alpha of a no.
      gamma: >= 0; a yes counts (1 - p) ** gamma, a no p ** gamma.

    Returns:
      Same shape, >= 0.

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, equation 5; fvcore, sigmoid_focal_loss.
    """
    chex.assert_equal_shape([logits, targets])
    yes = alpha * jax.nn.sigmoid(-logits) ** gamma * jax.nn.softplus(-logits)
    no = (1 - alpha) * jax.nn.sigmoid(logits) ** gamma * jax.nn.softplus(logits)
    return targets * yes + (1 - targets) * no


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


def categorical_cross_entropy(probabilities: jax.Array, target: jax.Array) -> jax.Array:
    """Cross entropy of one choice among K classes, from probabilities.

    Args:
      probabilities: [..., K], >= 0; they are divided by their sum and clipped to [1e-7, 1 - 1e-7], where the gradient is 0.
      target: [..., K] one-hot (or soft); all zeros where a pixel is to be ignored.

    Returns:
      [...], >= 0; 0 where the target is all zeros.

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.

    Source: deepcell-tf@f1839a4eac03, losses.py categorical_crossentropy.
    """
    chex.assert_equal_shape([probabilities, target])
    return -(target * jnp.log(_clipped(probabilities))).sum(-1)


def class_weights(target: jax.Array) -> jax.Array:
    """Weights that let each class count about the same in a batch: total / (K * (count + 1)).

    Args:
      target: [..., K] one-hot, of the whole batch; pixels of all zeros count for no class.

    Returns:
      [K].

    Source: deepcell-tf@f1839a4eac03, losses.py weighted_categorical_crossentropy.
    """
    counts = target.sum(tuple(range(target.ndim - 1)))
    return counts.sum() / (target.shape[-1] * (counts + 1))


def weighted_cross_entropy(probabilities: jax.Array, target: jax.Array, *, weights: jax.Array | None = None) -> jax.Array:
    """Cross entropy in which every class counts about the same, however few its pixels are.

    Args:
      probabilities: [..., K], see `categorical_cross_entropy`.
      target: [..., K] one-hot; all zeros where a pixel is to be ignored: it counts neither in the loss nor in the weights.
      weights: [K]; None for those of this batch (see `class_weights`).

    Returns:
      [...], >= 0; 0 where the target is all zeros. (The reference averages over all pixels.)

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.

    Source: the paper, section 3 (its "softmax loss", times 0.01); deepcell-tf@f1839a4eac03, losses.py
      weighted_categorical_crossentropy.
    """
    weights = class_weights(target) if weights is None else weights
    return categorical_cross_entropy(probabilities, target * weights)


def weighted_focal(probabilities: jax.Array, target: jax.Array, *, gamma: float = 2.0, weights: jax.Array | None = None
                   ) -> jax.Array:
    """`weighted_cross_entropy` in which certain pixels count less: times (1 - probability) ** gamma.

    Args:
      probabilities: [..., K], see `categorical_cross_entropy`.
      target: [..., K] one-hot; all zeros where a pixel is to be ignored.
      gamma: >= 0; 0 gives the cross entropy.
      weights: [K]; None for those of this batch.

    Returns:
      [...], >= 0.

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, equation 4; deepcell-tf@f1839a4eac03, losses.py
      weighted_focal_loss.
    """
    weights = class_weights(target) if weights is None else weights
    rest = (1 - _clipped(probabilities)) ** gamma
    return categorical_cross_entropy(probabilities, target * weights * rest)


def _clipped(probabilities: jax.Array) -> jax.Array:
    return jnp.clip(probabilities / probabilities.sum(-1, keepdims=True), _CLIP, 1 - _CLIP)
