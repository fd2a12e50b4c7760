"""Semantic head: from a level of a feature pyramid to a map as large as the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from jaxcell.models.layers import Part

__all__ = ["SemanticHead"]


class SemanticHead(nn.Module):
    """`doublings` times a 3x3 convolution and an enlargement, then 1x1, norm, rectifier, 1x1.

    No activation follows the 3x3 convolutions: up to the norm the head is linear.

    Attributes:
      outputs: channels of the result.
      doublings: how often the grid is doubled.
      conv: convolution.
      norm: batch norm.
      resize: (features, (rows, columns)) -> features, enlarges them.
      features: channels of the 3x3 convolutions.
      final_features: channels between the 1x1 convolutions.

    Source: vanvalenlab/deepcell-tf@f1839a4, deepcell/model_zoo/fpn.py semantic_upsample, panopticnet.py
      __create_semantic_head.
    """

    outputs: int
    doublings: int
    conv: Part
    norm: Part
    resize: Callable[[jax.Array, Sequence[int]], jax.Array]
    features: int = 64
    final_features: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> logits [B, h * 2 ** doublings, w * 2 ** doublings, outputs]."""
        for i in range(self.doublings):
            x = self.conv(self.features, 3, use_bias=True, name=f"upsample{i}")(x)
            x = self.resize(x, [2 * size for size in x.shape[1:3]])
        x = self.conv(self.final_features, 1, use_bias=True, name="conv1")(x)
        x = nn.relu(self.norm(name="norm1")(x))
        return self.conv(self.outputs, 1, use_bias=True, name="output")(x)
