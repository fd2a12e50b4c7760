"""Pooling and resizing as functions, with PyTorch's numbers; slices and lerps where XLA's own forms are slow on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["adaptive_average_pool", "average_pool", "max_pool", "resize_bilinear", "resize_corner_aligned", "resize_nearest"]


@jax.named_scope("max_pool")
def max_pool(x: jax.Array, *, size: int, stride: int, margin: int | None = None) -> jax.Array:
    """Largest value in each window, of PyTorch's MaxPool2d.

    Written as maxima of shifted slices, columns after rows: the gradient of XLA's window form is slow on a CPU.

    Departs: where several pixels of a window are equally large they share the gradient; in PyTorch the first takes it.

    Args:
      x: [B, H, W, C].
      size: side of the window.
      stride: step in rows and columns.
      margin: padding of each border; None for (size - 1) // 2, as most of PyTorch's networks have it.

    Returns:
      [B, h, w, C] with h = (H + 2 * margin - size) // stride + 1.
    """
    margin = (size - 1) // 2 if margin is None else margin
    for axis in (1, 2):
        padding = [(0, 0)] * x.ndim
        padding[axis] = (margin, margin)
        padded = jnp.pad(x, padding, constant_values=-jnp.inf) if margin else x
        count = (x.shape[axis] + 2 * margin - size) // stride + 1
        slices = [lax.slice_in_dim(padded, i, i + (count - 1) * stride + 1, stride, axis) for i in range(size)]
        x = slices[0]
        for other in slices[1:]:
            x = jnp.maximum(x, other)
    return x


@jax.named_scope("average_pool")
def average_pool(x: jax.Array, *, size: int, stride: int) -> jax.Array:
    """Mean of each window that lies inside the image, as PyTorch's AvgPool2d without padding.

    Args:
      x: [B, H, W, C].
      size: side of the window.
      stride: step in rows and columns.

    Returns:
      [B, h, w, C] with h = (H - size) // stride + 1.
    """
    for axis in (1, 2):
        stop = (x.shape[axis] - size) // stride * stride + 1
        slices = [lax.slice_in_dim(x, i, i + stop, stride, axis) for i in range(size)]
        x = reduce(jnp.add, slices) / size
    return x


def _apply_matrix(x: jax.Array, matrix: np.ndarray, axis: int) -> jax.Array:
    """Multiplies one spatial axis of [B, H, W, C] by a constant [out, in] matrix, exactly (no reduced precision)."""
    equation = {1: "oh,bhwc->bowc", 2: "ow,bhwc->bhoc"}[axis]
    return jnp.einsum(equation, jnp.asarray(matrix, x.dtype), x, precision=lax.Precision.HIGHEST)


@jax.named_scope("adaptive_average_pool")
def adaptive_average_pool(x: jax.Array, *, size: int) -> jax.Array:
    """Means over a size x size grid of windows that cover the image and overlap where it does not divide.

    Args:
      x: [B, H, W, C].
      size: cells of the grid per axis; window i spans floor(i H / size) to ceil((i + 1) H / size).

    Returns:
      [B, size, size, C].
    """
    for axis in (1, 2):
        length = x.shape[axis]
        matrix = np.zeros((size, length))
        for i in range(size):
            start, stop = i * length // size, -(-(i + 1) * length // size)
            matrix[i, start:stop] = 1 / (stop - start)
        x = _apply_matrix(x, matrix, axis)
    return x


@jax.named_scope("resize_nearest")
def resize_nearest(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Each output pixel takes the input pixel at floor(index * in / out), as PyTorch's "nearest".

    Args:
      x: [B, H, W, C].
      shape: (rows, columns) of the result.

    Returns:
      [B, *shape, C].
    """
    for axis, length in zip((1, 2), shape, strict=True):
        have = x.shape[axis]
        if length == have:
            continue
        if length % have == 0:   # a broadcast, whose gradient is a plain sum
            factor = length // have
            copies = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), (*x.shape[:axis + 1], factor, *x.shape[axis + 1:]))
            x = copies.reshape(*x.shape[:axis], length, *x.shape[axis + 1:])
        else:
            source = np.floor(np.arange(length, dtype=np.float32) * np.float32(have / length)).astype(np.int32)
            x = jnp.take(x, np.minimum(source, have - 1), axis=axis)
    return x


@jax.named_scope("resize_bilinear")
def resize_bilinear(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Linear interpolation between pixel centres, borders repeated: PyTorch's "bilinear" with align_corners=False.

    Whole factors (the common case) are written as `factor` lerps of shifted copies; other sizes as two small matrices.

    Args:
      x: [B, H, W, C].
      shape: (rows, columns) of the result.

    Returns:
      [B, *shape, C].
    """
    for axis, length in zip((1, 2), shape, strict=True):
        have = x.shape[axis]
        if length == have:
            continue
        if length % have == 0:
            x = _lerp(x, length // have, axis)
        else:
            x = _apply_matrix(x, _bilinear_matrix(have, length), axis)
    return x


@jax.named_scope("resize_corner_aligned")
def resize_corner_aligned(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Linear interpolation on a grid whose corners are the old grid's: PyTorch's "bilinear" with align_corners=True.

    Doubling (the common case) is written as lerps of shifted copies; other sizes as two small matrices.

    Args:
      x: [B, H, W, C].
      shape: (rows, columns) of the result.

    Returns:
      [B, *shape, C]; output i of an axis of n pixels lies at i * (n - 1) / (wanted - 1).
    """
    for axis, want in zip((1, 2), shape, strict=True):
        have = x.shape[axis]
        if want == 2 * have:
            x = _double(x, axis)
        elif want != have:
            x = _apply_matrix(x, _linear_matrix(np.arange(want) * ((have - 1) / max(want - 1, 1)), have), axis)
    return x


def _double(x: jax.Array, axis: int) -> jax.Array:
    """Enlarges one axis twice: output 2 k lies k / (2 n - 1) before pixel k, the next one (n - 1 - k) / (2 n - 1) behind it."""
    have, (before, after) = x.shape[axis], _neighbours(x, axis)
    back = jnp.asarray(np.arange(have) / (2 * have - 1), x.dtype).reshape(-1, *(1,) * (x.ndim - 1 - axis))
    on = jnp.flip(back, 0)
    return _interleave([x + back * (before - x), x + on * (after - x)], axis)


def _neighbours(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """The pixel before each one and the one after, borders repeated."""
    length = x.shape[axis]
    first, last = lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, length - 1, length, axis=axis)
    return (jnp.concatenate([first, lax.slice_in_dim(x, 0, length - 1, axis=axis)], axis),
            jnp.concatenate([lax.slice_in_dim(x, 1, length, axis=axis), last], axis))


def _interleave(phases: Sequence[jax.Array], axis: int) -> jax.Array:
    shape = phases[0].shape
    return jnp.stack(phases, axis + 1).reshape(*shape[:axis], shape[axis] * len(phases), *shape[axis + 1:])


def _lerp(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """Enlarges one axis by a whole factor."""
    before, after = _neighbours(x, axis)
    phases = []
    for phase in range(factor):
        shift = (phase + 0.5) / factor - 0.5
        phases.append(x * (1 + shift) - before * shift if shift < 0 else x * (1 - shift) + after * shift)
    return _interleave(phases, axis)


def _bilinear_matrix(have: int, want: int) -> np.ndarray:
    """[want, have] weights of linear interpolation between pixel centres."""
    return _linear_matrix(np.maximum((np.arange(want) + 0.5) * have / want - 0.5, 0), have)


def _linear_matrix(source: np.ndarray, have: int) -> np.ndarray:
    """[want, have] weights of linear interpolation at the places `source` [want], in pixels from the first one's centre."""
    low = np.minimum(source.astype(np.int64), have - 1)
    high = np.minimum(low + 1, have - 1)
    matrix, rows = np.zeros((len(source), have)), np.arange(len(source))
    np.add.at(matrix, (rows, low), 1 - (source - low))
    np.add.at(matrix, (rows, high), source - low)
    return matrix
