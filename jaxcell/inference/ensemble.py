"""Overlapping windows whose maps are blended, at several scales, by several networks: the mean of all of them.

Where `jaxcell.inference.blocks` takes every pixel from one tile, here every window that covers a pixel has a say, and so has
every scale. The image is walked through once, from top to bottom, and only the rows that the current blocks need are held: memory
grows with the image's width and a block's height. Means, blending and resizing are linear, so networks are averaged first, in
the window (`mean_outputs`), which changes nothing but the work.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcell.inference.blocks import (
    Apply,
    Decode,
    Maps,
    Watch,
    Window,
    decode_blocks,
    plan_blocks,
    read_region,
    reflect,
    watched,
)
from jaxcell.types import Instances

__all__ = ["BLENDS", "constant_weights", "gaussian_weights", "mean_outputs", "merged_blocks", "predict_image_merged", "resample",
           "window_starts"]

Normalize = Callable[[np.ndarray], np.ndarray]

ROWS = 256      # of the image that are merged at once: larger scales are never whole in memory


def constant_weights(window: int) -> np.ndarray:
    """[window, window] float32: every pixel of a window counts alike."""
    return np.ones((window, window), np.float32)


def gaussian_weights(window: int) -> np.ndarray:
    """[window, window] float32: a Gaussian of an eighth of the window, at least 0.001, so that a window's middle counts most.

    Source: MONAI 1.6, compute_importance_map (0.9 has a slightly different one).
    """
    away = np.arange(window) - (window - 1) / 2
    line = np.exp(-away ** 2 / (2 * (0.125 * window) ** 2))
    weights = (line[:, None] * line).astype(np.float32)
    return np.maximum(weights, max(weights.min(), np.float32(1e-3)))


BLENDS: Mapping[str, Callable[[int], np.ndarray]] = {"constant": constant_weights, "gaussian": gaussian_weights}
"""name -> (side of a window) -> how much each of its pixels counts."""


def window_starts(size: int, *, window: int, overlap: float) -> list[int]:
    """Where windows begin along an axis of `size` >= `window` pixels; the last one ends with the image.

    Source: MONAI's sliding_window_inference.
    """
    step = max(1, int(window * (1 - overlap)))
    return [min(start, size - window) for start in range(0, size - window + step, step)]


def mean_outputs(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of several networks' outputs, key by key; numpy or jax arrays. Those of a single one stay as they are.

    Raises:
      ValueError: the networks have different keys.
    """
    first = outputs[0]
    if len(outputs) == 1:
        return dict(first)
    if any(set(other) != set(first) for other in outputs):
        raise ValueError(f"the networks to be merged have the outputs {[sorted(other) for other in outputs]}; they must be the "
                         "same. Merge networks of one system.")
    return {key: sum(other[key] for other in outputs) / len(outputs) for key in first}


def merged_blocks(apply: Apply, image: Any, *, window: int, overlap: float, blend: str, scales: Sequence[float], block: int,
                  halo: int, batch: int, divisor: int, large: int = 25_000_000, normalize: Normalize | None = None
                  ) -> Iterator[tuple[Window, Maps]]:
    """The merged maps of an image, block by block; see `predict_image_merged` for the arguments.

    Yields:
      (window, maps): maps is a dict of [h, w, C] float32 arrays of the window's frame, of the image's own size.
    """
    if len(image.shape) != 3 or 0 in image.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}; it must be [H, W, C] with pixels. Add a channel axis: "
                         "image[..., None].")
    if window <= 0 or window % divisor:
        raise ValueError(f"window is {window}; it must be a positive multiple of {divisor}. Use "
                         f"{max(1, -(-window // divisor)) * divisor}.")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}; it is a share of the window in [0, 1). Use for example 0.25.")
    if blend not in BLENDS:
        raise ValueError(f"blend {blend!r} is unknown; known are {', '.join(BLENDS)}.")
    if not scales or min(scales) <= 0 or batch < 1:
        raise ValueError(f"scales are {tuple(scales)} and batch is {batch}; at least one scale, all above 0, and a batch of 1 or "
                         "more are needed.")
    shape = (int(image.shape[0]), int(image.shape[1]))
    sizes = [_scaled(shape, scale) for scale in (scales if shape[0] * shape[1] < large else (1,))]
    weights = BLENDS[blend](window)
    strips = [_Rows(_blended_rows(apply, image, size, window=window, overlap=overlap, weights=weights, batch=batch,
                                  normalize=normalize), size) for size in sizes]
    merged = _Rows(_mean_of_scales(strips, shape), shape)
    rows = itertools.groupby(plan_blocks(shape, block=block, halo=halo, stride=1), lambda member: member.frame[::2])
    for (y0, y1), members in rows:
        maps = merged.between(y0, y1)
        for member in members:
            yield member, {key: value[:, member.frame[1]:member.frame[3]] for key, value in maps.items()}


def predict_image_merged(apply: Apply, image: Any, *, decode: Decode, window: int, overlap: float = 0.25, blend: str = "constant",
                         scales: Sequence[float] = (1.0, 1.25, 1.5), large: int = 25_000_000, block: int, halo: int, batch: int,
                         divisor: int, normalize: Normalize | None = None, watch: Watch | None = None) -> Instances:
    """The cells of an image of any size from the mean of overlapping windows at several scales.

    Args:
      apply: the network, or several (see `mean_outputs`); images [batch, window, window, C] float32 -> dict of arrays
        [batch, window, window, ...]. Called with one shape only, with zeros where windows run out.
      image: [H, W, C] as stored, anything with `shape` and slicing.
      decode: merged maps of a region (dict of [h, w, ...]) -> Instances in that region; runs in another thread.
      window: side of a window, pixels, a multiple of `divisor`; 512 in MAUNet's release. Smaller images are reflected up to it.
      overlap: share of a window that the next one covers too.
      blend: how windows that cover a pixel count there, an entry of `BLENDS`.
      scales: sizes at which the network sees the image; resized bilinearly, corner on corner, there and back.
      large: pixels of an image from which only scale 1 is used.
      block: side of the region decoded at once, pixels; at least the image's for a decoder that measures the whole image.
      halo: pixels around a block, at least the size of the largest cell.
      batch: windows per call.
      divisor: what the network's input sides must be multiples of.
      normalize: pixel values as stored -> as the network expects them, before resizing; None converts to float32.
      watch: is shown the maps of each block, see `jaxcell.inference.blocks.watched`.

    Returns:
      Instances in the image; ordered by block, then as decoded.

    Raises:
      ValueError: sizes break a rule above, `blend` is unknown, or an output has another size than its window.

    Warns:
      UserWarning: once, when cells are cut by the end of a halo.

    Source: Woof6/neurips22-cellseg_saltfish@c2b85d5, predict.py; MONAI's sliding_window_inference.
    Departs: an image of any size is reflected up to a window, as often as needed; the released script fails for sides below a
      third of it.
    """
    blocks = merged_blocks(apply, image, window=window, overlap=overlap, blend=blend, scales=scales, large=large, block=block,
                           halo=halo, batch=batch, divisor=divisor, normalize=normalize)
    return decode_blocks(watched(blocks, watch), (int(image.shape[0]), int(image.shape[1])), decode=decode, halo=halo)


def resample(array: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Values between pixels, bilinearly.

    Args:
      array: [H, W, C] float32.
      rows: [h] floats in [0, H - 1], pixels.
      columns: [w] floats in [0, W - 1], pixels.

    Returns:
      [h, w, C] float32.
    """
    return _lerp(_lerp(array, rows, 0), columns, 1)


def _lerp(array: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    low = np.floor(at).astype(np.int64)
    share = (at - low).astype(np.float32)
    first = np.take(array, low, axis)
    if not share.any():
        return first
    share = share.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    step = np.take(array, np.minimum(low + 1, array.shape[axis] - 1), axis)
    step -= first
    step *= share
    first += step
    return first


def _scaled(shape: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, int(scale * shape[0])), max(1, int(scale * shape[1]))


def _places(index: np.ndarray, size: int, other: int) -> np.ndarray:
    """Where pixels `index` of an axis of `size` lie on one of `other` pixels if the ends lie upon each other."""
    return index * ((other - 1) / (size - 1)) if size > 1 else np.zeros(index.shape)


def _read_scaled(image: Any, box: tuple[int, int, int, int], size: tuple[int, int], normalize: Normalize | None) -> np.ndarray:
    """The pixels `box` of the normalised image resized to `size`, reflected where it reaches past a side; [h, w, C] float32."""
    wanted = [reflect(np.arange(start, stop), side) for start, stop, side in zip(box[:2], box[2:], size, strict=True)]
    at = [_places(index, side, full) for index, side, full in zip(wanted, size, image.shape[:2], strict=True)]
    low = [int(places.min()) for places in at]
    high = [min(int(places.max()) + 2, full) for places, full in zip(at, image.shape[:2], strict=True)]
    region = read_region(image, (low[0], low[1], high[0], high[1]))
    region = (region if normalize is None else normalize(region)).astype(np.float32, copy=False)
    return resample(region, at[0] - low[0], at[1] - low[1])


def _blended_rows(apply: Apply, image: Any, size: tuple[int, int], *, window: int, overlap: float, weights: np.ndarray,
                  batch: int, normalize: Normalize | None) -> Iterator[Maps]:
    """Maps [n, W, C] of the rows of the image resized to `size`, downwards, as soon as no window changes them any more."""
    full = max(size[0], window), max(size[1], window)
    before = (full[0] - size[0]) // 2, (full[1] - size[1]) // 2
    inside = np.s_[before[0]:before[0] + size[0], before[1]:before[1] + size[1]]
    corners = [(y, x) for y in window_starts(full[0], window=window, overlap=overlap)
               for x in window_starts(full[1], window=window, overlap=overlap)]
    sums: Maps = {}
    count, top = np.zeros((0, full[1]), np.float32), 0
    for first in range(0, len(corners), batch):
        members = corners[first:first + batch]
        boxes = [(y - before[0], x - before[1], y - before[0] + window, x - before[1] + window) for y, x in members]
        read = [_read_scaled(image, box, size, normalize) for box in boxes]
        spare = np.zeros((batch - len(read), *read[0].shape), np.float32)
        outputs = _of_windows(apply(np.concatenate([np.stack(read), spare])), window)

        count = _with_rows(count, members[-1][0] + window - top)
        sums = sums or {key: np.zeros((0, full[1], value.shape[3]), np.float32) for key, value in outputs.items()}
        sums = {key: _with_rows(value, len(count)) for key, value in sums.items()}
        for slot, (y, x) in enumerate(members):
            covered = np.s_[y - top:y - top + window, x:x + window]
            count[covered] += weights
            for key, value in outputs.items():
                sums[key][covered] += value[slot] * weights[..., None]
        done = (corners[first + batch][0] if first + batch < len(corners) else full[0]) - top
        if done:
            finished = {key: value[:done] / count[:done, :, None] for key, value in sums.items()}
            yield {key: value[inside] for key, value in finished.items()} if full != size else finished
            sums, count, top = {key: value[done:] for key, value in sums.items()}, count[done:], top + done


def _of_windows(outputs: Mapping[str, Any], window: int) -> Maps:
    arrays = {key: np.asarray(value) for key, value in outputs.items()}
    for key, value in arrays.items():
        if value.ndim != 4 or value.shape[1:3] != (window, window):
            raise ValueError(f"output {key!r} has shape {value.shape} for windows of {window}; it must be [batch, {window}, "
                             f"{window}, C]. Only maps of the image's own size can be blended.")
    return arrays


def _with_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """The array with zeros below it, `rows` rows in all."""
    if len(array) == rows:
        return array
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])


class _Rows:
    """Rows of maps, made when they are asked for and forgotten when later ones are."""

    def __init__(self, made: Iterator[Maps], size: tuple[int, int]):
        self.made, self.size = made, size
        self.first, self.held = 0, list[Maps]()     # consecutive rows, the first of them `first`

    def between(self, start: int, stop: int) -> Maps:
        """Maps [stop - start, W, C], to be read only; `start` never falls from one call to the next."""
        result: Maps = {}
        at = self.first
        while at < stop:
            part = self.held.pop(0) if self.held else next(self.made)
            rows = len(next(iter(part.values())))
            result = result or {key: np.empty((stop - start, *value.shape[1:]), np.float32) for key, value in part.items()}
            low, high = max(start, at), min(stop, at + rows)
            for key, value in part.items():
                result[key][max(0, low - start):max(0, high - start)] = value[min(low - at, rows):high - at]
            at += rows
        beyond = [{key: value[rows - at + stop:] for key, value in part.items()}] if at > stop else []
        self.first, self.held = start, [result, *beyond, *self.held]
        return result


def _mean_of_scales(strips: Sequence[_Rows], shape: tuple[int, int]) -> Iterator[Maps]:
    """Rows of the image downwards, at most `ROWS` at once: the mean of all scales, resized back."""
    for first in range(0, shape[0], ROWS):
        merged: Maps = {}
        for strip in strips:
            rows = _places(np.arange(first, min(first + ROWS, shape[0])), shape[0], strip.size[0])
            columns = _places(np.arange(shape[1]), shape[1], strip.size[1])
            start, stop = int(rows[0]), min(int(np.ceil(rows[-1])) + 1, strip.size[0])
            for key, value in strip.between(start, stop).items():
                value = value if strip.size == shape else resample(value, rows - start, columns)
                merged[key] = merged[key] + value if key in merged else value
        yield {key: value / len(strips) for key, value in merged.items()} if len(strips) > 1 else merged
