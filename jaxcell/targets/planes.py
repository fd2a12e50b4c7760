"""What lies where, whatever cell it belongs to: a plane of 0 and 1 for each thing that a semantic network can draw.

-1 is "ignore" there as it is in labels: pixels of which nobody knows whether they are of a nucleus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from jaxcell.geometry.boundaries import inner_boundary

__all__ = ["PLANES", "background_plane", "border_plane", "cytoplasm_plane", "nuclei_plane", "overlap_plane", "semantic_planes"]

WIDTH = 3       # pixels of a border, across


def cytoplasm_plane(labels: np.ndarray, nuclei: np.ndarray | None) -> np.ndarray:
    """The whole cells, their nuclei included: [H, W, D] int32 -> [H, W] bool."""
    return labels.max(axis=-1) > 0


def background_plane(labels: np.ndarray, nuclei: np.ndarray | None) -> np.ndarray:
    """Where no cell is; [H, W, D] int32 -> [H, W] bool. (What is to be ignored counts here, and is masked elsewhere.)"""
    return ~cytoplasm_plane(labels, nuclei)


def overlap_plane(labels: np.ndarray, nuclei: np.ndarray | None) -> np.ndarray:
    """Where two cells or more are; [H, W, D] int32 -> [H, W] bool."""
    return np.count_nonzero(labels > 0, axis=-1) > 1


def border_plane(labels: np.ndarray, nuclei: np.ndarray | None) -> np.ndarray:
    """The outlines of all cells, also where they run through others: [H, W, D] int32 -> [H, W] bool.

    The pixels of a cell that have another value beside them, and one pixel to either side of these. The image's edge is none.
    """
    lines = np.logical_or.reduce([inner_boundary(layer) for layer in np.moveaxis(labels, -1, 0)])
    return cv2.dilate(lines.view(np.uint8), np.ones((WIDTH, WIDTH), np.uint8)) > 0


def nuclei_plane(labels: np.ndarray, nuclei: np.ndarray | None) -> np.ndarray:
    """Where nuclei are: [H, W] int32 -> [H, W] int32, 1 and 0, and -1 where that is not known.

    Raises:
      ValueError: the sample does not know them.
    """
    if nuclei is None:
        raise ValueError("semantic_planes: this sample does not know its nuclei; leave the head 'nuclei' out, or use a source "
                         "that has them (synthetic cells, QuPath's GeoJSON).")
    return np.sign(nuclei)


PLANES: Mapping[str, Callable[[np.ndarray, np.ndarray | None], np.ndarray]] = {
    "cytoplasm": cytoplasm_plane, "nuclei": nuclei_plane, "border": border_plane, "background": background_plane,
    "overlap": overlap_plane}
"""name -> (labels [H, W, D], nuclei [H, W] or None) -> [H, W] bool, or int32 where some pixels may be to ignore (-1).

Source: the thesis, sections 4.2.2 and 4.3, which says what the planes are called, but not how wide a border is.
"""


def semantic_planes(labels: np.ndarray, nuclei: np.ndarray | None, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Some of `PLANES`: name -> [H, W, 1] float32, 0 or 1, or -1 where it is not known (of nuclei).

    Args:
      labels: [H, W, D] int32 label layers.
      nuclei: [H, W] int32, -1 where they are not known; None where they are nowhere known and not asked for.
      names: keys of `PLANES`.

    Raises:
      ValueError: a name is unknown, or nuclei are asked for but not known.
    """
    if unknown := [name for name in names if name not in PLANES]:
        raise ValueError(f"semantic_planes: {unknown[0]!r} is unknown; known are {', '.join(PLANES)}.")
    return {name: PLANES[name](labels, nuclei)[..., None].astype(np.float32) for name in names}
