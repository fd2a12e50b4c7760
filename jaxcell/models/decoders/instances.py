"""From feature maps to N masks without boxes: maps that mark where each instance is best seen, and a kernel for its mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcell.models.backend import precise
from jaxcell.models.layers import ConvBlock, Part, fan_out_normal
from jaxcell.models.resize import resize_corner_aligned

__all__ = ["EveryLevelBranch", "InstanceDecoder", "InstanceHead", "LastLevelBranch", "sigmoid_weights", "softmax_weights"]

RARE = nn.initializers.constant(-math.log(99))      # a probability of 0.01: most of the N are no cell
NARROW = nn.initializers.normal(0.01)
ZEROS = nn.initializers.zeros
CAFFE2_XAVIER = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def sigmoid_weights(logits: jax.Array) -> jax.Array:
    """Each pixel by itself, then divided by the sum over the pixels: [B, P, Q] logits -> weights that add up to 1 over P.

    Source: the thesis, section 4.5.2; hustvl/SparseInst@a899015, sparseinst/decoder.py.
    """
    weights = nn.sigmoid(logits)
    return weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-6)


def softmax_weights(logits: jax.Array) -> jax.Array:
    """Pixels compete: [B, P, Q] logits -> weights that add up to 1 over P.

    Source: SlavkoPrytula/IAUNet@836185a; SparseInst's GroupIAMSoftDecoder.
    """
    return nn.softmax(logits, axis=1)


class LastLevelBranch(nn.Module):
    """`depth` times convolution, norm, activation on the finest features alone."""

    features: int
    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    depth: int = 4

    @nn.compact
    def __call__(self, steps: Sequence[jax.Array]) -> jax.Array:
        """Features coarse to fine -> [B, H, W, features]."""
        return ConvBlock(self.features, conv=self.conv, norm=self.norm, act=self.act, depth=self.depth, use_bias=True,
                         name="step0")(steps[-1])


class EveryLevelBranch(nn.Module):
    """The same on every level, together with the branch's own map of the level before, enlarged.

    The maps are sown as "step.i" into the collection "intermediates".

    Source: Prytula 2023, section 4.5.4.
    """

    features: int
    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    depth: int = 4

    @nn.compact
    def __call__(self, steps: Sequence[jax.Array]) -> jax.Array:
        """Features coarse to fine, each twice as large as the one before -> [B, H, W, features] of the last."""
        x = None
        for number, feature in enumerate(steps):
            if x is not None:
                feature = jnp.concatenate([feature, resize_corner_aligned(x, feature.shape[1:3])], axis=-1)
            x = ConvBlock(self.features, conv=self.conv, norm=self.norm, act=self.act, depth=self.depth, use_bias=True,
                          name=f"step{number}")(feature)
            self.sow("intermediates", f"step.{number}", x)
        assert x is not None
        return x


class InstanceHead(nn.Module):
    """Instance activation maps, the features each of them gathers, and what linear layers read off these.

    The maps' logits are sown as "activation_maps", [B, H, W, groups * N], into the collection "intermediates".

    Attributes:
      queries: N, the most instances that can be found.
      kernel_features: D, numbers that make an instance's mask.
      conv: convolution.
      weights: `sigmoid_weights` or `softmax_weights`.
      groups: maps of each instance, each from its share of the channels; what they gather is concatenated.
      depth: linear layers with rectifier before the last ones; the thesis has none, the released code one.
      classes: K.
      objectness: whether the IoU of each mask is foretold.

    Source: Cheng et al., "Sparse instance activation for real-time instance segmentation", CVPR 2022, hustvl/SparseInst@a899015,
      sparseinst/decoder.py; Prytula 2023, section 4.5.2; initial values: SlavkoPrytula/IAUNet@836185a.
    """

    queries: int
    kernel_features: int
    conv: Part
    weights: Callable[[jax.Array], jax.Array] = sigmoid_weights
    groups: int = 1
    depth: int = 0
    classes: int = 1
    objectness: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """[B, H, W, C] -> float32: scores [B, N, K] logits, kernels [B, N, D] and, if wanted, objectness [B, N] logits."""
        batch, channels = x.shape[0], x.shape[-1]
        maps = self.conv(self.groups * self.queries, 3, groups=self.groups, use_bias=True, kernel_init=NARROW, bias_init=RARE,
                         name="maps")(x)
        self.sow("intermediates", "activation_maps", maps)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        weights = self.weights(precise(maps).reshape(batch, -1, maps.shape[-1]))
        gathered = jnp.einsum("bpq,bpc->bqc", weights.astype(x.dtype), x.reshape(batch, -1, channels),
                              preferred_element_type=wide)
        grouped = gathered.reshape(batch, self.groups, self.queries, channels).transpose(0, 2, 1, 3)
        y = grouped.reshape(batch, 1, self.queries, self.groups * channels)

        linear = partial(self.conv, kernel=1, use_bias=True, dtype=wide)
        for number in range(1, self.depth + 1):
            y = nn.relu(linear(y.shape[-1], kernel_init=CAFFE2_XAVIER, bias_init=ZEROS, name=f"hidden{number}")(y))
        outputs = {"scores": linear(self.classes, kernel_init=NARROW, bias_init=RARE, name="scores")(y)[:, 0],
                   "kernels": linear(self.kernel_features, kernel_init=NARROW, bias_init=ZEROS, name="kernels")(y)[:, 0]}
        if self.objectness:
            outputs["objectness"] = linear(1, name="objectness")(y)[:, 0, :, 0]
        return outputs


class InstanceDecoder(nn.Module):
    """An instance branch that ends in an `InstanceHead`, and a mask branch whose features the kernels turn into masks.

    The last features are sown as "instance_features" and "mask_features" into the collection "intermediates".

    Attributes:
      branch: `EveryLevelBranch` or `LastLevelBranch`, its own settings bound.
      head: `InstanceHead`, its settings bound, but for the channels of the kernels.
      conv: convolution.
      norm: norm of the branches; `NoNorm` as in SparseInst.
      act: activation of the branches.
      instance_features: channels of the instance branch.
      mask_features: channels of the mask branch.
      kernel_features: channels to which a 1x1 convolution takes the mask branch; None for no such convolution.

    Source: as `InstanceHead`.
    """

    branch: Part
    head: Part
    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    instance_features: int = 256
    mask_features: int = 128
    kernel_features: int | None = None

    @nn.compact
    def __call__(self, steps: Sequence[jax.Array]) -> dict[str, jax.Array]:
        """Features coarse to fine -> what the head gives, and masks [B, N, H, W] float32 logits at the finest."""
        conv = partial(self.conv, kernel_init=fan_out_normal, bias_init=ZEROS)
        instance = self.branch(self.instance_features, conv=conv, norm=self.norm, act=self.act, name="instance_branch")(steps)
        mask = self.branch(self.mask_features, conv=conv, norm=self.norm, act=self.act, name="mask_branch")(steps)
        if self.kernel_features is not None:
            mask = conv(self.kernel_features, 1, use_bias=True, name="projection")(mask)
        self.sow("intermediates", "instance_features", instance)
        self.sow("intermediates", "mask_features", mask)
        outputs = self.head(kernel_features=mask.shape[-1], conv=self.conv, name="head")(instance)
        batch, height, width, channels = mask.shape
        masks = jnp.einsum("bnd,bpd->bnp", outputs["kernels"].astype(mask.dtype), mask.reshape(batch, -1, channels),
                           preferred_element_type=outputs["kernels"].dtype)
        return outputs | {"masks": masks.reshape(batch, -1, height, width)}
