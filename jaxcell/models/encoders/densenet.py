"""DenseNets as Keras has them, without the classifier: every layer sees all features before it."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcell.models.backend import stored
from jaxcell.models.layers import Part
from jaxcell.models.resize import average_pool, max_pool

__all__ = ["DenseNet"]

EPSILON = 1.001e-5


class DenseNet(nn.Module):
    """Stem (7x7, stride 2) and four dense blocks, each returned before its transition: strides 2, 4, 8, 16, 32.

    The coarsest features are those of the last concatenation: without the norm and rectifier that end the classifier.

    Attributes:
      conv: convolution.
      norm: batch norm, which takes an epsilon.
      dropout: not used: nothing is dropped here; encoders are called alike.
      stage_sizes: layers in each dense block (these are DenseNet201's).
      width: channels of the stem; a layer adds width // 2.

    Source: Huang et al., "Densely connected convolutional networks", CVPR 2017, as keras.applications.DenseNet201; names of
      modules are those of its layers.
    """

    conv: Part
    norm: Part
    dropout: Part
    stage_sizes: tuple[int, ...] = (6, 12, 48, 32)
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        parts: dict[str, Any] = {"conv": self.conv, "norm": self.norm}
        x = self.conv(self.width, 7, 2, name="conv1_conv")(x)
        x = stored(nn.relu(self.norm(epsilon=EPSILON, name="conv1_bn")(x)))
        features = [x]
        x = max_pool(x, size=3, stride=2)
        for stage, size in enumerate(self.stage_sizes):
            if stage > 0:
                x = nn.relu(self.norm(epsilon=EPSILON, name=f"pool{stage + 1}_bn")(x))
                x = self.conv(x.shape[-1] // 2, 1, name=f"pool{stage + 1}_conv")(x)
                x = average_pool(x, size=2, stride=2)
            for i in range(size):
                x = DenseLayer(self.width // 2, name=f"conv{stage + 2}_block{i + 1}", **parts)(x)
            features.append(x)
        return features


class DenseLayer(nn.Module):
    """Norm, act, 1x1 to 4 * features; norm, act, 3x3 to `features`, which are appended to the input."""

    features: int
    conv: Part
    norm: Part

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm(epsilon=EPSILON, name="0_bn")(x))
        y = self.conv(4 * self.features, 1, name="1_conv")(y)
        y = nn.relu(self.norm(epsilon=EPSILON, name="1_bn")(y))
        y = self.conv(self.features, 3, name="2_conv")(y)
        return stored(jnp.concatenate([x, y], axis=-1))
