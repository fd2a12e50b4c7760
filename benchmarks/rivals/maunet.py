"""MAUNet in PyTorch, layer by layer the one of `jaxcell/systems/maunet.py`, and its authors' post-processing.

Modules have the names of jaxcell's parameters, so that weights can be carried over and outputs compared.
Written as a PyTorch user would: `torch.nn` modules, NCHW, memory in channels_last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.rivals.contour_proposal import Bottleneck, ResidualBlock, ResNet

__all__ = ["MAUNetNetwork", "plain_cells"]

ENCODERS: Mapping[str, Callable[..., ResNet]] = {
    "resnet50": partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck),
    "wideresnet50": partial(ResNet, stages=(3, 4, 6), block=partial(Bottleneck, width_per_group=128)),
    "resnet18": partial(ResNet, stages=(2, 2, 2, 2), block=ResidualBlock),
}
WIDTHS = (1, 1, 2, 4, 8, 16)    # of the skips of the image, the stem and the stages, in widths of the decoders

# A residual block as MONAI has it: instance norm without parameters, leaky rectifier of slope 0.01.
block = partial(ResidualBlock, norm=nn.InstanceNorm2d, act=nn.LeakyReLU(0.01, inplace=True))


class Skips(nn.Module):
    """A residual block on the image and on every feature."""

    def __init__(self, channels: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        for level, (inputs, outputs) in enumerate(zip(channels, widths, strict=True)):
            self.add_module(f"level{level}", block(inputs, outputs))

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [self.get_submodule(f"level{level}")(x) for level, x in enumerate(features)]


class Decoder(nn.Module):
    """From coarse to fine: transposed convolution, the skip behind it, residual block; the finest."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        for level in reversed(range(len(widths) - 1)):
            self.add_module(f"level{level}_enlarge", nn.ConvTranspose2d(widths[level + 1], widths[level], 2, 2, bias=False))
            self.add_module(f"level{level}", block(2 * widths[level], widths[level]))

    def forward(self, skips: Sequence[torch.Tensor]) -> torch.Tensor:
        x = skips[-1]
        for level in reversed(range(len(skips) - 1)):
            x = torch.cat([self.get_submodule(f"level{level}_enlarge")(x), skips[level]], 1)
            x = self.get_submodule(f"level{level}")(x)
        return x


class MAUNetNetwork(nn.Module):
    """The network that `config.model` of configs/maunet.py describes."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        m, channels = config.model, config.data.channels
        self.encoder = ENCODERS[m.encoder](channels, width=m.width)
        encoded = self.encoder.channels
        widths = [m.features * factor for factor in WIDTHS[:len(encoded) + 1]]
        self.skips = Skips([channels, *encoded], widths)
        self.maps = {"classes": 3 + m.proxies} | ({"distance": 1} if m.distance else {})
        for name, outputs in self.maps.items():
            self.add_module(f"{name}_decoder", Decoder(widths))
            self.add_module(f"{name}_head", nn.Conv2d(m.features, outputs, 1))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        image = image.contiguous(memory_format=torch.channels_last)
        skips = self.skips([image, *self.encoder(image)])
        decoded = {name: self.get_submodule(f"{name}_decoder")(skips) for name in self.maps}
        return {name: self.get_submodule(f"{name}_head")(x).float() for name, x in decoded.items()}


def plain_cells(config: Any, maps: Mapping[str, np.ndarray]) -> int:
    """Number of cells by the released script's calls, in its order.

    Args:
      config: of configs/maunet.py, with the released settings in `decode`.
      maps: "classes" [H, W, K] logits and "distance" [H, W, 1].

    Raises:
      ValueError: other settings.
    """
    # Here, for they would lengthen the start of the worker.
    import cv2
    from scipy.special import softmax
    from skimage.feature import peak_local_max
    from skimage.measure import label

    from benchmarks.postprocessing import plain_instances

    known = {"name": "three_watersheds", "background_below": 0.3, "interior_above": 0.7, "least_interior": 16,
             "skeleton": "relative", "skeleton_threshold": 0.85, "peak_threshold": 0.6, "small_fraction": 0.1}
    if wrong := {name: config.decode[name] for name, value in known.items() if config.decode[name] != value}:
        raise ValueError(f"config.decode has {wrong}, which the rival does not know; race with the released {known}.")

    def flood(markers: np.ndarray, picture: np.ndarray) -> np.ndarray:
        basins = np.where(markers > 0, markers + 1, np.where(foreground, 0, 1)).astype(np.int32)
        return cv2.watershed(cv2.applyColorMap(picture.astype(np.uint8), cv2.COLORMAP_BONE), basins)

    def cells_of(basins: np.ndarray) -> np.ndarray:
        return np.where(basins > 1, basins - 1, 0)

    probabilities, distance = softmax(maps["classes"], axis=-1), maps["distance"][..., 0]
    foreground = probabilities[..., 0] < 0.3
    interior = without_small(probabilities[..., 1] > 0.7, 16)
    kernel = int(np.sqrt(int(interior.sum() / label(interior).max())))
    kernel += 1 if kernel % 2 == 0 else 2
    blurred = cv2.GaussianBlur(distance, (kernel, kernel), 0)
    first = flood(label((blurred > 0.85 * blurred.max()) & interior), interior)
    peaks = np.zeros(interior.shape, bool)
    peaks[tuple(peak_local_max(blurred, min_distance=kernel // 4, threshold_rel=0.6).T)] = True
    left = interior & (first == 1)
    second, first = cells_of(flood(label(peaks & left), left)), cells_of(first)
    third = cells_of(flood(first + second + first.max() * (second > 0), foreground))
    third[~without_small(third > 0, int((third > 0).sum() / third.max() / 10))] = 0
    return len(plain_instances(third, 1 - probabilities[..., 0]))


def without_small(mask: np.ndarray, least: int) -> np.ndarray:
    """remove_small_objects, whose argument has two names among the versions that jaxcell allows."""
    from skimage.measure import label

    pieces = label(mask, connectivity=1)
    few = np.bincount(pieces.ravel()) < least
    return mask & ~few[pieces]
