"""EfficientNets as Keras has them, without the classifier."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcell.models.backend import stored
from jaxcell.models.layers import Part

__all__ = ["EfficientNet"]

EPSILON = 1e-3
SQUEEZE = 4     # channels of a block's input for each channel of the squeezed means

fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
# Keras keeps a depthwise kernel as [k, k, C, 1]: its fan_out is k * k.
fan_out_depthwise = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal", in_axis=-1, out_axis=-2)


class Stage(NamedTuple):
    """Blocks of one stage of the smallest network (B0)."""

    kernel: int
    repeats: int
    features: int
    expansion: int
    stride: int


STAGES = (Stage(3, 1, 16, 1, 1), Stage(3, 2, 24, 6, 2), Stage(5, 2, 40, 6, 2), Stage(3, 3, 80, 6, 2), Stage(5, 3, 112, 6, 1),
          Stage(5, 4, 192, 6, 2), Stage(3, 1, 320, 6, 1))
STEM, TOP = 32, 1280
"""Channels of the first and the last convolution of B0."""


class EfficientNet(nn.Module):
    """Stem (3x3, stride 2) and seven stages of inverted bottlenecks; returns strides 2, 4, 8, 16, 32.

    The features are those of the expansion that opens the stage behind (2, 3, 4, 6: many channels, not yet strided) and of the
    last convolution. The input is divided by 255 in here, and then normalised with statistics that training leaves alone: 0
    and 1 unless a checkpoint brings others.

    Attributes:
      conv: convolution; its initialisation is chosen here.
      norm: batch norm, which takes an epsilon.
      dropout: module that drops whole blocks of a sample while training.
      width: channels of the stem: 64 for B7, to which those of all stages are proportional, rounded to eights.
      depth: factor of the blocks in each stage, rounded up (3.1 for B7).
      drop: share of the samples that lose the last block; it rises linearly from 0 at the first.

    Source: Tan and Le, "EfficientNet: rethinking model scaling", ICML 2019, as keras.applications.EfficientNetB7; names of
      modules are those of its layers.
    """

    conv: Part
    norm: Part
    dropout: Part
    width: int = 64
    depth: float = 3.1
    drop: float = 0.2

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        parts: dict[str, Any] = {"conv": self.conv, "norm": self.norm, "dropout": self.dropout}
        repeats = [math.ceil(self.depth * stage.repeats) for stage in STAGES]
        x = Normalization(name="normalization")(x / 255)
        x = _strided(self.conv(self._scaled(STEM), 3, 2, kernel_init=fan_out, name="stem_conv"), x)
        x = nn.swish(self.norm(epsilon=EPSILON, name="stem_bn")(x))
        features, number = [], 0
        for index, stage in enumerate(STAGES):
            for i in range(repeats[index]):
                stride = stage.stride if i == 0 else 1
                x, expanded = InvertedBottleneck(
                    self._scaled(stage.features), kernel=stage.kernel, stride=stride, expansion=stage.expansion,
                    drop=self.drop * number / sum(repeats), name=f"block{index + 1}{chr(ord('a') + i)}", **parts)(x)
                number += 1
                if stride == 2:
                    features.append(expanded)
        x = self.conv(self._scaled(TOP), 1, kernel_init=fan_out, name="top_conv")(x)
        return [*features, stored(nn.swish(self.norm(epsilon=EPSILON, name="top_bn")(x)))]

    def _scaled(self, features: int) -> int:
        """Channels at this width: a multiple of 8, and not more than a tenth below the exact number."""
        exact = features * self.width / STEM
        rounded = max(8, int(exact + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * exact else rounded


class InvertedBottleneck(nn.Module):
    """1x1 to expansion * inputs, depthwise k x k, channels weighted by their means, 1x1 to `features`; a sum where that fits.

    Returns:
      (result, what the depthwise convolution saw).
    """

    features: int
    conv: Part
    norm: Part
    dropout: Part
    kernel: int
    stride: int
    expansion: int
    drop: float

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs = x.shape[-1]
        inner, y = inputs * self.expansion, x
        if self.expansion > 1:
            y = self.conv(inner, 1, kernel_init=fan_out, name="expand_conv")(y)
            y = stored(nn.swish(self.norm(epsilon=EPSILON, name="expand_bn")(y)))
        expanded = y
        y = _strided(self.conv(inner, self.kernel, self.stride, groups=inner, kernel_init=fan_out_depthwise, name="dwconv"), y)
        y = nn.swish(self.norm(epsilon=EPSILON, name="bn")(y))
        weight = jnp.mean(y, axis=(1, 2), keepdims=True)
        weight = nn.swish(self._pixel_conv(max(1, inputs // SQUEEZE), "se_reduce")(weight))
        y = y * nn.sigmoid(self._pixel_conv(inner, "se_expand")(weight))
        y = self.conv(self.features, 1, kernel_init=fan_out, name="project_conv")(y)
        y = self.norm(epsilon=EPSILON, name="project_bn")(y)
        if self.stride == 1 and inputs == self.features:
            y = x + self.dropout(self.drop, broadcast_dims=(1, 2, 3))(y)
        return stored(y), expanded

    def _pixel_conv(self, features: int, name: str) -> nn.Module:
        return self.conv(features, 1, kernel_init=fan_out, use_bias=True, name=name)


class Normalization(nn.Module):
    """(x - mean) / deviation of every channel, with statistics that training does not change."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, size, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, size, jnp.float32)
        return (x - mean.value) / jnp.maximum(jnp.sqrt(var.value), 1e-7)


def _strided(conv: nn.Module, x: jax.Array) -> jax.Array:
    """A convolution of even sides with stride 2 as Keras pads it: one zero less at the top and left than at the bottom and right.

    `Conv` pads alike on all sides. With a further row and column of zeros in front, its windows but the first lie as they should.
    """
    if conv.stride == 1:
        return conv(x)
    before = [(1 - size % 2, 0) for size in x.shape[1:3]]
    y = conv(jnp.pad(x, ((0, 0), *before, (0, 0))))
    return y[:, before[0][0]:, before[1][0]:]
