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

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxcell.types import Instances

__all__ = ["Window", "centres_within", "clip_instances", "decode_blocks", "decode_window", "dense_blocks", "place_in_image",
           "plan_blocks", "plan_tiles", "predict_image", "predict_maps", "read_batch", "read_region", "reflect",
           "seam_duplicates", "warn_of_cut_cells"]

Apply = Callable[[np.ndarray], Mapping[str, Any]]
Maps = dict[str, np.ndarray]
Decode = Callable[[Mapping[str, np.ndarray]], Instances]
Box = tuple[int, int, int, int]

SAME_OBJECT = 0.5      # mask IoU above which two cells from different blocks are one: no two disjoint cells can both pass it


@dataclass(frozen=True)
class Window:
    """A piece of work on the image.

    Attributes:
      frame: (y0, x0, y1, x1), what is looked at.
      core: (y0, x0, y1, x1) inside the frame, what is kept; the cores of all windows are disjoint and cover the image.
    """

    frame: Box
    core: Box


Watch = Callable[[Window, Maps], None]
BlockMaps = Callable[..., Iterator[tuple[Window, Maps]]]     # (apply, image, block, halo, batch, divisor, normalize) -> blocks


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
    _check_multiple("tile", tile, divisor, what="the network's divisor")
    _check_multiple("twice the margin", 2 * margin, divisor, what="the network's divisor")
    if tile - 2 * margin <= 0:
        raise ValueError(f"tile {tile} with margin {margin} keeps nothing: the core is tile - 2 * margin. Use a larger tile.")
    rows, columns = (_tile_axis(max(tile, _ceil(size, divisor)), tile=tile, margin=margin) for size in shape)
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
        _check_multiple(name, value, stride, what="the coarsest output's stride")
    if block <= 0:
        raise ValueError(f"block is {block}; it must be positive. Use 1024 or more, or one block for the whole image.")
    rows, columns = (_block_axis(size, block=block, halo=halo, end=_ceil(size, stride)) for size in shape)
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
    _check_multiple("margin", margin, coarsest, what="the coarsest output's stride")
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
    needs = [np.flatnonzero(_touches(boxes, b.frame)) for b in blocks]
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


def clip_instances(instances: Instances, shape: tuple[int, int]) -> Instances:
    """The part of every cell that lies in an image of `shape` (H, W); cells wholly outside are dropped.

    Coordinates among the extras (`Instances.POINTS`) are moved to the last pixel. Returns the same cells if `shape` is theirs.
    """
    if instances.shape == shape:
        return instances
    boxes = np.minimum(instances.boxes, np.tile(np.asarray(shape, np.int32), 2))
    masks = [mask[:y1 - y0, :x1 - x0] for mask, (y0, x0, y1, x1) in zip(instances.masks, boxes, strict=True)]
    last = np.asarray(shape) - 1
    extras = {key: np.minimum(value, np.resize(last, value.shape[-1])).astype(value.dtype) if key in Instances.POINTS else value
              for key, value in instances.extras.items()}
    clipped = replace(instances, shape=shape, boxes=boxes, masks=masks, extras=extras)
    return clipped.select(np.asarray([bool(mask.any()) for mask in masks], bool))


def seam_duplicates(instances: Instances, block_of: np.ndarray, cores: Sequence[Box]) -> np.ndarray:
    """Cells that a neighbouring block reported too, with a higher score.

    Only pairs from different blocks are compared, and only where one of them reaches out of its own core: two cells that
    one block decoded both stay, however much they overlap.

    Args:
      instances: M cells of one image.
      block_of: [M] int, the block that reported each.
      cores: (y0, x0, y1, x1) of every block.

    Returns:
      [M] bool, True for the cell to drop: mask IoU above 0.5 with one that is kept and scores higher (or as high and earlier).
    """
    boxes, drop = instances.boxes, np.zeros(len(instances), bool)
    own = np.asarray(cores).reshape(-1, 4)[block_of]
    crossing = (boxes[:, :2] < own[:, :2]).any(1) | (boxes[:, 2:] > own[:, 2:]).any(1)
    twins: dict[int, list[int]] = {}
    for i in np.flatnonzero(crossing).tolist():
        near = _touches(boxes, boxes[i]) & (block_of != block_of[i])
        for j in np.flatnonzero(near).tolist():
            if _mask_iou(instances, i, j) > SAME_OBJECT:
                twins.setdefault(i, []).append(j)
                twins.setdefault(j, []).append(i)
    for i in sorted(twins, key=lambda i: (-instances.scores[i], i)):
        if not drop[i]:
            drop[[j for j in twins[i] if (instances.scores[j], -j) < (instances.scores[i], -i)]] = True
    return drop


def decode_window(decode: Decode, maps: Mapping[str, np.ndarray], window: Window,
                  shape: tuple[int, int]) -> tuple[Instances, np.ndarray]:
    """The cells whose centre lies in a window's core, in image coordinates, and the sizes [n, 2] of those cut by the frame's end.

    Args:
      decode: maps of the frame -> Instances in it.
      maps: of the frame.
      window: of the image; its frame may reach past the image's bottom and right.
      shape: (H, W) of the image, pixels.

    Raises:
      ValueError: the decoder's Instances are of another shape than the frame.
    """
    found, cut = place_in_image(decode(maps), window, shape)
    owned = centres_within(found, window.core)
    return found.select(owned), (found.boxes[:, 2:] - found.boxes[:, :2])[owned & cut]


def place_in_image(found: Instances, window: Window, shape: tuple[int, int]) -> tuple[Instances, np.ndarray]:
    """Cells of a window's frame in the image, and which of them [M] the end of the frame cuts.

    Args:
      found: in the frame; what lies past the image is clipped.
      window: of the image.
      shape: (H, W) of the image, pixels.

    Raises:
      ValueError: `found` is of another shape than the frame.
    """
    y0, x0, y1, x1 = window.frame
    if found.shape != (y1 - y0, x1 - x0):
        raise ValueError(f"decode returned Instances of shape {found.shape} for a region of {(y1 - y0, x1 - x0)}; the shape is "
                         "the size of the region in image pixels. Take it from the maps and their strides.")
    found = found.shift((y0, x0), (max(y1, shape[0]), max(x1, shape[1])))
    inner = np.asarray([y0 > 0, x0 > 0, y1 < shape[0], x1 < shape[1]])
    cut = ((found.boxes == np.asarray(window.frame)) & inner).any(1)
    tagged = clip_instances(replace(found, extras={**found.extras, "cut": cut}), shape)
    return replace(tagged, extras={key: tagged.extras[key] for key in found.extras}), tagged.extras["cut"]


def centres_within(instances: Instances, box: Box) -> np.ndarray:
    """[M] bool, whether the middle of a cell's box lies in `box` (y0, x0, y1, x1), half-open."""
    centre = (instances.boxes[:, :2] + instances.boxes[:, 2:]) / 2
    return ((centre >= np.asarray(box[:2])) & (centre < np.asarray(box[2:]))).all(1)


def warn_of_cut_cells(sizes: np.ndarray, *, end: str, remedy: str) -> None:
    """Says how many cells were cut by the end of what, and how large they are at least; nothing if there are none.

    Args:
      sizes: [n, 2] (height, width), pixels.
      end: of what.
      remedy: a sentence.
    """
    if len(sizes):
        height, width = sizes[np.argmax(sizes.max(1))]
        warnings.warn(f"{len(sizes)} cells reach the end of {end} and are cut there (the largest is at least {height} x {width} "
                      f"px). {remedy}", UserWarning, stacklevel=4)


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


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _check_multiple(name: str, value: int, unit: int, *, what: str) -> None:
    if value < 0 or value % unit:
        raise ValueError(f"{name} is {value}; it must be a multiple of {unit}, {what}. "
                         f"Use {_ceil(max(value, 0), unit)}.")


def reflect(index: np.ndarray, size: int) -> np.ndarray:
    """Indices past either end, mirrored at the first and last pixel (which are not repeated), as often as needed."""
    if size == 1:
        return np.zeros_like(index)
    folded = index % (2 * size - 2)
    return np.minimum(folded, 2 * size - 2 - folded)


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


def _touches(boxes: np.ndarray, box: Any) -> np.ndarray:
    """[n] bool: which of `boxes` [n, 4] share a pixel with `box`."""
    return (boxes[:, 0] < box[2]) & (boxes[:, 2] > box[0]) & (boxes[:, 1] < box[3]) & (boxes[:, 3] > box[1])


def _mask_iou(instances: Instances, i: int, j: int) -> float:
    a, b = instances.boxes[i], instances.boxes[j]
    y0, x0, y1, x1 = np.maximum(a[:2], b[:2]).tolist() + np.minimum(a[2:], b[2:]).tolist()
    first = instances.masks[i][y0 - a[0]:y1 - a[0], x0 - a[1]:x1 - a[1]]
    second = instances.masks[j][y0 - b[0]:y1 - b[0], x0 - b[1]:x1 - b[1]]
    shared = int((first & second).sum())
    return shared / (int(instances.masks[i].sum()) + int(instances.masks[j].sum()) - shared)
