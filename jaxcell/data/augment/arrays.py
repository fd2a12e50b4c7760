"""What the augmentations share: the same change of image, labels and nuclei, and OpenCV's limits on channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from jaxcell.geometry.intensity import value_range
from jaxcell.geometry.labels import Window, windows
from jaxcell.types import Sample

__all__ = ["Augmentation", "Change", "Steps", "by_channels", "cell_windows", "in_unit_range", "is_gray", "on_arrays", "on_image"]

Augmentation = Callable[[Sample, np.random.Generator], Sample]
Steps = Sequence[tuple[float, Augmentation]]        # (probability, augmentation), in the order of application
Change = Callable[[np.ndarray], np.ndarray]


def on_arrays(sample: Sample, change: Change) -> Sample:
    """The sample with `change` applied to image, labels and nuclei alike; they must come out with equal sides."""
    labels, nuclei = (None if array is None else change(array) for array in (sample.labels, sample.nuclei))
    return dataclasses.replace(sample, image=change(sample.image), labels=labels, nuclei=nuclei)


def on_image(sample: Sample, change: Change) -> Sample:
    """The sample with `change` applied to its image [H, W, C]."""
    image = change(np.ascontiguousarray(sample.image))
    image = image[..., None] if image.ndim == 2 else image      # OpenCV drops the axis of a single channel
    return dataclasses.replace(sample, image=image)


def in_unit_range(image: np.ndarray, change: Change) -> np.ndarray:
    """`change`, which knows values in [0, 1] only, of an image [H, W, C] of any (see `jaxcell.geometry.intensity`)."""
    low, high = (float(end.item()) for end in value_range(image))
    if (low, high) == (0, 1):
        return change(image)
    changed = change((image - low) / (high - low))
    return changed * (high - low) + low


def by_channels(array: np.ndarray, change: Change, *, most: int = 4) -> np.ndarray:
    """`change` on at most `most` channels at a time, for functions of OpenCV that take no more.

    Args:
      array: [H, W] or [H, W, C].
      change: of an array of 1 to `most` channels; it may drop the axis of a single one.
      most: 4 suits all of OpenCV's functions but the median, which knows no 2 channels: 1.

    Returns:
      [h, w] or [h, w, C], as `array` is.
    """
    channels = array.shape[2] if array.ndim == 3 else 0
    if channels <= most:
        changed = change(np.ascontiguousarray(array))
        return changed[..., None] if channels == 1 and changed.ndim == 2 else changed
    parts = [change(np.ascontiguousarray(array[..., c:c + most])) for c in range(0, channels, most)]
    return np.concatenate([part[..., None] if part.ndim == 2 else part for part in parts], axis=-1)


def cell_windows(plane: np.ndarray) -> list[tuple[int, Window]]:
    """What `geometry.labels.windows` gives of [H, W] labels; four times faster where no id is above the number of pixels."""
    if plane.max(initial=0) > plane.size:
        return list(windows(plane))
    return [(number, window) for number, window in enumerate(ndimage.find_objects(plane), start=1) if window is not None]


def is_gray(image: np.ndarray) -> bool:
    """Whether all channels of [H, W, C] are equal."""
    return all(np.array_equal(image[..., 0], image[..., c]) for c in range(1, image.shape[2]))
