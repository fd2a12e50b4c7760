"""Closed contours as elliptic Fourier series: fit, sample, scale.

A contour of order O is the point `location` plus O harmonics; per harmonic the four coefficients are (y cos, y sin, x cos,
x sin), and the parameter runs once around the contour while t goes from 0 to 1. The functions that take arrays run on numpy
(targets, decoding) and on jax (losses) alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["absolute_locations", "contours_from_fourier", "fit_fourier", "fit_fouriers", "order_weights", "scale_contours",
           "scale_fourier", "uniform_sampling"]

_SEGMENT_EPSILON = 1e-6   # pixels; keeps two equal neighbouring points from dividing by zero


def fit_fourier(outline: np.ndarray, order: int, *, closed: bool) -> tuple[np.ndarray, np.ndarray]:
    """`fit_fouriers` of a single outline [P, 2]: fourier [O, 4] and location [2]."""
    fourier, locations = fit_fouriers([outline], order, closed=closed)
    return fourier[0], locations[0]


def fit_fouriers(outlines: Sequence[np.ndarray], order: int, *, closed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Fits an elliptic Fourier series to each of n polygons, all at once.

    Args:
      outlines: n polygons [P, 2] of points (y, x), P >= 1 and different for each, the first point not repeated at the end.
      order: number of harmonics O >= 1; a lower order is a prefix of a higher one.
      closed: include the segment from the last point back to the first. The released networks were trained without it.

    Returns:
      fourier [n, O, 4] and locations [n, 2], float32, in the outlines' units. A single point has zero coefficients.

    Raises:
      ValueError: if an outline is not [P, 2] with P >= 1, or order < 1.

    Source: Kuhl and Giardina 1982, "Elliptic Fourier features of a closed contour"; FZJ-INM1-BDA/celldetection, data/cpn.py
      `efd`: PyPI 0.4.9 for `closed=False`, 92ad83f for `closed=True`.
    """
    for outline in outlines:
        if outline.ndim != 2 or outline.shape[1] != 2 or len(outline) < 1:
            raise ValueError(f"fit_fouriers: an outline has shape {outline.shape}; it must be [P, 2] with P >= 1. "
                             "Drop empty outlines first.")
    if order < 1:
        raise ValueError(f"fit_fouriers: order is {order}; it must be at least 1.")
    if not outlines:
        return np.zeros((0, order, 4), np.float32), np.zeros((0, 2), np.float32)
    paths = [np.concatenate([line, line[:1]]) if closed or len(line) == 1 else line for line in outlines]
    points = np.concatenate(paths).astype(np.float64)                      # [Q, 2], one path after another
    counts = np.asarray([len(path) for path in paths])
    firsts = np.cumsum(counts) - counts
    steps = np.diff(points, axis=0, append=points[-1:])                    # [Q, 2] from each point to the next
    lengths = np.sqrt((steps**2).sum(axis=1)) + _SEGMENT_EPSILON
    lasts = firsts + counts - 1
    steps[lasts], lengths[lasts] = 0, 0                                    # there is none from one path to the next
    totals = np.add.reduceat(lengths, firsts)[:, None]                     # [n, 1]
    # Mean of a polygon over its arc length: each segment counts by its middle.
    locations = np.add.reduceat((points + steps / 2) * lengths[:, None], firsts) / totals

    # Each segment adds slope * (wave at its end - wave at its start). Summed by points instead of by segments that is
    # wave * (slope before the point - slope after it), which leaves out the points where an outline goes straight on.
    slopes = steps / np.maximum(lengths, _SEGMENT_EPSILON)[:, None]
    bends = np.diff(slopes, axis=0, prepend=np.zeros((1, 2)))
    kept = bends.any(axis=1)
    kept[firsts] = True
    starts = np.cumsum(lengths) - lengths
    turns = (starts - np.repeat(starts[firsts], counts)) / np.repeat(totals[:, 0], counts)
    wave = np.exp(2j * np.pi * turns[kept])                                # the first harmonic; the others are its powers
    waves = np.cumprod(np.broadcast_to(wave, (order, len(wave))), axis=0)  # [O, Q]
    places = (np.cumsum(kept) - 1)[firsts]
    sums = [np.add.reduceat(waves * -bend, places, axis=1) for bend in bends[kept].T]      # y, x: [O, n] cos + i sin
    scale = totals / (2 * np.pi**2 * np.arange(1, order + 1) ** 2)         # [n, O]
    fourier = np.stack([part for sum_ in sums for part in (sum_.real.T * scale, sum_.imag.T * scale)], axis=-1)
    return fourier.astype(np.float32), locations.astype(np.float32)


def contours_from_fourier(fourier: Any, locations: Any, sampling: Any) -> Any:
    """Points of contours at given parameters, as one matrix product.

    On an accelerator wrap the call in `jax.default_matmul_precision("float32")`: products in TF32 or bfloat16 move points by
    a tenth of a pixel.

    Args:
      fourier: [..., O, 4].
      locations: [..., 2] in the units of `fourier`.
      sampling: [T], shared by all contours, or [..., T]; 0 to 1 is once around.

    Returns:
      [..., T, 2] points (y, x).

    Source: celldetection 0.4.0, ops/cpn.py `fouriers2contours`.
    """
    xp = fourier.__array_namespace__()
    *lead, order, _ = fourier.shape
    turns = sampling[..., None, :] * xp.arange(1, order + 1, dtype=fourier.dtype)[:, None]            # [..., O, T]
    angle = 2 * np.pi * (turns - xp.floor(turns))   # whole turns removed: small angles keep float32 accurate at high orders
    basis = xp.stack([xp.cos(angle), xp.sin(angle)], axis=-2)                                           # [..., O, 2, T]
    basis = xp.reshape(basis, (*basis.shape[:-3], 2 * order, basis.shape[-1]))
    coefficients = xp.reshape(fourier, (*lead, order, 2, 2))                                             # order, axis, cos/sin
    coefficients = xp.reshape(xp.moveaxis(coefficients, -2, -3), (*lead, 2, 2 * order))
    # numpy takes a small product for each contour: one for all would start threads that wait busily beside the training step
    return locations[..., None, :] + xp.moveaxis(coefficients @ basis, -1, -2)


def uniform_sampling(points: int) -> np.ndarray:
    """[T] float32, evenly from 0 to 1 inclusive: the last point of a contour repeats its first, as in the reference."""
    return np.linspace(0.0, 1.0, points).astype(np.float32)


def scale_contours(contours: Any, scale: tuple[float, float]) -> Any:
    """Points (contours or locations) of the head grid in image pixels.

    Args:
      contours: [..., 2] points (y, x) on a grid [h, w].
      scale: (H / h, W / w).

    Returns:
      [..., 2]; multiplied only, no half-pixel shift.

    Source: celldetection 0.4.0, ops/cpn.py `scale_contours`.
    """
    xp = contours.__array_namespace__()
    return contours * xp.asarray(scale, dtype=contours.dtype)


def scale_fourier(fourier: Any, scale: tuple[float, float]) -> Any:
    """Coefficients [..., O, 4] of the head grid in image pixels; `scale` is (H / h, W / w).

    Source: celldetection 0.4.0, ops/cpn.py `scale_fourier`.
    """
    xp = fourier.__array_namespace__()
    return fourier * xp.asarray((scale[0], scale[0], scale[1], scale[1]), dtype=fourier.dtype)


def absolute_locations(offsets: Any) -> Any:
    """Locations on the head grid from the offsets that the network predicts.

    Args:
      offsets: [..., h, w, 2] (y, x) from each pixel's index, in pixels of the grid.

    Returns:
      [..., h, w, 2] positions (y, x) on the grid.

    Source: celldetection 0.4.0, ops/cpn.py `rel_location2abs_location`.
    """
    xp = offsets.__array_namespace__()
    height, width = offsets.shape[-3:-1]
    rows, columns = xp.meshgrid(xp.arange(height), xp.arange(width), indexing="ij")
    return offsets + xp.stack([rows, columns], axis=-1).astype(offsets.dtype)


def order_weights(order: int, *, first: float = 5.0, last: float = 1.0) -> np.ndarray:
    """Weights of the harmonics in the Fourier loss: falling quadratically, so that the coarse shape is learnt first.

    Args:
      order: number of harmonics O.
      first: weight of the first harmonic.
      last: weight of the last one.

    Returns:
      [O] float32.

    Source: celldetection 0.4.0, ops/cpn.py `order_weighting`.
    """
    remaining = 1 - np.arange(order) / max(order - 1, 1)
    return (last + (first - last) * remaining**2).astype(np.float32)
