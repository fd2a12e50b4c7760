"""Mesmer's PanopticNet in PyTorch, layer by layer the one of `jaxcell/systems/mesmer.py`, and its authors' post-processing.

Modules have the names of jaxcell's parameters, so that weights can be carried over and outputs compared.
Written as a PyTorch user would: `torch.nn` modules, NCHW, memory in channels_last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["MesmerNetwork", "plain_cells"]

# Keras' defaults, and the epsilon of its ResNets and DenseNets; Keras' momentum 0.99 is PyTorch's 0.01.
norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
fine_norm = partial(norm, eps=1.001e-5)


class KerasBottleneck(nn.Module):
    """1x1 (strided), 3x3, 1x1 to 4 * features, beside the input or its 1x1 projection; all with biases."""

    def __init__(self, inputs: int, features: int, *, stride: int, project: bool) -> None:
        super().__init__()
        self.project = project
        if project:
            self._add(0, inputs, 4 * features, 1, stride)
        self._add(1, inputs, features, 1, stride)
        self._add(2, features, features, 3, 1)
        self._add(3, features, 4 * features, 1, 1)

    def _add(self, number: int, inputs: int, features: int, kernel: int, stride: int) -> None:
        self.add_module(f"{number}_conv", nn.Conv2d(inputs, features, kernel, stride, kernel // 2))
        self.add_module(f"{number}_bn", fine_norm(features))

    def _part(self, number: int, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(f"{number}_bn")(self.get_submodule(f"{number}_conv")(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self._part(1, x), inplace=True)
        y = self._part(3, F.relu(self._part(2, y), inplace=True))
        return F.relu((self._part(0, x) if self.project else x) + y, inplace=True)


class KerasResNet(nn.Module):
    """Keras' ResNet v1: stem and stages, each returned."""

    def __init__(self, inputs: int, *, width: int, stages: Sequence[int] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.conv1_conv, self.conv1_bn = nn.Conv2d(inputs, width, 7, 2, 3), fine_norm(width)
        self.stages, self.channels = stages, [width]
        for stage, size in enumerate(stages):
            features = width * 2 ** stage
            for i in range(size):
                self.add_module(f"conv{stage + 2}_block{i + 1}",
                                KerasBottleneck(4 * features if i else self.channels[-1], features,
                                                stride=2 if stage and i == 0 else 1, project=i == 0))
            self.channels.append(4 * features)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = F.relu(self.conv1_bn(self.conv1_conv(x)), inplace=True)
        features = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for stage, size in enumerate(self.stages):
            for i in range(size):
                x = self.get_submodule(f"conv{stage + 2}_block{i + 1}")(x)
            features.append(x)
        return features


class DenseLayer(nn.Module):
    """Norm, rectifier, 1x1 to 4 * features; norm, rectifier, 3x3 to `features`, which are appended to the input."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        for name, module in (("0_bn", fine_norm(inputs)), ("1_conv", nn.Conv2d(inputs, 4 * features, 1, bias=False)),
                             ("1_bn", fine_norm(4 * features)),
                             ("2_conv", nn.Conv2d(4 * features, features, 3, 1, 1, bias=False))):
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.get_submodule("1_conv")(F.relu(self.get_submodule("0_bn")(x), inplace=True))
        y = self.get_submodule("2_conv")(F.relu(self.get_submodule("1_bn")(y), inplace=True))
        return torch.cat([x, y], 1)


class DenseNet(nn.Module):
    """Keras' DenseNet201: stem and dense blocks, each returned before its transition."""

    def __init__(self, inputs: int, *, width: int, stages: Sequence[int] = (6, 12, 48, 32)) -> None:
        super().__init__()
        self.conv1_conv, self.conv1_bn = nn.Conv2d(inputs, width, 7, 2, 3, bias=False), fine_norm(width)
        self.stages, self.channels = stages, [width]
        x = width
        for stage, size in enumerate(stages):
            if stage:
                self.add_module(f"pool{stage + 1}_bn", fine_norm(x))
                self.add_module(f"pool{stage + 1}_conv", nn.Conv2d(x, x // 2, 1, bias=False))
                x //= 2
            for i in range(size):
                self.add_module(f"conv{stage + 2}_block{i + 1}", DenseLayer(x, width // 2))
                x += width // 2
            self.channels.append(x)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = F.relu(self.conv1_bn(self.conv1_conv(x)), inplace=True)
        features = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for stage, size in enumerate(self.stages):
            if stage:
                x = F.relu(self.get_submodule(f"pool{stage + 1}_bn")(x), inplace=True)
                x = F.avg_pool2d(self.get_submodule(f"pool{stage + 1}_conv")(x), 2)
            for i in range(size):
                x = self.get_submodule(f"conv{stage + 2}_block{i + 1}")(x)
            features.append(x)
        return features


class KerasStrided(nn.Conv2d):
    """A convolution with stride 2 that pads as Keras: where sides are even, one less at the top and left."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, 2, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = self.kernel_size[0] // 2
        top, left = (half - 1 + size % 2 for size in x.shape[2:])
        return super().forward(F.pad(x, (left, half, top, half)))


class InvertedBottleneck(nn.Module):
    """1x1 to expansion * inputs, depthwise k x k, channels weighted by their means, 1x1 to `features`; a sum where that fits.

    Gives the result and what the depthwise convolution saw.
    """

    def __init__(self, inputs: int, features: int, *, kernel: int, stride: int, expansion: int, drop: float) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expands, self.adds, self.drop = expansion > 1, stride == 1 and inputs == features, drop
        if self.expands:
            self.expand_conv, self.expand_bn = nn.Conv2d(inputs, inner, 1, bias=False), norm(inner)
        self.dwconv = (nn.Conv2d(inner, inner, kernel, 1, kernel // 2, groups=inner, bias=False) if stride == 1 else
                       KerasStrided(inner, inner, kernel, groups=inner))
        self.bn = norm(inner)
        self.se_reduce = nn.Conv2d(inner, max(1, inputs // 4), 1)
        self.se_expand = nn.Conv2d(max(1, inputs // 4), inner, 1)
        self.project_conv, self.project_bn = nn.Conv2d(inner, features, 1, bias=False), norm(features)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        expanded = swish(self.expand_bn(self.expand_conv(x))) if self.expands else x
        y = swish(self.bn(self.dwconv(expanded)))
        weight = self.se_expand(swish(self.se_reduce(y.mean((2, 3), keepdim=True))))
        y = self.project_bn(self.project_conv(y * torch.sigmoid(weight)))
        if self.adds:
            y = x + self._dropped(y)
        return y, expanded

    def _dropped(self, y: torch.Tensor) -> torch.Tensor:
        """While training, zero for a share of the samples; the others enlarged accordingly."""
        if not self.training or not self.drop:
            return y
        return y * F.dropout(y.new_ones(len(y), 1, 1, 1), self.drop)


def swish(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(x); in place only where no gradient is asked for, which would copy x first."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Normalization(nn.Module):
    """(x - mean) / deviation of every channel, with statistics that training does not change."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = (self.get_buffer(f"running_{name}").reshape(1, -1, 1, 1) for name in ("mean", "var"))
        return (x - mean) / var.sqrt().clamp_min(1e-7)


class EfficientNet(nn.Module):
    """Keras' EfficientNetB7 at width 64: the expansions that open stages 2, 3, 4 and 6, and the last convolution."""

    stages = ((3, 1, 16, 1, 1), (3, 2, 24, 6, 2), (5, 2, 40, 6, 2), (3, 3, 80, 6, 2), (5, 3, 112, 6, 1), (5, 4, 192, 6, 2),
              (3, 1, 320, 6, 1))    # kernel, repeats, features, expansion, stride of B0

    def __init__(self, inputs: int, *, width: int, depth: float = 3.1, drop: float = 0.2) -> None:
        super().__init__()
        repeats = [math.ceil(depth * stage[1]) for stage in self.stages]
        x = rounded(width)
        self.normalization = Normalization(inputs)
        self.stem_conv, self.stem_bn = KerasStrided(inputs, x, 3), norm(x)
        self.blocks: list[tuple[str, bool]] = []     # and whether they stride
        self.channels: list[int] = []
        for index, (kernel, _, features, expansion, stride) in enumerate(self.stages):
            outputs = rounded(features * width / 32)
            for i in range(repeats[index]):
                name, strides = f"block{index + 1}{chr(ord('a') + i)}", i == 0 and stride == 2
                self.channels += [x * expansion] if strides else []
                self.add_module(name, InvertedBottleneck(x, outputs, kernel=kernel, stride=2 if strides else 1,
                                                         expansion=expansion, drop=drop * len(self.blocks) / sum(repeats)))
                self.blocks.append((name, strides))
                x = outputs
        self.channels.append(rounded(1280 * width / 32))
        self.top_conv, self.top_bn = nn.Conv2d(x, self.channels[-1], 1, bias=False), norm(self.channels[-1])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = swish(self.stem_bn(self.stem_conv(self.normalization(x / 255))))
        features = []
        for name, strides in self.blocks:
            x, expanded = self.get_submodule(name)(x)
            features += [expanded] if strides else []
        return [*features, swish(self.top_bn(self.top_conv(x)))]


def rounded(exact: float) -> int:
    """A multiple of 8, and not more than a tenth below."""
    multiple = max(8, int(exact + 4) // 8 * 8)
    return multiple + 8 if multiple < 0.9 * exact else multiple


class Pyramid(nn.Module):
    """Laterals, top-down additions, one 3x3 convolution on the finest sum."""

    def __init__(self, channels: Sequence[int], features: int, *, depthwise: bool, finest: int) -> None:
        super().__init__()
        self.finest, groups = finest, features if depthwise else 1
        for level, inputs in enumerate(channels, start=finest):
            self.add_module(f"C{level}_reduced", nn.Conv2d(inputs, features, 1))
        self.add_module(f"P{finest}", nn.Conv2d(features, features, 3, 1, 1, groups=groups))

    def forward(self, features: Sequence[torch.Tensor], resize: Callable[..., torch.Tensor]) -> torch.Tensor:
        laterals = [self.get_submodule(f"C{level}_reduced")(x) for level, x in enumerate(features, start=self.finest)]
        x = laterals.pop()
        while laterals:
            lateral = laterals.pop()
            x = lateral + resize(x, lateral.shape[2:])
        return self.get_submodule(f"P{self.finest}")(x)


class SemanticHead(nn.Module):
    """3x3 convolutions with an enlargement after each, then 1x1, norm, rectifier, 1x1."""

    def __init__(self, inputs: int, outputs: int, *, doublings: int, features: int, final_features: int) -> None:
        super().__init__()
        self.doublings = doublings
        for i in range(doublings):
            self.add_module(f"upsample{i}", nn.Conv2d(features if i else inputs, features, 3, 1, 1))
        self.conv1, self.norm1 = nn.Conv2d(features, final_features, 1), norm(final_features)
        self.output = nn.Conv2d(final_features, outputs, 1)

    def forward(self, x: torch.Tensor, resize: Callable[..., torch.Tensor]) -> torch.Tensor:
        for i in range(self.doublings):
            x = self.get_submodule(f"upsample{i}")(x)
            x = resize(x, [2 * size for size in x.shape[2:]])
        return self.output(F.relu(self.norm1(self.conv1(x)), inplace=True))


ENCODERS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet50": KerasResNet, "resnet26": partial(KerasResNet, stages=(2, 2, 2, 2)), "densenet201": DenseNet,
    "efficientnetb7": EfficientNet,
}
RESIZES: Mapping[str, Callable[..., torch.Tensor]] = {
    "bilinear": partial(F.interpolate, mode="bilinear", align_corners=False), "nearest": partial(F.interpolate, mode="nearest"),
}
CLASSES: Mapping[str, int] = {"inner_distance": 1, "outer_distance": 1, "fgbg": 2, "pixelwise": 3}


class MesmerNetwork(nn.Module):
    """The network that `config.model` of configs/mesmer.py describes.

    Raises:
      ValueError: it shall normalise the image itself, which this rival does not.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        m, channels = config.model, config.data.channels
        if m.normalize != "none":
            raise ValueError(f"config.model.normalize={m.normalize!r}: the rival has no normalisation; race with 'none'.")
        self.scale, self.location, self.first, self.heads = m.scale, m.location, m.levels[0], tuple(m.heads)
        self.resize = RESIZES[m.resize]
        self.conv_channels = nn.Conv2d(channels + 2 * m.location, 3, 1)
        self.encoder = ENCODERS[m.encoder](3, width=m.width)
        encoded: Any = self.encoder.channels
        self.decoder = Pyramid(encoded[self.first - 1:], m.features, depthwise=m.depthwise, finest=self.first)
        for head in self.heads:
            self.add_module(f"{head}_head", SemanticHead(m.features, CLASSES[head], doublings=self.first,
                                                         features=m.head_features[0], final_features=m.head_features[1]))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = append_location(image * self.scale) if self.location else image * self.scale
        encoded = self.encoder(self.conv_channels(x.contiguous(memory_format=torch.channels_last)))
        x = self.decoder(encoded[self.first - 1:], self.resize)
        outputs = {head: self.get_submodule(f"{head}_head")(x, self.resize).float() for head in self.heads}
        return {head: F.relu(y) if CLASSES[head] == 1 else y.softmax(1) for head, y in outputs.items()}


def append_location(image: torch.Tensor) -> torch.Tensor:
    """Appends the row and the column of every pixel, each from 0 to 1."""
    rows, columns = (torch.linspace(0, 1, size, dtype=image.dtype, device=image.device) for size in image.shape[2:])
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return torch.cat([image, place.expand(len(image), -1, -1, -1)], 1)


def plain_cells(config: Any, maps: Mapping[str, np.ndarray]) -> int:
    """Number of cells by deepcell's post-processing, scikit-image's plain calls.

    Args:
      config: of configs/mesmer.py, with the paper's settings in `decode`.
      maps: head -> [H, W, K].

    Raises:
      ValueError: other settings than those of benchmarks/postprocessing.py.
    """
    # Here, for it would lengthen the start of the worker.
    from benchmarks.postprocessing import HOLES, INTERIOR, MAXIMA, SMALL, SMOOTHING, stages

    known = {"markers": "inner_distance", "interior": "pixelwise", "maxima": "h_maxima", "maxima_threshold": MAXIMA,
             "maxima_smoothing": 0, "interior_threshold": INTERIOR, "interior_smoothing": SMOOTHING, "expansion": 0, "erosion": 0,
             "small_objects": SMALL, "holes": HOLES}
    if wrong := {name: config.decode[name] for name, value in known.items() if config.decode[name] != value}:
        raise ValueError(f"config.decode has {wrong}, which the rival does not know; race with the paper's {known}.")
    results: dict[str, Any] = {"inner": maps["inner_distance"][..., 0], "interior": maps["pixelwise"][..., 1]}
    for name, plain, _, needs in stages(config.decode.radius):
        results[name] = plain(*(results[need] for need in needs))
    return len(results["instances"])
