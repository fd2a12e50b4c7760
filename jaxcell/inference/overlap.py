"""Overlapping tiles, each decoded apart: the released challenge code's way to treat large images.

`jaxcell.inference.blocks` is the default: it computes each pixel once and has no seams to mend. This one exists so that
the authors' published numbers can be repeated with the authors' procedure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcell.decode.contours import nms
from jaxcell.inference.seams import clip_instances
from jaxcell.inference.tiling import Box, read_batch
from jaxcell.types import Instances

__all__ = ["inside_border", "merge_tiles", "predict_image_overlapping", "tile_slices", "windowed_nms"]


def tile_slices(shape: tuple[int, int], *, crop: tuple[int, int], stride: tuple[int, int]) -> tuple[list[Box], tuple[int, int]]:
    """Overlapping tiles of an image, row by row.

    Tiles end at crop, crop + stride, ... as long as that is below max(2, 1 + ceil(size / stride)) * stride; those that would
    end outside are moved inwards, so the last ones of an axis can coincide. An axis no longer than `crop` has one tile.

    Args:
      shape: (H, W), pixels.
      crop: (height, width) of a tile, pixels.
      stride: steps between tiles, pixels, along y and x.

    Returns:
      Boxes (y0, x0, y1, x1) and the number of tiles per axis.

    Source: neurips22-cell-seg@ab6a154, docker/neurips/nn/inference.py, get_tiling_slices.
    """
    axes = [_axis_slices(*sides) for sides in zip(shape, crop, stride, strict=True)]
    return [(y0, x0, y1, x1) for y0, y1 in axes[0] for x0, x1 in axes[1]], (len(axes[0]), len(axes[1]))


def inside_border(boxes: np.ndarray, shape: tuple[int, int], *, border: float, inner: Sequence[bool]) -> np.ndarray:
    """Which boxes lie strictly inside a frame of `border` pixels along the tile's inner sides.

    A box is inside exactly if all points of the outline it was taken from are.

    Args:
      boxes: [M, 4] float (y0, x0, y1, x1), pixels of the tile.
      shape: (height, width) of the tile, pixels.
      border: width of the frame, pixels; the released settings use 3.
      inner: (top, left, bottom, right), whether another tile lies on that side.

    Returns:
      [M] bool.

    Source: neurips22-cell-seg@ab6a154, docker/neurips/nn/functional/contours.py, remove_border_contours.
    """
    top, left, bottom, right = inner
    height, width = shape
    return ((boxes[:, 0] > border if top else True) & (boxes[:, 1] > border if left else True)
            & (boxes[:, 2] < height - border if bottom else True) & (boxes[:, 3] < width - border if right else True)
            & np.ones(len(boxes), bool))


def windowed_nms(boxes: np.ndarray, weights: np.ndarray, *, iou_threshold: float, shape: tuple[int, int],
                 crop: tuple[int, int] = (8192, 8192), stride: tuple[int, int] = (8000, 8000)) -> np.ndarray:
    """Non-maximum suppression window by window, so that memory does not grow with the image.

    A box takes part in every window that holds one of its two y and one of its two x coordinates (ends included); windows
    follow each other and only boxes still kept take part.

    Args:
      boxes: [M, 4] float (y0, x0, y1, x1), pixels.
      weights: [M], the larger survives.
      iou_threshold: box IoU above which the smaller weight is dropped.
      shape: (H, W) of the image, pixels.
      crop: (height, width) of a window, pixels.
      stride: steps between windows, pixels.

    Returns:
      [M] bool, True where kept.

    Source: neurips22-cell-seg@ab6a154, docker/neurips/nn/functional/nms.py, tiled_nms.
    """
    keep = np.ones(len(boxes), bool)
    for y0, x0, y1, x1 in tile_slices(shape, crop=crop, stride=stride)[0]:
        ys, xs = boxes[:, [0, 2]], boxes[:, [1, 3]]
        member = (ys >= y0).any(1) & (ys <= y1).any(1) & (xs >= x0).any(1) & (xs <= x1).any(1) & keep
        index = np.flatnonzero(member)
        keep[index] = False
        keep[index[nms(boxes[index], weights[index], iou_threshold=iou_threshold)]] = True
    return keep


def merge_tiles(parts: Sequence[Instances], tiles: Sequence[Box], grid: tuple[int, int], shape: tuple[int, int], *,
                border: float, nms_threshold: float, min_size: float = 1.0, window_above: int = 4000) -> Instances:
    """Cells of an image from those of its overlapping tiles.

    Per tile: boxes under `min_size` and cells near an inner side are dropped, then NMS by weight. Then one NMS over all
    tiles if there are several; by windows where a side of the image exceeds `window_above`.

    Args:
      parts: per tile, Instances in the tile with extras `float_boxes` [M, 4] (exact extent of the outline, pixels) and
        `nms_weights` [M].
      tiles: (y0, x0, y1, x1) of the tiles, row by row.
      grid: tiles per axis.
      shape: (H, W) of the image, pixels.
      border: cells within this many pixels of an inner tile side are dropped.
      nms_threshold: IoU of float boxes above which the smaller weight is dropped.
      min_size: least height and width of a float box, pixels.
      window_above: image side, pixels, from which the last NMS goes by windows.

    Returns:
      Instances of the image, by falling weight (in tile order where windows were used).

    Raises:
      ValueError: the parts do not match the grid.

    Source: neurips22-cell-seg@ab6a154, docker/neurips/nn/inference.py, CpnInference without test-time augmentation.
    """
    if not len(parts) == len(tiles) == grid[0] * grid[1]:
        raise ValueError(f"{len(parts)} parts and {len(tiles)} tiles for a grid of {grid}; give one part per tile, row by row.")
    kept = []
    for number, (part, (y0, x0, y1, x1)) in enumerate(zip(parts, tiles, strict=True)):
        if not len(part):
            continue
        row, column = divmod(number, grid[1])
        inner = (row > 0, column > 0, row < grid[0] - 1, column < grid[1] - 1)
        missing = {"float_boxes", "nms_weights"} - set(part.extras)
        if missing:
            raise ValueError(f"cells of a tile lack the extras {sorted(missing)}; the decoder must give them, or use "
                             "jaxcell.inference.blocks, which needs none.")
        boxes = part.extras["float_boxes"]
        part = part.select((boxes[:, 2:] - boxes[:, :2] >= min_size).all(1)
                           & inside_border(boxes, (y1 - y0, x1 - x0), border=border, inner=inner)).shift((y0, x0), shape)
        kept.append(part.select(_nms(part, nms_threshold)))
    if not kept:
        return Instances.empty(shape)
    merged = Instances.concatenate(kept)
    if len(tiles) == 1:
        return merged
    if max(shape) <= window_above:
        return merged.select(_nms(merged, nms_threshold))
    return merged.select(windowed_nms(merged.extras["float_boxes"], merged.extras["nms_weights"],
                                      iou_threshold=nms_threshold, shape=shape))


def predict_image_overlapping(apply: Callable[[np.ndarray], Mapping[str, Any]], image: Any, *,
                              decode: Callable[[Mapping[str, np.ndarray]], Instances], crop: int, stride: int, border: float,
                              nms_threshold: float, batch: int, divisor: int,
                              normalize: Callable[[np.ndarray], np.ndarray] | None = None) -> Instances:
    """The cells of an image from overlapping tiles, as the released challenge code finds them.

    Args:
      apply: the network; images [batch, crop, crop, C] float32 -> dict of arrays [batch, crop / s, crop / s, ...].
      image: [H, W, C], anything with `shape` and slicing.
      decode: dense maps of a tile -> Instances with extras `float_boxes` and `nms_weights`.
      crop: side of a tile, pixels, a multiple of `divisor`; 768 in the released settings.
      stride: step between tiles, pixels; 384 in the released settings.
      border: cells within this many pixels of an inner tile side are dropped; 3 in the released settings.
      nms_threshold: box IoU; 0.3141592653589793 in the released settings.
      batch: tiles per call.
      divisor: what input sides must be multiples of.
      normalize: pixel values as stored -> as the network expects them; None converts to float32.

    Returns:
      Instances of the image, by falling weight.

    Raises:
      ValueError: `crop` is no multiple of `divisor`.

    Source: neurips22-cell-seg@ab6a154, docker/neurips/nn/inference.py, CpnInference.
    Departs: an image smaller than a tile is reflected up to it and the maps are cropped, so that the network has one input
      shape; the released code feeds the smaller image.
    """
    if crop % divisor or crop <= 0:
        raise ValueError(f"crop is {crop}; it must be a positive multiple of {divisor}. Use {-(-crop // divisor) * divisor}.")
    shape = (int(image.shape[0]), int(image.shape[1]))
    tiles, grid = tile_slices(shape, crop=(crop, crop), stride=(stride, stride))
    parts: list[Instances] = []
    for first in range(0, len(tiles), batch):
        members = tiles[first:first + batch]
        frames = [(y0, x0, y0 + crop, x0 + crop) for y0, x0, _, _ in members]
        images = read_batch(image, frames, batch=batch, normalize=normalize)
        outputs = {key: np.asarray(value) for key, value in apply(images).items()}
        coarsest = max(crop // value.shape[1] for value in outputs.values())
        for slot, (y0, x0, y1, x1) in enumerate(members):
            height, width = (-(-side // coarsest) * coarsest for side in (y1 - y0, x1 - x0))
            maps = {key: value[slot, :height * value.shape[1] // crop, :width * value.shape[2] // crop]
                    for key, value in outputs.items()}
            parts.append(clip_instances(decode(maps), (y1 - y0, x1 - x0)))
    return merge_tiles(parts, tiles, grid, shape, border=border, nms_threshold=nms_threshold)


def _axis_slices(size: int, crop: int, stride: int) -> list[tuple[int, int]]:
    if crop >= size:
        return [(0, size)]
    stops = range(crop, max(2, 1 + -(-size // stride)) * stride, stride)
    return [(min(stop, size) - crop, min(stop, size)) for stop in stops]


def _nms(instances: Instances, threshold: float) -> np.ndarray:
    return nms(instances.extras["float_boxes"], instances.extras["nms_weights"], iou_threshold=threshold)
