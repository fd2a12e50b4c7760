"""Modules that several networks share: convolutions, norms, and the two blocks of U-Nets and ResNets.

All are NHWC and equal PyTorch's in value: published networks must load and give the authors' numbers. The arithmetic of
convolutions is in convolution.py, pooling and resizing in resize.py.

A network hands its parts on as constructors, with what they need already bound: `conv` (a `Conv`), `norm` (a `BatchNorm` that
knows whether it trains, or a group norm) and `act`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxcell.models.backend import precise, stored, sum_of_pixels
from jaxcell.models.convolution import convolve, convolve_transposed

__all__ = ["BatchNorm", "Conv", "ConvBlock", "ConvTranspose", "GroupNorm", "InstanceNorm", "NoNorm", "Part", "ResidualBlock",
           "SqueezeExcite", "fan_in_uniform", "fan_out_normal"]

Part = Callable[..., Any]   # a constructor of modules, parts bound with functools.partial

fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default for kernels: uniform in +-1/sqrt(fan_in)."""
fan_out_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Kaiming normal over the outputs, gain sqrt(2)."""


@jax.custom_vjp
def _add_bias(x, bias):
    return x + bias


_add_bias.defvjp(lambda x, bias: (x + bias, None), lambda _, dy: (dy, sum_of_pixels(precise(dy)).sum(0).astype(dy.dtype)))


class Conv(nn.Module):
    """Convolution with PyTorch's default initialisation; parameters in float32, arithmetic in `dtype`; see `convolve`."""

    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    padding: int | None = None      # None: k // 2
    kernel_init: nn.initializers.Initializer = fan_in_uniform
    bias_init: nn.initializers.Initializer | None = None    # None: PyTorch's, uniform in +-1/sqrt(fan_in) of the kernel
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, groups=self.groups,
                     padding=self.padding)
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init or _uniform(self.kernel ** 2 * shape[2]), (self.features,))
        return _add_bias(y, bias.astype(self.dtype))


class ConvTranspose(nn.Module):
    """Transposed convolution with PyTorch's default initialisation; see `convolve_transposed`."""

    features: int
    kernel: int = 2
    stride: int | None = None       # None: kernel
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer | None = None      # None: PyTorch's
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # PyTorch's fan_in of a transposed convolution counts its outputs.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", self.kernel_init or init, (self.kernel, self.kernel, x.shape[-1], self.features))
        y = convolve_transposed(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride)
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
    x = precise(x)
    mean = average(sum_of_pixels(x) / pixels)
    return mean, average(sum_of_pixels(jnp.square(x - _over_pixels(mean, x))) / pixels)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(x, scale, bias, average, epsilon):
    """((x - mean) / deviation * scale + bias, mean, variance); the two statistics carry no gradient."""
    return _normalise_forward(x, scale, bias, average, epsilon)[0]


def _normalise_forward(x, scale, bias, average, epsilon):
    mean, var = _statistics(x, average)
    inverse = lax.rsqrt(var + epsilon)
    y = (precise(x) - _over_pixels(mean, x)) * _over_pixels(inverse * scale, x) + bias
    return (y, mean, var), (x, scale, mean, inverse)


def _normalise_backward(average, epsilon, saved, gradients):
    x, scale, mean, inverse = saved
    dy, pixels = gradients[0], x.size // (x.shape[0] * x.shape[-1])
    normal = (precise(x) - _over_pixels(mean, x)) * _over_pixels(inverse, x)
    sums, products = sum_of_pixels(dy), sum_of_pixels(dy * normal)
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
            y = (precise(x) - running_mean.value) * (lax.rsqrt(running_var.value + self.epsilon) * scale) + bias
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


class NoNorm(nn.Module):
    """In the place of a norm: nothing happens."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class SqueezeExcite(nn.Module):
    """Every channel weighted by a number in (0, 1) that depends on the means of all channels.

    The weights are sown as "scale", [B, C], into the collection "intermediates".

    Attributes:
      reduction: the hidden layer has 1 / reduction of the channels.

    Source: Hu et al., "Squeeze-and-excitation networks", CVPR 2018.
    """

    conv: Part
    reduction: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        mean = (sum_of_pixels(precise(x)) / (height * width)).reshape(batch, 1, 1, channels)
        hidden = nn.relu(self.conv(channels // self.reduction, 1, use_bias=True, name="squeeze")(mean))
        scale = nn.sigmoid(self.conv(channels, 1, use_bias=True, name="excite")(hidden))
        self.sow("intermediates", "scale", scale[:, 0, 0])
        return stored(x * scale)


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
