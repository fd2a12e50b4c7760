"""Images of any size through a network whose outputs are no maps but a list of cells for each tile: every cell once.

What such a network says of two tiles cannot be put together pixel by pixel: number 7 of one tile is another cell than number 7 of
the next. So each tile is decoded alone, with all of its surroundings, and its cells are claimed:

1. A tile owns the cells whose centre lies in its core. The cores of all tiles partition the image, so a cell that tiles see alike
   has exactly one owner; it lies whole in the owner's tile if it is no larger than the margin.
2. Two tiles see a cell near a seam with different surroundings, and may draw it a little differently: then both, or none of them,
   find its centre in their own core. Therefore cells beyond the core, by a quarter of the margin at most, are put forward as
   well, and stay only where no tile owns a cell that is the same (mask IoU above 0.5).

A network with N answers a tile finds N cells there at most; its decoder warns where all N are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxcell.inference.seams import centres_within, place_in_image, seam_duplicates, warn_of_cut_cells
from jaxcell.inference.tiling import Window, plan_tiles, read_batch
from jaxcell.types import Instances

__all__ = ["predict_image_by_windows"]


def predict_image_by_windows(apply: Callable[[np.ndarray], Mapping[str, Any]], image: Any, *,
                             decode: Callable[[Mapping[str, np.ndarray]], Instances], tile: int, margin: int, batch: int,
                             divisor: int, normalize: Callable[[np.ndarray], np.ndarray] | None = None) -> Instances:
    """The cells of an image of any size, each once.

    Args:
      apply: the network; images [batch, tile, tile, C] float32 -> dict of arrays with that leading axis.
      image: [H, W, C], anything with `shape` and slicing; only what a batch of tiles covers is read at once.
      decode: outputs of one tile, without the leading axis -> Instances in a region of [tile, tile].
      tile: side of the network's input, pixels, a multiple of `divisor`; an image that is smaller is reflected up to it.
      margin: pixels by which neighbouring tiles see each other's core, at least the size of the largest cell; twice of it is a
        multiple of `divisor`.
      batch: tiles per call.
      divisor: what the network's input sides must be multiples of.
      normalize: pixel values as stored -> as the network expects them; None converts to float32.

    Returns:
      Instances in the image; ordered by tile, then as decoded.

    Raises:
      ValueError: sizes break a rule above.

    Warns:
      UserWarning: once, when cells that a tile owns are cut by its end; and whenever `decode` does.
    """
    shape = (int(image.shape[0]), int(image.shape[1]))
    tiles = plan_tiles(shape, tile=tile, margin=margin, divisor=divisor)
    parts: list[Instances] = []
    owned: list[np.ndarray] = []
    cut_sizes: list[np.ndarray] = []
    for first in range(0, len(tiles), batch):
        members = tiles[first:first + batch]
        images = read_batch(image, [member.frame for member in members], batch=batch, normalize=normalize)
        outputs = {key: np.asarray(value) for key, value in apply(images).items()}
        for slot, member in enumerate(members):
            found, own, sizes = _claims(decode({key: value[slot] for key, value in outputs.items()}), member, shape, margin // 4)
            parts.append(found)
            owned.append(own)
            cut_sizes.append(sizes)
    warn_of_cut_cells(np.concatenate(cut_sizes), end=f"their tile of {tile} px", remedy=(
        f"Set margin, now {margin} px, above the size of the largest cell."))
    cells = Instances.concatenate(parts)
    # Scores are in [0, 1]: lowered by 2, whatever nobody owns yields to every cell with an owner.
    ranked = replace(cells, scores=cells.scores - 2 * ~np.concatenate(owned))
    tile_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return cells.select(~seam_duplicates(ranked, tile_of, [member.core for member in tiles]))


def _claims(found: Instances, tile: Window, shape: tuple[int, int], band: int) -> tuple[Instances, np.ndarray, np.ndarray]:
    """Cells of a tile that are in its core or near it, which of them it owns [M], and the sizes of those it owns but cuts."""
    cells, cut = place_in_image(found, tile, shape)
    own = centres_within(cells, tile.core)
    y0, x0, y1, x1 = tile.core
    near = centres_within(cells, (y0 - band, x0 - band, y1 + band, x1 + band))
    kept = own | near & ~cut
    return cells.select(kept), own[kept], (cells.boxes[:, 2:] - cells.boxes[:, :2])[own & cut]
