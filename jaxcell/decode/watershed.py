"""Markers from a map of peaks, and basins that grow from markers: scikit-image's results in far less time.

Both functions give pixel by pixel what the calls named under `Source` give; they leave out work that cannot change the result.
"""

from __future__ import annotations

import cv2
import numpy as np
from skimage.morphology import reconstruction
from skimage.segmentation import watershed

from jaxcell.geometry.boundaries import disk

__all__ = ["h_maxima", "seeded_watershed"]

_BUDGET = 4          # pixels visited while peaks are compared, per pixel of the image, before plain reconstruction takes over
_TILE = 512          # side of the squares whose pieces are flooded together, pixels
_CHUNK = 1 << 22     # neighbours looked at in one step
_LEAST = 1 << 16     # of that budget


def h_maxima(image: np.ndarray, height: float, *, radius: int) -> np.ndarray:
    """The peaks that stand out by `height`: whoever walks from one to a higher peak descends at least so far.

    A walk goes in steps of at most `radius` pixels, so it can step over a narrow valley. The highest peak always counts, unless
    the whole image spans less than `height`.

    Args:
      image: [H, W] floats, finite.
      height: prominence, above 0, in the image's unit (not a level: a peak of 0.9 on a plain of 0.85 stands out by 0.05).
      radius: of the neighbourhood, a disk, pixels, at least 1.

    Returns:
      [H, W] bool, the highest pixels of those peaks (values that differ by two millionths count as equal).

    Raises:
      ValueError: a height that is not above 0.

    Source: scikit-image 0.26, morphology.h_maxima with a disk as footprint (by grey reconstruction, Robinson and Whelan 2004).
    """
    if height <= 0:
        raise ValueError(f"h_maxima: height={height}; it must be above 0, the prominence that a peak needs. Use for example 0.1.")
    if image.size == 0 or height > np.ptp(image):
        return np.zeros(image.shape, bool)
    # The seed of the reconstruction; its last term covers the rounding of the first two.
    lowered = image - height - 2 * np.finfo(image.dtype).resolution * np.abs(image)
    reach = cv2.dilate(lowered, disk(radius))
    top = image - lowered.max() >= height
    # A pixel that can step to a clearly higher one is no peak. From one near the bottom every path is free: only the top counts.
    peaks = (image - reach >= height) & (top | (image - image.min() >= height))
    doubtful = np.flatnonzero(peaks & ~top)
    beaten = _beaten(image, reach, doubtful, height, radius)
    if beaten is None:
        return image - reconstruction(lowered, image, footprint=disk(radius)) >= height
    peaks.ravel()[doubtful[beaten]] = False
    return peaks


def _beaten(image: np.ndarray, reach: np.ndarray, peaks: np.ndarray, height: float, radius: int) -> np.ndarray | None:
    """Which peaks can reach a higher one without descending by `height`; None where finding out takes too many steps.

    All peaks walk at once, each over the pixels above its own level less `height`, which are few around a peak that stands out.

    Args:
      reach: [H, W], the largest lowered value within one step of each pixel.
      peaks: [n] flat indices of pixels.

    Returns:
      [n] bool.
    """
    values, within = (np.pad(part, radius, constant_values=-np.inf).ravel() for part in (image, reach))
    width = image.shape[1] + 2 * radius
    sides, leaps = np.asarray([width, 1, -width, -1]), _leaps(radius, width)
    y, x = np.divmod(peaks, image.shape[1])
    where, who = (y + radius) * width + x + radius, np.arange(len(peaks))
    level = values[where]
    beaten = np.zeros(len(peaks), bool)
    seen = who * values.size + where
    while len(who):
        beaten[who[~(level[who] - within[where] >= height)]] = True
        going = ~beaten[who]
        new = _unseen(_steps(who[going], where[going], values, level, height, sides, leaps), seen)
        seen = np.sort(np.concatenate([seen, new]), kind="stable")
        if len(seen) > max(_LEAST, _BUDGET * image.size):
            return None
        who, where = np.divmod(new, values.size)
    return beaten


def _unseen(found: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The distinct values of `found` that are not in `seen`, which rises; rising. (numpy's set functions are slower by far.)"""
    found = np.sort(found)
    found = found[np.diff(found, prepend=-1) > 0]
    return found[seen[np.minimum(np.searchsorted(seen, found), len(seen) - 1)] != found]


def _leaps(radius: int, width: int) -> list[tuple[list[int], np.ndarray]]:
    """The longer steps of a disk by direction, as flat offsets, and the one or two `sides` that lie on the way.

    A step can be replaced by steps to the sides for as long as those are open, since what is left of it stays in the disk; so
    it need be tried only where all sides on its way are closed.
    """
    y, x = np.nonzero(disk(radius)) - np.asarray(radius)[None, None]
    offsets = y * width + x
    signs = {0: (1, 0), 1: (0, 1), 2: (-1, 0), 3: (0, -1)}     # of `sides`
    result = []
    for ways in ([0], [1], [2], [3], [0, 1], [1, 2], [2, 3], [3, 0]):
        sy, sx = (sum(signs[way][axis] for way in ways) for axis in (0, 1))
        chosen = (np.sign(y) == sy) & (np.sign(x) == sx) & (np.abs(y) + np.abs(x) > 1)
        result.append((ways, offsets[chosen]))
    return result


def _steps(who: np.ndarray, where: np.ndarray, values: np.ndarray, level: np.ndarray, height: float, sides: np.ndarray,
           leaps: list[tuple[list[int], np.ndarray]]) -> np.ndarray:
    """Where walkers can go next, as who * size + where, in any order and some twice."""
    found = []

    def reach(rows: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        targets = where[rows, None] + offsets
        is_open = ~(level[who[rows], None] - values[targets] >= height)
        found.append((who[rows, None] * values.size + targets)[is_open])
        return is_open

    is_open = reach(np.arange(len(who)), sides)
    for ways, offsets in leaps:
        rows = np.flatnonzero(~is_open[:, ways].any(axis=1))
        for part in np.array_split(rows, 1 + len(rows) * len(offsets) // _CHUNK):
            reach(part, offsets)
    return np.concatenate(found)


def seeded_watershed(landscape: np.ndarray, markers: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Basins that grow from markers inside a mask, lowest pixels first, by their 4 neighbours.

    Args:
      landscape: [H, W] floats, low where a basin starts.
      markers: [H, W] int32, above 0 where a basin starts; those outside the mask do not count.
      mask: [H, W] bool, where basins may grow.

    Returns:
      [H, W] int32 with the markers' numbers; 0 outside the mask and in its pieces without a marker.

    Source: scikit-image 0.26, segmentation.watershed. Pieces of the mask do not influence each other, and one with a single
      marker belongs to it whole; so only pieces with several are flooded, neighbouring ones together, in windows that fit into
      caches. Its order of marker pixels of equal height is that of a heap of all: where it could matter the image stays whole.
    """
    seeds = np.where(mask, markers, 0).astype(np.int32, copy=False)
    _, pieces, boxes, centres = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    at = np.flatnonzero(seeds)
    piece, seed = pieces.ravel()[at].astype(np.int64), seeds.ravel()[at]
    last, first = np.zeros(len(boxes), np.int32), np.full(len(boxes), np.iinfo(np.int32).max, np.int32)
    np.maximum.at(last, piece, seed)
    np.minimum.at(first, piece, seed)
    shared = first < last
    rows = np.flatnonzero(shared[piece])
    if _has_twins(piece[rows], landscape.ravel()[at[rows]]):
        return watershed(landscape, seeds, mask=mask)
    result = np.where(first == last, last, 0)[pieces]
    tile, group = np.unique(centres[shared] // _TILE, axis=0, return_inverse=True)
    group_of = np.full(len(boxes), -1)
    group_of[shared] = group.ravel()
    for number in range(len(tile)):
        x0, y0, width, height = boxes[group_of == number, :4].T
        window = slice(y0.min(), (y0 + height).max()), slice(x0.min(), (x0 + width).max())
        inside = group_of[pieces[window]] == number
        flooded = watershed(landscape[window], np.where(inside, seeds[window], 0), mask=inside)
        result[window][inside] = flooded[inside]
    return result


def _has_twins(keys: np.ndarray, values: np.ndarray) -> bool:
    """Whether a pair of key and value occurs twice."""
    order = np.lexsort((values, keys))
    return bool(((np.diff(keys[order]) == 0) & (np.diff(values[order]) == 0)).any())
