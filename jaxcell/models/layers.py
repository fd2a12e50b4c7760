"""Layers that several networks share: convolution, norms, pooling, resizing, and the two blocks of U-Nets and ResNets.

All are NHWC and equal PyTorch's in value: published networks must load and give the authors' numbers. Where XLA's own
form is slow on a CPU the arithmetic is written differently; which form runs is decided when a function is traced.

A network hands its parts on as constructors, with what they need already bound: `conv` (a `Conv`), `norm` (a `BatchNorm` that
knows whether it trains, or a group norm) and `act`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

__all__ = ["BatchNorm", "Conv", "ConvBlock", "ConvTranspose", "GroupNorm", "InstanceNorm", "Part", "ResidualBlock",
           "adaptive_average_pool", "average_pool", "compiler_options", "convolve", "convolve_transposed", "fan_in_uniform",
           "fan_out_normal", "max_pool", "resize_bilinear", "resize_nearest", "stored"]

Part = Callable[..., Any]   # a constructor of modules, parts bound with functools.partial

fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default for kernels: uniform in +-1/sqrt(fan_in)."""
fan_out_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Kaiming normal over the outputs, gain sqrt(2)."""


def compiler_options() -> dict[str, str] | None:
    """Options for `jax.jit(..., compiler_options=...)` of a function that runs a network; None where the defaults are best.

    On a CPU, jaxlib 0.10 and 0.11 hand convolutions and matrix products to their library YNNPACK, which takes 1.3 to 3 times as
    long over them as the Eigen kernels that they have as well (benchmarks/README.md), and gave wrong numbers in reported cases
    (jax issue 39103). The first option, empty, turns the library off; the second keeps the barriers of `stored`.
    """
    if not _on_cpu():
        return None
    return {"xla_cpu_experimental_ynn_fusion_type": "", "xla_disable_hlo_passes": "cse_barrier_expander"}


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def stored(x: jax.Array) -> jax.Array:
    """x, and backwards its gradient, written to memory once: a CPU otherwise computes it anew in everything that reads it."""
    return lax.optimization_barrier(x) if _on_cpu() else x


def _precise(x: jax.Array) -> jax.Array:
    """x in float32 at least, for sums."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# ------------------------------------------------------------------------------------------------------------ convolutions
def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1, groups: int = 1) -> jax.Array:
    """Convolution with k // 2 zeros on every side, in the fastest form for the device; reverse-mode derivatives only.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / groups, F], outputs ordered by group.
      stride: step in rows and columns.
      groups: divides C and F; C for a depthwise convolution.

    Returns:
      [B, h, w, F] with h = (H + 2 * (k // 2) - k) // stride + 1.

    Raises:
      ValueError: shapes that do not belong together.
    """
    side, width, inputs, outputs = kernel.shape
    if side != width or inputs * groups != x.shape[-1] or outputs % groups:
        raise ValueError(f"kernel {kernel.shape} for images {x.shape} in {groups} groups; a kernel is [k, k, C / groups, F] with "
                         "groups that divide C and F. Give the image these channels, or the kernel this shape.")
    if kernel.shape[0] == 1 and stride > 1:     # else XLA computes what it then leaves out
        x, stride = x[:, ::stride, ::stride], 1
    if groups == 1:
        return _dense(x, kernel, stride) if _on_cpu() else _plain(x, kernel, stride)
    return _depthwise(x, kernel, stride) if groups == x.shape[-1] and _on_cpu() else _grouped(x, kernel, stride, groups)


def _plain(x: jax.Array, kernel: jax.Array, stride: int, groups: int = 1) -> jax.Array:
    margin = kernel.shape[0] // 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((margin, margin), (margin, margin)),
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x, kernel, stride):
    return _plain(x, kernel, stride)


def _dense_forward(x, kernel, stride):
    x = stored(x)
    return _plain(x, kernel, stride), (x, kernel)


def _dense_backward(stride, saved, dy):
    (x, kernel), dy = saved, stored(dy)
    with jax.named_scope("input_gradient"):     # for benchmarks/layers.py and for traces
        dx, = jax.linear_transpose(lambda x: _plain(x, kernel, stride), x)(dy)
    with jax.named_scope("kernel_gradient"):
        if kernel.shape[0] > 3 and stride == 1:
            return dx, _kernel_gradient(x, dy, kernel.shape[0])
        dkernel, = jax.linear_transpose(lambda kernel: _plain(x, kernel, stride), kernel)(dy)
    return dx, dkernel


_dense.defvjp(_dense_forward, _dense_backward)


def _kernel_gradient(x: jax.Array, dy: jax.Array, side: int) -> jax.Array:
    """Gradient of a dense kernel as a matrix product for each image: inputs shifted in columns with outputs shifted in rows.

    The matrices are k times as wide as those of one weight, and only 2 k copies are made, not k * k; pays for k > 3.
    """
    margin, inputs, width, outputs = side // 2, x.shape[-1], *dy.shape[2:]
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    columns = jnp.concatenate([padded[:, :, j:j + width] for j in range(side)], axis=-1)
    rows = jnp.concatenate([jnp.pad(dy, ((0, 0), (i, side - 1 - i), (0, 0), (0, 0))) for i in range(side)], axis=-1)
    products = jnp.einsum("bhwm,bhwn->bmn", columns, rows)
    return products.sum(0).reshape(side, inputs, side, outputs).transpose(2, 0, 1, 3)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _grouped(x, kernel, stride, groups):
    return _on_each_device(lambda x, kernel: _wide(x, kernel, stride, groups))(x, kernel)


def _wide(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """Grouped convolution; on a CPU with groups joined to 32 inputs at least, zeros where there was no connection."""
    side, _, inputs, outputs = kernel.shape
    joined = max(n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * inputs <= 32)) if _on_cpu() else 1
    if joined > 1:
        parts = kernel.reshape(side, side, 1, inputs, groups // joined, joined, outputs // groups)
        own = jnp.eye(joined, dtype=bool).reshape(joined, 1, 1, joined, 1)
        kernel = jnp.where(own, parts, 0).reshape(side, side, joined * inputs, outputs)
    return _plain(x, kernel, stride, groups // joined)


def _grouped_forward(x, kernel, stride, groups):
    return _grouped(x, kernel, stride, groups), (x, kernel)


def _grouped_backward(stride, groups, saved, dy):
    x, kernel = saved

    def input_gradient(dy, kernel):
        shape = jax.ShapeDtypeStruct((dy.shape[0], *x.shape[1:]), x.dtype)
        return jax.linear_transpose(lambda x: _wide(x, kernel, stride, groups), shape)(dy)[0]

    with jax.named_scope("input_gradient"):
        dx = _on_each_device(input_gradient)(dy, kernel)
    side, _, inputs, outputs = kernel.shape
    with jax.named_scope("kernel_gradient"):
        rows = dy.reshape(-1, groups, outputs // groups)
        taps = [jnp.einsum("ngi,ngo->igo", tap.reshape(-1, groups, inputs), rows) for tap in _taps(x, side, stride)]
    return dx, jnp.stack(taps).reshape(kernel.shape)


_grouped.defvjp(_grouped_forward, _grouped_backward)


def _taps(x: jax.Array, side: int, stride: int) -> list[jax.Array]:
    """What each of the side * side weights of a kernel sees: shifted copies of x, [B, h, w, C] each."""
    margin = side // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    height, width = ((n + 2 * margin - side) // stride * stride + 1 for n in x.shape[1:3])
    return [padded[:, i:i + height:stride, j:j + width:stride] for i in range(side) for j in range(side)]


def _on_each_device(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The same function (images, kernel) -> images, run where each image lies.

    Left alone XLA gathers a batch that is split over devices for every grouped convolution (openxla/xla issue 47945).
    """
    if jax.device_count() == 1:
        return function
    local = custom_partitioning(function)

    def partition(mesh, arguments, _):
        batch = arguments[0].sharding.spec[:1]
        images, everywhere = NamedSharding(mesh, PartitionSpec(*batch)), NamedSharding(mesh, PartitionSpec())
        return mesh, function, images, (images, everywhere)

    local.def_partition(partition=partition, sharding_rule="b h w c, i j k f -> b u v o")
    return local


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x, kernel, stride):
    return _shifted_products(x, kernel, stride)


def _shifted_products(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Depthwise convolution as k * k products of shifted images with one number for each channel."""
    repeated = jnp.repeat(x, kernel.shape[-1] // x.shape[-1], axis=-1)
    weights = kernel.reshape(-1, kernel.shape[-1])
    return reduce(jnp.add, map(jnp.multiply, _taps(repeated, kernel.shape[0], stride), weights))


def _depthwise_forward(x, kernel, stride):
    return _depthwise(x, kernel, stride), (x, kernel)


def _depthwise_backward(stride, saved, dy):
    x, kernel = saved
    repeated = jnp.repeat(x, kernel.shape[-1] // x.shape[-1], axis=-1)
    dx, = jax.linear_transpose(lambda x: _shifted_products(x, kernel, stride), x)(dy)
    dkernel = jnp.stack([_sum_of_pixels(tap * dy).sum(0) for tap in _taps(repeated, kernel.shape[0], stride)])
    return dx, dkernel.reshape(kernel.shape)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def convolve_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution whose stride is the side of its kernel: every pixel becomes a k x k square of its own.

    One matrix product; the gradient of XLA's dilated form takes 15 times as long on a CPU.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C, F]; PyTorch's ConvTranspose2d.weight[c, f, i, j] and Keras' Conv2DTranspose.kernel[i, j, f, c] are
        its [i, j, c, f].

    Returns:
      [B, k * H, k * W, F].
    """
    side, _, _, outputs = kernel.shape
    batch, height, width, _ = x.shape
    return jnp.einsum("bhwc,ijcf->bhiwjf", x, kernel).reshape(batch, side * height, side * width, outputs)


# ----------------------------------------------------------------------------------------------------------- sums over pixels
def _sum_of_pixels(x: jax.Array) -> jax.Array:
    """[B, ..., C] -> [B, C] sums over the axes between.

    On a CPU up to 32 rows onto one another at a time, a vectorised loop that takes in what made x, and the sums stored: XLA's own
    sum over all rows takes 5 times as long, and sums of sums it fuses and computes anew.
    """
    if not _on_cpu() or x.size == 0:
        return jnp.sum(x, tuple(range(1, x.ndim - 1)))
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    while (count := x.shape[1]) > 1:
        fold = max((n for n in range(2, 33) if count % n == 0), default=count)
        x = stored(jnp.sum(x.reshape(x.shape[0], fold, count // fold, x.shape[-1]), 1))
    return x[:, 0]


@jax.custom_vjp
def _add_bias(x, bias):
    return x + bias


_add_bias.defvjp(lambda x, bias: (x + bias, None), lambda _, dy: (dy, _sum_of_pixels(_precise(dy)).sum(0).astype(dy.dtype)))


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
        bias = self.param("bias", self.bias_init or _uniform(self.kernel ** 2 * shape[2]), (self.features,))
        return _add_bias(y, bias.astype(self.dtype))


class ConvTranspose(nn.Module):
    """Transposed convolution that enlarges `kernel` times, with PyTorch's default initialisation; see `convolve_transposed`."""

    features: int
    kernel: int = 2
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # PyTorch's fan_in of a transposed convolution counts its outputs.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", init, (self.kernel, self.kernel, x.shape[-1], self.features))
        y = convolve_transposed(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", _uniform(self.kernel ** 2 * self.features), (self.features,))
        return _add_bias(y, bias.astype(self.dtype))


def _uniform(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for biases: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in ** -0.5
    return lambda rng, shape: jax.random.uniform(rng, shape, minval=-bound, maxval=bound)


def _mean_of_batch(means: jax.Array) -> jax.Array:
    """[B, C] -> [1, C]."""
    return jnp.mean(means, 0, keepdims=True)


def _mean_of_groups(means: jax.Array, *, groups: int) -> jax.Array:
    """[B, C] -> [B, C], the same in all channels of a group."""
    grouped = means.reshape(len(means), groups, -1)
    return jnp.broadcast_to(jnp.mean(grouped, -1, keepdims=True), grouped.shape).reshape(means.shape)


def _mean_of_pixels(means: jax.Array) -> jax.Array:
    """[B, C] -> [B, C], each image and channel by itself."""
    return means


def _over_pixels(values: jax.Array, x: jax.Array) -> jax.Array:
    """[B or 1, C] -> [B or 1, 1, ..., C], to stand beside x."""
    return values.reshape(len(values), *(1,) * (x.ndim - 2), values.shape[-1])


def _statistics(x: jax.Array, average: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Mean and variance, in float32 at least, over pixels and over what `average` joins, [B or 1, C] each.

    The deviation is squared after the mean is known: E[x^2] - E[x]^2 loses digits in deep networks.
    """
    pixels = x.size // (x.shape[0] * x.shape[-1])
    x = _precise(x)
    mean = average(_sum_of_pixels(x) / pixels)
    return mean, average(_sum_of_pixels(jnp.square(x - _over_pixels(mean, x))) / pixels)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(x, scale, bias, average, epsilon):
    """((x - mean) / deviation * scale + bias, mean, variance); the two statistics carry no gradient."""
    return _normalise_forward(x, scale, bias, average, epsilon)[0]


def _normalise_forward(x, scale, bias, average, epsilon):
    mean, var = _statistics(x, average)
    inverse = lax.rsqrt(var + epsilon)
    y = (_precise(x) - _over_pixels(mean, x)) * _over_pixels(inverse * scale, x) + bias
    return (y, mean, var), (x, scale, mean, inverse)


def _normalise_backward(average, epsilon, saved, gradients):
    x, scale, mean, inverse = saved
    dy, pixels = gradients[0], x.size // (x.shape[0] * x.shape[-1])
    normal = (_precise(x) - _over_pixels(mean, x)) * _over_pixels(inverse, x)
    sums, products = _sum_of_pixels(dy), _sum_of_pixels(dy * normal)
    shift, slope = (_over_pixels(average(s * scale / pixels), x) for s in (sums, products))
    dx = (dy * scale - shift - normal * slope) * _over_pixels(inverse, x)
    return dx.astype(x.dtype), products.sum(0).astype(scale.dtype), sums.sum(0).astype(scale.dtype)


_normalise.defvjp(_normalise_forward, _normalise_backward)


class BatchNorm(nn.Module):
    """Batch normalisation in float32, whatever the dtype of the features.

    Under jit over a batch that is sharded over devices the statistics are those of the whole batch.

    Departs: from flax.linen.BatchNorm, whose running variance takes the biased variance of the batch; PyTorch's takes the
    unbiased one.
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
        if self.use_running_average:
            y = (_precise(x) - running_mean.value) * (lax.rsqrt(running_var.value + self.epsilon) * scale) + bias
            return y.astype(self.dtype)
        y, mean, var = _normalise(x, scale, bias, _mean_of_batch, self.epsilon)
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = var[0] * (count / max(count - 1, 1))
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean[0]
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
        return y.astype(self.dtype)


class GroupNorm(nn.Module):
    """PyTorch's group norm; statistics in float32."""

    num_groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.shape[-1] % self.num_groups:
            raise ValueError(f"GroupNorm: {x.shape[-1]} channels do not divide into {self.num_groups} groups; choose a "
                             "config.model.width of which every feature is a multiple.")
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        average = partial(_mean_of_groups, groups=self.num_groups)
        return _normalise(x, scale, bias, average, self.epsilon)[0].astype(self.dtype)


class InstanceNorm(nn.Module):
    """PyTorch's instance norm without parameters: each channel of each image by itself; statistics in float32."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one, zero = jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1])
        return _normalise(x, one, zero, _mean_of_pixels, self.epsilon)[0].astype(self.dtype)


@jax.named_scope("max_pool")
def max_pool(x: jax.Array, *, size: int, stride: int) -> jax.Array:
    """Largest value in each window; borders padded by (size - 1) // 2 as in PyTorch's networks.

    Written as maxima of shifted slices, columns after rows: the gradient of XLA's window form is slow on a CPU.

    Departs: where several pixels of a window are equally large they share the gradient; in PyTorch the first takes it.

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


def _lerp(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """Enlarges one axis by a whole factor."""
    length = x.shape[axis]
    first, last = lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, length - 1, length, axis=axis)
    before = jnp.concatenate([first, lax.slice_in_dim(x, 0, length - 1, axis=axis)], axis)
    after = jnp.concatenate([lax.slice_in_dim(x, 1, length, axis=axis), last], axis)
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
            x = stored(self.act(self.norm(name=f"norm{i}")(x)))
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
        return stored(self.act(x + y))
