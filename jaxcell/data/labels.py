"""The cells of annotation files as label layers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np

from jaxcell.data.annotations.cellpose import is_session, read_cellpose
from jaxcell.data.annotations.crops import crop_of, pack_crops
from jaxcell.data.annotations.imagej import read_imagej
from jaxcell.data.annotations.qupath import read_qupath
from jaxcell.data.images import (
    LABEL_OPENERS,
    check_permission,
    ending_of,
    open_image,
    read_image,
    read_label_array,
    readable_files,
)
from jaxcell.geometry.labels import cell_ids

__all__ = ["CODINGS", "LABEL_SUFFIXES", "pack_masks", "read_labels"]

OUTLINE_READERS: Mapping[str, Callable[[Path, tuple[int, int]], np.ndarray]] = {
    ".geojson": read_qupath, ".json": read_qupath, ".roi": read_imagej, ".zip": read_imagej,
}
LABEL_SUFFIXES = (*LABEL_OPENERS, *OUTLINE_READERS)
"""File name endings (in lower case) that `read_labels` takes."""
PIECES = 4      # comparable pieces in which the one cell of a label image may lie before it is taken for a foreground mask


def read_labels(path: str | Path, *, shape: tuple[int, int] | None = None, coding: str = "ids") -> np.ndarray:
    """The cells of a label file, whatever its kind.

    - A label image: one number per cell. A picture whose every value is the same grey in all channels counts as grey.
    - A stack: one of masks if no page holds more than one value beside 0, page k (from 1) is then cell k, an empty page none;
      other stacks are label layers already.
    - A folder with one mask file per cell (0 and one other value), as in BBBC038: cell k is the k-th file by name. Files that are
      no images are passed over.
    - GeoJSON of QuPath (`.geojson`, `.json`): see `read_qupath`. ImageJ selections (`.roi`, `.zip`): see `read_imagej`.
    - A session of Cellpose (`_seg.npy`), without running what it may hold: see `read_cellpose`.

    Cells that overlap lie in different layers.

    Args:
      path: a file that ends in one of `LABEL_SUFFIXES`, or a folder of masks.
      shape: (H, W) of the image. Outlines need it; labels of another size are refused.
      coding: what the values of an image mean. "ids": one number per cell, integers of any width or floats without fractions.
        "rgb": one colour per cell, black (or transparent) is background; pieces of one colour are one cell. "binary": 0 and one
        other value; every 8-connected piece is a cell.

    Returns:
      [H, W, D] int32, 0 background, -1 ignore. Ids are the file's; where one exceeds int32, all are renumbered from 1 in
      their order. Colours and pieces are numbered from 1.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown ending or coding, undecodable, outlines without `shape`, another size; a colour picture, fractions, NaN,
        or what looks like a foreground mask where ids are asked for; one id in several layers.
    """
    path = Path(path)
    if coding not in CODINGS:
        raise ValueError(f"{path}: coding {coding!r} is unknown; known are {', '.join(CODINGS)}.")
    if os.path.exists(path):        # (False where its folder may not be looked into)
        check_permission(path)
    outlines = None if ending_of(path) else OUTLINE_READERS.get(path.suffix.lower())
    folder = path.is_dir() and not any(part.suffix.lower() == ".zarr" for part in (path, *path.parents))
    if coding != "ids" and (outlines or folder):
        raise ValueError(f"{path}: coding {coding!r} is for label images; {'a folder of masks' if folder else 'outlines'} need "
                         "none. Leave it out.")
    if outlines and shape is None:
        raise ValueError(f"{path}: holds outlines, and how large their image is the file does not say. Give shape=(H, W).")
    labels = outlines(path, shape) if outlines and shape else _folder(path) if folder else CODINGS[coding](path)
    if shape is not None and labels.shape[:2] != tuple(shape):
        raise ValueError(f"{path}: the labels are {_size(labels.shape)} pixels, but their image has {_size(shape)} (height x "
                         "width). Check the pairing of images and labels.")
    return labels


def pack_masks(masks: Iterable[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Label layers of masks that may overlap.

    Args:
      masks: mask [H, W] bool of cell 1, 2, ...; an empty one leaves no trace. One is held at a time.
      shape: (H, W).

    Returns:
      [H, W, D] int32, one layer where nothing overlaps.
    """
    return pack_crops([crop_of(mask) for mask in masks], shape)


# ---------------------------------------------------------------- one reader a coding: what the values of an image mean
def _ids(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".npy" and path.is_file() and is_session(path):
        stored = read_cellpose(path)[..., None]
    else:
        stored = _plain(read_label_array(path), path)
    stack = _to_int32(stored, path)
    if stack.shape[2] == 1:
        _refuse_foreground(stack[..., 0], path)
        return stack
    pages = [stack[..., k] for k in range(stack.shape[2])]
    if all(map(_is_mask, pages)):
        return pack_masks((page != 0 for page in pages), stack.shape[:2])
    ids, counts = np.unique(np.concatenate([cell_ids(page) for page in pages]), return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{path}: cell {ids[counts > 1][0]} occurs on several of the {len(pages)} pages; a cell lies in one "
                         "layer only. Save one page with one number per cell, or one page per cell.")
    return stack


def _rgb(path: Path) -> np.ndarray:
    stack = read_label_array(path)
    picture = stack if stack.shape[2] > 1 else read_image(path)     # a palette's numbers, or its colours
    if picture.shape[2] not in (3, 4) or picture.dtype.kind != "u" or picture.dtype.itemsize > 2:
        raise ValueError(f"{path}: coding 'rgb' needs a colour picture of 8 or 16 bits, but this has shape {picture.shape} and "
                         f"{picture.dtype}. If it has one number per cell, use coding 'ids'.")
    red, green, blue = (picture[..., k].astype(np.int64) for k in range(3))
    colours = red << 32 | green << 16 | blue
    if picture.shape[2] == 4:
        if not np.isin(picture[..., 3], (0, np.iinfo(picture.dtype).max)).all():
            raise ValueError(f"{path}: has half-transparent pixels, whose colours are mixed. Save it without smoothing.")
        colours[picture[..., 3] == 0] = 0
    cells = colours > 0
    _, numbers, areas = np.unique(colours[cells], return_inverse=True, return_counts=True)
    if len(areas) > 16 and (specks := np.count_nonzero(areas < 5)) > len(areas) / 2:
        raise ValueError(f"{path}: has {len(areas)} colours, {specks} of them on fewer than 5 pixels each, so they do not "
                         "stand for cells: it is a photograph, or its borders are smoothed. Save it without smoothing.")
    labels = np.zeros((*cells.shape, 1), np.int32)
    labels[cells, 0] = numbers + 1
    return labels


def _binary(path: Path) -> np.ndarray:
    foreground = _foreground(path, remedy="If the values number the cells, use coding 'ids'.")
    return cv2.connectedComponents(foreground.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)[1][..., None]


def _foreground(path: Path, *, remedy: str) -> np.ndarray:
    """[H, W] bool of a file with 0 and one other value."""
    stack = _to_int32(_plain(read_label_array(path), path), path)
    if stack.shape[2] > 1 or not _is_mask(stack):
        values = np.unique(stack)
        listed = ", ".join(map(str, values[:5])) + ", ..." * (len(values) > 5)
        raise ValueError(f"{path}: a mask is one page of 0 and one other value, but this has {stack.shape[2]} page(s) and the "
                         f"values {listed}. {remedy}")
    return stack[..., 0] != 0


CODINGS: Mapping[str, Callable[[Path], np.ndarray]] = {"ids": _ids, "rgb": _rgb, "binary": _binary}
"""What the values of a label image mean -> its reader."""


# ---------------------------------------------------------------- folders of masks
def _folder(path: Path) -> np.ndarray:
    files = readable_files(path)
    if not files:
        raise ValueError(f"{path}: holds no mask file. Put one file per cell there; if the image has no cell, one that is all 0.")
    shape = _mask(files[0]).shape
    return pack_masks(_masks(files, shape), shape)


def _masks(files: list[Path], shape: tuple[int, int]) -> Iterator[np.ndarray]:
    for file in files:
        mask = _mask(file)
        if mask.shape != shape:
            raise ValueError(f"{file}: is {_size(mask.shape)} pixels, but {files[0].name} beside it {_size(shape)}; the masks of "
                             "an image have one size. Check for a stray file.")
        yield mask


def _mask(file: Path) -> np.ndarray:
    return _foreground(file, remedy="A folder of masks has one cell a file; name a label image itself, not its folder.")


# ---------------------------------------------------------------- what numbers are cells
def _is_mask(labels: np.ndarray) -> bool:
    """Whether there is nothing but 0 and at most one value above."""
    return bool(labels.min() >= 0) and not ((labels != 0) & (labels != labels.max())).any()


def _plain(stack: np.ndarray, path: Path) -> np.ndarray:
    """The stack, or one plane of it if it is grey that was saved as colour."""
    if stack.shape[2] == 1 or not _is_colour(path):
        return stack
    if not (stack == stack[..., :1]).all():
        raise ValueError(f"{path}: is a colour picture of shape {stack.shape}, but a label image has one number per cell. If "
                         "each colour is one cell, set coding=\"rgb\"; if it is a rendering, save the label array itself.")
    return stack[..., :1]


def _is_colour(path: Path) -> bool:
    """Whether the planes of a label file are colours, kept pixel by pixel. (Masks on three pages may be tagged as colour too.)"""
    with open_image(path) as file:
        return file.axes.endswith("S") and file.shape[-1] > 1


def _to_int32(labels: np.ndarray, path: Path) -> np.ndarray:
    if not labels.size:
        raise ValueError(f"{path}: has no pixels; its shape is {labels.shape}. Save it anew.")
    labels = _whole(labels, path) if labels.dtype.kind == "f" else labels
    if labels.min() < -1:
        raise ValueError(f"{path}: labels hold {labels.min()}; below 0 only -1 (ignore) has a meaning. Set background to 0.")
    if labels.min() == -1 and not (labels == 0).any():
        raise ValueError(f"{path}: labels hold -1 and no 0: background seems to be -1 and the first cell may be 0. Here 0 is "
                         "background, cells are 1, 2, ... and -1 means \"ignore\": save labels + 1.")
    if np.count_nonzero(labels < 0) > labels.size / 2:
        warnings.warn(f"{path}: more than half of the pixels are -1, which means \"ignore\". If -1 is your background and cells "
                      "start at 0, save labels + 1.", stacklevel=2)
    if labels.max() > np.iinfo(np.int32).max:
        dense = np.minimum(labels, 0).astype(np.int32)
        dense[labels > 0] = np.unique(labels[labels > 0], return_inverse=True)[1] + 1
        return dense
    return labels.astype(np.int32)


def _whole(labels: np.ndarray, path: Path) -> np.ndarray:
    """Floats as integers."""
    if not np.isfinite(labels).all():
        raise ValueError(f"{path}: labels hold {labels[~np.isfinite(labels)][0]} on {np.count_nonzero(~np.isfinite(labels))} "
                         "pixels, but a cell's id is a whole number. Set background to 0 (numpy.nan_to_num).")
    whole = np.rint(labels)
    if not np.array_equal(whole, labels):
        raise ValueError(f"{path}: labels have fractions (such as {labels[whole != labels][0]}), but a cell's id is a whole "
                         "number. This looks like an image or a probability map; name the label file.")
    if np.abs(whole).max() > 2**53:
        raise ValueError(f"{path}: labels hold {np.abs(whole).max()}, where floats no longer tell whole numbers apart. Save the "
                         "labels as integers.")
    return whole.astype(np.int64)


def _refuse_foreground(labels: np.ndarray, path: Path) -> None:
    """Refuses what numbers no cells: true and false, or nothing but 255, in two pieces or more; nothing but 1 in `PIECES`.

    One cell may lie in several pieces, so specks (below a tenth of the largest piece) do not count, and any other number is
    believed.
    """
    value = int(labels.max())
    if value not in (1, 255, 65535) or ((labels != value) & (labels > 0)).any():
        return
    areas = cv2.connectedComponentsWithStats((labels == value).view(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA]
    pieces = np.count_nonzero(areas * 10 >= areas.max())
    if pieces >= PIECES or (pieces >= 2 and (value > 1 or _is_boolean(path))):
        raise ValueError(f"{path}: holds one value beside 0 ({value}) in {pieces} separate pieces, so it seems to be a "
                         "foreground mask, which numbers no cells. If every piece is a cell, set coding=\"binary\"; if all are "
                         "one cell, save it with another number, such as 2.")


def _is_boolean(path: Path) -> bool:
    """Whether a label image holds true and false: as an image those are shown as black and white."""
    return (path.suffix.lower() != ".npy" or not is_session(path)) and np.unique(read_image(path)).tolist() == [0, 255]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"
