"""The expanding half of an SE-U-Net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcell.models.inputs import prepend_coordinates
from jaxcell.models.layers import ConvBlock, Part, SqueezeExcite
from jaxcell.models.resize import resize_corner_aligned

__all__ = ["SEUNetDecoder"]


class SEUNetDecoder(nn.Module):
    """From coarse to fine: enlarge twice, put every pixel's place in front, convolutions, `SqueezeExcite`, append the skip.

    Attributes:
      width: channels of each step, to which those of the skip are added.
      depth: convolutions of a step.

    Source: as `SEUNetEncoder`.
    Departs: places are put in front after the enlargement, not before; interpolation between corners keeps them as they are.
      They are (y, x), there (x, y).
    """

    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    width: int = 64
    depth: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, skips: Sequence[jax.Array]) -> list[jax.Array]:
        """The bottleneck's features and the skips, fine to coarse -> features of each step, coarse to fine."""
        block = partial(ConvBlock, self.width, conv=self.conv, norm=self.norm, act=self.act, depth=self.depth, use_bias=True)
        steps = []
        for number, skip in enumerate(reversed(skips)):
            x = prepend_coordinates(resize_corner_aligned(x, [2 * n for n in x.shape[1:3]]))
            x = SqueezeExcite(conv=self.conv, name=f"step{number}_se")(block(name=f"step{number}")(x))
            x = jnp.concatenate([x, skip], axis=-1)
            steps.append(x)
        return steps
