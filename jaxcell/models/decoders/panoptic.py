"""The finest level of a feature pyramid, as DeepCell's PanopticNet uses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax

from jaxcell.models.layers import Part

__all__ = ["PanopticDecoder"]


class PanopticDecoder(nn.Module):
    """1x1 laterals, top-down additions, and one 3x3 convolution on the finest sum; neither norm nor activation.

    The reference builds a convolution for every level and coarser levels on top, but its heads see the finest level alone: the
    rest gets no gradient, and Keras leaves it out.

    Attributes:
      conv: convolution.
      resize: (features, (rows, columns)) -> features, enlarges them.
      features: channels of the pyramid.
      depthwise: whether the 3x3 convolution works on each channel by itself ("lite").
      finest: number of the finest level, for the names (3: stride 8).

    Source: Lin et al., "Feature pyramid networks", CVPR 2017; vanvalenlab/deepcell-tf@f1839a4, deepcell/model_zoo/fpn.py.
    """

    conv: Part
    resize: Callable[[jax.Array, Sequence[int]], jax.Array]
    features: int = 256
    depthwise: bool = False
    finest: int = 3

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> jax.Array:
        """Features of the encoder, fine to coarse -> [B, h, w, features] on the grid of the first."""
        conv = partial(self.conv, self.features, use_bias=True)
        x = None
        for i in reversed(range(len(features))):
            lateral = conv(kernel=1, name=f"C{self.finest + i}_reduced")(features[i])
            x = lateral if x is None else lateral + self.resize(x, lateral.shape[1:3])
        return conv(kernel=3, groups=self.features if self.depthwise else 1, name=f"P{self.finest}")(x)
