"""Losses of boxes (y0, x0, y1, x1) and of their uncertainty, one value per pair; the caller masks, weights and averages."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp

from jaxcell.geometry.boxes import paired_giou, paired_iou

__all__ = ["IOU_LOSSES", "iou_loss", "power_likelihood_loss"]

_EPSILON = 1e-8   # the reference's, in logarithms and denominators

IOU_LOSSES = {
    "iou": lambda a, b: 1 - paired_iou(a, b),
    "giou": lambda a, b: 1 - paired_giou(a, b),
    "log-iou": lambda a, b: -jnp.log(paired_iou(a, b) + _EPSILON),
    "log-giou": lambda a, b: -jnp.log((1 + paired_giou(a, b)) / 2 + _EPSILON),
}


def iou_loss(boxes: jax.Array, targets: jax.Array, *, kind: str = "giou") -> jax.Array:
    """How little two boxes overlap.

    Args:
      boxes: [..., 4].
      targets: [..., 4], same shape.
      kind: "iou" 1 - IoU; "giou" 1 - GIoU; "log-iou" -log IoU; "log-giou" -log of GIoU brought to [0, 1].

    Returns:
      [...], >= 0. Finite, with a finite gradient, for empty boxes too; the caller drops those (`valid_boxes`).

    Raises:
      AssertionError: if the shapes differ.
      ValueError: if `kind` is unknown.

    Source: FZJ-INM1-BDA/neurips22-cell-seg@ab6a154, neurips/nn/functional/losses.py `iou_loss`; the paper
      (section 2.2.3) uses "giou", after Rezatofighi et al. 2019.
    """
    chex.assert_equal_shape([boxes, targets])
    if kind not in IOU_LOSSES:
        raise ValueError(f"iou_loss: kind is {kind!r}; it must be one of {sorted(IOU_LOSSES)}.")
    return IOU_LOSSES[kind](boxes, targets)


def power_likelihood_loss(uncertainty: jax.Array, boxes: jax.Array, targets: jax.Array, *, factor: float = 7.0) -> jax.Array:
    """Negative power log-likelihood (NPLL) of box boundaries under Gaussians whose widths the network states.

    With s = factor * sigmoid(uncertainty) the width in pixels and d the error of a boundary, a pair costs
    IoU * (sum over boundaries of (d^2 / (2 s^2) + log(s^2) / 2) + 2 log(2 pi)). The IoU is the power: boxes far from their
    target do not teach the uncertainty. The objective trains the uncertainty alone with it: pass boxes without gradient.

    Args:
      uncertainty: [..., 4] logits of (top, left, bottom, right), in the order of a box.
      boxes: [..., 4] pixels.
      targets: [..., 4] pixels.
      factor: largest width, pixels.

    Returns:
      [...]; negative where the stated width is small and right.

    Raises:
      AssertionError: if the shapes differ.

    Source: eq. 4 of the paper, after Lee et al. 2020 (arXiv:2006.15607); neurips22-cell-seg@ab6a154,
      neurips/nn/functional/losses.py `box_npll_loss`.
    """
    chex.assert_equal_shape([uncertainty, boxes, targets])
    variance = jnp.square(jax.nn.sigmoid(uncertainty) * factor)
    per_boundary = jnp.square(boxes - targets) / (2 * variance + _EPSILON) + jnp.log(variance + _EPSILON) / 2
    return paired_iou(boxes, targets) * (per_boundary.sum(axis=-1) + 2 * math.log(2 * math.pi))
