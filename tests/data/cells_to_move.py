"""Samples whose cells can be recognised by their intensity, whatever moved them."""

from __future__ import annotations

import numpy as np

from jaxcell.types import Sample

INTENSITIES = {7: 0.3, 2 ** 24 + 1: 0.5, 2 ** 31 - 1: 0.7, -1: 0.9}     # float32 has no 2 ** 24 + 1
BACKGROUND = 0.1


def disc(size: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[:size, :size]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius ** 2


def scene(channels: int = 3, size: int = 96) -> Sample:
    """Two cells that overlap, one alone, a region to ignore; two nuclei. Every one has its own grey level."""
    scale = size / 96
    below, above, alone = (disc(size, y * scale, x * scale, r * scale) for y, x, r in ((30, 30, 16), (42, 40, 14), (66, 66, 18)))
    labels = np.zeros((size, size, 2), np.int32)
    labels[below, 0], labels[alone, 0], labels[above, 1] = 7, 2 ** 24 + 1, 2 ** 31 - 1
    labels[int(10 * scale):int(26 * scale), int(70 * scale):int(90 * scale), 0] = -1
    nuclei = np.zeros((size, size), np.int32)
    nuclei[disc(size, 28 * scale, 28 * scale, 8 * scale)] = 7
    nuclei[disc(size, 66 * scale, 66 * scale, 9 * scale)] = 2 ** 24 + 1
    image = np.full((size, size), BACKGROUND, np.float32)
    for number, intensity in INTENSITIES.items():       # in this order: the cell above is drawn over the one below
        image[(labels == number).any(axis=-1)] = intensity
    return Sample(np.repeat(image[..., None], channels, axis=2), labels, nuclei=nuclei, name="scene")
