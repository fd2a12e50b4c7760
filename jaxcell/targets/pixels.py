"""What kind of pixel each pixel is, as one-hot maps. A pixel to ignore (label -1) is of no kind: all its channels are 0.

An all-zero pixel adds nothing to `losses.pixels.weighted_cross_entropy`, neither to its sum nor to its class weights; `annotated`
says where a loss of another kind counts.
"""

from __future__ import annotations

import cv2
import numpy as np

from jaxcell.geometry.boundaries import disk, erode_labels, inner_boundary

__all__ = ["annotated", "foreground", "pixelwise"]


def annotated(labels: np.ndarray) -> np.ndarray:
    """1 where the annotation says what is there, 0 where it says "ignore" (-1); [H, W] -> [H, W] float32."""
    return (labels >= 0).astype(np.float32)


def foreground(labels: np.ndarray, *, erosion: int = 0, dilation: int = 0) -> np.ndarray:
    """Background and foreground.

    Args:
      labels: [H, W] integers, cells above 0, -1 ignored.
      erosion: pixels taken off the cells' boundaries first, so that cells which touch come apart.
      dilation: radius in pixels by which the foreground then grows.

    Returns:
      [H, W, 2] float32: background, cell.

    Source: deepcell-tf@f1839a4eac03, image_generators _transform_masks ("fgbg").
    """
    cells = _dilate(erode_labels(np.maximum(labels, 0), erosion) > 0, dilation)
    return _one_hot(labels, [~cells, cells])


def pixelwise(labels: np.ndarray, *, dilation: int = 0, separate_edges: bool = False) -> np.ndarray:
    """Edge, interior and background.

    Args:
      labels: [H, W] integers, cells above 0, -1 ignored.
      dilation: radius in pixels by which the edges grow into the background (never into an interior).
      separate_edges: edges between cells and edges to the background are two kinds.

    Returns:
      [H, W, 3] float32: edge, interior, background; with `separate_edges` [H, W, 4]: edges that touch no background, edges
      that do, interior, background. (The two kinds of edges may overlap where both were dilated.)

    Source: deepcell-tf@f1839a4eac03, utils/transform_utils.py pixelwise_transform, which calls the first of the four
      "background edge" although it holds the edges between cells. The paper lists interior, border, background.
    """
    edge = inner_boundary(labels)
    interior = (labels > 0) & ~edge
    edges = [edge]
    if separate_edges:
        outside = edge & _dilate(labels <= 0, 1)
        edges = [edge & ~outside, outside]
    edges = [_dilate(kind, dilation) & ~interior for kind in edges]
    return _one_hot(labels, [*edges, interior, ~np.logical_or.reduce([interior, *edges])])


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    return cv2.dilate(mask.view(np.uint8), disk(radius)) > 0 if radius else mask


def _one_hot(labels: np.ndarray, kinds: list[np.ndarray]) -> np.ndarray:
    return (np.stack(kinds, axis=-1) & (labels >= 0)[..., None]).astype(np.float32)
