"""The training objective of the contour proposal networks: from dense outputs and targets to weighted terms.

Three steps, each a function: `propose` gathers what the network says at the supervised pixels and turns it into contours and
boxes; `supervise` decides which of them learn; `contour_objective` compares them with their cells, term by term.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxcell.geometry.boxes import boxes_from_contours, paired_iou, valid_boxes
from jaxcell.geometry.fourier import absolute_locations, contours_from_fourier, order_weights, scale_contours, scale_fourier
from jaxcell.geometry.refinement import clip_contours, refine_contours
from jaxcell.losses.boxes import iou_loss, power_likelihood_loss
from jaxcell.losses.pixels import binary_cross_entropy, softmax_cross_entropy
from jaxcell.losses.regression import absolute_error

__all__ = ["CHALLENGE_WEIGHTS", "PACKAGE_WEIGHTS", "TERMS", "Proposals", "Supervision", "TeacherThresholds",
           "contour_objective", "propose", "supervise", "teacher_agreement"]

Arrays = Mapping[str, Any]

TERMS = ("scores", "fourier", "locations", "contours", "refinement", "boxes", "iou", "uncertainty")

CHALLENGE_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"scores": 1.0, "fourier": 1.0, "locations": 1.0, "contours": 1.5, "refinement": 1.0, "boxes": 0.88, "iou": 1.0,
     "uncertainty": 1.0})
"""Terms of the uncertainty-aware network as the authors trained it (`background_weight=2`)."""

PACKAGE_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"scores": 1.0, "fourier": 1.0, "locations": 1.0, "contours": 3.0, "refinement": 1.0, "iou": 1.0})
"""Terms of the original network in celldetection 0.4.9 (`background_weight=1`, `box_confidence=False`, `refinement="sum"`)."""

_SMALL_BOX_CONFIDENCE = 0.1   # score target of a pixel whose predicted box is too small for an IoU to mean anything


class Proposals(NamedTuple):
    """What the network proposes at the N supervised pixels of each image; lengths in image pixels, all float32.

    Attributes:
      valid: [B, N] bool; the other slots are padding.
      cells: [B, N] int32, row of the pixel's cell in the target arrays.
      scores: [B, N, K] logits.
      fourier: [B, N, O, 4].
      locations: [B, N, 2].
      contours: [B, N, T, 2], before refinement.
      refined: [I, B, N, T, 2], inside the image; the last is the result, the others are there if they are supervised too.
      boxes: [B, N, 4] of the result.
      uncertainty: [B, N, 4] logits, or None without that head.
    """

    valid: jax.Array
    cells: jax.Array
    scores: jax.Array
    fourier: jax.Array
    locations: jax.Array
    contours: jax.Array
    refined: jax.Array
    boxes: jax.Array
    uncertainty: jax.Array | None


class Supervision(NamedTuple):
    """Which proposals learn what.

    Attributes:
      scores: [B, N] bool, foreground pixels whose score is trained.
      background: [B, h, w] bool, background pixels whose score is trained.
      boundaries: [B, N, 4] bool, boundaries of a box that are trained.
      contours: [B, N] bool, proposals of which everything else is trained.
    """

    scores: jax.Array
    background: jax.Array
    boundaries: jax.Array
    contours: jax.Array


@dataclass(frozen=True)
class TeacherThresholds:
    """When a student listens to its teacher (Listen2Student); the defaults are the authors'.

    Attributes:
      foreground_score: a cell's pixels train the score only if the teacher's score of the cell is at least this.
      background_score: a background pixel trains the score only if the teacher's score map is at most this there.
      uncertainty_margin: a boundary is trained if the teacher is more certain than the student by at least this ...
      student_uncertainty: ... and the student's uncertainty is above this ...
      certain: ... or the teacher's uncertainty is at most this: an annotated cell has 0. Negative for the paper's rule.
    """

    foreground_score: float = 0.9
    background_score: float = 0.1
    uncertainty_margin: float = 0.1
    student_uncertainty: float = 0.5
    certain: float = 0.0


def contour_objective(
    outputs: Arrays,
    batch: Arrays,
    *,
    weights: Mapping[str, float] = CHALLENGE_WEIGHTS,
    background_weight: float = 2.0,
    box_confidence: bool = True,
    order_weighting: bool = True,
    refinement: Literal["last", "sum"] = "last",
    refinement_iterations: int = 4,
    iou_kind: str = "giou",
    min_box_size: float = 1.0,
    uncertainty_factor: float = 7.0,
    teacher: TeacherThresholds | None = None,
) -> dict[str, jax.Array]:
    """Weighted terms of the contour proposal network's objective; their sum is minimised.

    Every mean is over the supervised pixels of the whole batch together, also when it is sharded over devices: an image with
    many cells weighs more than one with few. A term without a supervised pixel is 0.

    Args:
      outputs: of the network: `scores` [B, h, w, K], `fourier` [B, h, w, 4 * O], `locations` [B, h, w, 2],
        `refinement` [B, H, W, 2 * buckets] and, for the term "uncertainty" or a teacher, `uncertainty` [B, h, w, 4].
      batch: `labels` [B, h, w], `foreground` [B, N], `fourier` [B, M, O, 4], `locations` [B, M, 2], `contours`
        [B, M, T, 2], `sampling` [B, T]; `iterations` [B] where `refinement` is "last"; `classes` [B, M] in 1..K-1 where K > 1;
        the three `teacher_...` arrays with a teacher. Lengths in image pixels.
      weights: term -> weight, of `TERMS`; a term that is not named is left out.
      background_weight: weight of the background's mean in "scores", where the foreground's has 1.
      box_confidence: the score target of a foreground pixel is the IoU of its box with its cell's, 0.1 where its box is
        smaller than `min_box_size`; False for the target 1 (eq. 1 of the paper). Needs K = 1.
      order_weighting: weigh low Fourier orders up to 5 times as much as the highest.
      refinement: "last" supervises the contour after the number of iterations drawn for the image (challenge), "sum" the
        contour after every one of `refinement_iterations` (package).
      refinement_iterations: the largest number of iterations.
      iou_kind: "iou", "giou", "log-iou" or "log-giou".
      min_box_size: pixels; smaller predicted boxes enter neither "iou" nor "uncertainty".
      uncertainty_factor: pixels at an uncertainty of 1.
      teacher: thresholds for batches with pseudo-labels; None learns from every label.

    Returns:
      One weighted scalar for each key of `weights`.

    Raises:
      ValueError: for an unknown term, an output or option that does not fit the others.

    Source: eq. 1, 3, 4, 5 of Upschulte et al. 2023; neurips22-cell-seg@ab6a154, neurips/nn/cpn_model.py `CPN.compute_loss`;
      celldetection 0.4.9, models/cpn.py `CPN.compute_loss`.
    Departs: a term that is not finite stays so (the reference sets its value, but not its gradient, to 0): the training loop
      counts and skips such steps. Iterations are drawn for each image, not once for a batch.
    """
    unknown = sorted(set(weights) - set(TERMS))
    if unknown:
        raise ValueError(f"contour_objective: weights name {unknown}; the terms are {', '.join(TERMS)}.")
    if "uncertainty" in weights and "uncertainty" not in outputs:
        raise ValueError("contour_objective: the term 'uncertainty' needs the output 'uncertainty', and the network has no such "
                         "head. Build it with one or take the term out of `weights`.")
    if box_confidence and outputs["scores"].shape[-1] != 1:
        raise ValueError(f"contour_objective: box_confidence with {outputs['scores'].shape[-1]} score channels; a class index "
                         "cannot be an IoU. Pass box_confidence=False.")
    if outputs["scores"].shape[-1] != 1 and "classes" not in batch:
        raise ValueError(f"contour_objective: {outputs['scores'].shape[-1]} score channels, but the batch has no 'classes'; add "
                         "each cell's class (1 and up) to the targets, or build the network with one score channel.")
    found = propose(outputs, batch, refinement=refinement, refinement_iterations=refinement_iterations)
    learn = supervise(found, batch, teacher=teacher)
    target = {name: _rows(batch[name], found.cells) for name in ("fourier", "locations", "contours")}
    target_boxes = boxes_from_contours(target["contours"])
    fixed_boxes = jax.lax.stop_gradient(found.boxes)
    large = valid_boxes(fixed_boxes, min_size=min_box_size)
    confidence = jnp.where(large, paired_iou(fixed_boxes, target_boxes), _SMALL_BOX_CONFIDENCE) if box_confidence else None

    terms = {"scores": _score_term(outputs, batch, found, learn, confidence, background_weight)}
    order = found.fourier.shape[-2]
    by_order = order_weights(order)[:, None] if order_weighting else 1.0
    terms["fourier"] = _mean(absolute_error(found.fourier, target["fourier"]) * by_order, learn.contours)
    terms["locations"] = _mean(absolute_error(found.locations, target["locations"]), learn.contours)
    terms["contours"] = _mean(absolute_error(found.contours, target["contours"]), learn.contours)
    steps = [_mean(absolute_error(refined, target["contours"]), learn.contours) for refined in found.refined]
    terms["refinement"] = jnp.stack(steps).sum()

    terms["boxes"] = _mean(absolute_error(found.boxes, target_boxes), learn.boundaries)
    terms["iou"] = _mean(iou_loss(found.boxes, target_boxes, kind=iou_kind), learn.contours & large)
    if found.uncertainty is not None:
        widths = power_likelihood_loss(found.uncertainty, fixed_boxes, target_boxes, factor=uncertainty_factor)
        terms["uncertainty"] = _mean(widths, learn.contours & large)
    return {name: weight * terms[name] for name, weight in weights.items()}


def propose(outputs: Arrays, batch: Arrays, *, refinement: Literal["last", "sum"] = "last",
            refinement_iterations: int = 4) -> Proposals:
    """Contours and boxes at the supervised pixels, in image pixels.

    Args:
      outputs: as for `contour_objective`.
      batch: `labels`, `foreground`, `sampling` and, where `refinement` is "last", `iterations`, as for `contour_objective`.
      refinement: "last": `refined` holds the contour after `iterations` steps; "sum": after each step.
      refinement_iterations: the largest number of steps; `iterations` lies in 1..refinement_iterations.

    Returns:
      The proposals; in "last" only the last displacement of each point has a gradient, in "sum" that of each step.

    Raises:
      ValueError: if `refinement` is neither.
    """
    if refinement not in ("last", "sum"):
        raise ValueError(f"propose: refinement is {refinement!r}; it must be 'last' or 'sum'.")
    maps = {name: value.astype(jnp.float32) for name, value in outputs.items()}   # whatever precision the network ran in
    _, height, width, _ = maps["refinement"].shape
    _, rows, columns, channels = maps["fourier"].shape
    scale = (height / rows, width / columns)

    valid = batch["foreground"] >= 0
    pixels = jnp.maximum(batch["foreground"], 0)
    labels = _pixels(batch["labels"][..., None], pixels)[..., 0]
    fourier = _pixels(maps["fourier"], pixels)
    fourier = scale_fourier(fourier.reshape(*fourier.shape[:2], channels // 4, 4), scale)
    locations = scale_contours(_pixels(absolute_locations(maps["locations"]), pixels), scale)
    with jax.default_matmul_precision("float32"):
        contours = jax.vmap(contours_from_fourier)(fourier, locations, batch["sampling"])

    field, sampling = maps["refinement"], batch["sampling"]
    if refinement == "last":
        start = contours
        if refinement_iterations > 1:   # run all, pick where each image's last step starts; only that step needs a gradient
            steps = _refine(*jax.lax.stop_gradient((contours, sampling, field)), iterations=refinement_iterations - 1)
            starts = jnp.concatenate([contours[None], steps])
            start = jax.vmap(lambda series, count: series[count - 1], in_axes=(1, 0))(starts, batch["iterations"])
        refined = _refine(start, sampling, field, iterations=1)
    else:
        refined = _refine(contours, sampling, field, iterations=refinement_iterations)
    refined = clip_contours(refined, (height, width))

    return Proposals(
        valid=valid, cells=jnp.maximum(labels - 1, 0), scores=_pixels(maps["scores"], pixels), fourier=fourier,
        locations=locations, contours=contours, refined=refined, boxes=boxes_from_contours(refined[-1]),
        uncertainty=_pixels(maps["uncertainty"], pixels) if "uncertainty" in maps else None)


def supervise(proposals: Proposals, batch: Arrays, *, teacher: TeacherThresholds | None = None) -> Supervision:
    """Which proposals learn: all of them from annotations, those worth listening to from a teacher's pseudo-labels.

    Args:
      proposals: from `propose`.
      batch: `labels` [B, h, w] and, with a teacher, `teacher_scores` [B, M] and `teacher_uncertainty` [B, M, 4] of the
        pseudo-labelled cells and `teacher_score_maps` [B, H, W, 1], all in [0, 1]; annotated cells have score 1, uncertainty 0.
      teacher: thresholds, or None.

    Returns:
      The masks.

    Raises:
      ValueError: with a teacher, if the batch lacks its arrays.

    Source: section 2.2.9 of the paper, after Liu et al. 2022 (Listen2Student); neurips22-cell-seg@ab6a154,
      neurips/nn/cpn_model.py `CPN.compute_loss`.
    Departs: as the released code and unlike the paper, the rule masks every contour term, not the box boundaries alone.
    """
    background = batch["labels"] == 0
    valid = proposals.valid
    if teacher is None:
        return Supervision(valid, background, jnp.broadcast_to(valid[..., None], (*valid.shape, 4)), valid)
    missing = [name for name in ("teacher_scores", "teacher_uncertainty", "teacher_score_maps") if name not in batch]
    if missing:
        raise ValueError(f"supervise: teacher thresholds need {missing} in the batch; add them to the targets or pass "
                         "teacher=None.")
    boundaries = valid[..., None] & teacher_agreement(
        proposals.uncertainty, _rows(batch["teacher_uncertainty"], proposals.cells), thresholds=teacher)
    _, height, width, _ = batch["teacher_score_maps"].shape
    _, h, w = background.shape
    nearest = batch["teacher_score_maps"][:, jnp.arange(h) * height // h][:, :, jnp.arange(w) * width // w, 0]
    return Supervision(
        scores=valid & (_rows(batch["teacher_scores"], proposals.cells) >= teacher.foreground_score),
        background=background & (nearest <= teacher.background_score),
        boundaries=boundaries,
        contours=boundaries.all(axis=-1))


def teacher_agreement(uncertainty: jax.Array | None, teacher_uncertainty: jax.Array, *,
                      thresholds: TeacherThresholds) -> jax.Array:
    """Which boundaries a student learns from its teacher: where the teacher is clearly more certain, or certain altogether.

    Args:
      uncertainty: [..., 4] the student's logits, or None for a student without that head, who counts as wholly uncertain.
      teacher_uncertainty: [..., 4] in [0, 1].
      thresholds: see `TeacherThresholds`.

    Returns:
      [..., 4] bool.
    """
    student = jnp.ones_like(teacher_uncertainty) if uncertainty is None else jax.nn.sigmoid(uncertainty)
    worth = (teacher_uncertainty + thresholds.uncertainty_margin <= student) & (student > thresholds.student_uncertainty)
    return worth | (teacher_uncertainty <= thresholds.certain)


def _score_term(outputs: Arrays, batch: Arrays, found: Proposals, learn: Supervision, confidence: jax.Array | None,
                background_weight: float) -> jax.Array:
    """Cross entropy of foreground and background pixels, averaged apart because there are many more of the latter."""
    dense = outputs["scores"].astype(jnp.float32)
    if dense.shape[-1] == 1:
        wanted = jnp.ones_like(found.scores[..., 0]) if confidence is None else confidence
        foreground = binary_cross_entropy(found.scores[..., 0], wanted)
        background = binary_cross_entropy(dense[..., 0], jnp.zeros_like(dense[..., 0]))
    else:
        foreground = softmax_cross_entropy(found.scores, _rows(batch["classes"], found.cells))
        background = softmax_cross_entropy(dense, jnp.zeros(dense.shape[:-1], jnp.int32))
    return _mean(foreground, learn.scores) + background_weight * _mean(background, learn.background)


def _refine(contours: jax.Array, sampling: jax.Array, field: jax.Array, *, iterations: int) -> jax.Array:
    """`refine_contours` over a batch: [iterations, B, N, T, 2]."""
    return jax.vmap(partial(refine_contours, iterations=iterations), out_axes=1)(contours, sampling, field)


def _pixels(maps: jax.Array, pixels: jax.Array) -> jax.Array:
    """Values of maps [B, h, w, C] at flat indices [B, N]: [B, N, C]."""
    flat = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    return jax.vmap(lambda image, index: image[index])(flat, pixels)


def _rows(values: jax.Array, cells: jax.Array) -> jax.Array:
    """Rows [B, N, ...] of per-cell arrays [B, M, ...]."""
    return jax.vmap(lambda image, index: image[index])(values, cells)


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    """Mean of `values` over the entries of the mask `where`, which covers their leading axes; 0 where it is empty."""
    mask = where.reshape(*where.shape, *(1,) * (values.ndim - where.ndim))
    inner = math.prod(values.shape[where.ndim:])   # divided by apart: the product of both could overflow an int32
    return jnp.where(mask, values, 0).sum() / inner / jnp.maximum(where.sum(), 1)
