"""Whole pictures turned, rotated and brought to a square, as MorphoSeg's training does with its patches: nothing is cut off."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from scipy import ndimage

from jaxcell.data.augment.arrays import Augmentation, in_unit_range, on_arrays
from jaxcell.types import Sample

__all__ = ["rotate_nearest", "training_item", "turn_and_mirror", "zoom_to_square"]


def turn_and_mirror(sample: Sample, *, turns: int, axis: int) -> Sample:
    """Turns counter-clockwise by `turns` quarters, then mirrors axis 0 (y) or 1 (x); H and W may swap."""
    return on_arrays(sample, lambda array: np.flip(np.rot90(array, turns), axis))


def rotate_nearest(sample: Sample, *, angle: float) -> Sample:
    """Rotates about the centre, image as well as labels taking the nearest pixel; what comes from outside is 0.

    Args:
      sample: any dtype.
      angle: degrees, in the sense of `scipy.ndimage.rotate`.
    """
    return on_arrays(sample, lambda array: ndimage.rotate(array, angle, order=0, reshape=False))


def zoom_to_square(sample: Sample, *, size: int) -> Sample:
    """The whole sample in size x size pixels, corner on corner, whatever its proportions; as it is if it has that size.

    Args:
      sample: image float32, of which 8 bits are kept: a cubic spline overshoots, and is rounded and cut off there.
      size: side, pixels.

    Returns:
      Image float32 in the same range, [0, 1] as a rule; labels the nearest pixel's, about corners.
    """
    if sample.image.shape[:2] == (size, size):
        return sample
    def zoom(image: np.ndarray) -> np.ndarray:
        return _zoom(np.rint(image * np.float32(255)).astype(np.uint8), size, 3).astype(np.float32) / np.float32(255)

    labels, nuclei = (None if array is None else _zoom(array, size, 0) for array in (sample.labels, sample.nuclei))
    return dataclasses.replace(sample, image=in_unit_range(sample.image, zoom), labels=labels, nuclei=nuclei)


def _zoom(array: np.ndarray, size: int, order: int) -> np.ndarray:
    """Each plane of [H, W] or [H, W, C]."""
    factors = size / array.shape[0], size / array.shape[1]
    if array.ndim == 2:
        return ndimage.zoom(array, factors, order=order)
    return np.stack([ndimage.zoom(plane, factors, order=order) for plane in np.moveaxis(array, -1, 0)], axis=-1)


def training_item(sample: Sample, rng: np.random.Generator, size: int) -> tuple[int, Augmentation]:
    """Draws what happens to a picture: turned and mirrored (1/2), rotated by -20 to 19 whole degrees (1/4), or nothing (1/4).

    Args:
      sample: as stored.
      rng: of this sample.
      size: side of the square that the whole picture becomes, pixels.

    Returns:
      Side of the region, which is all of the picture, and the augmentation.

    Source: RanchoGoose/MorphoSeg@a2ab9fe, datasets/dataset_cellseg.py RandomGenerator.
    Departs: an image whose 8-bit values do not exceed 1 is divided by 255 like all others.
    """
    steps: list[Callable[[Sample], Sample]] = [partial(zoom_to_square, size=size)]
    if rng.random() < 0.5:
        steps.insert(0, partial(turn_and_mirror, turns=int(rng.integers(4)), axis=int(rng.integers(2))))
    elif rng.random() < 0.5:
        steps.insert(0, partial(rotate_nearest, angle=int(rng.integers(-20, 20))))

    return max(sample.image.shape[:2]), partial(_in_turn, steps=steps)


def _in_turn(sample: Sample, rng: np.random.Generator, *, steps: Sequence[Callable[[Sample], Sample]]) -> Sample:
    for step in steps:
        sample = step(sample)
    return sample
