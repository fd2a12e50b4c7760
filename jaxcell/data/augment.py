"""Random changes of a training sample: pure functions (sample, rng, options) -> sample, and policies made of them.

Images are float32 in [0, 1] and stay so. Geometry moves the image and all label layers together; labels are only ever
picked, never blended, and keep their ids, -1 ("ignore") included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import cv2
import numpy as np

from jaxcell.geometry.labels import windows
from jaxcell.types import Sample

__all__ = ["POLICIES", "Policy", "add_noise", "apply_steps", "blur", "change_contrast", "change_gamma", "color_map", "flip",
           "on_color", "on_gray", "random_crop", "rescale_to_cells", "rotate90", "shift_hsv", "shuffle_channels"]

Augmentation = Callable[[Sample, np.random.Generator], Sample]
Steps = Sequence[tuple[float, Augmentation]]

CROP_ATTEMPTS = 10


# ---------------------------------------------------------------- geometry
def flip(sample: Sample, rng: np.random.Generator) -> Sample:
    """Mirrors each axis with probability 1/2."""
    steps = [int(step) for step in rng.choice([-1, 1], 2)]
    return _on_arrays(sample, lambda array: array[::steps[0], ::steps[1]])


def rotate90(sample: Sample, rng: np.random.Generator) -> Sample:
    """Turns by 0, 90, 180 or 270 degrees; H and W may swap."""
    turns = int(rng.integers(4))
    return _on_arrays(sample, lambda array: np.rot90(array, turns))


def random_crop(sample: Sample, rng: np.random.Generator, *, size: int, reject_empty: float = 0.0, pad: bool = True) -> Sample:
    """Cuts a square window out of the sample, any place equally likely.

    Args:
      sample: any dtype; label layers that hold nothing in the window are dropped.
      rng: of this sample.
      size: side of the window, pixels.
      reject_empty: probability with which a window without cells is drawn again, up to 10 times; 1 avoids them where it can.
      pad: smaller images get zeros at the bottom and right, else they stay smaller.
    """
    height, width = sample.image.shape[:2]
    for _ in range(CROP_ATTEMPTS):
        y, x = (int(rng.integers(max(side - size, 0) + 1)) for side in (height, width))
        window = slice(y, y + size), slice(x, x + size)
        if sample.labels is None or reject_empty == 0 or (sample.labels[window] > 0).any() or rng.random() >= reject_empty:
            break
    missing = [(0, max(size - side, 0) if pad else 0) for side in (height, width)] + [(0, 0)]

    def cut(array: np.ndarray) -> np.ndarray:
        return np.pad(array[window], missing[:array.ndim]) if any(map(any, missing)) else array[window]

    sample = _on_arrays(sample, cut)
    if sample.labels is None or sample.labels.shape[2] == 1:
        return sample
    used = np.flatnonzero(sample.labels.any(axis=(0, 1)))
    return dataclasses.replace(sample, labels=sample.labels[..., used if len(used) else [0]])


def rescale_to_cells(sample: Sample, rng: np.random.Generator, *, sizes: tuple[float, float] = (4.0, 192.0),
                     aspect_deviation: float = 0.05, largest_side: int = 2048) -> Sample:
    """Scales by a random factor under which the smallest and the largest cell stay within `sizes`.

    Args:
      sample: float32; without cells it is returned as it is.
      rng: of this sample.
      sizes: pixels that the height and width of a cell's box should not leave. Cells beyond them already set no bound:
        they are then scaled towards the range at most.
      aspect_deviation: standard deviation of the difference between the factors of x and y.
      largest_side: enlarging stops there, pixels.

    Returns:
      Image interpolated bilinearly (areas averaged when it shrinks), labels by nearest.

    Source: neurips22-cell-seg@ab6a154, neurips/augmentation/augmentation.py dynamic_resize.
    Departs: it averages areas when shrinking (the authors alias), and bounds the width by the width (theirs: by the height).
    """
    boxes = _boxes(sample.labels)
    if not len(boxes):
        return sample
    shape = np.asarray(sample.image.shape[:2])
    extents = boxes[:, 2:] - boxes[:, :2]
    smallest, largest = extents.min(axis=0), extents.max(axis=0)
    low = np.minimum(sizes[0], smallest) / smallest
    high = np.minimum(np.maximum(sizes[1], largest) / largest, np.maximum(largest_side, shape) / shape)
    y = rng.uniform(low[0], max(low[0], high[0]))
    x = np.clip(y + rng.normal(0, aspect_deviation), low[1], high[1])
    return _resize(sample, np.maximum(np.rint(shape * (y, x)).astype(int), 1))


def _resize(sample: Sample, shape: np.ndarray) -> Sample:
    height, width = (int(side) for side in shape)
    source = sample.image.shape[:2]
    shrinks = height * width < source[0] * source[1]
    image = _per_plane(sample.image, lambda part: cv2.resize(
        part, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip((height, width), source, strict=True))
    labels, nuclei = (None if a is None else a[rows[:, None], columns] for a in (sample.labels, sample.nuclei))
    return dataclasses.replace(sample, image=image, labels=labels, nuclei=nuclei)


def _boxes(labels: np.ndarray | None) -> np.ndarray:
    """[n, 4] boxes of the cells."""
    found = [] if labels is None else [w for d in range(labels.shape[2]) for _, w in windows(labels[..., d])]
    return np.asarray([(w[0].start, w[1].start, w[0].stop, w[1].stop) for w in found], int).reshape(-1, 4)


# ---------------------------------------------------------------- intensity
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
        return _on_image(sample, lambda image: cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101))
    if kind == 1:
        return _on_image(sample, lambda image: _per_plane(image, lambda part: cv2.medianBlur(part, median)))
    side = 3 + 2 * int(rng.integers((mean - 1) // 2))
    return _on_image(sample, lambda image: cv2.blur(image, (side, side)))


def _streak(length: int, angle: float) -> np.ndarray:
    kernel = np.zeros((length, length), np.float32)
    middle = (length - 1) / 2
    step = np.rint(middle * np.asarray([np.cos(angle), np.sin(angle)]))
    cv2.line(kernel, (int(middle - step[0]), int(middle - step[1])), (int(middle + step[0]), int(middle + step[1])), 1.0)
    return kernel / kernel.sum()


def change_gamma(sample: Sample, rng: np.random.Generator, *, limits: tuple[float, float] = (0.8, 1.2)) -> Sample:
    """Raises intensities to a power drawn from `limits`."""
    power = rng.uniform(*limits)
    return _on_image(sample, lambda image: cv2.pow(image, power))


def change_contrast(sample: Sample, rng: np.random.Generator, *, contrast: tuple[float, float] = (0.8, 1.25),
                    brightness: float = 0.1) -> Sample:
    """Stretches intensities about their mean by a factor from `contrast` and adds up to +- `brightness`; clips."""
    factor, offset = rng.uniform(*contrast), rng.uniform(-brightness, brightness)

    def change(image: np.ndarray) -> np.ndarray:
        mean = float(image.mean())
        return np.clip(image * np.float32(factor) + np.float32(mean * (1 - factor) + offset), 0, 1)

    return _on_image(sample, change)


def add_noise(sample: Sample, rng: np.random.Generator, *, deviation: tuple[float, float] = (0.01, 0.05)) -> Sample:
    """Adds Gaussian noise of a standard deviation from `deviation`, the same to all channels of a grey image; clips."""
    strength = np.float32(rng.uniform(*deviation))
    planes = 1 if _is_gray(sample.image) else sample.image.shape[2]
    noise = rng.standard_normal((*sample.image.shape[:2], planes), dtype=np.float32)
    return _on_image(sample, lambda image: np.clip(image + strength * noise, 0, 1))


def shift_hsv(sample: Sample, rng: np.random.Generator, *, hue: float = 40.0, saturation: float = 30 / 255,
              value: float = 20 / 255) -> Sample:
    """Moves hue (degrees), saturation and value by up to plus or minus these; images of other than 3 channels stay."""
    shift = rng.uniform(-1, 1, 3) * (hue, saturation, value)
    if sample.image.shape[2] != 3:
        return sample

    def change(image: np.ndarray) -> np.ndarray:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + shift[0]) % 360
        hsv[..., 1:] = np.clip(hsv[..., 1:] + shift[1:], 0, 1)
        return np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0, 1)

    return _on_image(sample, change)


def shuffle_channels(sample: Sample, rng: np.random.Generator) -> Sample:
    """Puts the channels in a random order."""
    order = rng.permutation(sample.image.shape[2])
    return _on_image(sample, lambda image: image[..., order])


def color_map(sample: Sample, rng: np.random.Generator, *, maps: Sequence[int] = (cv2.COLORMAP_BONE,)) -> Sample:
    """Colours a grey image that has 3 channels by one of OpenCV's `maps`; others stay."""
    table = _color_table(maps[int(rng.integers(len(maps)))])
    if sample.image.shape[2] != 3 or not _is_gray(sample.image):
        return sample
    return _on_image(sample, lambda image: table[np.rint(image[..., 0] * 255).astype(np.uint8)])


@cache
def _color_table(number: int) -> np.ndarray:
    """[256, 3] float32 red, green, blue."""
    colors = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], number)[:, 0, ::-1]
    return colors.astype(np.float32) / 255


# ---------------------------------------------------------------- policies
def on_gray(augmentation: Augmentation) -> Augmentation:
    """The augmentation, for images whose channels are all equal; others stay."""
    return lambda sample, rng: augmentation(sample, rng) if _is_gray(sample.image) else sample


def on_color(augmentation: Augmentation) -> Augmentation:
    """The augmentation, for images whose channels differ; others stay."""
    return lambda sample, rng: sample if _is_gray(sample.image) else augmentation(sample, rng)


def apply_steps(sample: Sample, rng: np.random.Generator, steps: Steps) -> Sample:
    """Applies each step with its probability, in order."""
    for probability, step in steps:
        if rng.random() < probability:
            sample = step(sample, rng)
    return sample


@dataclass(frozen=True)
class Policy:
    """What happens to a sample on its way to a crop of C x C pixels.

    Attributes:
      after: steps on the crop.
      before: steps on a larger region, out of which the crop is then cut: those that change the scale.
      reach: side of that region / C.
    """

    after: Steps = ()
    before: Steps = ()
    reach: float = 1.0


POLICIES: Mapping[str, Policy] = {
    "none": Policy(),
    "flips": Policy(after=((1.0, rotate90), (1.0, flip))),
    # For small networks and few CPU cores: cheap, and the pictures do not get harder than the real ones.
    "light": Policy(after=(
        (1.0, rotate90),
        (1.0, flip),
        (0.3, change_gamma),
        (0.3, change_contrast),
        (0.1, blur),
        (0.15, partial(add_noise, deviation=(0.005, 0.03))),
    )),
    # Source: neurips22-cell-seg@ab6a154, neurips/augmentation/aug_plans.py "mild", neurips/data/dataset.py Dataset (regions of
    # 2048 for crops of 512). Departs: whether an image is grey is seen in its pixels, not in how it is stored; the two kinds of
    # noise are one; the crop comes before what does not change the scale.
    "mild": Policy(reach=4.0, before=((0.2, rescale_to_cells),), after=(
        (1.0, rotate90),
        (1.0, flip),
        (0.4, blur),
        (0.66, change_gamma),
        (0.1, add_noise),
        (0.1, on_color(shift_hsv)),
        (0.1, on_gray(partial(shift_hsv, saturation=3 / 255, value=10 / 255))),
        (0.1, on_gray(color_map)),
        (0.1, shuffle_channels),
    )),
}
"""name -> policy; each step is (probability, augmentation), in the order of application."""


# ---------------------------------------------------------------- what the above share
def _on_arrays(sample: Sample, change: Callable[[np.ndarray], np.ndarray]) -> Sample:
    labels, nuclei = (None if array is None else change(array) for array in (sample.labels, sample.nuclei))
    return dataclasses.replace(sample, image=change(sample.image), labels=labels, nuclei=nuclei)


def _on_image(sample: Sample, change: Callable[[np.ndarray], np.ndarray]) -> Sample:
    image = change(np.ascontiguousarray(sample.image))      # OpenCV takes no views with negative steps
    return dataclasses.replace(sample, image=image[..., None] if image.ndim == 2 else image)


def _per_plane(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """For functions of OpenCV that know 1, 3 and 4 channels only, and that drop a single one's axis."""
    if image.shape[2] in (3, 4):
        return change(np.ascontiguousarray(image))
    return np.stack([change(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2])], axis=-1)


def _is_gray(image: np.ndarray) -> bool:
    return all(np.array_equal(image[..., 0], image[..., c]) for c in range(1, image.shape[2]))
