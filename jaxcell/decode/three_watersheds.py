"""Cells from class probabilities and a distance field by three floods: from skeletons, from peaks, and from both together.

Time and memory grow with the pixels alone: about 40 bytes of working memory a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from jaxcell.geometry.pieces import large_pieces

__all__ = ["SKELETONS", "Stages", "class_probabilities", "flood", "interior_pieces", "kernel_size", "local_maxima",
           "three_watersheds", "watershed_stages"]

EVERY_NEIGHBOUR = np.ones((3, 3))
ROWS = 256      # of logits turned into probabilities at once

SKELETONS: Mapping[str, Callable[[float, float], float]] = {
    "relative": lambda threshold, largest: threshold * largest, "absolute": lambda threshold, largest: threshold}
"""name -> (threshold, largest blurred distance) -> the level that a skeleton exceeds."""


@dataclass(frozen=True, eq=False)
class Stages:
    """What the steps of `three_watersheds` find, one after another. Floods are as OpenCV writes them: -1 on the lines where two
    basins meet and on the image's frame, 1 background, k + 1 cell k.

    Attributes:
      area: mean pixels of a piece of interior, rounded down.
      kernel: side of the Gaussian's window, pixels, odd.
      distance: least distance of two peaks, pixels.
      blurred: [H, W] float32.
      skeletons: [H, W] int32, markers 1..n.
      first: [H, W] int32, flood from the skeletons.
      peaks: [H, W] bool, of the blurred distance, wherever they are.
      peak_markers: [H, W] int32, 1..n: peaks in pieces of interior that the first flood did not reach.
      second: [H, W] int32, flood from them.
      third: [H, W] int32, flood from the cells of both.
    """

    area: int
    kernel: int
    distance: int
    blurred: np.ndarray
    skeletons: np.ndarray
    first: np.ndarray
    peaks: np.ndarray
    peak_markers: np.ndarray
    second: np.ndarray
    third: np.ndarray


def three_watersheds(
    probabilities: np.ndarray, distance: np.ndarray, *, background_below: float = 0.3, interior_above: float = 0.7,
    least_interior: int = 16, skeleton: str = "relative", skeleton_threshold: float = 0.85, peak_threshold: float = 0.6,
    small_fraction: float = 0.1,
) -> np.ndarray:
    """The cells of a region. Sizes and levels are measured on it as a whole, so regions should be large.

    1. Foreground and interior from the probabilities. 2. The distance is smoothed by a Gaussian whose window is the size of a
    mean piece of interior; where it is high, skeletons begin cells. 3. In interior that no skeleton's flood reached, peaks do.
    4. From both, cells grow over the foreground; foreground in small pieces is removed.

    Args:
      probabilities: [H, W, K] float32 in [0, 1]: background, interior; further classes are not looked at.
      distance: [H, W] floats, high in the middle of cells.
      background_below: foreground is where the background is less probable.
      interior_above: interior is where it is more probable.
      least_interior: pieces of interior (4 neighbours) of fewer pixels are none.
      skeleton: an entry of `SKELETONS`: "relative" (released) or "absolute" (the paper, with `skeleton_threshold` 0.8).
      skeleton_threshold: the blurred distance that skeletons exceed, or its share of the largest.
      peak_threshold: share of the largest blurred distance that peaks exceed.
      small_fraction: pieces of the final foreground (4 neighbours; touching cells are one piece) below this share of the mean
        cell are removed.

    Returns:
      [H, W] int32: 0 background, cells above 0 with gaps in the numbers. The image's outermost pixels are always 0.

    Raises:
      ValueError: maps of different sizes, fewer than 2 classes, or another `skeleton`.

    Source: MAUNet paper, section 2.3; Woof6/neurips22-cellseg_saltfish@c2b85d5, predict.py output (the defaults).
    Departs: without interior or without any marker there are no cells; the released script divides by 0 and stops.
    """
    stages = watershed_stages(probabilities, distance, background_below=background_below, interior_above=interior_above,
                              least_interior=least_interior, skeleton=skeleton, skeleton_threshold=skeleton_threshold,
                              peak_threshold=peak_threshold)
    if stages is None:
        return np.zeros(distance.shape, np.int32)
    labels = np.maximum(stages.third, 1) - 1
    cells = labels > 0
    least = int(np.count_nonzero(cells) / max(1, int(labels.max())) * small_fraction)
    labels[~large_pieces(cells, least)] = 0
    return labels


def watershed_stages(
    probabilities: np.ndarray, distance: np.ndarray, *, background_below: float = 0.3, interior_above: float = 0.7,
    least_interior: int = 16, skeleton: str = "relative", skeleton_threshold: float = 0.85, peak_threshold: float = 0.6,
) -> Stages | None:
    """Everything that `three_watersheds` finds on its way; its arguments and errors. None where there is no cell."""
    if skeleton not in SKELETONS:
        raise ValueError(f"three_watersheds: skeleton={skeleton!r} is unknown; known are {', '.join(SKELETONS)}.")
    if probabilities.ndim != 3 or probabilities.shape[:2] != distance.shape or probabilities.shape[2] < 2:
        raise ValueError(f"three_watersheds: probabilities have shape {probabilities.shape} and distance {distance.shape}; they "
                         "must be [H, W, K] with background and interior first, and [H, W]. Take one channel of the distance.")
    foreground = probabilities[..., 0] < np.float32(background_below)
    interior = large_pieces(probabilities[..., 1] > np.float32(interior_above), least_interior)
    pieces = ndimage.label(interior, EVERY_NEIGHBOUR)[1]
    if not pieces:
        return None
    area = int(np.count_nonzero(interior) / pieces)
    kernel = kernel_size(area)
    blurred = cv2.GaussianBlur(distance.astype(np.float32, copy=False), (kernel, kernel), 0)

    top = float(blurred.max())
    skeletons, _ = ndimage.label((blurred > np.float32(SKELETONS[skeleton](skeleton_threshold, top))) & interior, EVERY_NEIGHBOUR)
    first = flood(foreground, skeletons, interior)

    left = interior & (first == 1)
    peaks = local_maxima(blurred, threshold=peak_threshold * top, distance=kernel // 4)
    peak_markers, _ = ndimage.label(peaks & left, EVERY_NEIGHBOUR)
    second = flood(foreground, peak_markers, left)

    markers = _union(first, second)
    if not markers.any():
        return None
    third = flood(foreground, markers, foreground)
    return Stages(area, kernel, kernel // 4, blurred, skeletons, first, peaks, peak_markers, second, third)


def kernel_size(area: int) -> int:
    """The odd window of the Gaussian for pieces of interior of `area` pixels: their side and one or two pixels more."""
    side = int(np.sqrt(area))
    return side + 1 + side % 2


def flood(foreground: np.ndarray, markers: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Background and cells grow over the foreground until they meet, and cross the border of `inside` last.

    Args:
      foreground: [H, W] bool; what is not is background, and grows too.
      markers: [H, W] int32, above 0 where cells begin.
      inside: [H, W] bool.

    Returns:
      [H, W] int32: -1 where basins meet and on the image's frame, 1 background, k + 1 cell k.

    Source: OpenCV's watershed (Meyer 1992), over 4 neighbours, first come first served.
    """
    basins = np.where(markers > 0, markers + 1, (~foreground).view(np.int8)).astype(np.int32, copy=False)
    return cv2.watershed(cv2.cvtColor(inside.view(np.uint8), cv2.COLOR_GRAY2BGR), basins)


def local_maxima(image: np.ndarray, *, threshold: float, distance: int) -> np.ndarray:
    """Pixels that none within `distance` exceeds; of equal ones less than that apart the first, row by row, stands for all.

    Args:
      image: [H, W] float32.
      threshold: what maxima exceed; they also exceed the image's least value.
      distance: pixels, along rows and columns; no maximum lies so near to the image's edge.

    Returns:
      [H, W] bool.

    Source: scikit-image 0.19 to 0.26, feature.peak_local_max.
    """
    least = np.float32(max(float(image.min()), threshold))
    maxima = (image == cv2.dilate(image, np.ones((2 * distance + 1,) * 2, np.uint8))) & (image > least)
    if distance:
        for edge in (np.s_[:distance], np.s_[-distance:], np.s_[:, :distance], np.s_[:, -distance:]):
            maxima[edge] = False
    return _thinned(maxima, distance - 1)


def _thinned(points: np.ndarray, radius: int) -> np.ndarray:
    """The points [H, W] bool less those within `radius` of an earlier one that is kept."""
    if radius < 1:
        return points
    near = cv2.boxFilter(points.view(np.uint8), cv2.CV_32S, (2 * radius + 1,) * 2, normalize=False,
                         borderType=cv2.BORDER_CONSTANT)
    kept = points.copy()
    for y, x in np.argwhere(points & (near > 1)).tolist():
        if kept[y, x]:
            kept[y:y + radius + 1, max(0, x - radius):x + radius + 1] = False     # earlier rows hold none so near
            kept[y, x] = True
    return kept


def _union(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The cells of two floods as markers 1..n, those of the second after those of the first.

    (Where both have a cell, which hardly happens, the released sum of the two and the first's largest number stands.)
    """
    cells, more = np.maximum(first, 1) - 1, np.maximum(second, 1) - 1
    more[more > 0] += cells.max()
    cells += more
    return cells


def interior_pieces(probabilities: np.ndarray, *, interior_above: float = 0.5, least: int = 16, holes: int = 64) -> np.ndarray:
    """Every piece of interior is a cell: what a network without a distance can say.

    Args:
      probabilities: [H, W, K], see `three_watersheds`.
      interior_above: interior is where it is more probable.
      least: pieces of fewer pixels are removed.
      holes: holes of fewer pixels are filled first.

    Returns:
      [H, W] int32, cells 1..n by 8 neighbours.

    Source: the challenge's three-class baseline (JunMa11/NeurIPS-CellSeg, baseline/predict.py); of F1_ori in MAUNet's Table 4 the
      paper says only that it is without the three floods.
    """
    interior = large_pieces(~large_pieces(probabilities[..., 1] <= np.float32(interior_above), holes), least)
    return ndimage.label(interior, EVERY_NEIGHBOUR)[0]


def class_probabilities(logits: np.ndarray, *, classes: int = 3) -> np.ndarray:
    """Softmax over all channels, of which the first `classes` are kept: a proxy takes its share and goes.

    Args:
      logits: [H, W, K] float32, K >= classes.
      classes: channels of the result.

    Returns:
      [H, W, classes] float32 in [0, 1]; they add up to less than 1 where K > classes.
    """
    result = np.empty((*logits.shape[:2], classes), np.float32)
    for start in range(0, len(logits), ROWS):
        part = logits[start:start + ROWS]
        powers = np.exp(part - part.max(axis=-1, keepdims=True))
        np.divide(powers[..., :classes], powers.sum(axis=-1, keepdims=True), out=result[start:start + ROWS])
    return result
