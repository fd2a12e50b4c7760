"""ResNets as torchvision has them, without the classifier: a list of features from fine to coarse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jaxcell.models.backend import stored
from jaxcell.models.layers import ConvBlock, Part
from jaxcell.models.resize import max_pool

__all__ = ["Bottleneck", "ResNet"]


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped or widened, strided), 1x1 to 4 * features, beside a shortcut.

    Attributes:
      features: channels of the result / 4.
      groups: groups of the 3x3 convolution (32 in ResNeXt-101 32x8d).
      width_per_group: channels per group where features is 64 (8 in ResNeXt-101 32x8d, 128 in WideResNet-50-2).

    Source: Xie et al., "Aggregated residual transformations", CVPR 2017; the stride sits in the 3x3 convolution as in
    torchvision.
    """

    features: int
    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    stride: int = 1
    groups: int = 1
    width_per_group: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = self.features * self.width_per_group // 64 * self.groups
        y = self.conv(inner, 1, name="conv1")(x)
        y = self.act(self.norm(name="norm1")(y))
        y = self.conv(inner, 3, self.stride, groups=self.groups, name="conv2")(y)
        y = self.act(self.norm(name="norm2")(y))
        y = self.conv(4 * self.features, 1, name="conv3")(y)
        y = self.norm(name="norm3")(y)
        if y.shape != x.shape:
            x = self.conv(4 * self.features, 1, self.stride, name="projection")(x)
            x = self.norm(name="projection_norm")(x)
        return stored(self.act(x + y))


class ResNet(nn.Module):
    """Stem (7x7, stride 2) and stages, each returned: strides 2, 4, 8, 16, 32.

    Attributes:
      stage_sizes: blocks in each stage.
      block: `ResidualBlock` or `Bottleneck`, its own settings bound.
      width: channels of the stem; stage i works with width * 2 ** i.
    """

    stage_sizes: tuple[int, ...]
    block: Part
    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        parts: dict[str, Any] = {"conv": self.conv, "norm": self.norm, "act": self.act}
        x = ConvBlock(self.width, kernel=7, stride=2, depth=1, name="level0", **parts)(x)
        features = [x]
        x = max_pool(x, size=3, stride=2)
        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                stride = 2 if stage > 0 and i == 0 else 1
                x = self.block(self.width * 2 ** stage, stride=stride, name=f"level{stage + 1}_block{i}", **parts)(x)
            features.append(x)
        return features
