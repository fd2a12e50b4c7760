"""What a pixel's value becomes: blur, gamma, contrast, histogram, noise, colours, holes. Labels stay as they are.

Amounts are shares of the range [0, 1], or, of images with values beyond, of the range that holds both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache, partial

import cv2
import numpy as np
from scipy.special import ndtri

from jaxcell.data.augment.arrays import Augmentation, by_channels, in_unit_range, is_gray, on_image
from jaxcell.geometry.intensity import add_scaled, hole_boxes, raise_to, stretch
from jaxcell.types import Sample

__all__ = ["add_noise", "blur", "change_contrast", "change_gamma", "coarse_dropout", "color_map", "on_color", "on_gray",
           "shift_histogram", "shift_hsv", "shuffle_channels", "smooth"]

LEVELS = 2 ** 16        # of the tables below: as fine as any camera


# ---------------------------------------------------------------- sharpness
def blur(sample: Sample, rng: np.random.Generator, *, motion: int = 7, median: int = 3, mean: int = 3,
         weights: tuple[float, float, float] = (0.2, 0.3, 0.5)) -> Sample:
    """One of three blurs.

    Args:
      sample: float32.
      rng: of this sample.
      motion: longest streak, pixels; odd lengths from 3 are drawn, in any direction.
      median: side of the median window, 3 or 5.
      mean: largest side of the mean window; odd sides from 3 are drawn.
      weights: probabilities of motion, median and mean.
    """
    kind = rng.choice(3, p=np.asarray(weights) / np.sum(weights))
    if kind == 0:
        kernel = _streak(3 + 2 * int(rng.integers((motion - 1) // 2)), rng.uniform(0, np.pi))
        return on_image(sample, lambda image: cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101))
    if kind == 1:
        most = 4 if sample.image.shape[2] in (3, 4) else 1      # OpenCV's median knows no two channels
        return on_image(sample, partial(by_channels, change=lambda part: cv2.medianBlur(part, median), most=most))
    side = 3 + 2 * int(rng.integers((mean - 1) // 2))
    return on_image(sample, lambda image: cv2.blur(image, (side, side)))


def _streak(length: int, angle: float) -> np.ndarray:
    kernel = np.zeros((length, length), np.float32)
    middle = (length - 1) / 2
    step = np.rint(middle * np.asarray([np.cos(angle), np.sin(angle)]))
    cv2.line(kernel, (int(middle - step[0]), int(middle - step[1])), (int(middle + step[0]), int(middle + step[1])), 1.0)
    return kernel / kernel.sum()


def smooth(sample: Sample, rng: np.random.Generator, *, deviation: tuple[float, float] = (0.5, 2.0)) -> Sample:
    """Gaussian blur of a standard deviation drawn from `deviation`, pixels."""
    sigma = rng.uniform(*deviation)
    return on_image(sample, lambda image: cv2.GaussianBlur(image, (0, 0), sigma))


# ---------------------------------------------------------------- grey levels
def change_gamma(sample: Sample, rng: np.random.Generator, *, limits: tuple[float, float] = (0.8, 1.2)) -> Sample:
    """Raises intensities to a power drawn from `limits`."""
    power = rng.uniform(*limits)
    return on_image(sample, lambda image: raise_to(image, power))


def change_contrast(sample: Sample, rng: np.random.Generator, *, contrast: tuple[float, float] = (0.8, 1.25),
                    brightness: float = 0.1) -> Sample:
    """Stretches intensities about their mean by a factor from `contrast` and adds up to +- `brightness`; clips."""
    factor, offset = rng.uniform(*contrast), rng.uniform(-brightness, brightness)
    return on_image(sample, lambda image: stretch(image, factor, offset))


def shift_histogram(sample: Sample, rng: np.random.Generator, *, points: tuple[int, int] = (3, 10)) -> Sample:
    """Bends the grey levels by a random rising polygon between the image's darkest and brightest value.

    Args:
      sample: float32.
      rng: of this sample.
      points: fewest and most corners of the polygon, both ends included, 3 and more; few corners bend more. Evenly spaced levels
        become, from the second to the last but one, a level drawn between the new one below and the old one above.

    Source: MONAI 1.x, transforms/intensity/array.py RandHistogramShift.
    Departs: levels are rounded to 16 bits on the way.
    """
    old = np.linspace(0, 1, int(rng.integers(points[0], points[1] + 1)))
    new = old.copy()
    for i in range(1, len(new) - 1):
        new[i] = rng.uniform(new[i - 1], new[i + 1])

    def bend(image: np.ndarray) -> np.ndarray:
        low, high = float(image.min()), float(image.max())
        if low == high:
            return image
        table = np.interp(np.arange(LEVELS) / (LEVELS - 1), low + old * (high - low), low + new * (high - low)).astype(np.float32)
        return table.take((image * (LEVELS - 1) + 0.5).astype(np.uint16))

    return on_image(sample, partial(in_unit_range, change=bend))


def add_noise(sample: Sample, rng: np.random.Generator, *, deviation: tuple[float, float] = (0.01, 0.05)) -> Sample:
    """Adds Gaussian noise of a standard deviation from `deviation`, the same to all channels of a grey image; clips."""
    strength = rng.uniform(*deviation)
    if not is_gray(sample.image):
        return on_image(sample, lambda image: add_scaled(image, _normal(rng, image.shape), strength))
    plane = add_scaled(sample.image[..., :1], _normal(rng, sample.image.shape[:2])[..., None], strength)
    return on_image(sample, lambda image: cv2.merge([plane] * image.shape[2]))


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 by inverting 16 random bits: five times faster than numpy's, cut off at 4.3 deviations."""
    return _normal_quantiles().take(rng.integers(LEVELS, size=shape, dtype=np.uint16))


@cache
def _normal_quantiles() -> np.ndarray:
    return ndtri((np.arange(LEVELS) + 0.5) / LEVELS).astype(np.float32)


def coarse_dropout(sample: Sample, rng: np.random.Generator, *, holes: tuple[int, int] = (1, 8),
                   sides: tuple[float, float] = (1 / 64, 1 / 16), fill: float = 0.0) -> Sample:
    """Covers rectangles of the image; the labels below stay, so what is hidden must be inferred from what is around.

    Args:
      sample: float32.
      rng: of this sample.
      holes: fewest and most rectangles.
      sides: smallest and largest side as a share of the image's; keep it below a cell's size, or whole cells disappear.
      fill: value of all channels in the rectangles.
    """
    image = sample.image.copy()
    draws = rng.random((int(rng.integers(holes[0], holes[1] + 1)), 4))
    for y0, x0, y1, x1 in hole_boxes(draws, sample.image.shape[:2], sides).tolist():
        image[y0:y1, x0:x1] = fill
    return dataclasses.replace(sample, image=image)


# ---------------------------------------------------------------- colours
def shift_hsv(sample: Sample, rng: np.random.Generator, *, hue: float = 40.0, saturation: float = 30 / 255,
              value: float = 20 / 255) -> Sample:
    """Moves hue (degrees), saturation and value by up to plus or minus these; images of other than 3 channels stay."""
    shift = rng.uniform(-1, 1, 3) * (hue, saturation, value)
    if sample.image.shape[2] != 3:
        return sample

    def change(image: np.ndarray) -> np.ndarray:
        planes = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
        hues = planes[0] + float(shift[0] % 360)    # OpenCV takes hues beyond 360; of negative ones it says nothing
        others = [np.clip(plane + float(amount), 0, 1) for plane, amount in zip(planes[1:], shift[1:], strict=True)]
        return np.clip(cv2.cvtColor(cv2.merge([hues, *others]), cv2.COLOR_HSV2RGB), 0, 1)

    return on_image(sample, partial(in_unit_range, change=change))


def shuffle_channels(sample: Sample, rng: np.random.Generator) -> Sample:
    """Puts the channels in a random order."""
    order = rng.permutation(sample.image.shape[2])
    return on_image(sample, lambda image: image.take(order, axis=2))


def color_map(sample: Sample, rng: np.random.Generator, *, maps: Sequence[int] = (cv2.COLORMAP_BONE,)) -> Sample:
    """Colours a grey image that has 3 channels by one of OpenCV's `maps`; others stay."""
    table = _color_table(maps[int(rng.integers(len(maps)))])
    if sample.image.shape[2] != 3 or not is_gray(sample.image):
        return sample

    def color(image: np.ndarray) -> np.ndarray:
        return table.take(np.asarray(cv2.convertScaleAbs(image[..., 0], alpha=255), np.uint8), axis=0)

    return on_image(sample, partial(in_unit_range, change=color))


@cache
def _color_table(number: int) -> np.ndarray:
    """[256, 3] float32 red, green, blue."""
    colors = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], number)[:, 0, ::-1]
    return colors.astype(np.float32) / 255


def on_gray(augmentation: Augmentation) -> Augmentation:
    """The augmentation, for images whose channels are all equal; others stay."""
    return partial(_where, augmentation=augmentation, gray=True)


def on_color(augmentation: Augmentation) -> Augmentation:
    """The augmentation, for images whose channels differ; others stay."""
    return partial(_where, augmentation=augmentation, gray=False)


def _where(sample: Sample, rng: np.random.Generator, *, augmentation: Augmentation, gray: bool) -> Sample:
    return augmentation(sample, rng) if is_gray(sample.image) == gray else sample
