"""The cascaded upsampler of TransUNet: from tokens on a coarse grid to a map as fine as the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcell.models.layers import ConvBlock, Part
from jaxcell.models.resize import resize_corner_aligned

__all__ = ["CascadedUpsampler"]


class CascadedUpsampler(nn.Module):
    """3x3 convolution; then, level by level: twice the size, the skip behind it where there is one, two 3x3 convolutions.

    Norm and activation follow every convolution.

    Attributes:
      widths: channels of the levels, coarse to fine.
      features: channels of the first convolution.

    Source: Chen et al., "TransUNet", 2021, section 3.2.2; Beckschen/TransUNet@02ef001, vit_seg_modeling.py (DecoderCup).
    """

    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    widths: tuple[int, ...] = (256, 128, 64, 16)
    features: int = 512

    @nn.compact
    def __call__(self, x: jax.Array, skips: Sequence[jax.Array] = ()) -> jax.Array:
        """[B, h, w, C] and skips coarse to fine, each twice as fine -> [B, h * 2 ** n, w * 2 ** n, widths[-1]], n levels."""
        x = ConvBlock(self.features, conv=self.conv, norm=self.norm, act=self.act, depth=1, name="input")(x)
        for level, width in enumerate(self.widths):
            x = resize_corner_aligned(x, [2 * length for length in x.shape[1:3]])
            if level < len(skips):
                x = jnp.concatenate([x, skips[level]], axis=-1)
            x = ConvBlock(width, conv=self.conv, norm=self.norm, act=self.act, name=f"level{level}")(x)
        return x
