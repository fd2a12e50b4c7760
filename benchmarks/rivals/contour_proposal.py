"""The contour proposal network in PyTorch, layer by layer the one of `jaxcell/systems/contour_proposal.py`.

Modules have the names of jaxcell's parameters, so that weights can be carried over and outputs compared.
Written as a PyTorch user would: `torch.nn` modules, NCHW, memory in channels_last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Norm = Callable[[int], nn.Module]


class ConvBlock(nn.Module):
    """`depth` times convolution, norm, activation."""

    def __init__(self, inputs: int, features: int, *, norm: Norm, act: nn.Module, kernel: int = 3, stride: int = 1,
                 depth: int = 2, bias: bool = False) -> None:
        super().__init__()
        self.depth, self.act = depth, act
        for i in range(1, depth + 1):
            self.add_module(f"conv{i}", nn.Conv2d(inputs if i == 1 else features, features, kernel, stride if i == 1 else 1,
                                                  kernel // 2, bias=bias))
            self.add_module(f"norm{i}", norm(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(1, self.depth + 1):
            x = self.act(self.get_submodule(f"norm{i}")(self.get_submodule(f"conv{i}")(x)))
        return x


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, features: int, *, norm: Norm, act: nn.Module, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False), norm(features)
        self.conv2, self.norm2 = nn.Conv2d(features, features, 3, 1, 1, bias=False), norm(features)
        self.act, self.shortens = act, stride != 1 or inputs != features
        if self.shortens:
            self.projection, self.projection_norm = nn.Conv2d(inputs, features, 1, stride, bias=False), norm(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act((self.projection_norm(self.projection(x)) if self.shortens else x) + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped), 1x1 beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, features: int, *, norm: Norm, act: nn.Module, stride: int = 1, groups: int = 1,
                 width_per_group: int = 64) -> None:
        super().__init__()
        inner, outputs = features * width_per_group // 64 * groups, 4 * features
        self.conv1, self.norm1 = nn.Conv2d(inputs, inner, 1, bias=False), norm(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False), norm(inner)
        self.conv3, self.norm3 = nn.Conv2d(inner, outputs, 1, bias=False), norm(outputs)
        self.act, self.shortens = act, stride != 1 or inputs != outputs
        if self.shortens:
            self.projection, self.projection_norm = nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.norm2(self.conv2(self.act(self.norm1(self.conv1(x))))))
        y = self.norm3(self.conv3(y))
        return self.act((self.projection_norm(self.projection(x)) if self.shortens else x) + y)


class ResNet(nn.Module):
    """Stem and stages, each returned."""

    def __init__(self, inputs: int, *, stages: Sequence[int], block: Any, width: int) -> None:
        super().__init__()
        parts: dict[str, Any] = {"norm": nn.BatchNorm2d, "act": nn.ReLU(inplace=True)}
        self.level0 = ConvBlock(inputs, width, kernel=7, stride=2, depth=1, **parts)
        self.stages, self.channels = stages, [width]
        expansion = block.func.expansion if isinstance(block, partial) else block.expansion
        for stage, size in enumerate(stages):
            for i in range(size):
                inputs = self.channels[-1] if i == 0 else expansion * width * 2 ** stage
                self.add_module(f"level{stage + 1}_block{i}",
                                block(inputs, width * 2 ** stage, stride=2 if stage and i == 0 else 1, **parts))
            self.channels.append(expansion * width * 2 ** stage)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.level0(x)
        features = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for stage, size in enumerate(self.stages):
            for i in range(size):
                x = self.get_submodule(f"level{stage + 1}_block{i}")(x)
            features.append(x)
        return features


class UNetEncoder(nn.Module):
    """Levels of two convolutions with max pooling between."""

    def __init__(self, inputs: int, *, width: int, levels: int = 5) -> None:
        super().__init__()
        self.channels = [width * 2 ** level for level in range(levels)]
        for level, features in enumerate(self.channels):
            self.add_module(f"level{level}", ConvBlock(inputs if level == 0 else features // 2, features, norm=nn.BatchNorm2d,
                                                       act=nn.ReLU(inplace=True), bias=True))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for level in range(len(self.channels)):
            x = self.get_submodule(f"level{level}")(F.max_pool2d(x, 2) if level else x)
            features.append(x)
        return features


class PyramidPooling(nn.Module):
    """Averages over coarse grids, projected, resized back and concatenated."""

    scales = (1, 2, 3, 6)

    def __init__(self, inputs: int, features: int = 64) -> None:
        super().__init__()
        for i in range(len(self.scales)):
            self.add_module(f"branch{i}", ConvBlock(inputs, features, norm=nn.BatchNorm2d, act=nn.ReLU(inplace=True), kernel=1,
                                                    depth=1, bias=True))
        self.outputs = features * len(self.scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = (self.get_submodule(f"branch{i}")(F.adaptive_avg_pool2d(x, scale)) for i, scale in enumerate(self.scales))
        return torch.cat([F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=False) for y in branches], 1)


class UNetDecoder(nn.Module):
    """From coarse to fine: nearest resize, 1x1 convolution, concatenation, block."""

    def __init__(self, channels: Sequence[int], *, block: Any, norm: Norm, act: nn.Module) -> None:
        super().__init__()
        self.channels = [*channels[:-1], channels[-1]]
        inputs = channels[-1]
        for level in reversed(range(len(channels) - 1)):
            width = channels[level]
            if inputs > width:
                self.add_module(f"level{level}_reduce", nn.Conv2d(inputs, width, 1))
            self.add_module(f"level{level}", block(width + min(inputs, width), width, norm=norm, act=act))
            inputs = width

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        outputs = [features[-1]]
        for level in reversed(range(len(features) - 1)):
            lateral = features[level]
            x = F.interpolate(outputs[0], lateral.shape[2:], mode="nearest")
            if f"level{level}_reduce" in self._modules:
                x = self.get_submodule(f"level{level}_reduce")(x)
            outputs.insert(0, self.get_submodule(f"level{level}")(torch.cat([lateral, x], 1)))
        return outputs


class FPNDecoder(nn.Module):
    """Laterals, top-down additions, one 3x3 convolution a level."""

    def __init__(self, channels: Sequence[int], features: int = 256) -> None:
        super().__init__()
        for level, inputs in enumerate(channels):
            self.add_module(f"level{level}_lateral", nn.Conv2d(inputs, features, 1))
            self.add_module(f"level{level}_output", nn.Conv2d(features, features, 3, 1, 1))
        self.channels = [features] * (len(channels) + 1)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        outputs: list[torch.Tensor] = []
        x = None
        for level in reversed(range(len(features))):
            lateral = self.get_submodule(f"level{level}_lateral")(features[level])
            x = lateral if x is None else lateral + F.interpolate(x, lateral.shape[2:], mode="nearest")
            outputs.insert(0, self.get_submodule(f"level{level}_output")(x))
        return [*outputs, outputs[-1][:, :, ::2, ::2]]


class DenseHead(nn.Module):
    """k x k convolution, norm, activation, channel dropout, 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, features: int | None, dropout: float) -> None:
        super().__init__()
        hidden = features or inputs
        self.conv1, self.norm1 = nn.Conv2d(inputs, hidden, kernel, 1, kernel // 2), nn.BatchNorm2d(hidden)
        self.dropout, self.output = nn.Dropout2d(dropout), nn.Conv2d(hidden, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.dropout(F.relu(self.norm1(self.conv1(x)), inplace=True)))


class Reduce(nn.Module):
    """A bare 1x1 convolution over concatenated features."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1(x)


ENCODERS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, stages=(2, 2, 2, 2), block=ResidualBlock),
    "resnet50": partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck),
    "resnext101_32x8d": partial(ResNet, stages=(3, 4, 23, 3), block=partial(Bottleneck, groups=32, width_per_group=8)),
    "unet22": UNetEncoder,
}


class ContourProposalNetwork(nn.Module):
    """The network that `config.model` of configs/contour_proposal.py describes."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.m, channels = config.model, config.data.channels
        m = self.m
        self.register_buffer("mean", torch.tensor(m.mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(m.std).reshape(1, -1, 1, 1), persistent=False)
        self.encoder = ENCODERS[m.encoder](channels, width=m.width)
        encoded = list(self.encoder.channels)
        self.pooling = PyramidPooling(encoded[-1]) if m.pooling == "pyramid" else None
        encoded += [self.pooling.outputs] if self.pooling else []
        norm: Norm = nn.BatchNorm2d if m.decoder_norm == "batch" else partial(nn.GroupNorm, 32)
        act = nn.ReLU(inplace=True) if m.decoder_act == "relu" else nn.LeakyReLU(0.01, inplace=True)
        if m.decoder == "fpn":
            self.decoder: Any = FPNDecoder(encoded)
        else:
            block = ResidualBlock if m.decoder == "residual_unet" else partial(ConvBlock, bias=True)
            self.decoder = UNetDecoder(encoded, block=block, norm=norm, act=act)
        widths = {f"encoder.{i}": c for i, c in enumerate(encoded)}
        widths |= {f"decoder.{i}": c for i, c in enumerate(self.decoder.channels)}
        heads = {"score": (m.score_features, 1), "location": (m.contour_features, 2),
                 "fourier": (m.contour_features, 4 * m.order)}
        heads |= {"uncertainty": (m.contour_features, 4)} if m.uncertainty else {}
        heads["refinement"] = (m.refinement_features, 2 * m.buckets)
        self.features = {name: tuple(names) for name, (names, _) in heads.items()}
        for name, (names, outputs) in heads.items():
            first, *others = (widths[n] for n in names)
            if others:
                self.add_module(f"{name}_fuse", Reduce(first + sum(others), first))
            self.add_module(f"{name}_head", DenseHead(first, outputs, kernel=m.head_kernel, features=m.head_features or None,
                                                      dropout=m.dropout))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = (image - self.mean) / self.std
        encoded = self.encoder(x)
        encoded = [*encoded, self.pooling(encoded[-1])] if self.pooling is not None else encoded
        decoded = self.decoder(encoded)
        features = {f"encoder.{i}": f for i, f in enumerate(encoded)} | {f"decoder.{i}": f for i, f in enumerate(decoded)}
        outputs = {}
        for name, names in self.features.items():
            x, *others = (features[n] for n in names)
            if others:
                x = torch.cat([x, *(F.interpolate(f, x.shape[2:], mode="nearest") for f in others)], 1)
                x = self.get_submodule(f"{name}_fuse")(x)
            if name == "refinement" and self.m.resize == "features":
                x = F.interpolate(x, image.shape[2:], mode="bilinear", align_corners=False)
            outputs[name] = self.get_submodule(f"{name}_head")(x).float()
        refinement = torch.tanh(outputs["refinement"]) * self.m.margin
        if refinement.shape[2:] != image.shape[2:]:
            refinement = F.interpolate(refinement, image.shape[2:], mode="bilinear", align_corners=False)
        return {"scores": outputs["score"], "locations": outputs["location"], "fourier": outputs["fourier"],
                **({"uncertainty": outputs["uncertainty"]} if "uncertainty" in outputs else {}), "refinement": refinement}
