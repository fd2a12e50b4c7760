"""What the opener of every format gives: what an image file says about itself, and a way to fetch its pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

__all__ = ["ARRAY_PLANES", "MAP_FROM", "Fetch", "Index", "Opener", "Refused", "Stored", "array_axes", "chosen_part",
           "decoded_whole", "is_whole", "listed", "mapped"]

Index = tuple[int | slice, ...]
"""One entry an axis: an int drops the axis, `slice(None)` takes all of it, other slices have both ends and step 1."""
Fetch = Callable[[Index], np.ndarray]
MAP_FROM = 1 << 26
"""Bytes from which pixels are mapped, not read: every open map holds a file handle, and a cache holds thousands of images."""
ARRAY_PLANES = 64
"""An array without named axes and with a longer last one is rather [C, H, W] than [H, W, C]."""
FEW_ROWS, FEW_PLANES = 4, 8
"""So is one of so few rows with more planes: 3 x 40 pixels with 50 channels are 3 channels of 40 x 50 pixels."""


class Refused(ValueError):
    """A whole reason with its remedy, such as "it holds no array; ...": the reader puts the file's name before it."""


@dataclass(frozen=True)
class Stored:
    """An opened image file, before anything is chosen, turned or converted.

    Attributes:
      axes: a letter for every axis, in the file's order: Y, X, S (samples: red, green, blue, alpha), C (channels), Z (focal
        planes), T (time), P and R (positions), and other letters for pages of unknown meaning.
      shape: their sizes.
      dtype: of the pixels.
      fetch: index -> pixels, decoding little more than asked for where the format allows.
      pixel_size: micrometres, None where unknown.
      channel_names: of axis C, or none.
      block_bytes: what must be decoded at least to get one pixel.
      orientation: how to turn the picture for display, 1 to 8 as in EXIF.
      alpha: the last sample is alpha.
      close: lets the file go.
    """

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Fetch
    pixel_size: float | None = None
    channel_names: tuple[str, ...] = ()
    block_bytes: int = 0
    orientation: int = 1
    alpha: bool = False
    close: Callable[[], None] = lambda: None


class Opener(Protocol):
    """Opens a file of one format."""

    def __call__(self, path: Path, *, parts: Mapping[str, int | str], numbers: bool, limit: int) -> Stored:
        """Opens the file.

        Args:
          path: an existing file, or folder where the format is one.
          parts: which of several images in the file: "series", "level", "array" or "scene" -> index or name.
          numbers: keep the numbers as stored (labels): no colours for palettes, nothing inverted, no lossy compression.
          limit: bytes, most that may be read before the size of the image is known.
        """


def is_whole(index: Index) -> bool:
    """Whether the index takes everything."""
    return all(entry == slice(None) for entry in index)


def decoded_whole(decode: Callable[[], np.ndarray]) -> Fetch:
    """Fetches from a picture that is only decoded whole: once for all regions, each time for all of it."""
    kept: list[np.ndarray] = []

    def fetch(index: Index) -> np.ndarray:
        if is_whole(index):
            return decode()
        kept.extend([decode()] if not kept else [])
        return kept[0][index].copy()

    return fetch


def mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int, *, order: Literal["C", "F"] = "C") -> Fetch:
    """Fetches from pixels that lie in a file as in memory: all of them as a read-only map if they are many, others as a copy."""
    size = prod(shape) * dtype.itemsize
    if path.stat().st_size < offset + size:
        raise ValueError(f"its pixels end {offset + size - path.stat().st_size} bytes too early")

    def fetch(index: Index) -> np.ndarray:
        if is_whole(index) and size < MAP_FROM:
            return np.fromfile(path, dtype, prod(shape), offset=offset).reshape(shape, order=order)
        pixels = np.memmap(path, dtype, "r", offset, shape, order)
        return pixels if is_whole(index) else np.array(pixels[index])

    return fetch


def array_axes(shape: tuple[int, ...]) -> str:
    """The axes of an array that has no names for them: [H, W] or [H, W, C].

    Raises:
      Refused: another number of axes, or a last one that is too long for channels.
    """
    most = ARRAY_PLANES if shape and shape[0] > FEW_ROWS else FEW_PLANES
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] > most):
        raise Refused(f"its shape is {shape}; an array must be [H, W] or [H, W, C] with at most {ARRAY_PLANES} planes ("
                      f"{FEW_PLANES} over {FEW_ROWS} rows or fewer), so move the channels to the end with "
                      "numpy.moveaxis(array, 0, -1).")
    return "YXC"[:len(shape)]


def chosen_part(kind: str, names: tuple[str, ...], choice: int | str | None) -> int | None:
    """The position of the chosen one of several parts of a file.

    Args:
      kind: "series", "level", "array" or "scene".
      names: of all parts; empty or doubled ones can be chosen by number only.
      choice: a name, a number from 0, or None.

    Returns:
      The number, or None for no choice.

    Raises:
      Refused: there is no such part.
    """
    if choice is None:
        return None
    if isinstance(choice, str) and names.count(choice) == 1:
        return names.index(choice)
    if isinstance(choice, int) and 0 <= choice < len(names):
        return choice
    raise Refused(f"it has no {kind} {choice!r}; {listed(kind, names)}.")


def listed(kind: str, names: tuple[str, ...]) -> str:
    """The choices of a kind of part, as the end of a sentence: "choose with select={...}"."""
    shown = [repr(name) if name and names.count(name) == 1 else str(number) for number, name in enumerate(names[:8])]
    return f"choose with select={{{kind!r}: ...}} one of its {len(names)}: {', '.join(shown)}{', ...' if len(names) > 8 else ''}"
