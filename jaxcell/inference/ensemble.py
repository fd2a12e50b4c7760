"""Overlapping windows, at several scales, by several networks: everyone who sees a pixel has a say, and the mean of all counts.

Where `jaxcell.inference.blocks` takes every pixel from one tile, here what all windows that cover it say is averaged, at every
scale. Options say where windows lie at the image's edges, what is averaged, and how much the places in a window count.
The image is walked through once, from top to bottom, and only the rows that the current blocks need are held: memory grows with
the image's width and a block's height. The outputs of several networks are averaged first, in the window (`mean_outputs`): where
outputs are what is averaged, this changes nothing but the work.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.special import expit, logit

from jaxcell.decode.classes import log_sum_exp, softmax
from jaxcell.inference.blocks import Apply, Maps
from jaxcell.inference.tiling import Box, Window, plan_blocks, read_region, reflect

__all__ = ["BLENDS", "EDGES", "MERGES", "Edge", "Merge", "constant_weights", "gaussian_weights", "mean_outputs", "merged_blocks",
           "plan_windows", "resample", "step_of_overlap"]

Normalize = Callable[[np.ndarray], np.ndarray]

ROWS = 256      # of the image that are merged at once: larger scales are never whole in memory


# ---------------------------------------------------------------- where windows lie, and what they see
@dataclass(frozen=True)
class Edge:
    """What happens at the edges of an image.

    Attributes:
      starts: (side of the image, side of a window, step) -> where windows begin along an axis.
      read: (image, normalize, size it is seen at, box that may reach past it) -> what a window sees, [h, w, C] float32.
    """

    starts: Callable[[int, int, int], list[int]]
    read: Callable[[Any, Normalize | None, tuple[int, int], Box], np.ndarray]


def _aligned(size: int, window: int, step: int) -> list[int]:
    """The last window ends with the image, or begins with it where the image is smaller."""
    return [min(start, max(size - window, 0)) for start in range(0, max(size - window, 0) + step, step)]


def _centred(size: int, window: int, step: int) -> list[int]:
    """The last window ends with the image, or has it in its middle where the image is smaller."""
    return _aligned(size, window, step) if size >= window else [-((window - size) // 2)]


def _padded(size: int, window: int, step: int) -> list[int]:
    """Every multiple of the step below the size, so that the last windows reach past the image."""
    return list(range(0, size, step))


def _read_mirrored(image: Any, normalize: Normalize | None, size: tuple[int, int], box: Box) -> np.ndarray:
    """The pixels `box` of the normalised image resized to `size`, reflected where it reaches past a side."""
    wanted = [reflect(np.arange(start, stop), side) for start, stop, side in zip(box[:2], box[2:], size, strict=True)]
    at = [_places(index, side, full) for index, side, full in zip(wanted, size, image.shape[:2], strict=True)]
    low = [int(places.min()) for places in at]
    high = [min(int(np.ceil(places.max())) + 1, full) for places, full in zip(at, image.shape[:2], strict=True)]
    region = _normalized(read_region(image, (low[0], low[1], high[0], high[1])), normalize)
    return resample(region, at[0] - low[0], at[1] - low[1])


def _read_padded(image: Any, normalize: Normalize | None, size: tuple[int, int], box: Box) -> np.ndarray:
    """The same with what zeros as stored become where it reaches past the bottom or right."""
    y0, x0, y1, x1 = box
    zero = _normalized(np.zeros((1, 1, image.shape[2]), image.dtype), normalize)
    seen = np.tile(zero, (y1 - y0, x1 - x0, 1))
    inside = _read_mirrored(image, normalize, size, (y0, x0, min(y1, size[0]), min(x1, size[1])))
    seen[:inside.shape[0], :inside.shape[1]] = inside
    return seen


EDGES: Mapping[str, Edge] = {
    "aligned": Edge(_aligned, _read_mirrored),
    "centred": Edge(_centred, _read_mirrored),
    "padded": Edge(_padded, _read_padded),
}
"""name -> rule. The first two move the last window inwards and reflect an image that is smaller than a window, at the bottom and
right or (MAUNet) on all sides; "padded" (MorphoSeg) adds zeros."""


def plan_windows(shape: tuple[int, int], *, window: int, step: int, edges: str = "aligned") -> list[Box]:
    """The windows of an image, row by row.

    Args:
      shape: (H, W) of the image, pixels.
      window: side of a window, pixels; MorphoSeg 224, MAUNet and SEU-Net 512.
      step: between the beginnings of windows, pixels; MorphoSeg 168, MAUNet 384, SEU-Net 256.
      edges: an entry of `EDGES`; of "padded" the last windows may hold only a few pixels of the image.

    Returns:
      (y0, x0, y0 + window, x0 + window) of each; they may reach past the image.

    Raises:
      ValueError: windows that leave gaps, or another word as `edges`.

    Source: RanchoGoose/MorphoSeg@a2ab9fe, utils.py infer_large_image_in_patches ("padded"); MONAI's sliding_window_inference
      ("centred").
    """
    if not 0 < step <= window:
        raise ValueError(f"step is {step} for windows of {window}; it must be 1 to {window}, or pixels between windows are not "
                         "seen. Use for example three quarters of the window.")
    if edges not in EDGES:
        raise ValueError(f"edges={edges!r} is unknown; known are {', '.join(EDGES)}.")
    rows, columns = (EDGES[edges].starts(size, window, step) for size in shape)
    return [(y, x, y + window, x + window) for y in rows for x in columns]


def step_of_overlap(window: int, overlap: float) -> int:
    """The step of windows of which the next one covers a share `overlap` in [0, 1) too.

    Source: MONAI's sliding_window_inference.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}; it is a share of the window in [0, 1). Use for example 0.25.")
    return max(1, int(window * (1 - overlap)))


# ---------------------------------------------------------------- what is averaged
@dataclass(frozen=True)
class Merge:
    """How the answers of windows become one.

    Attributes:
      votes: a map [..., K] of windows -> what is averaged, [..., L].
      result: the mean [h, w, L] -> a map [h, w, K] in the network's own terms, for the decoder.
    """

    votes: Callable[[np.ndarray], np.ndarray]
    result: Callable[[np.ndarray], np.ndarray]


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):      # a class that nobody votes for is impossible: -inf
        return np.log(values)


def _probabilities_and_size(logits: np.ndarray) -> np.ndarray:
    return np.concatenate([softmax(logits), log_sum_exp(logits)[..., None]], axis=-1)


def _logits_of_both(mean: np.ndarray) -> np.ndarray:
    return _log(mean[..., :-1]) + mean[..., -1:]


def _labels(logits: np.ndarray) -> np.ndarray:
    return (logits.argmax(axis=-1)[..., None] == np.arange(logits.shape[-1])).astype(np.float32)


def _same(values: np.ndarray) -> np.ndarray:
    return values


MERGES: Mapping[str, Merge] = {
    "outputs": Merge(_same, _same),
    "probabilities": Merge(_probabilities_and_size, _logits_of_both),
    "labels": Merge(_labels, _log),
    "planes": Merge(expit, logit),
}
"""name -> merge. "outputs" averages any maps as they are. For maps of logits: "probabilities" gives the logits whose softmax is
the mean probability and whose energy the mean energy of the windows; "labels" (MorphoSeg's release) those whose softmax is the
share of windows that chose each class (their energy says nothing); "planes", for planes that each are a yes or no of their own,
the logits whose sigmoid is the mean probability."""


# ---------------------------------------------------------------- how much a window's pixels count
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


# ---------------------------------------------------------------- all of it
def check_merging(*, window: int, step: int, edges: str, merge: str, blend: str, scales: Sequence[float], batch: int,
                  divisor: int) -> None:
    """Checks what does not depend on the image, before there is one; see `merged_blocks`.

    Raises:
      ValueError: sizes break a rule, or a word is unknown.
    """
    if window <= 0 or window % divisor:
        raise ValueError(f"window is {window}; it must be a positive multiple of {divisor}, the network's divisor. Use "
                         f"{max(1, -(-window // divisor)) * divisor}.")
    for key, name, table in (("merge", merge, MERGES), ("blend", blend, BLENDS)):
        if name not in table:
            raise ValueError(f"{key}={name!r} is unknown; known are {', '.join(table)}.")
    if not scales or min(scales) <= 0 or batch < 1:
        raise ValueError(f"scales are {tuple(scales)} and batch is {batch}; at least one scale, all above 0, and a batch of 1 or "
                         "more are needed.")
    plan_windows((window, window), window=window, step=step, edges=edges)


def merged_blocks(apply: Apply, image: Any, *, window: int, step: int, edges: str = "aligned", merge: str = "outputs",
                  blend: str = "constant", scales: Sequence[float] = (1.0,), large: int = 25_000_000, block: int, halo: int,
                  batch: int, divisor: int, normalize: Normalize | None = None) -> Iterator[tuple[Window, Maps]]:
    """The mean of overlapping windows at several scales, block by block: `maps` for `jaxcell.inference.blocks.predict_image`.

    Args:
      apply: the network, or several (see `mean_outputs`); images [batch, window, window, C] float32 -> dict of arrays
        [batch, window, window, K]. Called with one shape only, with zeros where windows run out.
      image: [H, W, C] as stored, anything with `shape` and slicing.
      window: side of a window, pixels, a multiple of `divisor`.
      step: between the beginnings of windows, pixels; see `plan_windows` and `step_of_overlap`.
      edges: an entry of `EDGES`.
      merge: an entry of `MERGES`.
      blend: how windows that cover a pixel count there, an entry of `BLENDS`.
      scales: sizes at which the network sees the image; resized bilinearly, corner on corner, there and back.
      large: pixels of an image from which only scale 1 is used.
      block: side of a block, pixels; at least the image's for a decoder that measures the whole image.
      halo: pixels around a block.
      batch: windows per call.
      divisor: what the network's input sides must be multiples of.
      normalize: pixel values as stored -> as the network expects them, each pixel alike, before resizing; None converts to
        float32.

    Yields:
      (window, maps): maps is a dict of [h, w, K] float32 arrays of the block's frame, of the image's own size.

    Raises:
      ValueError: sizes break a rule above, a word is unknown, or an output has another size than its window.

    Source: Woof6/neurips22-cellseg_saltfish@c2b85d5, predict.py, and MONAI's sliding_window_inference (edges "centred", merge
      "outputs"); MorphoSeg, section 5.5, and RanchoGoose/MorphoSeg@a2ab9fe, utils.py infer_large_image_in_patches (edges
      "padded", merge "labels"; its test then keeps what all windows agree on); the thesis behind sparse_seunet, section 5.2.
    Departs: an image of any size is reflected up to a window, as often as needed; MAUNet's released script fails for sides below
      a third of it.
    """
    if len(image.shape) != 3 or 0 in image.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}; it must be [H, W, C] with pixels. Add a channel axis: "
                         "image[..., None].")
    check_merging(window=window, step=step, edges=edges, merge=merge, blend=blend, scales=scales, batch=batch, divisor=divisor)
    shape, chosen = (int(image.shape[0]), int(image.shape[1])), MERGES[merge]
    sizes = [_scaled(shape, scale) for scale in (scales if shape[0] * shape[1] < large else (1,))]
    plans = [plan_windows(size, window=window, step=step, edges=edges) for size in sizes]
    weights = BLENDS[blend](window)[..., None]
    strips = [_Rows(_averaged_rows(apply, partial(EDGES[edges].read, image, normalize, size), plan, size, weights=weights,
                                   votes=chosen.votes, batch=batch), size) for size, plan in zip(sizes, plans, strict=True)]
    merged = strips[0] if sizes == [shape] else _Rows(_mean_of_scales(strips, shape), shape)
    rows = itertools.groupby(plan_blocks(shape, block=block, halo=halo, stride=1), lambda member: member.frame[::2])
    for (y0, y1), members in rows:
        maps = merged.between(y0, y1)
        for member in members:
            yield member, {key: chosen.result(value[:, member.frame[1]:member.frame[3]]) for key, value in maps.items()}
        del maps        # before the next rows are made


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


def _normalized(region: np.ndarray, normalize: Normalize | None) -> np.ndarray:
    return (region if normalize is None else normalize(region)).astype(np.float32, copy=False)


def _averaged_rows(apply: Apply, read: Callable[[Box], np.ndarray], boxes: Sequence[Box], size: tuple[int, int], *,
                   weights: np.ndarray, votes: Callable[[np.ndarray], np.ndarray], batch: int) -> Iterator[Maps]:
    """Means [n, W, L] of the rows of the image resized to `size`, downwards, as soon as no window changes them any more."""
    (top, left), (bottom, right), window = boxes[0][:2], boxes[-1][2:], len(weights)
    sums: Maps = {}     # of the rows `top` to `top + window`, and of all columns that windows cover
    count = np.zeros((window, right - left, 1), np.float32)

    def means(stop: int) -> Maps:
        inside = np.s_[max(-top, 0):min(stop, size[0]) - top, -left:size[1] - left]
        return {key: value[inside] / count[inside] for key, value in sums.items()}

    for first in range(0, len(boxes), batch):
        members = boxes[first:first + batch]
        seen = [read(box) for box in members]
        spare = np.zeros((batch - len(seen), *seen[0].shape), np.float32)
        outputs = _of_windows(apply(np.concatenate([np.stack(seen), spare])), window)
        said = {key: votes(value[:len(members)]) for key, value in outputs.items()}
        sums = sums or {key: np.zeros((*count.shape[:2], value.shape[3]), np.float32) for key, value in said.items()}
        for slot, (y0, x0, _, x1) in enumerate(members):
            if y0 > top:
                yield means(y0)
                for array in (count, *sums.values()):
                    array[:top + window - y0] = array[y0 - top:]
                    array[top + window - y0:] = 0
                top = y0
            count[:, x0 - left:x1 - left] += weights
            for key, value in said.items():
                sums[key][:, x0 - left:x1 - left] += value[slot] * weights
    yield means(bottom)


def _of_windows(outputs: Mapping[str, Any], window: int) -> Maps:
    arrays = {key: np.asarray(value) for key, value in outputs.items()}
    for key, value in arrays.items():
        if value.ndim != 4 or value.shape[1:3] != (window, window):
            raise ValueError(f"output {key!r} has shape {value.shape} for windows of {window}; it must be [batch, {window}, "
                             f"{window}, K]. Only maps of the image's own size can be averaged.")
    return {key: value.astype(np.float32, copy=False) for key, value in arrays.items()}


def _height(maps: Maps) -> int:
    return len(next(iter(maps.values())))


def _copied(maps: Maps, first: int) -> Maps:
    """The rows from `first` on."""
    return {key: value[first:].copy() for key, value in maps.items()}


class _Rows:
    """Rows of maps, made when they are asked for and forgotten when later ones are."""

    def __init__(self, made: Iterator[Maps], size: tuple[int, int]):
        self.made, self.size = made, size
        self.first, self.held = 0, list[Maps]()     # consecutive rows, the first of them `first`

    def between(self, start: int, stop: int) -> Maps:
        """Maps [stop - start, W, C], to be read only; `start` never falls from one call to the next."""
        result, at = dict[str, np.ndarray](), self.first
        if self.held:       # what is no longer wanted goes before new rows are made, here and below: hence copies
            spent = min(start - at, _height(self.held[0]))
            self.held[0], at = _copied(self.held[0], spent), at + spent
        while at < stop:
            part = self.held.pop(0) if self.held else next(self.made)
            rows = _height(part)
            result = result or {key: np.empty((stop - start, *value.shape[1:]), np.float32) for key, value in part.items()}
            low, high = max(start, at), min(stop, at + rows)
            for key, value in part.items():
                result[key][max(0, low - start):max(0, high - start)] = value[min(low - at, rows):high - at]
            beyond = _copied(part, stop - at)
            del part
            at += rows
        self.first, self.held = start, [result, beyond, *self.held]
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
