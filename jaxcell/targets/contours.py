"""Targets of the contour proposal network: which head-grid pixels propose a cell, and that cell's contour.

In the order of work: outlines, ignore cells that have no single one, number the others, their Fourier series, relative distances
to the border, the centric pixels, the head grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from scipy import ndimage

from jaxcell.geometry.fourier import contours_from_fourier, fit_fouriers
from jaxcell.geometry.labels import close_gaps, outlines, replace_ids
from jaxcell.types import Sample

__all__ = ["centric_labels", "clean_labels", "clean_outlines", "contour_targets", "foreground_pixels", "reduce_labels",
           "relative_distances", "single_owner"]

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
      cells int32, how many cells the image has after cleaning, which exceeds M when some were left out;
      ids [M] int32, the number that each row's cell has in the sample, 0 padded.

    Raises:
      ValueError: without labels, or if the sides are no multiples of `stride`.

    Source: celldetection 0.4.0 (`distance="foreground"`) and 0.4.9 ("object"), data/cpn.py `CPNTargetGenerator`; the clean-up
      is that of FZJ-INM1-BDA/neurips22-cell-seg@ab6a154. Departs: 0.4.9 keeps an empty row for a fragmented object, here rows
      have no gaps.
    """
    if sample.labels is None:
        raise ValueError(f"contour_targets: sample {sample.name!r} has no labels; train on annotated samples only.")
    labels, lines = clean_outlines(sample.labels, min_area=min_area)
    ids = np.fromiter(lines, np.int32, len(lines))
    kept = ids if len(ids) <= max_cells else np.sort(rng.choice(ids, max_cells, replace=False))
    rows = np.full(len(ids), -1, np.int32)
    rows[np.searchsorted(ids, kept)] = np.arange(1, len(kept) + 1)

    owner = single_owner(labels)
    centric = centric_labels(owner, relative_distances(owner, distance=distance), max_background_distance=max_background_distance,
                             min_foreground_distance=min_foreground_distance)
    # Cells are left out on the grid: before, their pixels would lose to the background beside them and be trained as such.
    grid = replace_ids(reduce_labels(centric, stride), ids, rows)

    fourier, locations = fit_fouriers([lines[k] for k in kept.tolist()], order, closed=closed_outlines)
    sampling = np.sort(rng.random(samples)).astype(np.float32)
    contours = contours_from_fourier(fourier, locations, sampling)
    return {
        "labels": grid,
        "foreground": foreground_pixels(grid, max_foreground, rng),
        "fourier": _padded(fourier, max_cells),
        "locations": _padded(locations, max_cells),
        "contours": _padded(contours, max_cells),
        "sampling": sampling,
        "iterations": np.asarray(rng.integers(1, max_iterations + 1), np.int32),
        "cells": np.asarray(len(ids), np.int32),
        "ids": _padded(_original_ids(sample.labels, labels, {k: lines[k] for k in kept.tolist()}), max_cells),
    }


def _original_ids(before: np.ndarray, after: np.ndarray, lines: Mapping[int, np.ndarray]) -> np.ndarray:
    """[n] int32, the numbers in `before` of the cells whose numbers in `after` are the keys of `lines`, their outlines."""
    starts = ((number, int(line[0, 0]), int(line[0, 1])) for number, line in lines.items())
    return np.asarray([before[y, x][after[y, x] == number][0] for number, y, x in starts], np.int32)


def _padded(array: np.ndarray, rows: int) -> np.ndarray:
    padded = np.zeros((rows, *array.shape[1:]), array.dtype)
    padded[:len(array)] = array
    return padded


def clean_labels(labels: np.ndarray, *, min_area: int) -> np.ndarray:
    """Label layers [H, W, D] with cells 1..n of one piece and at least `min_area` pixels; what else there was becomes -1."""
    return clean_outlines(labels, min_area=min_area)[0]


def clean_outlines(labels: np.ndarray, *, min_area: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Clean labels, and the outline of each cell that is left.

    Args:
      labels: layers [H, W, D].
      min_area: cells of fewer pixels are set to -1, like those of several 8-connected pieces, which have no single outline.

    Returns:
      labels [H, W, D] with cells 1..n; id -> outline [P, 2], ids rise (see `outlines`).

    Source: FZJ-INM1-BDA/neurips22-cell-seg@ab6a154, the data set's clean-up.
    """
    if labels.max(initial=0) > labels.size:     # numbers that would need larger tables than the image
        labels = close_gaps(labels)
    pieces = outlines(labels)
    ids = np.fromiter(pieces, np.int32, len(pieces))
    areas = np.bincount(labels[labels > 0])
    good = np.asarray([len(lines) == 1 for lines in pieces.values()], bool) & (areas[ids] >= min_area)
    # The reference closes gaps before and after; on the list of ids that gives the same numbers as on the image.
    numbers = close_gaps(np.where(good, close_gaps(ids), -1))
    lines = {number: pieces[old][0] for number, old in sorted(zip(numbers.tolist(), ids.tolist(), strict=True)) if number > 0}
    return replace_ids(labels, ids, numbers), lines


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
    inside = owner > 0
    cells, distances = owner[inside], cv2.distanceTransform(inside.view(np.uint8), cv2.DIST_L2, 3)[inside]
    largest = np.zeros(int(cells.max(initial=0)) + 1, np.float32)
    np.maximum.at(largest, cells, distances)
    result = np.zeros(owner.shape, np.float32)
    result[inside] = distances / largest[cells]
    return result


def _object_distances(owner: np.ndarray) -> np.ndarray:
    result = np.zeros(owner.shape, np.float32)
    for number, window in enumerate(ndimage.find_objects(owner), start=1):
        if window is None:
            continue
        mask = (owner[window] == number).view(np.uint8)
        framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        distances = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]
        if np.count_nonzero(mask) > _NORMALISED_AREA:
            distances /= distances.max()
        np.maximum(result[window], distances, out=result[window])      # (0 on the pixels of other cells)
    return np.minimum(result, 1, out=result)


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
