"""Deep watershed: peaks of one predicted map are the markers, another one says how far their cells reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max

from jaxcell.decode.components import fill_holes, relabel, remove_small
from jaxcell.decode.watershed import h_maxima, seeded_watershed
from jaxcell.geometry.boundaries import erode_labels

__all__ = ["MAXIMA", "deep_watershed"]


def _local_peaks(image: np.ndarray, height: float, *, radius: int, exclude_border: bool) -> np.ndarray:
    peaks = np.zeros(image.shape, bool)
    found = peak_local_max(image, min_distance=radius, threshold_abs=height, exclude_border=exclude_border)
    peaks[tuple(found.T)] = True
    return peaks


def _prominent_peaks(image: np.ndarray, height: float, *, radius: int, exclude_border: bool) -> np.ndarray:
    return h_maxima(image, height, radius=radius)


MAXIMA: Mapping[str, Callable[..., np.ndarray]] = {"h_maxima": _prominent_peaks, "peak_local_max": _local_peaks}
"""name -> (map, threshold, radius, exclude_border) -> [H, W] bool."""


def deep_watershed(
    inner: np.ndarray, interior: np.ndarray, *, radius: int = 10, maxima_threshold: float = 0.1, interior_threshold: float = 0.01,
    maxima_smoothing: float = 0.0, interior_smoothing: float = 1.0, expansion: int = 0, erosion: int = 0, small_objects: int = 0,
    holes: int = 0, maxima: str = "h_maxima", exclude_border: bool = False,
) -> np.ndarray:
    """Cells from a map with a peak in each and a map that is high inside them.

    In this order: smoothing, expansion, peaks, watershed of the interior from the peaks, erosion, removal of small cells, filling
    of holes, numbering. A region of interior without a peak is no cell.

    Args:
      inner: [H, W] float32, such as the inner distance.
      interior: [H, W] float32, such as the probability of being inside a cell.
      radius: of the neighbourhood of a peak, pixels, at least 1.
      maxima_threshold: with "h_maxima" by how much a peak must stand out; with "peak_local_max" the level it must exceed.
      interior_threshold: cells reach as far as the interior exceeds it.
      maxima_smoothing: standard deviation of a Gaussian over `inner`, pixels; 0 for none.
      interior_smoothing: the same over `interior`.
      expansion: pixels by which the interior is dilated (with a square).
      erosion: pixels taken off the cells' boundaries.
      small_objects: cells of fewer pixels are removed.
      holes: holes of fewer pixels are filled (see `fill_holes`).
      maxima: "h_maxima", or "peak_local_max": the largest values within `radius` (a square), at least so far apart.
      exclude_border: with "peak_local_max", no peaks within `radius` of the image's edge.

    Returns:
      [H, W] int32, cells 1..n; 0 elsewhere.

    Raises:
      ValueError: another word as `maxima`, or maps of different sizes.

    Source: deepcell-toolbox@e8c1277ee424, deep_watershed.py deep_watershed. Mesmer's settings for whole cells are radius 2,
      0.075, 0.2, interior_smoothing 2, small_objects 15, holes 15; the paper says 0.1, 0.3 and small_objects 15.
    """
    if maxima not in MAXIMA:
        raise ValueError(f"deep_watershed: maxima={maxima!r} is unknown; known are {', '.join(MAXIMA)}.")
    if inner.shape != interior.shape or inner.ndim != 2:
        raise ValueError(f"deep_watershed: inner has shape {inner.shape} and interior {interior.shape}; both must be the same "
                         "[H, W]. Take one channel of each map.")
    interior = _smoothed(interior, interior_smoothing)
    if expansion:
        interior = cv2.dilate(interior, np.ones((2 * expansion + 1, 2 * expansion + 1), np.uint8))
    peaks = MAXIMA[maxima](_smoothed(inner, maxima_smoothing), maxima_threshold, radius=radius, exclude_border=exclude_border)
    markers, _ = ndimage.label(peaks, np.ones((3, 3)))
    labels = erode_labels(seeded_watershed(-interior, markers, interior > interior_threshold), erosion)
    labels = remove_small(labels, small_objects)
    return relabel(fill_holes(labels, holes) if holes else labels)


def _smoothed(image: np.ndarray, sigma: float) -> np.ndarray:
    """float32; `scipy` and not OpenCV, whose sums round otherwise."""
    image = image.astype(np.float32, copy=False)
    return ndimage.gaussian_filter(image, sigma) if sigma else image
