"""Dense heads: from a feature map to channels that mean something."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from jaxcell.models.layers import Part

__all__ = ["DenseHead", "Reduce"]


class DenseHead(nn.Module):
    """k x k convolution, norm, activation, channel dropout, 1x1 convolution.

    Attributes:
      outputs: channels of the result.
      dropout: module that drops whole channels while training.
      kernel: side of the first convolution.
      features: hidden channels; None for those of the input.

    Source: celldetection 0.4.9, models/commons.py (ReadOut).
    """

    outputs: int
    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    dropout: Part
    kernel: int = 7
    features: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(self.features or x.shape[-1], self.kernel, use_bias=True, name="conv1")(x)
        x = self.act(self.norm(name="norm1")(x))
        x = self.dropout()(x)
        return self.conv(self.outputs, 1, use_bias=True, name="output")(x)


class Reduce(nn.Module):
    """A bare 1x1 convolution from several concatenated features to `features` channels: no bias, norm or activation."""

    features: int
    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.features, 1, name="conv1")(x)
