"""Where a pixel goes: mirrors, turns, crops, scaling, warps. Image, all label layers and nuclei move together.

Labels are picked, never blended: they keep their ids, overlaps and -1 ("ignore"); a cell that is cut into pieces stays one cell,
and one of which no pixel is left is gone. What comes from outside of the image is 0 in the image and in the labels, as where a
crop is padded. (Mirroring the image outwards would put cells there that no label knows, or cells in two joined halves.)

`warp`, `rescale` and `rescale_to_cells` are drawn before anything is cut, so that only the pixels that the crop will need
are normalised and moved: (sample, rng, side of the crop) -> (side of the region to cut, augmentation that makes the crop of it).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import cv2
import numpy as np

from jaxcell.data.augment.arrays import Augmentation, by_channels, cell_windows, on_arrays
from jaxcell.types import Sample

__all__ = ["Geometry", "draw_geometry", "flip", "in_place", "middle", "random_crop", "random_place", "rescale",
           "rescale_to_cells", "rotate90", "scale_image", "scale_labels", "warp"]

Geometry = Callable[[Sample, np.random.Generator, int], tuple[int, Augmentation]]
Centre = Callable[[int, float, float, np.random.Generator], float]

CROP_ATTEMPTS = 10
STEP = 4                    # pixels between the places at which an elastic deformation is evaluated
LARGEST_SOURCE = 32_766     # OpenCV's maps count pixels in 16 bits
FLIP_CODES = {(True, False): 0, (False, True): 1, (True, True): -1}     # (mirror y, mirror x) -> cv2.flip's number
TURN_CODES = (None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)


# ---------------------------------------------------------------- of the crop
def flip(sample: Sample, rng: np.random.Generator) -> Sample:
    """Mirrors each axis with probability 1/2."""
    y, x = (rng.random(2) < 0.5).tolist()
    if not y and not x:
        return sample
    return on_arrays(sample, partial(by_channels, change=partial(cv2.flip, flipCode=FLIP_CODES[y, x])))


def rotate90(sample: Sample, rng: np.random.Generator) -> Sample:
    """Turns by 0, 90, 180 or 270 degrees; H and W may swap."""
    code = TURN_CODES[int(rng.integers(4))]
    if code is None:
        return sample
    return on_arrays(sample, partial(by_channels, change=partial(cv2.rotate, rotateCode=code)))


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

    return _without_empty_layers(on_arrays(sample, cut))


def _without_empty_layers(sample: Sample) -> Sample:
    if sample.labels is None or sample.labels.shape[2] == 1:
        return sample
    used = np.flatnonzero(sample.labels.any(axis=(0, 1)))
    return dataclasses.replace(sample, labels=sample.labels[..., used if len(used) else [0]])


# ---------------------------------------------------------------- scaling
def rescale(sample: Sample, rng: np.random.Generator, size: int, *, factors: tuple[float, float] = (0.5, 2.0),
            aspect_deviation: float = 0.0, least: float = 0.5) -> tuple[int, Augmentation]:
    """Scales by a factor drawn evenly from `factors`, whatever the cells' sizes.

    Args:
      sample: as stored.
      rng: of this sample.
      size: side of the crop, pixels.
      factors: smallest and largest.
      aspect_deviation: standard deviation of the difference between the factors of y and x.
      least: the shorter side of a shrunken image is at least this share of the crop's, if it was before; smaller factors are
        raised to that, since what an image does not fill is padding.

    Returns:
      Side of the region, and the augmentation: image interpolated bilinearly (areas averaged when it shrinks), labels nearest.
    """
    y = rng.uniform(*factors)
    x = max(y + rng.normal(0, aspect_deviation), factors[0]) if aspect_deviation else y
    floor = min(1.0, least * size / min(sample.image.shape[:2]))
    y, x = max(y, floor), max(x, floor)
    return math.ceil(size / min(y, x)), partial(_scaled, factors=(y, x))


def rescale_to_cells(sample: Sample, rng: np.random.Generator, size: int, *, sizes: tuple[float, float] = (4.0, 192.0),
                     aspect_deviation: float = 0.05, largest_side: int = 2048, reach: float = 4.0) -> tuple[int, Augmentation]:
    """Scales by a random factor under which the smallest and the largest cell stay within `sizes`.

    Args:
      sample: as stored; without cells its size stays.
      rng: of this sample.
      size: side of the crop, pixels.
      sizes: pixels that the height and width of a cell's box should not leave. Cells beyond them already set no bound:
        they are then scaled towards the range at most.
      aspect_deviation: standard deviation of the difference between the factors of x and y.
      largest_side: an image is enlarged at most so far that its sides reach this, pixels.
      reach: the cells are measured in a random region of this times the crop's side, and no larger one is shrunken to the crop.

    Returns:
      Side of the region, and the augmentation: image interpolated bilinearly (areas averaged when it shrinks), labels nearest.

    Source: neurips22-cell-seg@ab6a154, neurips/augmentation/augmentation.py dynamic_resize.
    Departs: it averages areas when shrinking (the authors alias), and bounds the width by the width (theirs: by the height).
    """
    region = random_crop(sample, rng, size=math.ceil(reach * size), pad=False)
    boxes = _boxes(region.labels)
    if not len(boxes):
        return size, _unchanged
    shape = np.asarray(region.image.shape[:2])
    extents = boxes[:, 2:] - boxes[:, :2]
    smallest, largest = extents.min(axis=0), extents.max(axis=0)
    low = np.minimum(sizes[0], smallest) / smallest
    high = np.minimum(np.maximum(sizes[1], largest) / largest, np.maximum(largest_side, shape) / shape)
    y = float(rng.uniform(low[0], max(low[0], high[0])))
    x = float(np.clip(y + rng.normal(0, aspect_deviation), low[1], high[1]))
    return math.ceil(size * min(reach, 1 / min(y, x))), partial(_scaled, factors=(y, x))


def _unchanged(sample: Sample, rng: np.random.Generator) -> Sample:
    return sample


def _scaled(sample: Sample, rng: np.random.Generator, *, factors: tuple[float, float]) -> Sample:
    height, width = (max(round(side * factor), 1) for side, factor in zip(sample.image.shape[:2], factors, strict=True))
    labels, nuclei = (None if a is None else scale_labels(a, (height, width)) for a in (sample.labels, sample.nuclei))
    return dataclasses.replace(sample, image=scale_image(sample.image, (height, width)), labels=labels, nuclei=nuclei)


def scale_image(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[H, W, C] -> [h, w, C] of the same type (one that OpenCV scales): bilinear, areas averaged when it shrinks."""
    method = cv2.INTER_AREA if shape[0] * shape[1] < image.shape[0] * image.shape[1] else cv2.INTER_LINEAR
    return by_channels(image, lambda part: cv2.resize(part, shape[::-1], interpolation=method))


def scale_labels(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[H, W] or [H, W, D] -> [h, w] or [h, w, D]: the nearest pixel's, about centres as `scale_image` does."""
    # (cv2.resize's nearest looks at a pixel's corner.)
    rows, columns = (((np.arange(new) + 0.5) * side / new).astype(int) for new, side in zip(shape, labels.shape[:2], strict=True))
    return labels.take(rows, axis=0).take(columns, axis=1)


def _boxes(labels: np.ndarray | None) -> np.ndarray:
    """[n, 4] boxes of the cells."""
    found = [] if labels is None else [w for d in range(labels.shape[2]) for _, w in cell_windows(labels[..., d])]
    return np.asarray([(w[0].start, w[1].start, w[0].stop, w[1].stop) for w in found], int).reshape(-1, 4)


# ---------------------------------------------------------------- warping
def random_place(length: int, window: float, needed: float, rng: np.random.Generator) -> float:
    """Where a warped crop's centre comes to lie along one axis of the region, pixels.

    A region of the side that was asked for leaves no choice; in a smaller one (that is all the image has) the unturned crop
    stays inside, and only its corners may look out.

    Args:
      length: of the region.
      window: length of the unturned crop there.
      needed: length that the turned and deformed crop covers at most.
      rng: of this sample.
    """
    free = max(length - (needed if length >= needed else window), 0)
    return middle(length, window, needed, rng) + rng.uniform(-0.5, 0.5) * free


def middle(length: int, window: float, needed: float, rng: np.random.Generator) -> float:
    """The middle of the region, for what shall not be moved; arguments as in `random_place`."""
    return (length - 1) / 2


def warp(sample: Sample, rng: np.random.Generator, size: int, *, rotation: float = 0.0, zoom: tuple[float, float] = (1.0, 1.0),
         shear: float = 0.0, amplitude: float = 0.0, spacing: float = 32.0, centre: Centre = random_place
         ) -> tuple[int, Augmentation]:
    """Free rotation, zoom, shear and elastic deformation in one interpolation.

    Args:
      sample: as stored.
      rng: of this sample.
      size: side of the crop, pixels.
      rotation: largest angle either way, degrees.
      zoom: smallest and largest factor, both axes alike, even on a logarithmic scale; 0.5 and more.
      shear: largest angle either way, degrees, below 45.
      amplitude: no pixel is displaced further along an axis, pixels of the sample; at most a quarter of `spacing`, so that
        the deformation cannot fold. Displacements are typically a third of it.
      spacing: distance of the control points of the deformation (a cubic B-spline of random displacements), pixels of the crop.
      centre: `random_place` or `middle`.

    Returns:
      Side of the region, and the augmentation: to size x size pixels, image bilinear, labels nearest.

    Raises:
      ValueError: options out of their range.
    """
    if not 0.5 <= zoom[0] <= zoom[1]:
        raise ValueError(f"warp: zoom={zoom}; two rising factors from 0.5 on are needed. Shrink further with `rescale`.")
    if not 0 <= shear < 45:
        raise ValueError(f"warp: shear={shear}; it must be an angle of 0 to 45 degrees. Lower it.")
    if not 0 <= amplitude <= spacing / 4:
        raise ValueError(f"warp: amplitude={amplitude}, spacing={spacing}; the amplitude must be at most a quarter of the "
                         "spacing, or the picture folds. Lower the amplitude.")
    matrix = _to_source(math.radians(rng.uniform(-rotation, rotation)), math.exp(rng.uniform(*np.log(zoom))),
                        math.tan(math.radians(rng.uniform(-shear, shear))))
    side = math.ceil(size * np.abs(matrix).sum(axis=1).max() + 2 * amplitude)
    return side, partial(_warped, matrix=matrix, size=size, amplitude=amplitude, spacing=spacing, centre=centre)


def _to_source(angle: float, zoom: float, shear: float) -> np.ndarray:
    """[2, 2], from (y, x) of the crop to (y, x) of the sample, about their centres."""
    turn = np.asarray([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return turn @ np.asarray([[1.0, 0.0], [shear, 1.0]]) / zoom


def _warped(sample: Sample, rng: np.random.Generator, *, matrix: np.ndarray, size: int, amplitude: float, spacing: float,
            centre: Centre) -> Sample:
    height, width = sample.image.shape[:2]
    if max(height, width) > LARGEST_SOURCE:
        raise ValueError(f"{sample.name}: {height} x {width} pixels to warp; the most is {LARGEST_SOURCE}. Lower the crop.")
    offsets = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
    places = []
    for axis, length in enumerate((height, width)):
        origin = centre(length, size * math.hypot(*matrix[axis]), size * np.abs(matrix[axis]).sum() + 2 * amplitude, rng)
        along_y, along_x = (np.float32(factor) * offsets for factor in matrix[axis])
        place = (along_y + np.float32(origin))[:, None] + along_x
        places.append(place + _displacement(rng, size, amplitude, spacing) if amplitude else place)
    return on_arrays(sample, partial(_sampled, rows=places[0], columns=places[1]))


def _displacement(rng: np.random.Generator, size: int, amplitude: float, spacing: float) -> np.ndarray:
    """[size, size] float32, smooth, within +-amplitude (weights of a B-spline are positive and add up to 1).

    The spline is evaluated at every fourth pixel along each axis and interpolated linearly between.
    """
    first, weights = _spline(size, spacing)
    control = rng.uniform(-amplitude, amplitude, (int(first[-1]) + 4,) * 2).astype(np.float32)
    # Not a matrix product: BLAS would start threads in every worker.
    across = np.sum([control[:, first + k] * weights[k] for k in range(4)], axis=0)
    coarse = np.sum([across[first + k] * weights[k][:, None] for k in range(4)], axis=0)
    return cv2.resize(coarse, None, fx=STEP, fy=STEP, interpolation=cv2.INTER_LINEAR)[:size, :size]


@lru_cache(maxsize=16)
def _spline(size: int, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Cubic B-spline at the middle of every `STEP` pixels: ([n] first of four control points, [4, n] float32 their weights)."""
    first, u = np.divmod((np.arange(0, size, STEP) + (STEP - 1) / 2) / spacing, 1)
    weights = np.stack([(1 - u) ** 3, 3 * u ** 3 - 6 * u ** 2 + 4, -3 * u ** 3 + 3 * u ** 2 + 3 * u + 1, u ** 3]) / 6
    return first.astype(int), weights.astype(np.float32)


def _sampled(array: np.ndarray, *, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The array at (rows, columns): floats bilinear, integers nearest (copied bit for bit, so ids of any size stay)."""
    method = cv2.INTER_LINEAR if array.dtype == np.float32 else cv2.INTER_NEAREST
    return by_channels(array, lambda part: cv2.remap(part, columns, rows, method, borderMode=cv2.BORDER_CONSTANT, borderValue=0))


def in_place(geometry: Geometry) -> Augmentation:
    """The geometry as an augmentation of a whole sample, for use without a crop: the crop's side is the sample's longer one."""
    return partial(_in_place, geometry=geometry)


def _in_place(sample: Sample, rng: np.random.Generator, *, geometry: Geometry) -> Sample:
    return geometry(sample, rng, max(sample.image.shape[:2]))[1](sample, rng)


def draw_geometry(sample: Sample, rng: np.random.Generator, size: int, choices: Sequence[tuple[float, Geometry]]
                  ) -> tuple[int, Augmentation | None]:
    """At most one of the geometries, each with its probability.

    Args:
      sample: as stored.
      rng: of this sample.
      size: side of the crop, pixels.
      choices: (probability, geometry), probabilities adding up to at most 1.

    Returns:
      (side of the region to cut, what makes the crop of it; None: the region is the crop).
    """
    draw = rng.random()
    for probability, geometry in choices:
        if draw < probability:
            return geometry(sample, rng, size)
        draw -= probability
    return size, None
