"""Cells that were cut out of annotated images become parts of another: what overlaps what is then known exactly.

Source: the sparse_seunet thesis, section 4.4.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from jaxcell.data.augment.mixing import Canvas, enter_cell, overlap_ratio, paste

__all__ = ["Cutout", "Piece", "compose"]


@dataclass(frozen=True, eq=False)
class Cutout:
    """A cell with some of its surroundings.

    Attributes:
      image: [h, w, C] float32; 0 is what adds nothing to a picture.
      mask: [h, w] bool.
      nucleus: [h, w], 1 (or True) where its nucleus is, -1 where that is not known, else 0; None where nothing is known of it.
    """

    image: np.ndarray
    mask: np.ndarray
    nucleus: np.ndarray | None = None


@dataclass(frozen=True)
class Piece:
    """What became of a cutout: its share on cells before it, and whether that is little enough to keep it."""

    overlap: float
    accepted: bool


def compose(canvas: Canvas, cutouts: Iterable[tuple[Cutout, tuple[int, int]]], *, max_overlap: float = 0.2, sigma: float = 20.0,
            halo: int = 0) -> list[Piece]:
    """Adds transparent cells to a picture one after the other, in place; intensities add up, and all cells keep all pixels.

    Args:
      canvas: with the cells that are there already. Accepted cells get the next free ids.
      cutouts: (cutout, (y, x) of its upper left corner); the whole of it must lie inside.
      max_overlap: largest share of a cell that may lie on those before it (or on what is to ignore), 0 to 1.
      sigma: standard deviation of the Gaussian that softens the edge, pixels; 0: a hard edge. It must be small beside the cell,
        or little of the cell is left.
      halo: pixels around a cell that are added with it, before the soft edge: the bright ring of phase contrast, which says what
        the cell's edge is. 0, as the thesis, fades the edge itself.

    Returns:
      For each cutout what became of it.

    Source: the thesis, section 4.4.1, for cells of some 200 pixels.
    """
    taken = np.any([layer != 0 for layer in canvas.layers], axis=0)
    number, pieces = 1 + max(int(layer.max(initial=0)) for layer in canvas.layers), []
    for cutout, (y, x) in cutouts:
        height, width = cutout.mask.shape
        target = slice(y, y + height), slice(x, x + width)
        share = overlap_ratio(cutout.mask, taken[target])
        pieces.append(Piece(share, share <= max_overlap))
        if share > max_overlap:
            continue
        taken[target] |= cutout.mask
        whole = slice(0, height), slice(0, width)
        paste(canvas.image, cutout.image, _grown(cutout.mask, halo), whole, target, overlaps="add", sigma=sigma)
        enter_cell(canvas, cutout.mask, cutout.nucleus, target, number, covers=False)
        number += 1
    return pieces


def _grown(mask: np.ndarray, reach: int) -> np.ndarray:
    """The mask grown by an ellipse of OpenCV, `reach` pixels along the axes."""
    if not reach:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.dilate(mask.astype(np.uint8), disc).astype(bool)
