"""The ResNet before a vision transformer: weight-standardised convolutions and group norm."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcell.models.backend import stored
from jaxcell.models.convolution import convolve
from jaxcell.models.layers import GroupNorm, fan_in_uniform
from jaxcell.models.resize import max_pool

__all__ = ["HybridBottleneck", "HybridResNet", "StandardisedConv"]


class StandardisedConv(nn.Module):
    """Convolution without bias whose kernel has mean 0 and variance 1 for every output, in float32 before the arithmetic.

    Source: Qiao et al., "Weight standardization", 2019; the variance is the biased one, plus 1e-5.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", fan_in_uniform, (self.kernel, self.kernel, x.shape[-1], self.features))
        mean = jnp.mean(kernel, (0, 1, 2))
        variance = jnp.mean(jnp.square(kernel - mean), (0, 1, 2))
        kernel = (kernel - mean) * jax.lax.rsqrt(variance + 1e-5)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride)


class HybridBottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 to 4 * features, beside a shortcut; norms and rectifiers follow the convolutions.

    The norm of a projected shortcut has one channel a group and another epsilon.

    Source: Kolesnikov et al., "Big transfer", ECCV 2020, as Beckschen/TransUNet@02ef001, vit_seg_modeling_resnet_skip.py.
    """

    features: int
    stride: int = 1
    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(StandardisedConv, dtype=self.dtype)
        norm = partial(GroupNorm, self.groups, 1e-6, dtype=self.dtype)
        outputs = 4 * self.features
        y = nn.relu(norm(name="norm1")(conv(self.features, 1, name="conv1")(x)))
        y = nn.relu(norm(name="norm2")(conv(self.features, 3, self.stride, name="conv2")(y)))
        y = norm(name="norm3")(conv(outputs, 1, name="conv3")(y))
        if x.shape[-1] != outputs or self.stride > 1:
            x = conv(outputs, 1, self.stride, name="projection")(x)
            x = GroupNorm(outputs, 1e-5, dtype=self.dtype, name="projection_norm")(x)
        return stored(nn.relu(x + y))


class HybridResNet(nn.Module):
    """Root (7x7, stride 2), max pooling and stages of bottlenecks: features of strides 2, 4, 8 and 16.

    The pooling has no padding, so the second feature is a row and a column short; it is handed out padded with zeros below and
    on the right, and the trunk goes on from the short one.

    Attributes:
      stage_sizes: bottlenecks in each stage.
      width: channels of the root; stage i works with width * 2 ** i and returns four times as many.
      groups: of the group norms; must divide `width`.

    Source: Beckschen/TransUNet@02ef001, vit_seg_modeling_resnet_skip.py (ResNetV2); Dosovitskiy et al., ICLR 2021 (R50+ViT).
    """

    stage_sizes: tuple[int, ...] = (3, 4, 9)
    width: int = 64
    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """[B, H, W, C], sides multiples of 16 -> features, fine to coarse."""
        height, width = x.shape[1:3]
        x = StandardisedConv(self.width, 7, 2, dtype=self.dtype, name="root_conv")(x)
        x = stored(nn.relu(GroupNorm(self.groups, 1e-6, dtype=self.dtype, name="root_norm")(x)))
        features = [x]
        x = max_pool(x, size=3, stride=2, margin=0)
        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                stride = 2 if stage > 0 and i == 0 else 1
                x = HybridBottleneck(self.width * 2 ** stage, stride, self.groups, dtype=self.dtype,
                                     name=f"block{stage + 1}_unit{i + 1}")(x)
            missing = ((height >> stage + 2) - x.shape[1], (width >> stage + 2) - x.shape[2])
            features.append(jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0))))
        return features
