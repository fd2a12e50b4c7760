"""SE-U-Net and SparseSEU-Net in PyTorch, layer by layer those of `jaxcell/systems/sparse_seunet.py`, and cells from their logits.

Modules have the names of jaxcell's parameters, so that weights can be carried over and outputs compared.
Written as a PyTorch user would: `torch.nn` modules, NCHW, memory in channels_last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.rivals.contour_proposal import ConvBlock

__all__ = ["SparseSEUNetNetwork", "plain_cells"]

enlarged = partial(F.interpolate, mode="bilinear", align_corners=True)


class SqueezeExcite(nn.Module):
    """Every channel weighted by a number that depends on the means of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, channels // 2), nn.Linear(channels // 2, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))), inplace=True)))
        return x * scale[..., None, None]


class WindowPyramid(nn.Module):
    """The input, and its means over windows, each reduced, and enlarged again."""

    def __init__(self, inputs: int, windows: Sequence[int], features: int) -> None:
        super().__init__()
        self.windows = windows
        reduce = partial(ConvBlock, inputs, features, norm=nn.BatchNorm2d, act=nn.ReLU(inplace=True), kernel=1, depth=1)
        for window in windows:
            self.add_module(f"window{window}", reduce())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [self.get_submodule(f"window{window}")(F.avg_pool2d(x, window)) for window in self.windows]
        return torch.cat([x, *(enlarged(y, x.shape[2:]) for y in maps)], 1)


class Encoder(nn.Module):
    """Levels of one width and a pyramid on every skip; each level sees the pooled maps of the two before."""

    def __init__(self, inputs: int, *, width: int, levels: int, windows: Sequence[int], pyramid_features: int,
                 block: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.levels, self.skip = levels, width + len(windows) * pyramid_features
        for level in range(levels):
            self.add_module(f"level{level}", block(inputs if level == 0 else width * min(level, 2), width))
            self.add_module(f"level{level}_se", SqueezeExcite(width))
            self.add_module(f"level{level}_pyramid", WindowPyramid(width, windows, pyramid_features))
            self.add_module(f"level{level}_pyramid_se", SqueezeExcite(self.skip))
        self.bottom, self.bottom_se = block(width * min(levels, 2), width), SqueezeExcite(width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips: list[torch.Tensor] = []
        below: list[torch.Tensor] = []
        for level in range(self.levels):
            part = f"level{level}"
            x = self.get_submodule(f"{part}_se")(self.get_submodule(part)(x))
            skips.append(self.get_submodule(f"{part}_pyramid_se")(self.get_submodule(f"{part}_pyramid")(x)))
            pooled = F.max_pool2d(x, 2)
            x = torch.cat([*(F.max_pool2d(y, 2) for y in below), pooled], 1)
            below = [pooled]
        return self.bottom_se(self.bottom(x)), skips


class Decoder(nn.Module):
    """From coarse to fine: enlarge twice, places in front, convolutions, weighting, the skip behind; every step is returned."""

    def __init__(self, width: int, skip: int, levels: int, block: Callable[..., nn.Module]) -> None:
        super().__init__()
        for step in range(levels):
            self.add_module(f"step{step}", block(2 + width + (skip if step else 0), width))
            self.add_module(f"step{step}_se", SqueezeExcite(width))

    def forward(self, x: torch.Tensor, skips: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        steps = []
        for step, skip in enumerate(reversed(skips)):
            x = with_places(enlarged(x, scale_factor=2))
            x = self.get_submodule(f"step{step}_se")(self.get_submodule(f"step{step}")(x))
            x = torch.cat([x, skip], 1)
            steps.append(x)
        return steps


def with_places(x: torch.Tensor) -> torch.Tensor:
    """Puts the row and the column of every pixel in front, each from -1 to 1."""
    rows, columns = (torch.linspace(-1, 1, size, dtype=x.dtype, device=x.device) for size in x.shape[2:])
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return torch.cat([places.expand(len(x), -1, -1, -1), x], 1)


class LastLevelBranch(nn.Module):
    """Convolutions on the finest step."""

    def __init__(self, channels: int, levels: int, features: int, block: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.step0 = block(channels, features)

    def forward(self, steps: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.step0(steps[-1])


class EveryLevelBranch(nn.Module):
    """The same on every step, beside the branch's own map of the step before."""

    def __init__(self, channels: int, levels: int, features: int, block: Callable[..., nn.Module]) -> None:
        super().__init__()
        for step in range(levels):
            self.add_module(f"step{step}", block(channels + (features if step else 0), features))

    def forward(self, steps: Sequence[torch.Tensor]) -> torch.Tensor:
        x = self.get_submodule("step0")(steps[0])
        for step, feature in enumerate(steps[1:], start=1):
            x = self.get_submodule(f"step{step}")(torch.cat([feature, enlarged(x, feature.shape[2:])], 1))
        return x


def sigmoid_weights(maps: torch.Tensor) -> torch.Tensor:
    """[B, Q, P] logits -> weights that add up to 1 over P."""
    weights = torch.sigmoid(maps)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)


class InstanceHead(nn.Module):
    """Instance activation maps, what each of them gathers, and linear layers."""

    def __init__(self, channels: int, kernels: int, *, queries: int, groups: int, depth: int, objectness: bool,
                 weights: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.groups, self.depth, self.weights = groups, depth, weights
        self.maps = nn.Conv2d(channels, groups * queries, 3, 1, 1, groups=groups)
        inner = groups * channels
        for number in range(1, depth + 1):
            self.add_module(f"hidden{number}", nn.Linear(inner, inner))
        self.scores, self.kernels = nn.Linear(inner, 1), nn.Linear(inner, kernels)
        self.objectness = nn.Linear(inner, 1) if objectness else None

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        weights = self.weights(self.maps(x).flatten(2).float())
        gathered = torch.bmm(weights, x.flatten(2).transpose(1, 2).to(weights.dtype))
        y = gathered.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(2)
        for number in range(1, self.depth + 1):
            y = F.relu(self.get_submodule(f"hidden{number}")(y), inplace=True)
        outputs = {"scores": self.scores(y)[..., 0], "kernels": self.kernels(y)}
        return outputs | ({"objectness": self.objectness(y)[..., 0]} if self.objectness is not None else {})


class InstanceDecoder(nn.Module):
    """Instance branch and head, and a mask branch whose features the kernels turn into masks."""

    def __init__(self, channels: int, m: Any, block: Callable[..., nn.Module]) -> None:
        super().__init__()
        branch, kernels = BRANCHES[m.branches], m.kernel_features or m.mask_features
        self.instance_branch = branch(channels, m.levels, m.instance_features, block)
        self.mask_branch = branch(channels, m.levels, m.mask_features, block)
        self.projection = nn.Conv2d(m.mask_features, kernels, 1) if m.kernel_features else None
        self.head = InstanceHead(m.instance_features, kernels, queries=m.queries, groups=m.groups, depth=m.head_depth,
                                 objectness=m.objectness, weights=ACTIVATIONS[m.activation])

    def forward(self, steps: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        mask = self.mask_branch(steps)
        mask = self.projection(mask) if self.projection is not None else mask
        outputs = self.head(self.instance_branch(steps))
        masks = torch.bmm(outputs.pop("kernels").to(mask.dtype), mask.flatten(2))
        return outputs | {"masks": masks.unflatten(2, mask.shape[2:])}


BRANCHES: Mapping[str, Callable[..., nn.Module]] = {"single": LastLevelBranch, "multi": EveryLevelBranch}
ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": sigmoid_weights, "softmax": partial(torch.softmax, dim=-1)}
BRANCH_NORMS: Mapping[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "none": nn.Identity}


class SparseSEUNetNetwork(nn.Module):
    """The network that `config.model` of configs/sparse_seunet.py describes."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        m = config.model
        block = partial(ConvBlock, act=nn.ReLU(inplace=True), depth=m.depth, bias=True)
        normed = partial(block, norm=nn.BatchNorm2d)
        self.encoder = Encoder(config.data.channels, width=m.width, levels=m.levels, windows=tuple(m.windows),
                               pyramid_features=m.pyramid_features, block=normed)
        self.heads, self.condition, channels = tuple(m.heads), m.condition, m.width + self.encoder.skip
        decoder = partial(Decoder, m.width, self.encoder.skip, m.levels, normed)
        for name in self.heads:
            self.add_module(f"{name}_decoder", decoder())
            self.add_module(f"{name}_head", nn.Conv2d(channels, 1, 1))
        self.instances = None
        if m.branches != "none":
            self.instance_decoder = decoder()
            self.instances = InstanceDecoder(channels * (2 if m.condition else 1), m,
                                             partial(block, norm=BRANCH_NORMS[m.branch_norm]))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        bottom, skips = self.encoder(image.contiguous(memory_format=torch.channels_last))
        decoded = {name: self.get_submodule(f"{name}_decoder")(bottom, skips) for name in self.heads}
        outputs = {name: self.get_submodule(f"{name}_head")(steps[-1]) for name, steps in decoded.items()}
        if self.instances is not None:
            steps = self.instance_decoder(bottom, skips)
            if self.condition:
                steps = [torch.cat(pair, 1) for pair in zip(steps, decoded[self.condition], strict=True)]
            outputs |= self.instances(steps)
        return {name: value.float() for name, value in outputs.items()}


# ---------------------------------------------------------------- cells
def plain_cells(config: Any, maps: Mapping[str, np.ndarray]) -> int:
    """Number of cells: of sparse masks by the released evaluation, of semantic maps by scikit-image's plain calls.

    Args:
      config: of configs/sparse_seunet.py.
      maps: logits: "masks" [N, H, W] and "scores" [N]; or of heads [H, W, 1], with "cytoplasm" among them.

    Raises:
      ValueError: other settings than these know.
    """
    sparse, d = "masks" in maps, config.decode
    known = {"rescoring": "foreground", "objectness": False, "duplicate_iou": 1.0, "duplicate_share": 1.0}
    known = known if sparse else {"markers": "middle"}
    if wrong := {name: d[name] for name, value in known.items() if d[name] != value}:
        raise ValueError(f"config.decode has {wrong}, which the rival does not know; race with {known}.")
    return _sparse_cells(d, maps) if sparse else _dense_cells(d, maps)


def _sparse_cells(d: Any, maps: Mapping[str, np.ndarray]) -> int:
    scores, masks = (torch.from_numpy(maps[name]) for name in ("scores", "masks"))
    probabilities = torch.sigmoid(scores)
    kept = probabilities > d.score_threshold
    found = torch.sigmoid(masks[kept])
    inside = found > d.mask_threshold
    areas = inside.sum((1, 2))
    ranked = probabilities[kept] * (found * inside).sum((1, 2)) / (areas + 1e-6)
    order = torch.argsort(ranked, descending=True)
    return len(inside[order[areas[order] >= d.least_pixels]])


def _dense_cells(d: Any, maps: Mapping[str, np.ndarray]) -> int:
    # Here, for they would lengthen the start of the worker.
    from scipy import ndimage
    from scipy.special import expit
    from skimage.measure import label
    from skimage.morphology import disk, h_maxima
    from skimage.segmentation import watershed

    from benchmarks.postprocessing import plain_instances

    probability = expit(maps["cytoplasm"][..., 0])
    inside = probability > d.mask_threshold
    core = inside & (expit(maps["border"][..., 0]) <= d.mask_threshold) if "border" in maps else inside
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(core), d.smoothing)
    peaks = h_maxima(depth, d.prominence, footprint=disk(d.radius)).astype(bool) & inside
    cells = watershed(-depth, label(peaks), mask=inside)
    cells[(np.bincount(cells.ravel()) < d.least_pixels)[cells]] = 0
    return len(plain_instances(cells, probability))
