"""Losses of a set of masks that was matched with the cells: how sure, how well covered, how well foretold.

N queries, M places for cells; `queries` [B, M] names the query of each cell and is -1 in rows without one (`jaxcell.matching`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp

from jaxcell.losses.pixels import binary_cross_entropy, binary_focal
from jaxcell.losses.regression import squared_error

__all__ = ["OBJECTNESS_ERRORS", "RELEASED_IOU_THRESHOLD", "found_queries", "instance_losses", "mask_dice", "mask_iou", "of_cells",
           "resize_masks"]

RELEASED_IOU_THRESHOLD = 0.6224593312018546      # the released code compares logits, not probabilities, with 0.5


def _squared_of_probability(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return squared_error(jax.nn.sigmoid(logits), targets)


OBJECTNESS_ERRORS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross_entropy": binary_cross_entropy, "squared": _squared_of_probability, "squared_logit": squared_error}
"""name -> (logits, IoU) -> error: SparseInst's, the thesis' equation 5.2 of a probability, and of the output as it is."""


def resize_masks(masks: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Masks [B, M, H, W] at another size [B, M, h, w], bilinear between pixel centres (so 0 and 1 become soft), float32.

    Source: PyTorch's interpolate(mode="bilinear", align_corners=False), as SparseInst calls it: nothing is smoothed beforehand.
    """
    masks = masks.astype(jnp.float32)
    if masks.shape[2:] == tuple(shape):
        return masks
    return jax.image.resize(masks, (*masks.shape[:2], *shape), "linear", antialias=False)


def of_cells(values: jax.Array, queries: jax.Array) -> jax.Array:
    """What the queries of the cells say: [B, N, ...] and [B, M] -> [B, M, ...]; rows without a query hold anybody's."""
    index = jnp.maximum(queries, 0).reshape(*queries.shape, *[1] * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)


def found_queries(queries: jax.Array, count: int) -> jax.Array:
    """Which of `count` queries answer for a cell: [B, M] -> [B, count] float32, 1 or 0."""
    return (queries[:, :, None] == jnp.arange(count)).any(1).astype(jnp.float32)


def mask_dice(logits: jax.Array, masks: jax.Array, annotated: jax.Array) -> jax.Array:
    """1 - 2 sum(p g) / (sum(p^2) + sum(g^2) + 1e-4), of each pair.

    Args:
      logits: [B, M, h, w].
      masks: [B, M, h, w] in [0, 1].
      annotated: [B, h, w], 0 where a pixel is to be ignored, else 1.

    Returns:
      [B, M] in [0, 1].

    Source: the thesis, equation 4.14; SparseInst@a895019, sparseinst/loss.py dice_loss.
    """
    chex.assert_equal_shape([logits, masks])
    p, g = (x * annotated[:, None] for x in (jax.nn.sigmoid(logits), masks))
    return 1 - 2 * jnp.sum(p * g, (2, 3)) / (jnp.sum(p * p, (2, 3)) + jnp.sum(g * g, (2, 3)) + 1e-4)


def mask_iou(logits: jax.Array, masks: jax.Array, annotated: jax.Array, *, threshold: float = 0.4) -> jax.Array:
    """Intersection over union of each pair of masks made hard: what objectness foretells. It has no gradient.

    Args:
      logits: [B, M, h, w].
      masks: [B, M, h, w] in [0, 1]; above 0.5 is the cell.
      annotated: [B, h, w], 0 where a pixel is to be ignored, else 1.
      threshold: of the probability, in (0, 1).

    Returns:
      [B, M] in [0, 1].

    Source: SparseInst@a895019, sparseinst/loss.py compute_mask_iou; for the released code see `RELEASED_IOU_THRESHOLD`.
    """
    chex.assert_equal_shape([logits, masks])
    counts = annotated[:, None] > 0
    p, g = jax.lax.stop_gradient(jax.nn.sigmoid(logits) >= threshold) & counts, (masks > 0.5) & counts
    shared, both = (jnp.sum(x, (2, 3), dtype=jnp.float32) for x in (p & g, p | g))
    return shared / (both + 1e-6)


def instance_losses(scores: jax.Array, masks: jax.Array, objectness: jax.Array | None, target: jax.Array, present: jax.Array,
                    annotated: jax.Array, queries: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0,
                    iou_threshold: float = 0.4,
                    objectness_error: Callable[[jax.Array, jax.Array], jax.Array] = binary_cross_entropy) -> dict[str, jax.Array]:
    """The terms of a batch, without weights.

    Whatever the queries predict, all of them are told whether they are a cell; only those of cells have a mask to draw.

    Args:
      scores: [B, N] logits of being a cell.
      masks: [B, N, h, w] logits.
      objectness: [B, N] logits of the mask's IoU, or None.
      target: [B, M, h, w] in [0, 1], the cells' masks.
      present: [B, M] bool, the rows of `target` that hold a cell.
      annotated: [B, h, w] float32, 0 where a pixel is to be ignored, else 1.
      queries: [B, M] int32.
      alpha: of the focal loss, see `binary_focal`.
      gamma: see there.
      iou_threshold: of `mask_iou`.
      objectness_error: an entry of `OBJECTNESS_ERRORS`.

    Returns:
      Scalars: "scores", the focal loss of all queries over the number of cells in the batch (1 at least); "masks", the mean
      binary cross entropy over the pixels of all pairs; "dice", `mask_dice` of all pairs over the number of cells; and
      "objectness", its mean error over all pairs.

    Source: the thesis, equations 4.14 to 4.18, 5.2 and 5.3; SparseInst@a895019, sparseinst/loss.py SparseInstCriterion.
    """
    chex.assert_shape(queries, present.shape)
    pairs = (queries >= 0).astype(jnp.float32)
    cells, count = jnp.maximum(jnp.sum(present), 1).astype(jnp.float32), jnp.maximum(jnp.sum(pairs), 1)
    own, pixels = of_cells(masks, queries), pairs[:, :, None, None] * annotated[:, None]
    error = jnp.sum(binary_cross_entropy(own, target) * pixels) / jnp.maximum(jnp.sum(pixels), 1)
    terms = {"scores": jnp.sum(binary_focal(scores, found_queries(queries, scores.shape[1]), alpha=alpha, gamma=gamma)) / cells,
             "masks": error, "dice": jnp.sum(mask_dice(own, target, annotated) * pairs) / cells}
    if objectness is not None:
        iou = mask_iou(own, target, annotated, threshold=iou_threshold)
        terms["objectness"] = jnp.sum(objectness_error(of_cells(objectness, queries), iou) * pairs) / count
    return terms
