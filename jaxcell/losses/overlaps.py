"""Losses of the pixels where cells overlap, guided by a map that says how likely that is: one value per pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import chex
import jax

from jaxcell.losses.pixels import binary_focal

__all__ = ["OVERLAP_LOSSES", "guided_focal", "pixel_weighted_focal", "reweighted_focal", "unguided_focal"]


def unguided_focal(logits: jax.Array, target: jax.Array, likelihood: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0
                   ) -> jax.Array:
    """`binary_focal`, whatever the map says; arguments and result as in `reweighted_focal`."""
    chex.assert_equal_shape([logits, likelihood])
    return binary_focal(logits, target, alpha=alpha, gamma=gamma)


def reweighted_focal(logits: jax.Array, target: jax.Array, likelihood: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0
                     ) -> jax.Array:
    """The focal loss of the target times 1 - likelihood: an overlap that was to be expected is asked for less firmly.

    Args:
      logits: any shape.
      target: same shape, 1 where cells overlap, else 0.
      likelihood: same shape, in [0, 1], a map of `targets.overlaps`.
      alpha: see `binary_focal`; the thesis names none.
      gamma: see there.

    Returns:
      Same shape, >= 0.

    Raises:
      AssertionError: if the shapes differ; nothing is broadcast.

    Source: the thesis, equation 4.5, which puts y' = y (1 - P) for y in both places. Where P is 1 in every overlap, as in the
      maps v2, v3 and v4, no overlap is left to be learnt: use `guided_focal`.
    """
    chex.assert_equal_shape([logits, likelihood])
    return binary_focal(logits, target * (1 - likelihood), alpha=alpha, gamma=gamma)


def guided_focal(logits: jax.Array, target: jax.Array, likelihood: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0
                 ) -> jax.Array:
    """The focal loss, times 1 - likelihood where cells do not overlap: to see one is the more wrong, the farther cells are apart.

    Arguments and result as in `reweighted_focal`.

    Source: the thesis, section 4.3 in words ("punish the model more for predicting high values in regions of low confidence").
    Departs: from equation 4.5, `reweighted_focal`, which takes the overlaps out of the target instead.
    """
    return (target + (1 - target) * (1 - likelihood)) * unguided_focal(logits, target, likelihood, alpha=alpha, gamma=gamma)


def pixel_weighted_focal(logits: jax.Array, target: jax.Array, likelihood: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0
                         ) -> jax.Array:
    """The focal loss times the likelihood: pixels where cells are near each other count more, all else little.

    Arguments and result as in `reweighted_focal`.

    Source: the thesis, equation 5.1.
    """
    return likelihood * unguided_focal(logits, target, likelihood, alpha=alpha, gamma=gamma)


OVERLAP_LOSSES: Mapping[str, Callable[..., jax.Array]] = {
    "focal": unguided_focal, "guided": guided_focal, "reweighted": reweighted_focal, "pixel_weighted": pixel_weighted_focal}
"""name -> (logits, target, likelihood) -> loss of every pixel."""
