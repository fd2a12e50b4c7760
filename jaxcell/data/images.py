"""Reads image and label files as arrays: PNG, JPEG, TIFF, BMP and npy, 8 to 64 bits, any number of planes.

And what their names say: which files of a folder are images, and which are annotations of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import tifffile
from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin

__all__ = ["ANNOTATION_ENDINGS", "SUFFIXES", "annotation_stems", "read_image", "read_label_array", "read_pixel_size",
           "readable_files", "stem_of"]

MOST_PLANES = 64    # an npy array with a longer last axis is rather [C, H, W] than [H, W, C]
PALETTE = b"\x03"   # colour type in a PNG header
ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
MICROMETRES = {"um": 1.0, "\u00b5m": 1.0, "\u03bcm": 1.0, "\\u00B5m": 1.0,
               "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "nm": 1e-3}
"""Unit, as OME and ImageJ spell it (ImageJ also escaped) -> micrometres."""


# ---------------------------------------------------------------- one reader a format; `indices` keeps indexed colour as numbers
def _read_png(path: Path, *, indices: bool = False) -> np.ndarray:
    data = path.read_bytes()
    if indices and data[25:26] == PALETTE:
        with PngImagePlugin.PngImageFile(path) as file:
            return np.asarray(file)
    return _without_alpha(imagecodecs.png_decode(data))     # (PIL would cut 16-bit colour to 8 bits)


def _read_pil(path: Path, *, plugin: Callable[[Path], ImageFile.ImageFile], indices: bool = False) -> np.ndarray:
    # The plugin's own class: Image.open refuses images of more than 179 million pixels.
    with plugin(path) as file:
        if file.mode == "1":
            return np.asarray(file).astype(np.uint8) * 255
        if file.mode in ("L", "RGB") or (file.mode == "P" and indices):
            return np.asarray(file)
        return _without_alpha(np.asarray(file.convert("RGBA" if file.mode == "RGBA" else "RGB")))


def _read_tiff(path: Path, *, indices: bool = False) -> np.ndarray:
    with tifffile.TiffFile(path) as file:
        series, page = file.series[0], file.pages.first
        axes, image = series.axes, series.asarray()
        if "Y" not in axes or "X" not in axes:
            raise ValueError(f"its axes are {axes!r}; an image needs Y and X")
        height, width = series.shape[axes.index("Y")], series.shape[axes.index("X")]
        # All but Y and X become planes, in the file's order; samples (S: red, green, blue, alpha) run fastest.
        planes = sorted((a for a in axes if a not in "YX"), key=lambda a: (a == "S", axes.index(a)))
        image = image.transpose([axes.index(a) for a in ("Y", "X", *planes)]).reshape(height, width, -1)
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None and not indices:
            colours = (page.colormap >> 8).astype(np.uint8).T
            return colours[image].reshape(height, width, -1)
        if "S" in axes and page.extrasamples and (image.shape[2] == 4 or page.extrasamples[-1] in ALPHA):
            return _without_alpha(image)
        return image        # a second sample of unstated meaning is a channel


def _read_npy(path: Path) -> np.ndarray:
    try:
        image = np.load(path, allow_pickle=False)
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError("it holds Python objects, as a _seg.npy of Cellpose does, which are not safe to load; save its masks as "
                         "TIFF or PNG") from error
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] > MOST_PLANES):
        raise ValueError(f"its shape is {image.shape}; an array must be [H, W] or [H, W, C] with at most {MOST_PLANES} planes, "
                         "so move the channels to the end with numpy.moveaxis(array, 0, -1)")
    return image


def _without_alpha(image: np.ndarray) -> np.ndarray:
    """The image without its alpha: if that is opaque, and of a grey image always, where it would pass for a second channel."""
    opaque = np.iinfo(image.dtype).max if image.dtype.kind in "iu" else 1
    if image.ndim == 3 and (image.shape[2] == 2 or (image.shape[2] == 4 and (image[..., -1] == opaque).all())):
        return np.ascontiguousarray(image[..., :-1])
    return image


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
SUFFIXES = tuple(IMAGE_READERS)
"""File name endings (in lower case) that can be read."""
ANNOTATION_ENDINGS = ("_labels", "_label", "_masks", "_mask", "_cp_masks", "_seg")
"""What the stem of an annotation has after that of its image: the cells of `x.png` are `x_labels.tif`, `x_mask.png`, ..."""


def stem_of(name: str | Path) -> str:
    """The file name of a path without its ending, if that is one of `SUFFIXES`: `well_A.1` and `well_A.1.tif` are one stem."""
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def annotation_stems(stems: Iterable[str]) -> set[str]:
    """The stems that annotations of images with these stems may have."""
    return {stem + ending for stem in stems for ending in ANNOTATION_ENDINGS}


def readable_files(folder: Path) -> list[Path]:
    """The files of a folder (not of its subfolders) that can be read, by name, without hidden ones such as macOS's `._x.png`."""
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith(".") and f.is_file())


def read_image(path: str | Path) -> np.ndarray:
    """The pixels of an image file, as stored.

    Planes of a multi-page TIFF (channels, focal planes, time points) become channels in the file's order, found by its OME,
    ImageJ or page axes; of several series the first is read. Indexed colour becomes RGB, one bit becomes 0 and 255. Alpha
    that is opaque everywhere is dropped, that of a grey image always.

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


def read_label_array(path: str | Path) -> np.ndarray:
    """The numbers of a label file, indexed colour kept as numbers; what they mean is `read_labels`'s business.

    Args:
      path: a file that ends in one of `SUFFIXES`, but no JPEG: it changes pixel values.

    Returns:
      [H, W, N] in the file's dtype; N pages or colour channels.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown ending, or the file cannot be decoded.
    """
    array = _read(LABEL_READERS, Path(path))
    return array[..., None] if array.ndim == 2 else array


def read_pixel_size(path: str | Path) -> float | None:
    """Micrometres per pixel, where a file says so in a way that can be trusted.

    That is OME's PhysicalSizeX (if PhysicalSizeY is the same or absent), or ImageJ's resolution with a unit. Not the resolution
    of other files: it is mostly made up, such as 72 pixels an inch.

    Args:
      path: any file; only TIFF is looked into.

    Returns:
      The size, or None where it is unknown.
    """
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        return None
    with tifffile.TiffFile(path) as file:
        size = (_ome_pixel_size(file.ome_metadata) if file.ome_metadata else
                _imagej_pixel_size(file) if file.imagej_metadata else 0.0)
    return size if 0 < size < np.inf else None


def _ome_pixel_size(xml: str) -> float:
    pixels = next((element.attrib for element in ElementTree.fromstring(xml).iter() if element.tag.endswith("}Pixels")), {})
    x, y = (float(pixels.get(f"PhysicalSize{axis}", 0)) * MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m"), 0.0)
            for axis in "XY")
    return x if y in (0.0, x) else 0.0


def _imagej_pixel_size(file: tifffile.TiffFile) -> float:
    resolution = file.pages.first.tags.get("XResolution")
    unit = MICROMETRES.get(str((file.imagej_metadata or {}).get("unit", "")), 0.0)
    if resolution is None or not resolution.value[0]:
        return 0.0
    pixels, units = resolution.value
    return unit * units / pixels


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
