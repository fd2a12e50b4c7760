"""From an opened file to [H, W, C]: the chosen planes of the chosen region, upright, without needless alpha."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from math import prod

import cv2
import numpy as np

from jaxcell.data.formats.stored import Index, Refused, Stored

__all__ = ["check_choice", "displayed_size", "is_opaque", "read_planes"]

Region = tuple[int, int, int, int]
SEVERAL = {"T": "a movie of {} time points", "P": "{} positions", "R": "{} positions", "M": "{} tiles of a mosaic"}
"""Axes that are no planes of one image. (R is Micro-Manager's position.)"""
PROJECTIONS = ("max", "mean")
UPRIGHT = {1: (False, False, False), 2: (False, False, True), 3: (False, True, True), 4: (False, True, False),
           5: (True, False, False), 6: (True, False, True), 7: (True, True, True), 8: (True, True, False)}
"""EXIF orientation -> (swap y and x, then flip y, flip x)."""
BAND = 1024     # rows in which alpha is looked through


def check_choice(stored: Stored, select: Mapping[str, int | str]) -> dict[str, int | str]:
    """The selection with names of channels turned into their numbers.

    Args:
      stored: the file.
      select: axis -> index, name of a channel (axis C), "max" or "mean".

    Returns:
      axis -> index, "max" or "mean".

    Raises:
      Refused: the file lacks the axis, or the axis the index or name.
    """
    chosen: dict[str, int | str] = {}
    if not select:
        return chosen
    planes = {axis: size for axis, size in zip(stored.axes, stored.shape, strict=True) if axis not in "YX"}
    for axis, value in select.items():
        if axis not in planes or stored.axes.count(axis) > 1:
            has = ", ".join(f"{a} ({n})" for a, n in planes.items()) or "none"
            raise Refused(f"select names {axis!r}, but its axes beside Y and X are {has}; select one of those, and parts of Y "
                          "and X by region.")
        if axis == "C" and isinstance(value, str) and value in stored.channel_names:
            value = stored.channel_names.index(value)
        if value not in PROJECTIONS and not (isinstance(value, int) and 0 <= value < planes[axis]):
            names = f", a name of {', '.join(stored.channel_names)}" if axis == "C" and stored.channel_names else ""
            raise Refused(f"select={{{axis!r}: {value!r}}} is none of its planes; give a number from 0 to "
                          f"{planes[axis] - 1}{names}, 'max' or 'mean'.")
        chosen[axis] = value
    return chosen


def displayed_size(stored: Stored) -> tuple[int, int]:
    """(height, width) of the upright picture.

    Raises:
      Refused: no axis Y or X, or no pixels.
    """
    if stored.axes.count("Y") != 1 or stored.axes.count("X") != 1:
        raise Refused(f"its axes are {stored.axes!r}; an image needs Y and X. Save it with named axes, for example as OME-TIFF.")
    if 0 in stored.shape:
        raise Refused(f"its shape is {stored.shape}; an image has at least one pixel. Save it anew.")
    size = stored.shape[stored.axes.index("Y")], stored.shape[stored.axes.index("X")]
    return size[::-1] if UPRIGHT[stored.orientation][0] else size


def read_planes(stored: Stored, chosen: Mapping[str, int | str], *, region: Region | None, limit: int,
                opaque: Callable[[], bool]) -> np.ndarray:
    """The chosen planes of a region.

    Args:
      stored: the file.
      chosen: of `check_choice`.
      region: (y0, x0, y1, x1) of the upright picture; None takes all.
      limit: bytes, most for the pixels or for what must be decoded to get them.
      opaque: whether alpha is opaque in the whole file, asked for a region only.

    Returns:
      [H, W, C], all axes but Y and X as planes in the file's order, samples fastest.

    Raises:
      Refused: several images, a region outside, or too large.
    """
    window = dict(zip("YX", _window(stored, region), strict=True))
    entries: list[int | slice] = [
        window.get(axis) or _plane_entry(stored, axis, size, chosen.get(axis))
        for axis, size in zip(stored.axes, stored.shape, strict=True)]
    projections = {stored.axes.index(axis): str(value) for axis, value in chosen.items() if value in PROJECTIONS}
    _refuse_large(stored, tuple(entries), projections, limit)
    pixels = _projected(stored, entries, projections)
    axes = "".join(axis for n, axis in enumerate(stored.axes) if isinstance(entries[n], slice) and n not in projections)
    if stored.alpha and "S" in axes and pixels.shape[axes.index("S")] > 1:
        kept = np.moveaxis(pixels, axes.index("S"), -1)
        if opaque() if region else _all_opaque(kept[..., -1]):
            pixels = np.moveaxis(_without_last(kept), -1, axes.index("S"))
    return _upright(_planes_last(pixels, axes), stored.orientation)


def _refuse_large(stored: Stored, index: Index, projections: Mapping[int, str], limit: int) -> None:
    """Refuses what would need more than `limit` bytes, judged by the header alone."""
    shape = [1 if isinstance(e, int) or n in projections else size if e == slice(None) else e.stop - e.start
             for n, (e, size) in enumerate(zip(index, stored.shape, strict=True))]
    itemsize = 4 if "mean" in projections.values() else stored.dtype.itemsize
    need = prod(shape) * itemsize
    if stored.block_bytes > limit:
        raise Refused(f"its pixels, {stored.shape} of {stored.dtype}, are decoded in blocks of {stored.block_bytes / 1e9:.1f} "
                      f"GB, more than max_gb={limit / 1e9:g}; raise max_gb, or save it as Zarr or tiled TIFF.")
    if need > limit:
        raise Refused(f"its pixels, {stored.shape} of {stored.dtype}, would take {need / 1e9:.1f} GB, more than "
                      f"max_gb={limit / 1e9:g}; read a region or a part of its planes, or raise max_gb.")


def is_opaque(stored: Stored) -> bool:
    """Whether the alpha of the whole file says "opaque", looked through in bands of rows."""
    base: list[int | slice] = [slice(None)] * len(stored.axes)
    base[stored.axes.index("S")] = stored.shape[stored.axes.index("S")] - 1
    y = stored.axes.index("Y")
    bands = (slice(top, min(top + BAND, stored.shape[y])) for top in range(0, stored.shape[y], BAND))
    return all(_all_opaque(stored.fetch(tuple(base[:y] + [band] + base[y + 1:]))) for band in bands)


def _all_opaque(alpha: np.ndarray) -> bool:
    return bool((alpha == (np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1)).all())


def _without_last(samples: np.ndarray) -> np.ndarray:
    if samples.ndim == 3 and samples.shape[2] == 4 and samples.dtype in (np.uint8, np.uint16, np.float32):
        return cv2.cvtColor(samples, cv2.COLOR_RGBA2RGB)       # forty times as fast as a copy of the slice
    return np.ascontiguousarray(samples[..., :-1])


def _plane_entry(stored: Stored, axis: str, size: int, choice: int | str | None) -> int | slice:
    if isinstance(choice, int):
        return choice
    if choice is None and axis in SEVERAL and size > 1:
        raise Refused(f"it holds {SEVERAL[axis].format(size)}, and an image is one of them; choose with select={{{axis!r}: 0}}, "
                      f"or project with select={{{axis!r}: 'max'}}.")
    if axis == "S" and stored.alpha and size == 2:
        return slice(0, 1)      # alpha beside grey would pass for a second channel
    return slice(None)


def _window(stored: Stored, region: Region | None) -> tuple[slice, slice]:
    """The rows and columns, as stored, that show a region of the upright picture."""
    if region is None:
        return slice(None), slice(None)
    height, width = displayed_size(stored)
    y0, x0, y1, x1 = map(int, region)
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        raise Refused(f"the region {tuple(region)} does not lie in its {height} x {width} pixels; give (y0, x0, y1, x1), half "
                      "open.")
    swap, flip_y, flip_x = UPRIGHT[stored.orientation]
    rows = slice(height - y1, height - y0) if flip_y else slice(y0, y1)
    columns = slice(width - x1, width - x0) if flip_x else slice(x0, x1)
    return (columns, rows) if swap else (rows, columns)


def _projected(stored: Stored, entries: list[int | slice], projections: Mapping[int, str]) -> np.ndarray:
    """The pixels, projected plane by plane, so that no more than one plane is held beside the result."""
    if not projections:
        return stored.fetch(tuple(entries))
    (axis, how), *others = projections.items()
    size = stored.shape[axis]
    planes = (_projected(stored, entries[:axis] + [n] + entries[axis + 1:], dict(others)) for n in range(size))
    if how == "max":
        return reduce(np.maximum, planes)
    return (reduce(np.add, (plane.astype(np.float64) for plane in planes)) / size).astype(np.float32)


def _planes_last(pixels: np.ndarray, axes: str) -> np.ndarray:
    places = range(len(axes))
    planes = sorted((n for n in places if axes[n] not in "YX"), key=lambda n: (axes[n] == "S", n))
    y, x = axes.index("Y"), axes.index("X")
    return pixels.transpose(*planes, y, x).reshape(-1, pixels.shape[y], pixels.shape[x]).transpose(1, 2, 0)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    if orientation == 1:
        return image
    swap, flip_y, flip_x = UPRIGHT[orientation]
    image = image.transpose(1, 0, 2) if swap else image
    return np.ascontiguousarray(image[::-1 if flip_y else 1, ::-1 if flip_x else 1])
