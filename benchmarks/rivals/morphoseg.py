"""MorphoSeg's TransUNet in PyTorch, layer by layer the one of `jaxcell/systems/morphoseg.py`; cells and outliers from its logits.

Modules have the names of jaxcell's parameters, so that weights can be carried over and outputs compared.
Written as a PyTorch user would: `torch.nn` modules, NCHW, memory in channels_last, scaled_dot_product_attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.rivals.contour_proposal import ConvBlock

__all__ = ["TransUNetNetwork", "plain_cells", "with_outliers"]

CLASSES = 2
STEMS: Mapping[str, tuple[tuple[int, ...], int] | None] = {
    "none": None, "r50": ((3, 4, 9), 32), "r20": ((2, 2, 2), 8), "r11": ((1, 1, 1), 8)}
"""Bottlenecks of the stages and groups of the norms."""


class Size(NamedTuple):
    hidden: int
    mlp: int
    heads: int
    layers: int


SIZES: Mapping[str, Size] = {"base": Size(768, 3072, 12, 12), "large": Size(1024, 4096, 16, 24), "cpu": Size(192, 768, 3, 4),
                             "toy": Size(32, 64, 2, 2)}


# ---------------------------------------------------------------- ResNet
class StandardisedConv(nn.Conv2d):
    """Convolution whose kernel has mean 0 and variance 1 for every output."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        return F.conv2d(x, (self.weight - mean) * torch.rsqrt(variance + 1e-5), None, self.stride, self.padding)


class HybridBottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 to 4 * features beside a shortcut, whose projection has a norm of one channel a group."""

    def __init__(self, inputs: int, features: int, *, stride: int, groups: int) -> None:
        super().__init__()
        outputs = 4 * features
        self.conv1, self.norm1 = StandardisedConv(inputs, features, 1), nn.GroupNorm(groups, features, eps=1e-6)
        self.conv2, self.norm2 = StandardisedConv(features, features, 3, stride), nn.GroupNorm(groups, features, eps=1e-6)
        self.conv3, self.norm3 = StandardisedConv(features, outputs, 1), nn.GroupNorm(groups, outputs, eps=1e-6)
        self.projects = inputs != outputs or stride > 1
        if self.projects:
            self.projection, self.projection_norm = StandardisedConv(inputs, outputs, 1, stride), nn.GroupNorm(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = F.relu(self.norm2(self.conv2(y)), inplace=True)
        y = self.norm3(self.conv3(y))
        return F.relu((self.projection_norm(self.projection(x)) if self.projects else x) + y, inplace=True)


class HybridResNet(nn.Module):
    """Root, pooling without padding, stages; features of strides 2, 4, 8 and 16, each padded to its stride's size."""

    def __init__(self, *, stages: Sequence[int], width: int, groups: int) -> None:
        super().__init__()
        self.root_conv, self.root_norm = StandardisedConv(3, width, 7, 2), nn.GroupNorm(groups, width, eps=1e-6)
        self.stages, self.channels = stages, [width]
        for stage, size in enumerate(stages):
            features = width * 2 ** stage
            for i in range(size):
                self.add_module(f"block{stage + 1}_unit{i + 1}",
                                HybridBottleneck(4 * features if i else self.channels[-1], features,
                                                 stride=2 if stage and i == 0 else 1, groups=groups))
            self.channels.append(4 * features)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        x = F.relu(self.root_norm(self.root_conv(image)), inplace=True)
        features = [x]
        x = F.max_pool2d(x, 3, 2)
        for stage, size in enumerate(self.stages):
            for i in range(size):
                x = self.get_submodule(f"block{stage + 1}_unit{i + 1}")(x)
            below, right = (whole // 2 ** (stage + 2) - have for whole, have in zip(image.shape[2:], x.shape[2:], strict=True))
            features.append(F.pad(x, (0, right, 0, below)) if below or right else x)
        return features


# ---------------------------------------------------------------- transformer
class PatchEmbedding(nn.Conv2d):
    """Patches -> tokens, to which their places' embeddings are added: for images of one size."""

    def __init__(self, inputs: int, features: int, *, patch: int, grid: int) -> None:
        super().__init__(inputs, features, patch, patch)
        self.positions = nn.Parameter(torch.zeros(grid, grid, features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).flatten(2).transpose(1, 2) + self.positions.flatten(0, 1)


class Attention(nn.Module):
    """Query, key, value and out, all with biases, around PyTorch's own attention."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Attention, then an MLP with exact GELU, each behind a layer norm and beside a shortcut."""

    def __init__(self, size: Size, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = (nn.LayerNorm(size.hidden, eps=1e-6) for _ in range(2))
        self.attention = Attention(size.hidden, size.heads)
        self.mlp_in, self.mlp_out = nn.Linear(size.hidden, size.mlp), nn.Linear(size.mlp, size.hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        y = self.dropout(F.gelu(self.mlp_in(self.mlp_norm(x))))
        return x + self.dropout(self.mlp_out(y))


class VisionTransformer(nn.Module):
    """Layers on the patches of a map, and a last layer norm."""

    def __init__(self, inputs: int, size: Size, *, patch: int, grid: int, dropout: float) -> None:
        super().__init__()
        self.embedding, self.dropout = PatchEmbedding(inputs, size.hidden, patch=patch, grid=grid), nn.Dropout(dropout)
        self.layers = size.layers
        for i in range(size.layers):
            self.add_module(f"layer{i}", EncoderLayer(size, dropout))
        self.norm = nn.LayerNorm(size.hidden, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.dropout(self.embedding(x))
        for i in range(self.layers):
            tokens = self.get_submodule(f"layer{i}")(tokens)
        return self.norm(tokens).transpose(1, 2).unflatten(2, self.embedding.positions.shape[:2])


# ---------------------------------------------------------------- all of it
class CascadedUpsampler(nn.Module):
    """3x3 convolution; then level by level: twice the size, the skip behind it, two 3x3 convolutions."""

    def __init__(self, inputs: int, features: int, widths: Sequence[int], skips: Sequence[int]) -> None:
        super().__init__()
        parts: dict[str, Any] = {"norm": nn.BatchNorm2d, "act": nn.ReLU(inplace=True)}
        self.input, self.levels = ConvBlock(inputs, features, depth=1, **parts), len(widths)
        for level, width in enumerate(widths):
            skip = skips[level] if level < len(skips) else 0
            self.add_module(f"level{level}", ConvBlock((widths[level - 1] if level else features) + skip, width, **parts))

    def forward(self, x: torch.Tensor, skips: Sequence[torch.Tensor]) -> torch.Tensor:
        x = self.input(x)
        for level in range(self.levels):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = torch.cat([x, skips[level]], 1) if level < len(skips) else x
            x = self.get_submodule(f"level{level}")(x)
        return x


class TransUNetNetwork(nn.Module):
    """The network that `config.model` of configs/morphoseg.py describes, for images of `config.data.crop`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        m, patch = config.model, 2 ** len(config.model.widths)
        stem, size, self.skips = STEMS[m.stem], SIZES[m.transformer], m.skips
        self.stem = HybridResNet(stages=stem[0], width=m.width, groups=stem[1]) if stem else None
        encoded = self.stem.channels if self.stem else [3]
        self.transformer = VisionTransformer(encoded[-1], size, patch=1 if stem else patch, grid=config.data.crop // patch,
                                             dropout=m.dropout)
        self.cascade = CascadedUpsampler(size.hidden, m.features, m.widths, encoded[-2::-1][:m.skips])
        self.head = nn.Conv2d(m.widths[-1], CLASSES, 3, 1, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = image.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        features = self.stem(x) if self.stem is not None else [x]
        x = self.cascade(self.transformer(features[-1]), features[-2::-1][:self.skips])
        return {"classes": self.head(x).float()}


def plain_cells(config: Any, maps: Mapping[str, np.ndarray]) -> int:
    """Number of cells by scikit-image's plain calls: the authors stop at the foreground's pixels.

    Args:
      config: of configs/morphoseg.py.
      maps: "classes" [H, W, 2] logits.

    Raises:
      ValueError: cells shall grow, or have another uncertainty, which this rival does not know.
    """
    # Here, for they would lengthen the start of the worker.
    from scipy.special import logsumexp, softmax
    from skimage.measure import label

    from benchmarks.postprocessing import plain_instances
    from benchmarks.rivals.maunet import without_small

    d, known = config.decode, {"expansion": 0, "uncertainty": "energy"}
    if wrong := {name: d[name] for name, value in known.items() if d[name] != value}:
        raise ValueError(f"config.decode has {wrong}, which the rival does not know; race with {known}.")
    probability = softmax(maps["classes"], axis=-1)[..., 1]
    cells = label(~without_small(probability <= d.threshold, d.holes), connectivity=2)
    cells[(np.bincount(cells.ravel()) < d.small_objects)[cells]] = 0
    return len(plain_instances(cells, np.stack([probability, -logsumexp(maps["classes"], axis=-1)], axis=-1)))


# ---------------------------------------------------------------- outliers
def with_outliers(logits: torch.Tensor, *, sample_from: int, select: int, ridge: float) -> torch.Tensor:
    """Logits [B, C, H, W] of which some are replaced by unlikely draws of their own Gaussian, with PyTorch's distributions.

    As the authors do it: all draws are made, their densities evaluated; the positions are of [B * H * W, C] of the memory.

    Source: RanchoGoose/MorphoSeg@a2ab9fe, trainer_vos.py generate_synthetic_segmentation_maps.
    Departs: mean and covariance by one call each; there the matrix is factorised once more, to see whether that can be done.
    """
    classes = logits.shape[1]
    vectors = logits.transpose(0, 1).flatten(1)
    covariance = torch.cov(vectors) + ridge * torch.eye(classes, device=logits.device)
    gaussian = torch.distributions.MultivariateNormal(vectors.mean(1), covariance)
    draws = gaussian.rsample((sample_from,))
    least = torch.topk(gaussian.log_prob(draws), select, largest=False).indices
    rows = logits.contiguous().reshape(-1, classes).clone()
    rows[torch.randperm(len(rows), device=logits.device)[:select]] = draws[least]
    return rows.reshape(logits.shape)
