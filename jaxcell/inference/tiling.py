"""Where tiles and blocks lie over an image, and how their pixels are read; the rules they obey stand in `inference.blocks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Box", "Window", "ceil_to", "check_multiple", "plan_blocks", "plan_tiles", "read_batch", "read_region", "reflect",
           "touching"]

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Window:
    """A piece of work on the image.

    Attributes:
      frame: (y0, x0, y1, x1), what is looked at.
      core: (y0, x0, y1, x1) inside the frame, what is kept; the cores of all windows are disjoint and cover the image.
    """

    frame: Box
    core: Box


def plan_tiles(shape: tuple[int, int], *, tile: int, margin: int, divisor: int) -> list[Window]:
    """The tiles of an image, row by row; a function of its size alone.

    Tiles advance by `tile - 2 * margin`; the last one of an axis is moved inwards to end with the image and owns what is
    left. The image counts as padded at the bottom and right to a multiple of `divisor`, and to one tile at least.

    Args:
      shape: (H, W) of the image, pixels.
      tile: side of a tile, pixels, a multiple of `divisor`.
      margin: pixels dropped on each inner side, below tile / 2; twice of it must be a multiple of `divisor`.
      divisor: what input sides must be multiples of; every tile starts at one, so that the network's grids coincide.

    Returns:
      Windows whose frames are all [tile, tile] and whose cores partition the padded image.

    Raises:
      ValueError: `tile` or twice the margin is no multiple of `divisor`, or the margins leave no core.
    """
    check_multiple("tile", tile, divisor, what="the network's divisor")
    check_multiple("twice the margin", 2 * margin, divisor, what="the network's divisor")
    if tile - 2 * margin <= 0:
        raise ValueError(f"tile {tile} with margin {margin} keeps nothing: the core is tile - 2 * margin. Use a larger tile.")
    rows, columns = (_tile_axis(max(tile, ceil_to(size, divisor)), tile=tile, margin=margin) for size in shape)
    return _grid(rows, columns)


def plan_blocks(shape: tuple[int, int], *, block: int, halo: int, stride: int) -> list[Window]:
    """The blocks of an image, row by row.

    Args:
      shape: (H, W) of the image, pixels.
      block: side of a core, pixels, a multiple of `stride`.
      halo: pixels looked at around a core, a multiple of `stride`; cells up to this size are whole in their block.
      stride: the coarsest output's stride; frames are multiples of it, so they end up to `stride - 1` past the image.

    Returns:
      Windows whose cores partition the image; each frame is the core and its halo, clipped to the image. One window if
      the image is no larger than `block`.

    Raises:
      ValueError: `block` or `halo` is no multiple of `stride`, or `block` is 0.
    """
    for name, value in (("block", block), ("halo", halo)):
        check_multiple(name, value, stride, what="the coarsest output's stride")
    if block <= 0:
        raise ValueError(f"block is {block}; it must be positive. Use 1024 or more, or one block for the whole image.")
    rows, columns = (_block_axis(size, block=block, halo=halo, end=ceil_to(size, stride)) for size in shape)
    return _grid(rows, columns)


def read_region(image: Any, box: Box) -> np.ndarray:
    """A region of an image, reflected where it reaches past the bottom or right; reads no more than it needs.

    Args:
      image: [H, W, C], anything with `shape` and slicing: array, memmap, zarr.
      box: (y0, x0, y1, x1), pixels, y0 and x0 inside the image.

    Returns:
      [y1 - y0, x1 - x0, C], the image's dtype.
    """
    rows, columns = (reflect(np.arange(start, stop), size)
                     for start, stop, size in zip(box[:2], box[2:], image.shape[:2], strict=True))
    part = np.asarray(image[int(rows.min()):int(rows.max()) + 1, int(columns.min()):int(columns.max()) + 1])
    if box[2] <= image.shape[0] and box[3] <= image.shape[1]:
        return part
    return part[(rows - rows.min())[:, None], columns - columns.min()]


def read_batch(image: Any, boxes: Sequence[Box], *, batch: int, normalize: Callable[[np.ndarray], np.ndarray] | None
               ) -> np.ndarray:
    """Regions of one size as the network's input, with zeros where there are fewer than `batch`.

    Args:
      image: see `read_region`.
      boxes: at least one and at most `batch`, all of one size.
      batch: leading axis of the result.
      normalize: region as stored -> as the network expects it, where channels may change too; None converts to float32.

    Returns:
      [batch, h, w, C] float32.
    """
    regions = [read_region(image, box) for box in boxes]
    images = np.stack([region if normalize is None else normalize(region) for region in regions]).astype(np.float32, copy=False)
    return np.concatenate([images, np.zeros((batch - len(images), *images.shape[1:]), np.float32)])


def reflect(index: np.ndarray, size: int) -> np.ndarray:
    """Indices past either end, mirrored at the first and last pixel (which are not repeated), as often as needed."""
    if size == 1:
        return np.zeros_like(index)
    folded = index % (2 * size - 2)
    return np.minimum(folded, 2 * size - 2 - folded)


def touching(boxes: np.ndarray, box: Any) -> np.ndarray:
    """[n] bool, which of `boxes` [n, 4] (y0, x0, y1, x1) share a pixel with `box`."""
    return (boxes[:, 0] < box[2]) & (boxes[:, 2] > box[0]) & (boxes[:, 1] < box[3]) & (boxes[:, 3] > box[1])


def _tile_axis(size: int, *, tile: int, margin: int) -> list[tuple[int, int, int, int]]:
    """(frame start, frame stop, core start, core stop) of the tiles along an axis of `size` >= `tile`."""
    step = tile - 2 * margin
    count = 1 - (tile - size) // step
    cuts = [0, *(k * step + margin for k in range(1, count)), size]
    starts = [min(k * step, size - tile) for k in range(count)]
    return [(start, start + tile, cuts[k], cuts[k + 1]) for k, start in enumerate(starts)]


def _block_axis(size: int, *, block: int, halo: int, end: int) -> list[tuple[int, int, int, int]]:
    """(frame start, frame stop, core start, core stop) of the blocks along an axis; frames end at `end` at the latest."""
    cuts = [*range(0, size, block), size]
    return [(max(0, start - halo), end if stop == size else min(end, stop + halo), start, stop)
            for start, stop in zip(cuts, cuts[1:], strict=False)]


def _grid(rows: Sequence[tuple[int, int, int, int]], columns: Sequence[tuple[int, int, int, int]]) -> list[Window]:
    return [Window(frame=(r[0], c[0], r[1], c[1]), core=(r[2], c[2], r[3], c[3])) for r in rows for c in columns]


def ceil_to(value: int, unit: int) -> int:
    """The least multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


def check_multiple(name: str, value: int, unit: int, *, what: str) -> None:
    """Raises ValueError unless the setting `name` is a multiple of `unit`, which is `what`."""
    if value < 0 or value % unit:
        raise ValueError(f"{name} is {value}; it must be a multiple of {unit}, {what}. "
                         f"Use {ceil_to(max(value, 0), unit)}.")
