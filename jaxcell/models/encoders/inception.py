"""Inception-v3 as the Fréchet inception distance uses it: images in, one vector of 2048 features out. It is not trained here.

Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016; the variant of 2015-12-05 that
Heusel et al. 2017 measured with, as mseitzer/pytorch-fid, inception.py, has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxcell.models.layers import BatchNorm, Part
from jaxcell.models.resize import resize_bilinear

__all__ = ["InceptionV3"]

SIDE = 299      # pixels that the network was trained at
Steps = Sequence[tuple[str, int, tuple[int, int]]]     # (name, channels, kernel) of convolutions one after the other


class ConvNorm(nn.Module):
    """Convolution, norm with running statistics, rectifier; "SAME" where it does not stride, else without padding."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    same: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = [(side // 2, side // 2) if self.same else (0, 0) for side in self.kernel]
        x = nn.Conv(self.features, self.kernel, self.stride, padding, use_bias=False, name="conv")(x)
        return nn.relu(BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


class Branches(nn.Module):
    """Branches of an input, concatenated: chains of convolutions, and one behind an average or a maximum of 3x3.

    Attributes:
      chains: of each branch the convolutions.
      pool: features of the convolution behind the pooling.
      maximum: pool by the maximum instead of the average.
    """

    chains: Sequence[Steps]
    pool: int
    maximum: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        parts = [chain(x, steps) for steps in self.chains]
        pooled = nn.max_pool(x, (3, 3), (1, 1), [(1, 1)] * 2) if self.maximum else average_3x3(x)
        return jnp.concatenate([*parts, ConvNorm(self.pool, name="branch_pool")(pooled)], axis=-1)


class Reduction(nn.Module):
    """Chains whose last convolution halves the image, beside a maximum that does."""

    chains: Sequence[Steps]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        parts = []
        for steps in self.chains:
            *before, (name, features, kernel) = steps
            parts.append(ConvNorm(features, kernel, 2, same=False, name=name)(chain(x, before)))
        return jnp.concatenate([*parts, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)


class Wide(nn.Module):
    """The last two blocks, whose branches end in a row and a column side by side; see `Branches`."""

    maximum: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = ConvNorm(384, name="branch3x3_1")(x)
        double = chain(x, (("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3))))
        sides = [ConvNorm(384, kernel, name=f"{name}{end}")(part)
                 for name, part in (("branch3x3_2", three), ("branch3x3dbl_3", double))
                 for end, kernel in (("a", (1, 3)), ("b", (3, 1)))]
        pooled = nn.max_pool(x, (3, 3), (1, 1), [(1, 1)] * 2) if self.maximum else average_3x3(x)
        return jnp.concatenate([ConvNorm(320, name="branch1x1")(x), *sides, ConvNorm(192, name="branch_pool")(pooled)], axis=-1)


def chain(x: jax.Array, steps: Steps) -> jax.Array:
    """Convolutions one after the other, inside of the module that calls."""
    for name, features, kernel in steps:
        x = ConvNorm(features, kernel, name=name)(x)
    return x


def average_3x3(x: jax.Array) -> jax.Array:
    """The mean of the pixels of each 3x3 window that lie in the image."""
    def total(y: jax.Array) -> jax.Array:
        return lax.reduce_window(y, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def early(pool: int) -> Part:
    """A block at stride 8."""
    return partial(Branches, ((("branch1x1", 64, (1, 1)),),
                     (("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
                     (("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3)))), pool)


def middle(width: int) -> Part:
    """A block at stride 16."""
    row, column = (1, 7), (7, 1)
    return partial(Branches, ((("branch1x1", 192, (1, 1)),),
                     (("branch7x7_1", width, (1, 1)), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)),
                     (("branch7x7dbl_1", width, (1, 1)), ("branch7x7dbl_2", width, column), ("branch7x7dbl_3", width, row),
                      ("branch7x7dbl_4", width, column), ("branch7x7dbl_5", 192, row))), 192)


class InceptionV3(nn.Module):
    """Features of images behind the last pooling."""

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """2048 features of each image.

        Args:
          image: [B, H, W, 3] in [0, 1]; resized to 299 x 299 bilinearly, as the reference does.

        Returns:
          [B, 2048] float32.
        """
        x = 2 * resize_bilinear(image.astype(jnp.float32), (SIDE, SIDE)) - 1
        x = ConvNorm(32, (3, 3), 2, same=False, name="Conv2d_1a_3x3")(x)
        x = ConvNorm(32, (3, 3), same=False, name="Conv2d_2a_3x3")(x)
        x = nn.max_pool(ConvNorm(64, (3, 3), name="Conv2d_2b_3x3")(x), (3, 3), (2, 2))
        x = ConvNorm(80, name="Conv2d_3b_1x1")(x)
        x = nn.max_pool(ConvNorm(192, (3, 3), same=False, name="Conv2d_4a_3x3")(x), (3, 3), (2, 2))
        for name, block in (
                ("Mixed_5b", early(32)), ("Mixed_5c", early(64)), ("Mixed_5d", early(64)),
                ("Mixed_6a", partial(Reduction, ((("branch3x3", 384, (3, 3)),),
                                        (("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)),
                                         ("branch3x3dbl_3", 96, (3, 3)))))),
                ("Mixed_6b", middle(128)), ("Mixed_6c", middle(160)), ("Mixed_6d", middle(160)), ("Mixed_6e", middle(192)),
                ("Mixed_7a", partial(Reduction, ((("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3))),
                                        (("branch7x7x3_1", 192, (1, 1)), ("branch7x7x3_2", 192, (1, 7)),
                                         ("branch7x7x3_3", 192, (7, 1)), ("branch7x7x3_4", 192, (3, 3)))))),
                ("Mixed_7b", Wide), ("Mixed_7c", partial(Wide, maximum=True))):
            x = block(name=name)(x)
        return jnp.mean(x, (1, 2))
