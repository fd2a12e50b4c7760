"""The contracting half of an SE-U-Net: one width at every level, and a pyramid of averages on every skip connection."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcell.models.layers import ConvBlock, Part, SqueezeExcite
from jaxcell.models.resize import average_pool, max_pool, resize_corner_aligned

__all__ = ["SEUNetEncoder", "WindowPyramid"]


class SEUNetEncoder(nn.Module):
    """Levels of several convolutions and a `SqueezeExcite`, with 2x2 max pooling between; a bottleneck of the same form ends it.

    From the third level on the input is doubled: the pooled map of the level before, and the one before that pooled once more.

    Attributes:
      width: channels of every level.
      levels: without the bottleneck; level i has stride 2 ** i.
      depth: convolutions of a level.
      windows: of the pyramid on each skip, see `WindowPyramid`; input sides divide by the largest times 2 ** (levels - 1).
      pyramid_features: channels of each window there.

    Source: Prytula, "Accurate whole cell instance segmentation from brightfield images", 2023, section 4.2; what that leaves out:
      SlavkoPrytula/IAUNet@836185a, models/seg/backup/models/prev_versions/sparse_seunet.py.
    """

    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    width: int = 64
    levels: int = 5
    depth: int = 4
    windows: tuple[int, ...] = (1, 2, 4, 8, 16)
    pyramid_features: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """[B, H, W, C] -> (features, skips): features of every level, fine to coarse, and of the bottleneck; a skip a level.

        Raises:
          ValueError: H or W does not divide by the largest window times 2 ** (levels - 1).
        """
        divisor = self.windows[-1] * 2 ** (self.levels - 1)
        if x.shape[1] % divisor or x.shape[2] % divisor:
            raise ValueError(f"SEUNetEncoder: images of {x.shape[1]} x {x.shape[2]}; {self.levels} levels and windows up to "
                             f"{self.windows[-1]} need sides that divide by {divisor}. Choose config.data.crop and "
                             "config.inference.tile so.")
        block = partial(ConvBlock, self.width, conv=self.conv, norm=self.norm, act=self.act, depth=self.depth, use_bias=True)
        pyramid = partial(WindowPyramid, conv=self.conv, norm=self.norm, act=self.act, windows=self.windows,
                          features=self.pyramid_features)
        features: list[jax.Array] = []
        skips: list[jax.Array] = []
        below: list[jax.Array] = []     # the pooled map of the level before
        for level in range(self.levels):
            x = SqueezeExcite(conv=self.conv, name=f"level{level}_se")(block(name=f"level{level}")(x))
            skip = pyramid(name=f"level{level}_pyramid")(x)
            skips.append(SqueezeExcite(conv=self.conv, name=f"level{level}_pyramid_se")(skip))
            features.append(x)
            pooled = max_pool(x, size=2, stride=2)
            x = jnp.concatenate([*(max_pool(y, size=2, stride=2) for y in below), pooled], axis=-1)
            below = [pooled]
        return [*features, SqueezeExcite(conv=self.conv, name="bottom_se")(block(name="bottom")(x))], skips


class WindowPyramid(nn.Module):
    """The input, and its means over square windows of several sizes: 1x1 convolution, norm, activation, enlarged again.

    Attributes:
      features: channels of each size.
      windows: sides of the windows, pixels, rising, each a multiple of the one before; all divide the input's sides.

    Source: as `SEUNetEncoder`; Zhao et al., "Pyramid scene parsing network", CVPR 2017, has grids of fixed size instead.
    """

    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    windows: tuple[int, ...]
    features: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        maps, means, size = [x], x, 1
        for window in self.windows:
            means, size = average_pool(means, size=window // size, stride=window // size), window
            y = ConvBlock(self.features, conv=self.conv, norm=self.norm, act=self.act, kernel=1, depth=1,
                          name=f"window{window}")(means)
            maps.append(resize_corner_aligned(y, x.shape[1:3]))
        return jnp.concatenate(maps, axis=-1)
