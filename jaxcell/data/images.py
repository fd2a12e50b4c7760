"""Reads image and label files as arrays: PNG, JPEG, TIFF, BMP and npy, 8 to 64 bits, any number of planes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin

from jaxcell.geometry.labels import to_layers
from jaxcell.types import Instances

__all__ = ["SUFFIXES", "image_size", "pack_masks", "read_image", "read_labels"]

MOST_PLANES = 64    # an npy array with a longer last axis is rather [C, H, W] than [H, W, C]
PALETTE = b"\x03"   # colour type in a PNG header


# ---------------------------------------------------------------- one reader a format; `indices` keeps indexed colour as numbers
def _read_png(path: Path, *, indices: bool = False) -> np.ndarray:
    data = path.read_bytes()
    if indices and data[25:26] == PALETTE:
        with PngImagePlugin.PngImageFile(path) as file:
            return np.asarray(file)
    return _without_opaque_alpha(imagecodecs.png_decode(data))     # (PIL would cut 16-bit colour to 8 bits)


def _read_pil(path: Path, *, plugin: Callable[[Path], ImageFile.ImageFile], indices: bool = False) -> np.ndarray:
    # The plugin's own class: Image.open refuses images of more than 179 million pixels.
    with plugin(path) as file:
        if file.mode == "1":
            return np.asarray(file).astype(np.uint8) * 255
        if file.mode in ("L", "RGB") or (file.mode == "P" and indices):
            return np.asarray(file)
        return _without_opaque_alpha(np.asarray(file.convert("RGBA" if file.mode == "RGBA" else "RGB")))


def _read_tiff(path: Path, *, indices: bool = False) -> np.ndarray:
    with tifffile.TiffFile(path) as file:
        series, page = file.series[0], file.pages.first
        axes, image = series.axes, series.asarray()
        height, width = _extent(series.shape, axes)
        # All but Y and X become planes, in the file's order; samples (S: red, green, blue, alpha) run fastest.
        planes = sorted((a for a in axes if a not in "YX"), key=lambda a: (a == "S", axes.index(a)))
        image = image.transpose([axes.index(a) for a in ("Y", "X", *planes)]).reshape(height, width, -1)
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None and not indices:
            colours = (page.colormap >> 8).astype(np.uint8).T
            return colours[image].reshape(height, width, -1)
        return _without_opaque_alpha(image) if "S" in axes and page.extrasamples else image


def _read_npy(path: Path) -> np.ndarray:
    image = np.load(path, allow_pickle=False)
    _check_npy(image.shape)
    return image


def _check_npy(shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] > MOST_PLANES):
        raise ValueError(f"its shape is {shape}; an array must be [H, W] or [H, W, C] with at most {MOST_PLANES} planes, so "
                         "move the channels to the end with numpy.moveaxis(array, 0, -1)")


def _without_opaque_alpha(image: np.ndarray) -> np.ndarray:
    opaque = np.iinfo(image.dtype).max if image.dtype.kind in "iu" else 1
    if image.ndim == 3 and image.shape[2] in (2, 4) and (image[..., -1] == opaque).all():
        return np.ascontiguousarray(image[..., :-1])
    return image


# ---------------------------------------------------------------- (H, W) without decoding the pixels
def _size_pil(path: Path, *, plugin: Callable[[Path], ImageFile.ImageFile]) -> tuple[int, int]:
    with plugin(path) as file:
        return file.height, file.width


def _size_tiff(path: Path) -> tuple[int, int]:
    with tifffile.TiffFile(path) as file:
        return _extent(file.series[0].shape, file.series[0].axes)


def _size_npy(path: Path) -> tuple[int, int]:
    shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    _check_npy(shape)
    return shape[0], shape[1]


def _extent(shape: tuple[int, ...], axes: str) -> tuple[int, int]:
    if "Y" not in axes or "X" not in axes:
        raise ValueError(f"its axes are {axes!r}; an image needs Y and X")
    return shape[axes.index("Y")], shape[axes.index("X")]


# ---------------------------------------------------------------- what can be read
Table = Mapping[str, Callable[[Path], Any]]

_PNG, _JPEG, _BMP = PngImagePlugin.PngImageFile, JpegImagePlugin.JpegImageFile, BmpImagePlugin.BmpImageFile
IMAGE_READERS: Table = {
    ".png": _read_png, ".tif": _read_tiff, ".tiff": _read_tiff, ".npy": _read_npy, ".bmp": partial(_read_pil, plugin=_BMP),
    ".jpg": partial(_read_pil, plugin=_JPEG), ".jpeg": partial(_read_pil, plugin=_JPEG),
}
LABEL_READERS: Table = {     # no JPEG: it changes pixel values
    ".png": partial(_read_png, indices=True), ".tif": partial(_read_tiff, indices=True),
    ".tiff": partial(_read_tiff, indices=True), ".npy": _read_npy, ".bmp": partial(_read_pil, plugin=_BMP, indices=True),
}
SIZE_READERS: Table = {
    ".png": partial(_size_pil, plugin=_PNG), ".tif": _size_tiff, ".tiff": _size_tiff, ".npy": _size_npy,
    ".bmp": partial(_size_pil, plugin=_BMP), ".jpg": partial(_size_pil, plugin=_JPEG), ".jpeg": partial(_size_pil, plugin=_JPEG),
}
SUFFIXES = tuple(IMAGE_READERS)
"""File name endings (in lower case) that can be read."""


def read_image(path: str | Path) -> np.ndarray:
    """The pixels of an image file, as stored.

    Planes of a multi-page TIFF (channels, focal planes, time points) become channels in the file's order, found by its OME,
    ImageJ or page axes; of several series the first is read. Indexed colour becomes RGB, one bit becomes 0 and 255. Alpha
    that is opaque everywhere is dropped.

    Args:
      path: a file that ends in one of `SUFFIXES`.

    Returns:
      [H, W, C] in the file's dtype.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown ending, or the file cannot be decoded.
    """
    image = _read(IMAGE_READERS, Path(path))
    return image[..., None] if image.ndim == 2 else image


def read_labels(path: str | Path) -> np.ndarray:
    """The cells of a label file: a label image, or a stack with one mask per page.

    A stack is one of masks if no page holds more than one value beside 0: page k (from 1) is cell k, an empty page none.
    Masks that do not overlap share a layer. Other stacks are label layers already.

    Args:
      path: a file that ends in one of `SUFFIXES`; integers of any width, or floats without fractions.

    Returns:
      [H, W, D] int32, 0 background, -1 ignore. Ids are the file's; where one exceeds int32, all are renumbered from 1 in
      their order.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown ending, undecodable, a colour picture, fractions, or one id in several layers.
    """
    path = Path(path)
    stack = _read(LABEL_READERS, path)
    stack = stack[..., None] if stack.ndim == 2 else stack
    if path.suffix.lower() not in (".tif", ".tiff", ".npy") and stack.shape[2] > 1:
        if not (stack == stack[..., :1]).all():
            raise ValueError(f"{path}: is a colour picture of shape {stack.shape}; a label image has one number per cell. "
                             "Save the label array itself, not a rendering of it.")
        stack = stack[..., :1]      # grey saved as colour
    stack = _to_int32(stack, path)
    if stack.shape[2] == 1:
        return stack
    pages = [stack[..., k] for k in range(stack.shape[2])]
    cells = [ids[ids != 0] for ids in map(np.unique, pages)]
    if all(len(ids) <= 1 for ids in cells):
        return pack_masks((page != 0 for page in pages), stack.shape[:2])
    ids, counts = np.unique(np.concatenate([i[i > 0] for i in cells]), return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{path}: cell {ids[counts > 1][0]} occurs on several of the {len(pages)} pages; a cell lies in one "
                         "layer only. Save one page with one number per cell, or one page per cell.")
    return stack


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of an image file, from its header alone.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown ending, or the header cannot be read.
    """
    return _read(SIZE_READERS, Path(path))


def pack_masks(masks: Iterable[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Label layers of masks that may overlap.

    Args:
      masks: mask [H, W] bool of cell 1, 2, ...; an empty one leaves no trace. One is held at a time.
      shape: (H, W).

    Returns:
      [H, W, D] int32, one layer where nothing overlaps.
    """
    boxes, crops = [], []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1) if len(rows) else (0, 0, 0, 0)
        boxes.append(box)
        crops.append(mask[box[0]:box[2], box[1]:box[3]].copy())
    return to_layers(Instances(shape, np.asarray(boxes, np.int32).reshape(-1, 4), crops, np.ones(len(crops), np.float32)))


def _read(table: Table, path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix not in table:
        raise ValueError(f"{path}: a file that ends in {suffix!r} cannot be read here; known endings are {', '.join(table)}. "
                         "Convert it, for example to TIFF.")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; check the folder and the name.")
    try:
        return table[suffix](path)
    except Exception as error:      # each decoder has errors of its own, and all mean the same here
        raise ValueError(f"{path}: cannot be read as {suffix[1:]}: {error}. Check that the file is whole and is what its name "
                         "says, and save it anew if not.") from error


def _to_int32(labels: np.ndarray, path: Path) -> np.ndarray:
    if labels.dtype.kind == "f":
        whole = np.rint(labels)
        if not np.array_equal(whole, labels):
            raise ValueError(f"{path}: labels have fractions (such as {labels[whole != labels][0]}), but a cell's id is a whole "
                             "number. This looks like an image or a probability map; name the label file.")
        labels = whole.astype(np.int64)
    if labels.size and labels.min() < -1:
        raise ValueError(f"{path}: labels hold {labels.min()}; below 0 only -1 (ignore) has a meaning. Set background to 0.")
    if labels.size and labels.max() > np.iinfo(np.int32).max:
        dense = np.minimum(labels, 0).astype(np.int32)
        dense[labels > 0] = np.unique(labels[labels > 0], return_inverse=True)[1] + 1
        return dense
    return labels.astype(np.int32)
