"""Targets of the contour proposal network: which head-grid pixels propose a cell, and that cell's contour.

In the order of work: number the cells, ignore what has no single outline, outlines, their Fourier series, relative distances to
the border, the centric pixels, the head grid.
"""

from __future__ import annotations

import cv2
import numpy as np

from jaxcell.geometry.fourier import contours_from_fourier, fit_fourier
from jaxcell.geometry.labels import close_gaps, outlines, replace_ids, windows
from jaxcell.types import Sample

__all__ = ["centric_labels", "clean_labels", "contour_targets", "fit_outlines", "foreground_pixels", "ignore_fragmented",
           "ignore_small", "reduce_labels", "relative_distances", "single_owner"]

_NORMALISED_AREA = 36   # pixels; smaller objects keep their distances in pixels (celldetection 0.4.9)


def contour_targets(
    sample: Sample, rng: np.random.Generator, *, order: int, samples: int, stride: int, max_background_distance: float,
    min_foreground_distance: float, max_cells: int, max_foreground: int, max_iterations: int, distance: str = "foreground",
    min_area: int = 5, closed_outlines: bool = False,
) -> dict[str, np.ndarray]:
    """Training targets of one image, of shapes that do not depend on its content.

    Args:
      sample: with labels [H, W, D]; H and W multiples of `stride`. Cells cut by the image's edge count as they are.
      rng: draws sampling, iterations and, where there are too many, cells and foreground pixels.
      order: Fourier order O.
      samples: contour points T.
      stride: image pixels per pixel of the head grid.
      max_background_distance: relative distance in [0, 1] up to which a cell's pixel counts as background.
      min_foreground_distance: relative distance in [0, 1] from which it proposes the cell; between the two it is ignored.
      max_cells: rows M of the cell arrays. Of more cells a random M are kept and the others' foreground pixels are ignored;
        `cells` tells.
      max_foreground: length N of `foreground`.
      max_iterations: most refinement iterations.
      distance: what distances are measured to, see `relative_distances`: "foreground" (as the paper's networks were
        trained) or "object".
      min_area: smaller cells, pixels, are ignored.
      closed_outlines: fit closed outlines; the released networks were trained on open ones.

    Returns:
      labels [h, w] int32 on the head grid: 0 background, -1 ignored, k > 0 proposes the cell of row k - 1;
      foreground [N] int32, row-major indices of the grid pixels that propose a cell (a random N if there are more), -1 padded;
      fourier [M, O, 4], locations [M, 2], contours [M, T, 2] float32 in image pixels, unused rows 0;
      sampling [T] float32 rising in [0, 1], of the contours; iterations int32 in 1..max_iterations;
      cells int32, how many cells the image has after cleaning, which exceeds M when some were left out.

    Raises:
      ValueError: without labels, or if the sides are no multiples of `stride`.

    Source: celldetection 0.4.0 (`distance="foreground"`) and 0.4.9 ("object"), data/cpn.py `CPNTargetGenerator`; the clean-up
      is that of FZJ-INM1-BDA/neurips22-cell-seg@ab6a154. Departs: 0.4.9 keeps an empty row for a fragmented object, here rows
      have no gaps.
    """
    if sample.labels is None:
        raise ValueError(f"contour_targets: sample {sample.name!r} has no labels; train on annotated samples only.")
    labels = clean_labels(sample.labels, min_area=min_area)
    lines = {number: pieces[0] for number, pieces in outlines(labels).items()}
    ids = np.fromiter(lines, np.int32, len(lines))
    kept = ids if len(ids) <= max_cells else np.sort(rng.choice(ids, max_cells, replace=False))
    rows = np.full(len(ids), -1, np.int32)
    rows[np.searchsorted(ids, kept)] = np.arange(1, len(kept) + 1)

    owner = single_owner(labels)
    centric = centric_labels(owner, relative_distances(owner, distance=distance), max_background_distance=max_background_distance,
                             min_foreground_distance=min_foreground_distance)
    # Cells are left out on the grid: before, their pixels would lose to the background beside them and be trained as such.
    grid = replace_ids(reduce_labels(centric, stride), ids, rows)

    fourier, locations = fit_outlines([lines[k] for k in kept.tolist()], order=order, closed=closed_outlines, rows=max_cells)
    sampling = np.sort(rng.random(samples)).astype(np.float32)
    contours = np.zeros((max_cells, samples, 2), np.float32)
    contours[:len(kept)] = contours_from_fourier(fourier[:len(kept)], locations[:len(kept)], sampling)
    return {
        "labels": grid,
        "foreground": foreground_pixels(grid, max_foreground, rng),
        "fourier": fourier,
        "locations": locations,
        "contours": contours,
        "sampling": sampling,
        "iterations": np.asarray(rng.integers(1, max_iterations + 1), np.int32),
        "cells": np.asarray(len(ids), np.int32),
    }


def clean_labels(labels: np.ndarray, *, min_area: int) -> np.ndarray:
    """Label layers [H, W, D] with cells 1..n of one piece and at least `min_area` pixels; what else there was becomes -1.

    Source: FZJ-INM1-BDA/neurips22-cell-seg@ab6a154, the data set's clean-up.
    """
    return close_gaps(ignore_small(ignore_fragmented(close_gaps(labels)), min_area))


def ignore_fragmented(labels: np.ndarray) -> np.ndarray:
    """Sets cells of more than one 8-connected piece to -1: they have no single outline. Labels [H, W, D]."""
    fragmented = [number for number, pieces in outlines(labels).items() if len(pieces) > 1]
    return _ignore(labels, np.asarray(fragmented, np.int32))


def ignore_small(labels: np.ndarray, min_area: int) -> np.ndarray:
    """Sets cells of fewer than `min_area` pixels to -1. Labels of any shape, numbered without large gaps."""
    areas = np.bincount(np.maximum(labels, 0).ravel())
    small = np.flatnonzero((areas > 0) & (areas < min_area))
    return _ignore(labels, small[small > 0].astype(np.int32))


def _ignore(labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return replace_ids(labels, ids, np.full(len(ids), -1, np.int32)) if len(ids) else labels


def fit_outlines(lines: list[np.ndarray], *, order: int, closed: bool, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Fourier series of outlines, padded with zeros.

    Args:
      lines: n <= rows outlines [P, 2].
      order: Fourier order O.
      closed: see `fit_fourier`.
      rows: M.

    Returns:
      fourier [M, O, 4] and locations [M, 2], float32.
    """
    fourier, locations = np.zeros((rows, order, 4), np.float32), np.zeros((rows, 2), np.float32)
    for row, line in enumerate(lines):
        fourier[row], locations[row] = fit_fourier(line, order, closed=closed)
    return fourier, locations


def single_owner(labels: np.ndarray) -> np.ndarray:
    """The one cell of each pixel: label layers [H, W, D] -> [H, W] int32, -1 where several cells overlap.

    Where there is no cell a pixel is ignored only if every layer says so.
    """
    owner = labels.max(axis=-1)
    if labels.shape[-1] > 1:
        owner[np.count_nonzero(labels > 0, axis=-1) > 1] = -1
    return owner


def relative_distances(owner: np.ndarray, *, distance: str) -> np.ndarray:
    """Distance of every cell pixel to the border, relative to the largest one within its cell.

    Args:
      owner: [H, W] int32, cells 1..n; what is not above 0 has distance 0.
      distance: "foreground": to the nearest pixel that is no cell, so that touching cells have no border between them, nor is
        there one at the image's edge. "object": to the nearest pixel outside the cell, the image's edge included; cells of at
        most 36 pixels keep their distance in pixels, at most 1.

    Returns:
      [H, W] float32 in [0, 1]. Distances are OpenCV's 3 x 3 chamfer distances (steps 0.955 and 1.3693).

    Raises:
      ValueError: for another value of `distance`.

    Source: celldetection 0.4.0 and 0.4.9, data/cpn.py `labels2distances`.
    """
    if distance == "foreground":
        return _foreground_distances(owner)
    if distance == "object":
        return _object_distances(owner)
    raise ValueError(f"relative_distances: distance={distance!r} is not a rule; use 'foreground' or 'object'.")


def _foreground_distances(owner: np.ndarray) -> np.ndarray:
    distances = cv2.distanceTransform((owner > 0).view(np.uint8), cv2.DIST_L2, 3)
    cells = np.maximum(owner, 0)
    largest = np.full(int(cells.max(initial=0)) + 1, 1e-6, np.float32)
    np.maximum.at(largest, cells.ravel(), distances.ravel())
    return np.clip(distances / largest[cells], 0, 1)


def _object_distances(owner: np.ndarray) -> np.ndarray:
    result = np.zeros(owner.shape, np.float32)
    for number, window in windows(owner):
        mask = owner[window] == number
        framed = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8)
        framed[1:-1, 1:-1] = mask
        distances = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]
        if np.count_nonzero(mask) > _NORMALISED_AREA:
            distances = distances / distances.max()
        result[window][mask] = np.minimum(distances[mask], 1)
    return result


def centric_labels(owner: np.ndarray, distances: np.ndarray, *, max_background_distance: float,
                   min_foreground_distance: float) -> np.ndarray:
    """Keeps the inner part of every cell: 0 up to the first relative distance, -1 between the two, the id from the second on.

    Args:
      owner: [H, W] int32.
      distances: [H, W] relative distances.
      max_background_distance: in [0, 1].
      min_foreground_distance: in [0, 1].

    Returns:
      [H, W] int32.

    Source: celldetection 0.4.0, data/cpn.py `mask_labels_by_distance_`.
    """
    reduced = owner.copy()
    cells = owner > 0
    reduced[cells & (distances < min_foreground_distance)] = -1
    reduced[cells & (distances <= max_background_distance)] = 0
    return reduced


def reduce_labels(labels: np.ndarray, stride: int) -> np.ndarray:
    """Labels [H, W] on the head grid [H / stride, W / stride] by max pooling: the larger id wins, -1 loses to 0.

    Raises:
      ValueError: if a side is no multiple of `stride`.
    """
    height, width = labels.shape
    if height % stride or width % stride:
        raise ValueError(f"reduce_labels: an image of {height} x {width} does not divide by the stride {stride}; crop or pad it "
                         "to a multiple.")
    grid = labels[::stride, ::stride].copy()
    for y in range(stride):
        for x in range(stride):
            np.maximum(grid, labels[y::stride, x::stride], out=grid)
    return grid


def foreground_pixels(labels: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
    """[limit] int32 row-major indices of the pixels above 0 of labels [h, w], rising, -1 padded; a random `limit` of more."""
    pixels = np.flatnonzero(labels > 0)
    if len(pixels) > limit:
        pixels = np.sort(rng.choice(pixels, limit, replace=False))
    padded = np.full(limit, -1, np.int32)
    padded[:len(pixels)] = pixels
    return padded
