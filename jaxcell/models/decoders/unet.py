"""The expanding half of a U-Net over any encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcell.models.layers import Part
from jaxcell.models.resize import resize_nearest

__all__ = ["UNetDecoder"]


class UNetDecoder(nn.Module):
    """From coarse to fine: nearest resize to the lateral, 1x1 convolution where channels shrink, concatenation, block.

    Attributes:
      block: `ConvBlock` or `ResidualBlock`, its own settings bound; level i has the channels of encoder level i.
      bridge: block of one further level at twice the resolution of the finest encoder feature, without a lateral; None
        for none. Level i then has the resolution of encoder level i - 1 and still the channels of encoder level i.

    Source: neurips22-cell-seg@ab6a154, neurips/nn/unet.py; with `bridge` celldetection 0.4.9, models/unet.py.
    """

    block: Part
    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    bridge: Part | None = None

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> list[jax.Array]:
        """Encoder features, fine to coarse -> as many (with `bridge` one more), the coarsest as it came."""
        laterals: list[jax.Array | None] = list(features[:-1]) if self.bridge is None else [None, *features[:-1]]
        outputs = [features[-1]]
        for level in reversed(range(len(laterals))):
            lateral, width, x = laterals[level], features[level].shape[-1], outputs[0]
            shape = (2 * x.shape[1], 2 * x.shape[2]) if lateral is None else lateral.shape[1:3]
            x = resize_nearest(x, shape)
            if x.shape[-1] > width:
                x = self.conv(width, 1, use_bias=True, name=f"level{level}_reduce")(x)
            block = self.block
            if lateral is None:
                assert self.bridge is not None
                block = self.bridge
            else:
                x = jnp.concatenate([lateral, x], axis=-1)
            outputs.insert(0, block(width, conv=self.conv, norm=self.norm, act=self.act, name=f"level{level}")(x))
        return outputs
