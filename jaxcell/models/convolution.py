"""Convolutions as functions, written as each backend computes them fastest; equal to XLA's plain form in value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from jaxcell.models.backend import on_cpu, stored, sum_of_pixels

__all__ = ["convolve", "convolve_transposed"]


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1, groups: int = 1, padding: int | None = None) -> jax.Array:
    """Convolution with zeros on every side, in the fastest form for the device; reverse-mode derivatives only.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / groups, F], outputs ordered by group.
      stride: step in rows and columns.
      groups: divides C and F; C for a depthwise convolution.
      padding: zeros on every side; None for k // 2, which is the only one for several groups.

    Returns:
      [B, h, w, F] with h = (H + 2 * padding - k) // stride + 1.

    Raises:
      ValueError: shapes that do not belong together, or a padding with groups.
    """
    side, width, inputs, outputs = kernel.shape
    margin = side // 2 if padding is None else padding
    if groups > 1 and margin != side // 2:
        raise ValueError(f"padding={padding} with {groups} groups; convolutions in groups are padded by k // 2 = {side // 2}. "
                         "Pad the image before.")
    if side != width or inputs * groups != x.shape[-1] or outputs % groups:
        raise ValueError(f"kernel {kernel.shape} for images {x.shape} in {groups} groups; a kernel is [k, k, C / groups, F] with "
                         "groups that divide C and F. Give the image these channels, or the kernel this shape.")
    if side == 1 and stride > 1:     # else XLA computes what it then leaves out
        x, stride = x[:, ::stride, ::stride], 1
    if groups == 1:
        return (_dense if on_cpu() else _plain)(x, kernel, stride, margin)
    return _depthwise(x, kernel, stride) if groups == x.shape[-1] and on_cpu() else _grouped(x, kernel, stride, groups)


def _plain(x: jax.Array, kernel: jax.Array, stride: int, margin: int, groups: int = 1) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((margin, margin), (margin, margin)),
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense(x, kernel, stride, margin):
    return _plain(x, kernel, stride, margin)


def _dense_forward(x, kernel, stride, margin):
    x = stored(x)
    return _plain(x, kernel, stride, margin), (x, kernel)


def _dense_backward(stride, margin, saved, dy):
    (x, kernel), dy = saved, stored(dy)
    with jax.named_scope("input_gradient"):     # for benchmarks/layers.py and for traces
        dx, = jax.linear_transpose(lambda x: _plain(x, kernel, stride, margin), x)(dy)
    with jax.named_scope("kernel_gradient"):
        if kernel.shape[0] > 3 and stride == 1:
            return dx, _kernel_gradient(x, dy, kernel.shape[0], margin)
        dkernel, = jax.linear_transpose(lambda kernel: _plain(x, kernel, stride, margin), kernel)(dy)
    return dx, dkernel


_dense.defvjp(_dense_forward, _dense_backward)


def _kernel_gradient(x: jax.Array, dy: jax.Array, side: int, margin: int) -> jax.Array:
    """Gradient of a dense kernel as a matrix product for each image: inputs shifted in columns with outputs shifted in rows.

    The matrices are k times as wide as those of one weight, and only 2 k copies are made, not k * k; pays for k > 3.
    """
    inputs, width, outputs = x.shape[-1], *dy.shape[2:]
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
    joined = max(n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * inputs <= 32)) if on_cpu() else 1
    if joined > 1:
        parts = kernel.reshape(side, side, 1, inputs, groups // joined, joined, outputs // groups)
        own = jnp.eye(joined, dtype=bool).reshape(joined, 1, 1, joined, 1)
        kernel = jnp.where(own, parts, 0).reshape(side, side, joined * inputs, outputs)
    return _plain(x, kernel, stride, side // 2, groups // joined)


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
    dkernel = jnp.stack([sum_of_pixels(tap * dy).sum(0) for tap in _taps(repeated, kernel.shape[0], stride)])
    return dx, dkernel.reshape(kernel.shape)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def convolve_transposed(x: jax.Array, kernel: jax.Array, *, stride: int | None = None) -> jax.Array:
    """Transposed convolution that enlarges an image `stride` times; the kernel is as wide as that, or twice as wide.

    As wide: every pixel becomes a square of its own, by one matrix product. Twice as wide, with stride / 2 pixels cut off on
    every side: each pixel of the result lies in the reach of 2 x 2 of the image, so one 2x2 convolution makes all places between
    them. The gradient of XLA's dilated form takes 15 times as long on a CPU.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C, F]; PyTorch's ConvTranspose2d.weight[c, f, i, j] and Keras' Conv2DTranspose.kernel[i, j, f, c] are
        its [i, j, c, f].
      stride: k or k / 2, in the second case even; None for k.

    Returns:
      [B, stride * H, stride * W, F].

    Raises:
      ValueError: another stride.
    """
    side, _, inputs, outputs = kernel.shape
    batch, height, width, _ = x.shape
    stride = side if stride is None else stride
    if stride == side:
        return jnp.einsum("bhwc,ijcf->bhiwjf", x, kernel).reshape(batch, side * height, side * width, outputs)
    if 2 * stride != side or stride % 2:
        raise ValueError(f"kernel {kernel.shape} with stride {stride}; the stride of a transposed convolution is the kernel's "
                         "side, or half of it and even.")
    # The pixels between four of the image: in each axis the farther half of the kernel belongs to the first of two.
    parts = kernel.reshape(2, stride, 2, stride, inputs, outputs)[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
    between = convolve(x, parts.reshape(2, 2, inputs, stride * stride * outputs))
    whole = between.reshape(batch, height + 1, width + 1, stride, stride, outputs).transpose(0, 1, 3, 2, 4, 5)
    cut = slice(stride // 2, -(stride // 2))
    return whole.reshape(batch, stride * (height + 1), stride * (width + 1), outputs)[:, cut, cut]
