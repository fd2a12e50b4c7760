"""The contracting half of a U-Net, and pyramid pooling, which may end any encoder."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcell.models.layers import ConvBlock, Part
from jaxcell.models.resize import adaptive_average_pool, max_pool, resize_bilinear

__all__ = ["PyramidPooling", "UNetEncoder"]


class UNetEncoder(nn.Module):
    """Levels of two convolutions with 2x2 max pooling between; every level is returned, strides 1, 2, 4, ...

    Attributes:
      width: channels of the first level; they double at each.
      levels: 5 in U-Net 22.

    Source: celldetection 0.4.9, models/unet.py (U22); Ronneberger et al., "U-Net", MICCAI 2015.
    """

    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    width: int = 64
    levels: int = 5

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        features = []
        for level in range(self.levels):
            x = max_pool(x, size=2, stride=2) if level else x
            x = ConvBlock(self.width * 2 ** level, conv=self.conv, norm=self.norm, act=self.act, use_bias=True,
                          name=f"level{level}")(x)
            features.append(x)
        return features


class PyramidPooling(nn.Module):
    """Averages over coarse grids, each projected by 1x1 convolution, norm and activation, resized back and concatenated.

    Attributes:
      features: channels of each branch.
      scales: cells per axis of each branch's grid.
      keep_input: put the input itself in front, as the celldetection package does (the challenge code does not).

    Source: Zhao et al., "Pyramid scene parsing network", CVPR 2017; neurips22-cell-seg@ab6a154, neurips/nn/unet.py.
    """

    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    features: int = 64
    scales: tuple[int, ...] = (1, 2, 3, 6)
    keep_input: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branches = [x] if self.keep_input else []
        for i, scale in enumerate(self.scales):
            y = adaptive_average_pool(x, size=scale)
            y = ConvBlock(self.features, conv=self.conv, norm=self.norm, act=self.act, kernel=1, depth=1, use_bias=True,
                          name=f"branch{i}")(y)
            branches.append(resize_bilinear(y, x.shape[1:3]))
        return jnp.concatenate(branches, axis=-1)
