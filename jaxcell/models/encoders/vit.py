"""Vision transformers: images become sequences of patches, in which every patch looks at every other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcell.models.layers import Part, fan_in_uniform
from jaxcell.models.resize import resize_corner_aligned

__all__ = ["VISION_SIZES", "Attention", "PatchEmbedding", "VisionSize", "VisionTransformer"]

EPSILON = 1e-6


class VisionSize(NamedTuple):
    """Sizes of a transformer: channels of a token, channels inside its MLP, heads of attention, layers."""

    hidden: int
    mlp: int
    heads: int
    layers: int


VISION_SIZES: Mapping[str, VisionSize] = {
    "tiny": VisionSize(192, 768, 3, 12),
    "small": VisionSize(384, 1536, 6, 12),
    "base": VisionSize(768, 3072, 12, 12),
    "large": VisionSize(1024, 4096, 16, 24),
    "huge": VisionSize(1280, 5120, 16, 32),
    "cpu": VisionSize(192, 768, 3, 4),
    "toy": VisionSize(32, 64, 2, 2),
}
"""Sizes by name. Sources: Dosovitskiy et al., ICLR 2021, Table 1 (base, large, huge); Steiner et al., TMLR 2022, Table 2 (tiny,
small). The last two are ours, for few CPU cores and for tests."""


def _torch_bias(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for biases: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in ** -0.5
    return lambda rng, shape, dtype=jnp.float32: jax.random.uniform(rng, shape, dtype, -bound, bound)


class PatchEmbedding(nn.Module):
    """Patches of the image or of a feature map -> tokens that know their place, dropout after.

    Attributes:
      features: channels of a token.
      patch: side of a patch, pixels; 1 behind a convolutional stem.
      grid: places a side that the position embeddings have; for other images they are resized, as they are when a checkpoint of
        another grid is loaded.
      dropout: drops single values while training.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, equation 1, without a class token.
    Departs: the reference fixes the size of the image, and it must be square.
    """

    features: int
    patch: int
    grid: int
    dropout: Part
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, h * w, features], row by row; h = H / patch."""
        batch, height, width, channels = x.shape
        side, (rows, columns) = self.patch, (height // self.patch, width // self.patch)
        kernel = self.param("kernel", fan_in_uniform, (side, side, channels, self.features))
        bias = self.param("bias", _torch_bias(side * side * channels), (self.features,))
        places = self.param("positions", nn.initializers.zeros, (self.grid, self.grid, self.features))
        patches = x.astype(self.dtype).reshape(batch, rows, side, columns, side, channels)
        tokens = jnp.einsum("bhiwjc,ijcf->bhwf", patches, kernel.astype(self.dtype)) + bias.astype(self.dtype)
        places = resize_corner_aligned(places[None], (rows, columns))
        tokens = tokens + places.astype(self.dtype)
        return self.dropout()(tokens.reshape(batch, rows * columns, self.features))


class Attention(nn.Module):
    """Every token's weighted mean of all tokens' values, by several heads; the softmax in float32, whatever the dtype.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, equation 1 and section 3.2.2; query, key, value and out
      have biases. Kernels are [C, heads, C / heads] and [heads, C / heads, C], as in Google's checkpoints.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, C] -> [B, N, C]."""
        channels = x.shape[-1]
        depth = channels // self.heads
        if depth * self.heads != channels:
            raise ValueError(f"Attention: {channels} channels for {self.heads} heads; heads must divide them.")

        def project(name: str) -> jax.Array:
            return nn.DenseGeneral((self.heads, depth), kernel_init=fan_in_uniform, bias_init=_torch_bias(channels),
                                   dtype=self.dtype, name=name)(x)

        query, key, value = (project(name) for name in ("query", "key", "value"))
        exact = jnp.promote_types(self.dtype, jnp.float32)
        likeness = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=exact) * depth ** -0.5
        weights = jax.nn.softmax(likeness).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return nn.DenseGeneral(channels, axis=(-2, -1), kernel_init=fan_in_uniform, bias_init=_torch_bias(channels),
                               dtype=self.dtype, name="out")(mixed)


class EncoderLayer(nn.Module):
    """Attention, then an MLP with exact GELU, each behind a layer norm and beside a shortcut.

    Source: Dosovitskiy et al., equations 2 and 3.
    """

    mlp: int
    heads: int
    dropout: Part
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, C] -> [B, N, C]."""
        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype,
                            bias_init=nn.initializers.normal(1e-6), name=name)

        y = _norm("attention_norm", self.dtype)(x)
        x = x + Attention(self.heads, dtype=self.dtype, name="attention")(y)
        y = _norm("mlp_norm", self.dtype)(x)
        y = self.dropout()(jax.nn.gelu(dense(self.mlp, "mlp_in")(y), approximate=False))
        return x + self.dropout()(dense(x.shape[-1], "mlp_out")(y))


class VisionTransformer(nn.Module):
    """Layers of a transformer on the patches of a map, and a last layer norm.

    Attributes:
      size: of the tokens and layers.
      patch: side of a patch in pixels of what comes in.
      grid: see `PatchEmbedding`.
      dropout: after the embeddings and both layers of every MLP.

    Source: Dosovitskiy et al., ICLR 2021; initialised as TransUNet is.
    """

    size: VisionSize
    patch: int
    grid: int
    dropout: Part
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H / patch, W / patch, hidden]."""
        size, shape = self.size, [length // self.patch for length in x.shape[1:3]]
        x = PatchEmbedding(size.hidden, self.patch, self.grid, self.dropout, dtype=self.dtype, name="embedding")(x)
        for i in range(size.layers):
            x = EncoderLayer(size.mlp, size.heads, self.dropout, dtype=self.dtype, name=f"layer{i}")(x)
        return _norm("norm", self.dtype)(x).reshape(len(x), *shape, size.hidden)


def _norm(name: str, dtype: Any) -> nn.LayerNorm:
    """Layer norm; flax's fast variance loses digits where the mean is large."""
    return nn.LayerNorm(epsilon=EPSILON, dtype=dtype, use_fast_variance=False, name=name)
