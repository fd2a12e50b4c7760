"""ResNet50 as Keras has it (v1), without the classifier: another network than torchvision's of the same name."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jaxcell.models.backend import stored
from jaxcell.models.layers import Part
from jaxcell.models.resize import max_pool

__all__ = ["KerasResNet"]

EPSILON = 1.001e-5


class KerasResNet(nn.Module):
    """Stem (7x7, stride 2) and four stages of bottlenecks, each returned: strides 2, 4, 8, 16, 32.

    Attributes:
      conv: convolution.
      norm: batch norm, which takes an epsilon.
      dropout: not used: nothing is dropped here; encoders are called alike.
      stage_sizes: blocks in each stage.
      width: channels of the stem; stage i works with width * 2 ** i and returns four times as many.

    Source: He et al., "Deep residual learning for image recognition", CVPR 2016, as keras.applications.ResNet50: the first 1x1
      convolution of a block strides, convolutions have biases, names of modules are those of its layers.
    """

    conv: Part
    norm: Part
    dropout: Part
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        parts: dict[str, Any] = {"conv": self.conv, "norm": self.norm}
        x = self.conv(self.width, 7, 2, use_bias=True, name="conv1_conv")(x)
        x = stored(nn.relu(self.norm(epsilon=EPSILON, name="conv1_bn")(x)))
        features = [x]
        x = max_pool(x, size=3, stride=2)
        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                stride = 2 if stage > 0 and i == 0 else 1
                x = KerasBottleneck(self.width * 2 ** stage, stride=stride, project=i == 0,
                                    name=f"conv{stage + 2}_block{i + 1}", **parts)(x)
            features.append(x)
        return features


class KerasBottleneck(nn.Module):
    """1x1 (strided), 3x3, 1x1 to 4 * features, beside the input or its 1x1 projection."""

    features: int
    conv: Part
    norm: Part
    stride: int = 1
    project: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def block(x: jax.Array, number: int, features: int, kernel: int, stride: int) -> jax.Array:
            x = self.conv(features, kernel, stride, use_bias=True, name=f"{number}_conv")(x)
            return self.norm(epsilon=EPSILON, name=f"{number}_bn")(x)

        y = nn.relu(block(x, 1, self.features, 1, self.stride))
        y = nn.relu(block(y, 2, self.features, 3, 1))
        y = block(y, 3, 4 * self.features, 1, 1)
        if self.project:
            x = block(x, 0, 4 * self.features, 1, self.stride)
        return stored(nn.relu(x + y))
