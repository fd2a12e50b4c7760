"""Overlapping windows whose answers are averaged, as in MorphoSeg: every window that covers a pixel has a say.

`jaxcell.inference.blocks` takes every pixel from one tile. Here windows overlap by `window - step`, and what they say of a
pixel's classes is merged: probabilities, or the released code's hard labels. Blocks and memory are those of `blocks`: about one
row of blocks of the image's width is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxcell.decode.classes import log_sum_exp, softmax
from jaxcell.inference.blocks import (
    Apply,
    Box,
    Decode,
    Maps,
    Watch,
    Window,
    decode_blocks,
    plan_blocks,
    read_batch,
    read_region,
    walk_blocks,
    watched,
)
from jaxcell.types import Instances

__all__ = ["EDGES", "MERGES", "Edge", "Merge", "plan_windows", "predict_image_sliding", "sliding_blocks"]


# ---------------------------------------------------------------- where windows lie
@dataclass(frozen=True)
class Edge:
    """What happens at the far edges of an image.

    Attributes:
      starts: (side of the image, side of a window, step) -> where windows begin along an axis.
      read: (image, box that may reach past it) -> what a window sees, as stored.
    """

    starts: Callable[[int, int, int], list[int]]
    read: Callable[[Any, Box], np.ndarray]


def _aligned(size: int, window: int, step: int) -> list[int]:
    """The last window ends with the image, or begins with it where the image is smaller."""
    return [min(start, max(size - window, 0)) for start in range(0, max(size - window, 0) + step, step)]


def _padded(size: int, window: int, step: int) -> list[int]:
    """Every multiple of the step below the size, so that the last windows reach past the image."""
    return list(range(0, size, step))


def _read_padded(image: Any, box: Box) -> np.ndarray:
    """The region with zeros where it reaches past the image."""
    y1, x1 = min(box[2], image.shape[0]), min(box[3], image.shape[1])
    return np.pad(read_region(image, (box[0], box[1], y1, x1)), ((0, box[2] - y1), (0, box[3] - x1), (0, 0)))


EDGES: Mapping[str, Edge] = {"aligned": Edge(_aligned, read_region), "padded": Edge(_padded, _read_padded)}
"""name -> rule. "aligned" moves the last window inwards and reflects images smaller than a window; "padded" (released) adds
zeros."""


def plan_windows(shape: tuple[int, int], *, window: int, step: int, edges: str = "aligned") -> list[Box]:
    """The windows of an image, row by row.

    Args:
      shape: (H, W) of the image, pixels.
      window: side of a window, pixels; MorphoSeg 224.
      step: between the beginnings of windows, pixels; MorphoSeg 168, which is an overlap of 56.
      edges: an entry of `EDGES`; of "padded" the last windows may hold only a few pixels of the image.

    Returns:
      (y0, x0, y0 + window, x0 + window) of each; they may reach past the image.

    Raises:
      ValueError: windows that leave gaps, or another word as `edges`.

    Source: RanchoGoose/MorphoSeg@a2ab9fe, utils.py infer_large_image_in_patches ("padded").
    """
    if not 0 < step <= window:
        raise ValueError(f"step is {step} for windows of {window}; it must be 1 to {window}, or pixels between windows are not "
                         "seen. Use for example three quarters of the window.")
    if edges not in EDGES:
        raise ValueError(f"edges={edges!r} is unknown; known are {', '.join(EDGES)}.")
    rows, columns = (EDGES[edges].starts(size, window, step) for size in shape)
    return [(y, x, y + window, x + window) for y in rows for x in columns]


# ---------------------------------------------------------------- what is averaged
@dataclass(frozen=True)
class Merge:
    """How the answers of windows become one.

    Attributes:
      votes: a window's map [h, w, K] -> what is averaged, [h, w, L].
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
    "probabilities": Merge(_probabilities_and_size, _logits_of_both),
    "labels": Merge(_labels, _log),
    "outputs": Merge(_same, _same),
}
"""name -> merge. For maps of logits: "probabilities" gives the logits whose softmax is the mean probability and whose energy the
mean energy of the windows; "labels" (released) those whose softmax is the share of windows that chose each class (their energy
says nothing). "outputs" averages any maps as they are."""


def sliding_blocks(apply: Apply, image: Any, *, window: int, step: int, edges: str = "aligned", merge: str = "probabilities",
                   block: int, halo: int, batch: int, divisor: int,
                   normalize: Callable[[np.ndarray], np.ndarray] | None = None) -> Iterator[tuple[Window, Maps]]:
    """The merged maps of an image, block by block; see `predict_image_sliding` for the arguments.

    Yields:
      (window, maps): maps is a dict of [h, w, K] float32 arrays of the block's frame, of the image's own size.
    """
    if len(image.shape) != 3 or 0 in image.shape or batch < 1:
        raise ValueError(f"image has shape {tuple(image.shape)} and batch is {batch}; an image is [H, W, C] with pixels, and a "
                         "batch is 1 or more. Add a channel axis: image[..., None].")
    if window % divisor:
        raise ValueError(f"window is {window}; it must be a multiple of {divisor}, the network's divisor. Use "
                         f"{-(-window // divisor) * divisor}.")
    if merge not in MERGES:
        raise ValueError(f"merge={merge!r} is unknown; known are {', '.join(MERGES)}.")
    shape, chosen = (int(image.shape[0]), int(image.shape[1])), MERGES[merge]
    frames = plan_windows(shape, window=window, step=step, edges=edges)
    inside = [(y0, x0, min(y1, shape[0]), min(x1, shape[1])) for y0, x0, y1, x1 in frames]

    def launch(number: int) -> Mapping[str, Any]:
        members = frames[number * batch:(number + 1) * batch]
        outputs = apply(read_batch(image, members, batch=batch, normalize=normalize, read=EDGES[edges].read))
        _check_size(outputs, window)
        return outputs

    def cut(index: int, output: Maps) -> Maps:
        y0, x0, y1, x1 = inside[index]
        return {key: chosen.votes(value[:y1 - y0, :x1 - x0].astype(np.float32)) for key, value in output.items()}

    blocks = plan_blocks(shape, block=block, halo=halo, stride=1)
    for member, parts in walk_blocks(launch, inside, blocks, batch=batch, cut=cut):
        yield member, {key: chosen.result(value) for key, value in _mean(parts, inside, member.frame).items()}


def predict_image_sliding(apply: Apply, image: Any, *, decode: Decode, window: int, step: int, edges: str = "aligned",
                          merge: str = "probabilities", block: int, halo: int, batch: int, divisor: int,
                          normalize: Callable[[np.ndarray], np.ndarray] | None = None, watch: Watch | None = None) -> Instances:
    """The cells of an image of any size from the mean of overlapping windows.

    Args:
      apply: the network; images [batch, window, window, C] float32 -> dict of arrays [batch, window, window, K]. Called with one
        shape only, with zeros where windows run out.
      image: [H, W, C] as stored, anything with `shape` and slicing.
      decode: merged maps of a region (dict of [h, w, K]) -> Instances in that region; runs in another thread.
      window: see `plan_windows`.
      step: see there.
      edges: see there.
      merge: an entry of `MERGES`.
      block: side of the region decoded at once, pixels, without its halo.
      halo: pixels around a block, at least the size of the largest cell.
      batch: windows per call.
      divisor: what the network's input sides must be multiples of.
      normalize: pixel values as stored -> as the network expects them, each pixel alike; None converts to float32.
      watch: is shown the maps of each block, see `jaxcell.inference.blocks.watched`.

    Returns:
      Instances in the image; ordered by block, then as decoded.

    Raises:
      ValueError: sizes break a rule above, a word is unknown, or an output has another size than its window.

    Warns:
      UserWarning: once, when cells are cut by the end of a halo.

    Source: MorphoSeg, section 5.5; RanchoGoose/MorphoSeg@a2ab9fe, utils.py infer_large_image_in_patches (edges "padded", merge
      "labels"; its test then keeps what all windows agree on).
    Departs: the defaults. Windows at the far edges see image instead of zeros, and probabilities know how sure a window was.
    """
    blocks = sliding_blocks(apply, image, window=window, step=step, edges=edges, merge=merge, block=block, halo=halo, batch=batch,
                            divisor=divisor, normalize=normalize)
    return decode_blocks(watched(blocks, watch), (int(image.shape[0]), int(image.shape[1])), decode=decode, halo=halo)


def _check_size(outputs: Mapping[str, Any], window: int) -> None:
    for key, value in outputs.items():
        if value.ndim != 4 or tuple(value.shape[1:3]) != (window, window):
            raise ValueError(f"output {key!r} has shape {tuple(value.shape)} for windows of {window}; it must be [batch, "
                             f"{window}, {window}, K]. Only maps of the image's own size can be averaged.")


def _mean(parts: Mapping[int, Maps], pieces: Sequence[Box], frame: Box) -> Maps:
    """The mean over the pieces that cover each pixel of a frame."""
    y0, x0, y1, x1 = frame
    some = next(iter(parts.values()))
    sums = {key: np.zeros((y1 - y0, x1 - x0, value.shape[2]), np.float32) for key, value in some.items()}
    count = np.zeros((y1 - y0, x1 - x0, 1), np.float32)
    for index, part in parts.items():
        top, left, bottom, right = pieces[index]
        a, b, c, d = max(y0, top), max(x0, left), min(y1, bottom), min(x1, right)
        target = np.s_[a - y0:c - y0, b - x0:d - x0]
        count[target] += 1
        for key, value in part.items():
            sums[key][target] += value[a - top:c - top, b - left:d - left]
    return {key: value / count for key, value in sums.items()}
