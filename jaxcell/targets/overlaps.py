"""How likely cells overlap at each pixel, from where cells, nuclei and annotated overlaps lie: maps v0 to v4 of the thesis.

The thesis describes them in words; scale and direction are the recorded reading's (parity/sparseseunet). Values are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from jaxcell.geometry.labels import cell_ids, windows

__all__ = ["LOW", "OVERLAP_MAPS", "around_overlaps", "away_from_nucleus", "away_from_nuclei", "distance_to_border",
           "glow_around_cells", "near_borders", "nuclei_and_overlaps", "overlap_map", "shared_pixels"]

LOW = 0.1
"""The value of background and nuclei, where overlaps are unlikely."""

_CROSS = np.asarray([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def shared_pixels(cells: np.ndarray) -> np.ndarray:
    """Where two cells or more are: [M, H, W] bool -> [H, W] bool."""
    return np.count_nonzero(cells, axis=0) > 1


def distance_to_border(cell: np.ndarray) -> np.ndarray:
    """Every pixel's distance to the cell's own outermost pixels, from inside and outside; beyond the image nothing is the cell's.

    Args:
      cell: [H, W] bool, with a pixel at least.

    Returns:
      [H, W] float64, pixels.
    """
    return _distance_to(_border(cell))


def glow_around_cells(cells: np.ndarray, *, sigma: float = 0.1) -> np.ndarray:
    """The author's later weights of a mask's pixels: 0.2 close around the cell, 0.7 in it and far off, 1 where others overlap it.

    Args:
      cells: [M, H, W] bool, each with a pixel at least.
      sigma: of the Gaussian of the distance from the cell, of the farthest pixel's distance.

    Returns:
      [M, H, W] float64.

    Source: SlavkoPrytula/IAUNet@836185a, dataset/datasets/backup/brightfiled_backup_v2.py get_prob_map.
    """
    result = np.ones(cells.shape)
    for weights, cell in zip(result, cells, strict=True):
        away = _distance_to(cell)
        glow = np.round(np.exp(-np.square(_relative(away, away.max())) / (2 * sigma**2)), 4)
        weights[:] = np.maximum(np.where((glow < 0.1) | (glow == 1), 1.0, 1 - glow), 0.5) - 0.3
    return np.where(cells & shared_pixels(cells), 1.0, result)


def _distance_to(pixels: np.ndarray) -> np.ndarray:
    """Every pixel's Euclidean distance to the nearest of `pixels` [H, W] bool, at least one of them; float64, pixels."""
    return np.sqrt(_squares_to(pixels).astype(np.float64))


def _squares_to(pixels: np.ndarray) -> np.ndarray:
    """The same squared, float32."""
    # OpenCV's last digit changes from call to call, and a resumed run must be the same to the bit; its squares are whole numbers.
    return np.rint(np.square(cv2.distanceTransform((~pixels).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)))


def _border(cell: np.ndarray) -> np.ndarray:
    """A cell's outermost pixels; [H, W] bool -> the same. Beyond the image nothing is the cell's."""
    inside = cv2.erode(cell.view(np.uint8), _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    return cell & ~inside


def _centre(nucleus: np.ndarray) -> tuple[float, float]:
    y, x = np.nonzero(nucleus)
    return float(y.mean()), float(x.mean())


def _relative(values: np.ndarray, largest: float) -> np.ndarray:
    return values / largest if largest > 0 else np.zeros_like(values)


def away_from_nucleus(cells: np.ndarray, nuclei: np.ndarray) -> np.ndarray:
    """v0: inside each cell, the distance from the centre of its nucleus relative to the cell's farthest pixel.

    Args:
      cells: [M, H, W] bool.
      nuclei: [M, H, W] bool, the nucleus of each cell; all False where there is none: such a cell adds nothing.

    Returns:
      [H, W] float64: the largest of the cells' values, `LOW` outside of cells and in nuclei.
    """
    result = np.zeros(cells.shape[1:])
    for cell, nucleus in zip(cells, nuclei, strict=True):
        if cell.any() and nucleus.any():
            at, (y, x) = np.nonzero(cell), _centre(nucleus)
            away = np.hypot(at[0] - y, at[1] - x)
            result[at] = np.maximum(result[at], _relative(away, away.max()))
    return np.where(cells.any(0) & ~nuclei.any(0), result, LOW)


def away_from_nuclei(cells: np.ndarray, nuclei: np.ndarray) -> np.ndarray:
    """v1: the same without the bounds of the cells, each relative to the farthest pixel of the image; `LOW` in nuclei only."""
    result = np.zeros(cells.shape[1:])
    for nucleus in nuclei[nuclei.any((1, 2))]:
        rows, columns = (np.square(np.arange(side) - middle)
                         for side, middle in zip(nucleus.shape, _centre(nucleus), strict=True))
        farthest = rows.max() + columns.max()
        result = np.maximum(result, _relative(rows, farthest)[:, None] + _relative(columns, farthest))
    return np.where(nuclei.any(0), LOW, np.sqrt(result))


def around_overlaps(cells: np.ndarray, nuclei: np.ndarray) -> np.ndarray:
    """v2: 1 in the overlaps, falling with the distance from them to 0 at the farthest pixel; `LOW` outside of cells, or all over
    where nothing overlaps."""
    shared = shared_pixels(cells)
    if not shared.any():
        return np.full(shared.shape, LOW)
    away = _distance_to(shared)
    return np.where(cells.any(0), 1 - _relative(away, away.max()), LOW)


def nuclei_and_overlaps(cells: np.ndarray, nuclei: np.ndarray) -> np.ndarray:
    """v3: the larger of `away_from_nuclei` and `around_overlaps`; `LOW` in nuclei that lie in no overlap."""
    larger = np.maximum(away_from_nuclei(cells, nuclei), around_overlaps(cells, nuclei))
    return np.where(nuclei.any(0) & ~shared_pixels(cells), LOW, larger)


def near_borders(cells: np.ndarray, nuclei: np.ndarray) -> np.ndarray:
    """v4: 1 on the border of any cell, falling with the logarithm of the distance from it; 1 in overlaps, `LOW` outside of cells.

    A cell's values reach over the whole image, so they are high where cells are close to each other.

    Source: the thesis, section 4.3 and equation 4.4.
    """
    result, inside = np.full(cells.shape[1:], LOW), cells.any(0)
    best = np.zeros(np.count_nonzero(inside))
    for cell in cells[cells.any((1, 2))]:
        squares = _squares_to(_border(cell))
        away = np.log1p(np.sqrt(squares[inside].astype(np.float64)))
        best = np.maximum(best, 1 - _relative(away, np.log1p(np.sqrt(np.float64(squares.max())))))
    result[inside] = best
    return np.where(shared_pixels(cells), 1.0, result)


OVERLAP_MAPS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "v0": away_from_nucleus, "v1": away_from_nuclei, "v2": around_overlaps, "v3": nuclei_and_overlaps, "v4": near_borders}
"""The thesis' name -> (cells [M, H, W] bool, nuclei [M, H, W] bool) -> [H, W] in [0, 1].

Source: the thesis, section 5.4 and figure 5.2 (a to e); Table 5.3 names v4 the best.
"""


def overlap_map(labels: np.ndarray, nuclei: np.ndarray | None, name: str) -> np.ndarray:
    """One of `OVERLAP_MAPS`, of a crop's labels.

    Args:
      labels: [H, W, D] int32 label layers.
      nuclei: [H, W] int32, the ids of their cells; None where they are not known.
      name: a key of `OVERLAP_MAPS`.

    Returns:
      [H, W, 1] float32 in [0, 1].

    Raises:
      ValueError: another name, or a map that needs nuclei where they are not known.
    """
    if name not in OVERLAP_MAPS:
        raise ValueError(f"overlap_map: {name!r} is unknown; known are {', '.join(OVERLAP_MAPS)}.")
    if nuclei is None and name in ("v0", "v1", "v3"):
        raise ValueError(f"overlap_map: {name!r} measures from nuclei, which this sample does not know; use v2 or v4.")
    rows = {number: row for row, number in enumerate(cell_ids(labels).tolist())}
    cells = _by_cell(labels, rows)
    cores = np.zeros_like(cells) if nuclei is None else _by_cell(nuclei[..., None], rows)
    return OVERLAP_MAPS[name](cells, cores)[..., None].astype(np.float32)


def _by_cell(layers: np.ndarray, rows: Mapping[int, int]) -> np.ndarray:
    """[H, W, D] int32 -> [M, H, W] bool, cell `id` in row `rows[id]`; ids without a row are left out."""
    result = np.zeros((len(rows), *layers.shape[:2]), bool)
    for plane in np.moveaxis(layers, -1, 0):
        for number, window in windows(plane):
            if number in rows:
                result[rows[number]][window] |= plane[window] == number
    return result
