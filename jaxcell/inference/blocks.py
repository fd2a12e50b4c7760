"""Images of any size through a network of one input shape: every pixel once, every cell once, no seams.

Two grids lie over an image, and they do not know each other.

*Tiles* feed the network. All have one shape, so it is compiled once. A tile's outputs are kept only in its core, the part
further than `margin` from its inner sides, where the network saw enough surroundings.
*Blocks* feed the decoder, which needs whole cells. A block is decoded with a halo around it and keeps the cells whose
centre lies in its core.

Theorem. The tiles' cores partition the (padded) image, and the blocks' cores partition the image. Hence
  1. Every output pixel comes from exactly one tile, chosen by the image's size alone: the dense maps of an image are a
     function of the image, whatever the blocks are.
  2. Every object whose box is no larger than the halo is owned by exactly one block. It lies whole in the frame of the
     block whose core holds its centre; and where another frame cuts it, the cut piece begins outside that block's core,
     so its centre is not in there. (The decoder must find an object alike wherever it sees all of it.)
  3. An image no larger than one block is decoded in one piece: tiling changes nothing at all.
Objects larger than the halo can break 2; they are counted and reported with the remedy, and pairs that two blocks both
report are reduced to the better one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxcell.inference.seams import Decode, decode_window, seam_duplicates, warn_of_cut_cells
from jaxcell.inference.tiling import Box, Window, check_multiple, plan_blocks, plan_tiles, read_batch, touching
from jaxcell.types import Instances

__all__ = ["Apply", "BlockMaps", "Maps", "decode_blocks", "dense_blocks", "predict_image", "predict_maps"]

Apply = Callable[[np.ndarray], Mapping[str, Any]]
Maps = dict[str, np.ndarray]
Watch = Callable[[Window, Maps], None]
BlockMaps = Callable[..., Iterator[tuple[Window, Maps]]]     # (apply, image, block, halo, batch, divisor, normalize) -> blocks


def dense_blocks(apply: Apply, image: Any, *, tile: int, margin: int, block: int, halo: int, batch: int, divisor: int,
                 normalize: Callable[[np.ndarray], np.ndarray] | None = None) -> Iterator[tuple[Window, Maps]]:
    """The network's dense maps, block by block, every pixel from one tile.

    Tiles are batched in their own row-by-row order, never in the blocks' order, so that a tile is computed in the same
    place of the same batch whatever the blocks are. Its core is kept until the last block that needs it: at most about
    one row of blocks of the image's width is in memory.

    Args:
      apply: the network; images [batch, tile, tile, C] float32 -> dict of arrays [batch, tile / s, tile / s, ...], each with
        its own stride s. Called with one shape only, with zeros where tiles run out.
      image: [H, W, C], anything with `shape` and slicing; only what a tile covers is read at once.
      tile: side of the network's input, pixels, a multiple of `divisor`.
      margin: pixels of a tile's inner sides whose outputs are not used, about half the receptive field; a multiple of the
        coarsest output's stride, and twice of it a multiple of `divisor`.
      block: see `predict_image`, as what follows; block and halo are multiples of the coarsest output's stride.
      halo: see there.
      batch: see there.
      divisor: see there; a multiple of every output's stride.
      normalize: see there.

    Yields:
      (window, maps): maps is a dict of [h, w, C] arrays of the window's frame, each at its own stride.

    Raises:
      ValueError: sizes break a rule above, or an output is no dense map.
    """
    if len(image.shape) != 3:
        raise ValueError(f"image has shape {tuple(image.shape)}; it must be [H, W, C]. Add a channel axis: image[..., None].")
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1.")
    shape = (int(image.shape[0]), int(image.shape[1]))
    if 0 in shape:
        raise ValueError(f"image has shape {tuple(image.shape)}: it has no pixels.")
    tiles = plan_tiles(shape, tile=tile, margin=margin, divisor=divisor)

    def launch(number: int) -> Mapping[str, Any]:
        members = tiles[number * batch:(number + 1) * batch]
        return apply(read_batch(image, [member.frame for member in members], batch=batch, normalize=normalize))

    first = launch(0)
    strides = _strides(first, tile=tile, divisor=divisor)
    coarsest = max(strides.values())
    check_multiple("margin", margin, coarsest, what="the coarsest output's stride")
    blocks = plan_blocks(shape, block=block, halo=halo, stride=coarsest)

    def cut(index: int, output: Maps) -> Maps:
        return {key: _cut(value, tiles[index], strides[key]) for key, value in output.items()}

    walk = _walk_blocks(lambda number: launch(number) if number else first, [t.core for t in tiles], blocks, batch=batch, cut=cut)
    for window, parts in walk:
        yield window, _assemble(parts, tiles, window, strides)


def predict_maps(apply: Apply, image: Any, *, maps: BlockMaps, batch: int, divisor: int,
                 normalize: Callable[[np.ndarray], np.ndarray] | None = None) -> Maps:
    """The network's dense maps of a whole image, [H, W, C] each, which are all in memory; see `predict_image` for the arguments.

    Outputs must be of the image's own size.
    """
    (_, whole), = maps(apply, image, block=-(-max(image.shape[:2]) // divisor) * divisor, halo=0, batch=batch, divisor=divisor,
                       normalize=normalize)
    return {name: value[:image.shape[0], :image.shape[1]] for name, value in whole.items()}


def predict_image(apply: Apply, image: Any, *, maps: BlockMaps, decode: Decode, block: int, halo: int, batch: int, divisor: int,
                  normalize: Callable[[np.ndarray], np.ndarray] | None = None, watch: Watch | None = None) -> Instances:
    """The cells of an image of any size, each once.

    The decoder works on one block in a thread while the network computes the maps of the next. An image no larger than
    `block` is one block: its cells are exactly what `decode` says of the whole image's maps.

    Args:
      apply: the network; images [batch, h, w, C] float32 -> dict of arrays with that leading axis.
      image: [H, W, C], anything with `shape` and slicing (array, memmap, zarr).
      maps: how outputs become maps of blocks: `dense_blocks`, or `jaxcell.inference.ensemble.merged_blocks`, its own settings
        bound.
      decode: dense maps of a region (dict of [h, w, ...]) -> Instances in that region; runs in another thread.
      block: side of the region decoded at once, pixels, without its halo.
      halo: pixels around a block, at least the size of the largest cell.
      batch: images per call.
      divisor: what the network's input sides must be multiples of.
      normalize: pixel values as stored -> as the network expects them; must treat each pixel alike wherever it is (take
        statistics over the whole image beforehand), else tiles would differ. None converts to float32.
      watch: is shown (window, maps of its frame) of each block, such as to write a map of the whole image.

    Returns:
      Instances in the image; ordered by block, then as decoded.

    Raises:
      ValueError: sizes break a rule of `maps`.

    Warns:
      UserWarning: once, when cells are cut by the end of a halo.
    """
    blocks = maps(apply, image, block=block, halo=halo, batch=batch, divisor=divisor, normalize=normalize)
    return decode_blocks(_watched(blocks, watch), (int(image.shape[0]), int(image.shape[1])), decode=decode, halo=halo)


def _watched(blocks: Iterable[tuple[Window, Maps]], watch: Watch | None) -> Iterator[tuple[Window, Maps]]:
    """The same blocks, each shown first to `watch`."""
    for window, maps in blocks:
        if watch is not None:
            watch(window, maps)
        yield window, maps


def decode_blocks(blocks: Iterable[tuple[Window, Maps]], shape: tuple[int, int], *, decode: Decode, halo: int) -> Instances:
    """The cells of an image from the maps of its blocks, each once; a block is decoded while the next one's maps are made.

    Args:
      blocks: all windows of `plan_blocks` and the maps of their frames, see `dense_blocks`.
      shape: (H, W) of the image, pixels.
      decode: see `predict_image`.
      halo: of the blocks, for the warning.

    Returns:
      Instances in the image; ordered by block, then as decoded.

    Raises:
      ValueError: `decode` returns another region than the block's.

    Warns:
      UserWarning: once, when cells are cut by the end of a halo.
    """
    parts: list[Instances] = []
    cut_sizes: list[np.ndarray] = []
    cores: list[Box] = []
    pending: Future[tuple[Instances, np.ndarray]] | None = None

    def finish(future: Future[tuple[Instances, np.ndarray]]) -> None:
        part, sizes = future.result()
        parts.append(part)
        cut_sizes.append(sizes)

    with ThreadPoolExecutor(max_workers=1) as pool:
        for window, maps in blocks:
            if pending is not None:
                finish(pending)
            pending = pool.submit(decode_window, decode, maps, window, shape)
            cores.append(window.core)
        assert pending is not None      # every image has a block
        finish(pending)
    warn_of_cut_cells(np.concatenate(cut_sizes), end=f"their block's halo of {halo} px",
                      remedy="Set halo above the size of the largest cell, or block above the size of the image.")
    found = Instances.concatenate(parts)
    if len(parts) == 1:
        return found
    block_of = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    return found.select(~seam_duplicates(found, block_of, cores))


def _walk_blocks(launch: Callable[[int], Mapping[str, Any]], pieces: Sequence[Box], blocks: Sequence[Window], *, batch: int,
                cut: Callable[[int, Maps], Maps]) -> Iterator[tuple[Window, dict[int, Maps]]]:
    """What the network says about each block, piece by piece; every batch is computed once.

    Args:
      launch: number of a batch -> its outputs, which may still be being computed.
      pieces: (y0, x0, y1, x1) of the image that each piece of the network's work says something about, in the order of batches.
      blocks: in the order wanted.
      batch: pieces of one batch.
      cut: (index of a piece, its outputs) -> what is kept of them; copies, so that the whole batch can be freed.

    Yields:
      (block, {index: what was kept}) with all the pieces that touch the block's frame. A piece is held until the last block that
      needs it.
    """
    cache: dict[int, Maps] = {}

    def collect(number: int, outputs: Mapping[str, Any]) -> None:
        arrays = {key: np.asarray(value) for key, value in outputs.items()}
        for slot, index in enumerate(range(number * batch, min((number + 1) * batch, len(pieces)))):
            cache[index] = cut(index, {key: value[slot] for key, value in arrays.items()})

    boxes, done = np.asarray(pieces), set[int]()
    needs = [np.flatnonzero(touching(boxes, b.frame)) for b in blocks]
    last_need = {int(index): number for number, members in enumerate(needs) for index in members}
    for number, window in enumerate(blocks):
        running: tuple[int, Mapping[str, Any]] | None = None
        for wanted in sorted({int(index) // batch for index in needs[number]} - done):
            started = wanted, launch(wanted)      # an accelerator computes this batch while the one before is copied out
            if running is not None:
                collect(*running)
            running = started
            done.add(wanted)
        if running is not None:
            collect(*running)
        yield window, {int(i): cache[int(i)] for i in needs[number]}
        for index in [i for i in cache if last_need[i] <= number]:
            del cache[index]


def _strides(outputs: Mapping[str, Any], *, tile: int, divisor: int) -> dict[str, int]:
    strides = {}
    for key, value in outputs.items():
        sides = tuple(value.shape[1:3])
        if len(sides) != 2 or sides[0] != sides[1] or not sides[0] or tile % sides[0] or divisor % (tile // sides[0]):
            raise ValueError(f"output {key!r} has shape {tuple(value.shape)} for tiles of {tile}; it must be [batch, h, w, ...] "
                             f"with h = w = {tile} / stride and a stride that divides {divisor}. Only dense maps can be tiled.")
        strides[key] = tile // sides[0]
    return strides


def _cut(output: np.ndarray, tile: Window, stride: int) -> np.ndarray:
    """The core of one tile's output; a copy, so that the whole batch can be freed."""
    y0, x0, y1, x1 = tile.core
    top, left = tile.frame[:2]
    return output[(y0 - top) // stride:(y1 - top) // stride, (x0 - left) // stride:(x1 - left) // stride].copy()


def _assemble(parts: Mapping[int, Maps], tiles: Sequence[Window], window: Window, strides: Mapping[str, int]) -> Maps:
    """Maps of a window's frame, put together from the cores of the tiles that touch it."""
    y0, x0, y1, x1 = window.frame
    some = next(iter(parts.values()))
    maps = {key: np.empty(((y1 - y0) // s, (x1 - x0) // s, *some[key].shape[2:]), some[key].dtype) for key, s in strides.items()}
    for index, part in parts.items():
        top, left, bottom, right = tiles[index].core
        a, b, c, d = max(y0, top), max(x0, left), min(y1, bottom), min(x1, right)
        for key, s in strides.items():
            maps[key][(a - y0) // s:(c - y0) // s, (b - x0) // s:(d - x0) // s] = \
                part[key][(a - top) // s:(c - top) // s, (b - left) // s:(d - left) // s]
    return maps
