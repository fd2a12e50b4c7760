"""Layers that several networks share: convolution, norms, pooling, resizing, and the two blocks of U-Nets and ResNets.

All are NHWC and equal PyTorch's in value: published networks must load and give the authors' numbers. Where XLA's own
form is slow on a CPU the arithmetic is written differently; which form runs is decided when a function is traced.

A network hands its parts on as constructors, with what they need already bound: `conv` (a `Conv`), `norm` (a `BatchNorm` that
knows whether it trains, or a group norm) and `act`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["BatchNorm", "Conv", "ConvBlock", "GroupNorm", "Part", "ResidualBlock", "adaptive_average_pool", "convolve",
           "fan_in_uniform", "fan_out_normal", "grouped_convolution", "max_pool", "resize_bilinear", "resize_nearest"]

Part = Callable[..., Any]   # a constructor of modules, parts bound with functools.partial

fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default for kernels: uniform in +-1/sqrt(fan_in)."""
fan_out_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Kaiming normal over the outputs, gain sqrt(2)."""


def grouped_convolution(x: jax.Array, kernel: jax.Array, *, stride: int, groups: int) -> jax.Array:
    """Convolution in which each group of outputs sees its own group of inputs, as one matrix product per group.

    The same numbers as `lax.conv_general_dilated(feature_group_count=groups)`, whose gradient is 50 times slower on a CPU.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / groups, F], outputs ordered by group.
      stride: step in rows and columns.
      groups: divides C and F.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), F] for odd k.
    """
    side, _, inputs, outputs = kernel.shape
    batch, height, width, _ = x.shape
    margin = side // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    rows, columns = (height + 2 * margin - side) // stride + 1, (width + 2 * margin - side) // stride + 1
    patches = jnp.stack([padded[:, i:i + (rows - 1) * stride + 1:stride, j:j + (columns - 1) * stride + 1:stride]
                         for i in range(side) for j in range(side)], axis=3)
    patches = patches.reshape(batch, rows, columns, side * side, groups, inputs)
    weights = kernel.reshape(side * side, inputs, groups, outputs // groups)
    return jnp.einsum("bhwkgi,kigo->bhwgo", patches, weights).reshape(batch, rows, columns, outputs)


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1, groups: int = 1) -> jax.Array:
    """Convolution with k // 2 zeros on every side, in the fastest form for the device.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / groups, F].
      stride: step in rows and columns.
      groups: divides C and F.

    Returns:
      [B, h, w, F].
    """
    if groups > 1 and jax.default_backend() == "cpu":
        return grouped_convolution(x, kernel, stride=stride, groups=groups)
    margin = kernel.shape[0] // 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((margin, margin), (margin, margin)),
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)


class Conv(nn.Module):
    """Convolution with PyTorch's padding (k // 2) and default initialisation; parameters in float32, arithmetic in `dtype`."""

    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = fan_in_uniform
    bias_init: nn.initializers.Initializer | None = None    # None: PyTorch's, uniform in +-1/sqrt(fan_in) of the kernel
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, groups=self.groups)
        if not self.use_bias:
            return y
        bound = float(np.prod(shape[:3])) ** -0.5
        init = self.bias_init or (lambda rng, size: jax.random.uniform(rng, size, minval=-bound, maxval=bound))
        bias = self.param("bias", init, (self.features,))
        return y + bias.astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation in float32, whatever the dtype of the features.

    Under jit over a batch that is sharded over devices the statistics are those of the whole batch.

    Departs: from flax.linen.BatchNorm, whose running variance takes the biased variance of the batch; PyTorch's takes the
    unbiased one. The deviation is squared after the mean is known: E[x^2] - E[x]^2 loses digits in deep networks.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, size)
        bias = self.param("bias", nn.initializers.zeros, size)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, size, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, size, jnp.float32)
        x = x.astype(jnp.float32)
        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(x, axes)
            var = jnp.mean(jnp.square(x - mean), axes)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
        return ((x - mean) * (lax.rsqrt(var + self.epsilon) * scale) + bias).astype(self.dtype)


GroupNorm = partial(nn.GroupNorm, epsilon=1e-5, use_fast_variance=False)
"""PyTorch's group norm; statistics in float32."""


def max_pool(x: jax.Array, *, size: int, stride: int) -> jax.Array:
    """Largest value in each window; borders padded by (size - 1) // 2 as in PyTorch's networks.

    Written as maxima of shifted slices, columns after rows: the gradient of XLA's window form is slow on a CPU.

    Args:
      x: [B, H, W, C].
      size: side of the window.
      stride: step in rows and columns.

    Returns:
      [B, h, w, C] with h = (H + 2 * padding - size) // stride + 1.
    """
    for axis in (1, 2):
        margin = (size - 1) // 2
        padding = [(0, 0)] * x.ndim
        padding[axis] = (margin, margin)
        padded = jnp.pad(x, padding, constant_values=-jnp.inf) if margin else x
        count = (x.shape[axis] + 2 * margin - size) // stride + 1
        slices = [lax.slice_in_dim(padded, i, i + (count - 1) * stride + 1, stride, axis) for i in range(size)]
        x = slices[0]
        for other in slices[1:]:
            x = jnp.maximum(x, other)
    return x


def _apply_matrix(x: jax.Array, matrix: np.ndarray, axis: int) -> jax.Array:
    """Multiplies one spatial axis of [B, H, W, C] by a constant [out, in] matrix, exactly (no reduced precision)."""
    equation = {1: "oh,bhwc->bowc", 2: "ow,bhwc->bhoc"}[axis]
    return jnp.einsum(equation, jnp.asarray(matrix, x.dtype), x, precision=lax.Precision.HIGHEST)


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


def _lerp(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """Enlarges one axis by a whole factor."""
    length = x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 1)
    padded = jnp.pad(x, padding, mode="edge")
    before = lax.slice_in_dim(padded, 0, length, axis=axis)
    after = lax.slice_in_dim(padded, 2, length + 2, axis=axis)
    phases = []
    for phase in range(factor):
        shift = (phase + 0.5) / factor - 0.5
        phases.append(x * (1 + shift) - before * shift if shift < 0 else x * (1 - shift) + after * shift)
    return jnp.stack(phases, axis + 1).reshape(*x.shape[:axis], length * factor, *x.shape[axis + 1:])


def _bilinear_matrix(have: int, want: int) -> np.ndarray:
    """[want, have] weights of linear interpolation between pixel centres."""
    source = np.maximum((np.arange(want) + 0.5) * have / want - 0.5, 0)
    low = np.minimum(source.astype(np.int64), have - 1)
    high = np.minimum(low + 1, have - 1)
    matrix = np.zeros((want, have))
    np.add.at(matrix, (np.arange(want), low), 1 - (source - low))
    np.add.at(matrix, (np.arange(want), high), source - low)
    return matrix


class ConvBlock(nn.Module):
    """`depth` times convolution, norm, activation; the first convolution may stride."""

    features: int
    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    kernel: int = 3
    stride: int = 1
    depth: int = 2
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(1, self.depth + 1):
            stride = self.stride if i == 1 else 1
            x = self.conv(self.features, self.kernel, stride, use_bias=self.use_bias, name=f"conv{i}")(x)
            x = self.act(self.norm(name=f"norm{i}")(x))
        return x


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 projection where size or channels change.

    The block of ResNet-18 and -34, and with group norm and a leaky rectifier that of the contour proposal decoder.

    Source: He et al., "Deep residual learning for image recognition", CVPR 2016.
    """

    features: int
    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.features, 3, self.stride, name="conv1")(x)
        y = self.act(self.norm(name="norm1")(y))
        y = self.conv(self.features, 3, name="conv2")(y)
        y = self.norm(name="norm2")(y)
        if y.shape != x.shape:
            x = self.conv(self.features, 1, self.stride, name="projection")(x)
            x = self.norm(name="projection_norm")(x)
        return self.act(x + y)
