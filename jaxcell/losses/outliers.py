"""Virtual outliers: unlikely logits, drawn from Gaussians of the network's own, that stand in for some of its outputs.

Everything is of fixed shape and runs under jit. A draw of a Gaussian is mean + L z with z standard normal, so its density falls
with |z|^2 alone: the least likely draws are chosen from the z, and only they are ever computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["PLACEMENTS", "Synthesis", "batch_gaussian", "batch_outliers", "batch_synthesis", "class_gaussians", "class_synthesis",
           "enqueue", "into_memory", "into_pixels", "least_likely", "log_density", "new_queues"]

Queues = Mapping[str, jax.Array]
Placement = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Synthesis:
    """A way to put virtual outliers into logits.

    Attributes:
      start: () -> memory before the first step, a dict of arrays.
      remember: (memory, logits [B, H, W, K], classes [B, H, W] with -1 for pixels to ignore, rng) -> memory, at every step.
      replace: (logits, classes, memory, rng) -> logits of which some are outliers.
    """

    start: Callable[[], dict[str, jax.Array]]
    remember: Callable[[Any, jax.Array, jax.Array, jax.Array], Any]
    replace: Callable[[jax.Array, jax.Array, Any, jax.Array], jax.Array]


# ---------------------------------------------------------------- Gaussians
def batch_gaussian(logits: jax.Array, valid: jax.Array, *, ridge: float = 0.01) -> tuple[jax.Array, jax.Array]:
    """Mean and covariance of the logits of all pixels of a batch.

    Args:
      logits: [B, ..., K].
      valid: [B, ...], 1 where a pixel counts, else 0.
      ridge: added to the diagonal.

    Returns:
      [K], [K, K]; the covariance is divided by the number of pixels less one.

    Source: RanchoGoose/MorphoSeg@a2ab9fe, trainer_vos.py generate_synthetic_segmentation_maps.
    Departs: pixels to be ignored do not count; the reference has none.
    """
    pixels = tuple(range(valid.ndim))
    count = jnp.sum(valid)
    mean = jnp.sum(logits * valid[..., None], pixels) / jnp.maximum(count, 1)
    centred = (logits - mean) * valid[..., None]
    # Image by image: of millions of pixels in one float32 sum the last count less (128 x 224 x 224 on a CPU: 0.8 % less).
    products = jnp.einsum("b...i,b...j->bij", centred, centred, precision=lax.Precision.HIGHEST)
    covariance = jnp.sum(products, 0) / jnp.maximum(count - 1, 1)
    return mean, covariance + ridge * jnp.eye(len(mean), dtype=mean.dtype)


def log_density(points: jax.Array, mean: jax.Array, cholesky: jax.Array) -> jax.Array:
    """Logarithm of a Gaussian's density.

    Args:
      points: [..., K].
      mean: [K].
      cholesky: [K, K], lower factor of the covariance.

    Returns:
      [...].
    """
    offsets = (points - mean).reshape(-1, len(mean))
    z = jax.scipy.linalg.solve_triangular(cholesky, offsets.T, lower=True).T.reshape(points.shape)
    return _log_density_of(z, cholesky)


def _log_density_of(z: jax.Array, cholesky: jax.Array) -> jax.Array:
    """Log density of mean + L z, from z [..., K]."""
    constant = jnp.sum(jnp.log(jnp.diagonal(cholesky))) + 0.5 * len(cholesky) * jnp.log(2 * jnp.pi)
    return -0.5 * jnp.sum(jnp.square(z), -1) - constant


def least_likely(draws: jax.Array, select: int) -> jax.Array:
    """Which standard normal draws make the least likely samples, of whichever Gaussian.

    Args:
      draws: [N, K].
      select: how many, at most N.

    Returns:
      [select] int32, the most unlikely first.
    """
    return lax.top_k(jnp.sum(jnp.square(draws), -1), select)[1]


def batch_outliers(logits: jax.Array, valid: jax.Array, draws: jax.Array, *, select: int, ridge: float = 0.01) -> jax.Array:
    """The least likely samples of the Gaussian of a batch's logits; gradients flow into its mean and covariance.

    Args:
      logits: see `batch_gaussian`.
      valid: see there.
      draws: [N, K] standard normal.
      select: how many of them are used.
      ridge: see there.

    Returns:
      [select, K], the most unlikely first.
    """
    mean, covariance = batch_gaussian(logits, valid, ridge=ridge)
    return mean + draws[least_likely(draws, select)] @ jnp.linalg.cholesky(covariance).T


# ---------------------------------------------------------------- placing
def into_pixels(logits: jax.Array, outliers: jax.Array, positions: jax.Array) -> jax.Array:
    """Replaces the logits of some pixels.

    Args:
      logits: [B, H, W, K].
      outliers: [n, K].
      positions: [n] int, places in the B * H * W pixels, row by row, each once; those past the end are left out.

    Returns:
      [B, H, W, K].
    """
    rows = logits.reshape(-1, logits.shape[-1]).at[positions].set(outliers, mode="drop", unique_indices=True)
    return rows.reshape(logits.shape)


def into_memory(logits: jax.Array, outliers: jax.Array, positions: jax.Array) -> jax.Array:
    """Replaces runs of K numbers in the memory of a channels-first array, as the released code does.

    An outlier's K logits land on K neighbouring pixels of one class's map: none of these pixels gets an outlier.

    Arguments and result as in `into_pixels`; positions count the runs.

    Source: RanchoGoose/MorphoSeg@a2ab9fe, trainer_vos.py: reshape(B * H * W, K) of a [B, K, H, W] tensor.
    """
    first = jnp.moveaxis(logits, -1, 1)
    rows = first.reshape(-1, logits.shape[-1]).at[positions].set(outliers, mode="drop", unique_indices=True)
    return jnp.moveaxis(rows.reshape(first.shape), 1, -1)


PLACEMENTS: Mapping[str, Placement] = {"pixels": into_pixels, "memory": into_memory}
"""Where outliers go, by name; the authors ran "memory", which is plainly not what was meant."""


def batch_synthesis(*, sample_from: int, select: int, place: Placement, ridge: float = 0.01) -> Synthesis:
    """Outliers from one Gaussian over the logits of the batch, at random places: the released way.

    Gradients flow through the samples into mean and covariance. It remembers nothing.

    Args:
      sample_from: draws at each step; the published run had 100,000.
      select: least likely ones that are used; 10,000. No more than there are pixels.
      place: an entry of `PLACEMENTS`.
      ridge: see `batch_gaussian`.

    Source: RanchoGoose/MorphoSeg@a2ab9fe, trainer_vos.py generate_synthetic_segmentation_maps.
    """
    _check(sample_from, select)

    def replace(logits: jax.Array, classes: jax.Array, memory: Any, rng: jax.Array) -> jax.Array:
        draw_rng, place_rng = jax.random.split(rng)
        number = min(select, classes.size)
        draws = jax.random.normal(draw_rng, (sample_from, logits.shape[-1]), logits.dtype)
        outliers = batch_outliers(logits, (classes >= 0).astype(logits.dtype), draws, select=number, ridge=ridge)
        positions = lax.top_k(jax.random.uniform(place_rng, (classes.size,)), number)[1]
        return place(logits, outliers, positions)

    return Synthesis(dict, lambda memory, logits, classes, rng: memory, replace)


# ---------------------------------------------------------------- queues of each class
def new_queues(classes: int, dimension: int, length: int) -> dict[str, jax.Array]:
    """Empty queues: "vectors" [classes, length, dimension] and "arrived" [classes] int32, how many ever came."""
    return {"vectors": jnp.zeros((classes, length, dimension)), "arrived": jnp.zeros(classes, jnp.int32)}


def enqueue(queues: Queues, vectors: jax.Array, classes: jax.Array) -> dict[str, jax.Array]:
    """Each vector into the queue of its class; the oldest ones leave.

    Args:
      queues: of `new_queues`.
      vectors: [N, dimension], in the order of arrival.
      classes: [N] int; vectors of classes below 0 are left out.

    Returns:
      The queues; a queue's vectors lie in a ring.
    """
    count, length, _ = queues["vectors"].shape
    member = classes[:, None] == jnp.arange(count)
    before = jnp.cumsum(member, axis=0) - member                     # of the same class, in this call
    coming = jnp.sum(member, axis=0)
    own = jnp.clip(classes, 0, count - 1)
    rank = jnp.take_along_axis(before, own[:, None], axis=1)[:, 0]
    newest = (rank >= coming[own] - length) & (classes >= 0)         # of more than a queue holds, the last
    slot = jnp.where(newest, (queues["arrived"][own] + rank) % length, length)
    filled = queues["vectors"].at[own, slot].set(vectors, mode="drop")
    # Counts stay small, so that they never overflow: past the first round only the place in the ring matters.
    arrived = queues["arrived"] + coming
    return {"vectors": filled, "arrived": jnp.where(arrived > 2 * length, length + arrived % length, arrived)}


def class_gaussians(queues: Queues) -> tuple[jax.Array, jax.Array]:
    """Means of the classes and the covariance that they share.

    Args:
      queues: of `enqueue`.

    Returns:
      [classes, dimension], zeros for an empty queue; [dimension, dimension], of the distances to the class's own mean, divided by
      the number of vectors.

    Source: MorphoSeg, equations 7 and 8.
    """
    vectors = queues["vectors"]
    count, length, _ = vectors.shape
    lengths = jnp.minimum(queues["arrived"], length)
    there = (jnp.arange(length) < lengths[:, None]).astype(vectors.dtype)[..., None]
    means = jnp.sum(vectors * there, 1) / jnp.maximum(lengths, 1)[:, None]
    centred = (vectors - means[:, None]) * there
    covariance = jnp.einsum("kni,knj->ij", centred, centred, precision=lax.Precision.HIGHEST)
    return means, covariance / jnp.maximum(jnp.sum(lengths), 1)


def class_synthesis(*, classes: int, queue: int, per_image: int, sample_from: int, select: int, epsilon: float = float("inf"),
                    ridge: float = 1e-4) -> Synthesis:
    """Outliers of every class from its own Gaussian, below a density, on pixels of that class: the paper's way.

    Queues hold logits of earlier steps, as constants; into those of this step gradients flow, through mean and covariance. The
    released code has none of this, and the paper does not say where outliers are put: here, where their class is the truth.

    Args:
      classes: K.
      queue: vectors that each class's queue holds.
      per_image: random pixels of each image that are queued at each step (the paper: 1,000).
      sample_from: draws at each step, shared out over the classes.
      select: least likely ones that are used, shared out alike.
      epsilon: density from which on a draw is no outlier; the paper does not say which. Infinity: only `select` decides.
      ridge: added to the covariance's diagonal, so that it can be factorised.

    Source: MorphoSeg, equations 6 to 9 and section 5.1; Du et al., "VOS", ICLR 2022, section 3.1.
    """
    _check(sample_from, select)

    def remember(memory: Queues, logits: jax.Array, labels: jax.Array, rng: jax.Array) -> dict[str, jax.Array]:
        flat, own = logits.reshape(len(logits), -1, classes), labels.reshape(len(labels), -1)
        chosen = jax.random.randint(rng, (len(flat), per_image), 0, own.shape[1])
        vectors = jnp.take_along_axis(flat, chosen[..., None], axis=1)
        return enqueue(memory, vectors.reshape(-1, classes), jnp.take_along_axis(own, chosen, axis=1).reshape(-1))

    def replace(logits: jax.Array, labels: jax.Array, memory: Queues, rng: jax.Array) -> jax.Array:
        means, covariance = class_gaussians(memory)
        cholesky = jnp.linalg.cholesky(covariance + ridge * jnp.eye(classes, dtype=covariance.dtype))
        number = min(select // classes, labels.size)
        outliers, positions = [], []
        for k, key in enumerate(jax.random.split(rng, classes)):
            draw_rng, place_rng = jax.random.split(key)
            draws = jax.random.normal(draw_rng, (sample_from // classes, classes), logits.dtype)
            z = draws[least_likely(draws, number)]
            lots = jnp.where(labels.reshape(-1) == k, jax.random.uniform(place_rng, (labels.size,)), -1)
            lot, position = lax.top_k(lots, number)
            unlikely = _log_density_of(z, cholesky) < jnp.log(epsilon)
            used = (lot >= 0) & unlikely & (memory["arrived"][k] > 0)
            outliers.append(means[k] + z @ cholesky.T)
            # Past the end, each by its own number: places must differ.
            positions.append(jnp.where(used, position, labels.size + k * number + jnp.arange(number)))
        return into_pixels(logits, jnp.concatenate(outliers), jnp.concatenate(positions))

    return Synthesis(partial(new_queues, classes, classes, queue), remember, replace)


def _check(sample_from: int, select: int) -> None:
    if not 0 < select <= sample_from:
        raise ValueError(f"config.outliers: select={select} of sample_from={sample_from}; it must be 1 to sample_from.")
