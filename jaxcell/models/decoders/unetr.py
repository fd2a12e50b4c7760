"""The skip paths and the expanding half of a U-Net as MONAI's UNETR has them, over any encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcell.models.layers import Part, ResidualBlock

__all__ = ["SkipBlocks", "UnetrDecoder"]


class SkipBlocks(nn.Module):
    """A residual block on the image and on every feature of an encoder; several decoders may share the results.

    Attributes:
      widths: channels of each result, the image's first.

    Source: MONAI 0.9.0, networks/blocks/unetr_block.py (UnetrBasicBlock with a residual block).
    """

    widths: Sequence[int]
    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> list[jax.Array]:
        """The image and the encoder's features, fine to coarse -> as many of the same sizes."""
        block = partial(ResidualBlock, conv=self.conv, norm=self.norm, act=self.act)
        return [block(width, name=f"level{i}")(x) for i, (width, x) in enumerate(zip(self.widths, features, strict=True))]


class UnetrDecoder(nn.Module):
    """From coarse to fine: transposed 2x2 convolution to the skip's channels, the skip behind it, residual block.

    Source: MONAI 0.9.0, networks/blocks/unetr_block.py (UnetrUpBlock with a residual block).
    """

    conv: Part
    conv_transpose: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, skips: Sequence[jax.Array]) -> list[jax.Array]:
        """Features fine to coarse, each of half the sides of the one before -> as many, the coarsest as it came."""
        outputs = [skips[-1]]
        for level in reversed(range(len(skips) - 1)):
            width = skips[level].shape[-1]
            x = self.conv_transpose(width, 2, use_bias=False, name=f"level{level}_enlarge")(outputs[0])
            x = jnp.concatenate([x, skips[level]], axis=-1)
            outputs.insert(0, ResidualBlock(width, conv=self.conv, norm=self.norm, act=self.act, name=f"level{level}")(x))
        return outputs
