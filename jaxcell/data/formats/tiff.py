"""TIFF of all kinds: OME, ImageJ, BigTIFF, tiled, compressed, pyramids, many pages or files."""

from __future__ import annotations

import logging
import re
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC

from jaxcell.data.formats.metadata import MICROMETRES, ome_channel_names, ome_pixel_size, ome_pixels, one_size, parse_xml
from jaxcell.data.formats.planes import UPRIGHT
from jaxcell.data.formats.stored import Fetch, Index, Refused, Stored, chosen_part, is_whole, listed, mapped

__all__ = ["open_tiff"]

MOST_PAGES = 1 << 18
JPEGS = (COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.JPEG_LOSSY, COMPRESSION.ALT_JPEG)
LOSSY = (*JPEGS, COMPRESSION.APERIO_JP2000_YCBC, COMPRESSION.APERIO_JP2000_RGB, COMPRESSION.JPEG_2000_LOSSY, COMPRESSION.JPEGXR,
         COMPRESSION.JPEGXR_NDPI, COMPRESSION.WEBP)
AS_STORED = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.MASK, PHOTOMETRIC.LINEAR_RAW)
ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
PHOTOMETRIC_TAG, ORIENTATION_TAG, X_RESOLUTION_TAG, Y_RESOLUTION_TAG = 262, 274, 282, 283


def open_tiff(path: Path, *, parts: Mapping[str, int | str], numbers: bool, limit: int) -> Stored:
    """Opens a TIFF; see `Opener`.

    Axes are those of OME or ImageJ metadata, else pages of one shape are one axis. Where a file says that 0 is white the values
    are turned round, so that bright is bright; palettes and CMYK become RGB. (Numbers are left alone.)
    """
    file = None
    try:
        with _taken_seriously():
            file = _open(path)
            return _stored(file, path, parts, numbers)
    except Exception:
        if file is not None:
            file.close()
        raise


@contextmanager
def _taken_seriously() -> Iterator[None]:
    """Raises what tifffile otherwise only logs: that pages, strips or metadata are damaged. (It would read on without them.)"""
    heard: list[str] = []
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread == thread and record.levelno >= logging.ERROR:
            heard.append(re.sub(r"<[^>]*> ?", "", record.getMessage()))
        return record.thread != thread

    logger = logging.getLogger("tifffile")
    logger.addFilter(keep)
    try:
        yield
    except Exception as error:
        if heard and not isinstance(error, Refused):
            raise ValueError(heard[0]) from error
        raise
    finally:
        logger.removeFilter(keep)
    if heard:
        raise ValueError(heard[0])


def _open(path: Path) -> tifffile.TiffFile:
    """The file, its directories and metadata checked, its pages as one series where only tifffile's habits part them."""
    file = tifffile.TiffFile(path)
    try:
        _check_directories(file)
        if file.is_ome:
            _check_companions(file, path)
        series = file.series
        if len(series) > 1 and all(s.kind == "shaped" and len(s.pages) == 1 and s.shape == series[0].shape == s.keyframe.shape
                                   and s.dtype == series[0].dtype for s in series):
            file.close()        # pages written one by one, each with a description of its own
            file = tifffile.TiffFile(path, is_shaped=False)
    except Exception:
        file.close()
        raise
    return file


def _check_directories(file: tifffile.TiffFile) -> None:
    """Refuses directories that follow each other in a circle, or without end."""
    handle, form, seen = file.filehandle, file.tiff, set[int]()
    if not file.pages:      # (their number would be counted along the chain)
        raise ValueError("it has no page")
    offset = file.pages.first.offset
    while offset:
        if offset in seen:
            raise Refused(f"its page {len(seen)} points back to an earlier one, so the pages have no end; save it anew.")
        if len(seen) == MOST_PAGES:
            raise Refused(f"it has more than {MOST_PAGES} pages; save it in parts.")
        seen.add(offset)
        try:
            handle.seek(offset)
            tags = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))[0]
            handle.seek(offset + form.tagnosize + tags * form.tagsize)
            offset = struct.unpack(form.offsetformat, handle.read(form.offsetsize))[0]
        except struct.error as error:
            raise ValueError(f"it ends within or before its page {len(seen) - 1}") from error


def _check_companions(file: tifffile.TiffFile, path: Path) -> None:
    """Refuses metadata that would make tifffile open anything but files beside this one."""
    for element in parse_xml(file.ome_metadata or "").iter():
        name = element.get("FileName")
        if element.tag.endswith("UUID") and name and name != path.name:
            beside = path.parent / name
            if Path(name).name != name or "\\" in name or (beside.exists() and not beside.is_file()):
                raise Refused(f"its OME metadata names {name!r} as a part of it, but parts are files in the same folder; save it "
                              "anew.")


# ---------------------------------------------------------------- which image of the file
def _stored(file: tifffile.TiffFile, path: Path, parts: Mapping[str, int | str], numbers: bool) -> Stored:
    number = _series_number(file, parts.get("series"))
    series = file.series[number]
    level = chosen_part("level", ("",) * len(series.levels), parts.get("level")) or 0
    pages, key = series.levels[level], series.levels[level].keyframe
    if pages.dtype is None:
        raise Refused(f"its samples of {key.bitspersample} bits and format {key.sampleformat} have no type here; save it as "
                      "integers or floats.")
    if pages.kind == "ome" and any(page is None for page in pages):
        raise Refused("some of the pages that its metadata lists are missing, perhaps in a file that is not beside it; bring the "
                      "files together, or save it anew.")
    if not any(key.databytecounts) or (0 in key.databytecounts and not key.is_tiled):     # (tiles may be left out where empty)
        raise Refused("some of its pixels were never written, perhaps because the program that wrote it was stopped; save it "
                      "anew.")
    if numbers and key.compression in LOSSY:
        raise Refused(f"its compression, {COMPRESSION(key.compression).name}, changes pixel values; save labels without loss.")
    stored = _raw(file, pages, path)
    if not numbers:
        stored = _with_colours(stored, key)
    x, y = series.levels[0].keyframe.imagewidth, key.imagewidth
    size, names = _metadata(file, number)
    orientation = key.tags.valueof(ORIENTATION_TAG, default=1)
    return Stored(stored.axes, stored.shape, stored.dtype, stored.fetch, alpha=_has_alpha(stored, key),
                  pixel_size=size and size * x / y, channel_names=names, close=file.close,
                  orientation=orientation if orientation in UPRIGHT else 1,
                  block_bytes=0 if pages.dataoffset is not None else prod(key.chunks) * stored.dtype.itemsize)


def _series_number(file: tifffile.TiffFile, choice: int | str | None) -> int:
    """The chosen series, or the only one; smaller ones beside it, such as previews and labels of slides, do not count."""
    series = file.series
    if not series:
        raise Refused("it holds no image; save it anew.")
    names = tuple(s.name for s in series)
    number = chosen_part("series", names, choice)
    if number is None and len(series) > 1 and (series[0].kind == "ome" or any(_area(s) >= _area(series[0]) for s in series[1:])):
        raise Refused(f"it holds {len(series)} images; {listed('series', names)}.")
    return number or 0


def _area(series: tifffile.TiffPageSeries) -> int:
    return series.keyframe.imagewidth * series.keyframe.imagelength


def _metadata(file: tifffile.TiffFile, number: int) -> tuple[float | None, tuple[str, ...]]:
    """Pixel size and channel names, as far as OME or ImageJ say. (Other resolutions are mostly made up, such as 72 per inch.)"""
    if file.is_ome:
        images = ome_pixels(parse_xml(file.ome_metadata or ""))
        return (ome_pixel_size(images[number]), ome_channel_names(images[number])) if number < len(images) else (None, ())
    if not file.is_imagej or file.imagej_metadata is None:
        return None, ()
    unit = MICROMETRES.get(str(file.imagej_metadata.get("unit", "")), 0.0)
    tags = file.pages.first.tags
    x, y = (tags.valueof(tag, default=(0, 1)) for tag in (X_RESOLUTION_TAG, Y_RESOLUTION_TAG))
    return (one_size(unit * x[1] / x[0], unit * y[1] / y[0]) if x[0] and y[0] else None), ()


# ---------------------------------------------------------------- pixels
def _raw(file: tifffile.TiffFile, pages: tifffile.TiffPageSeries, path: Path) -> Stored:
    axes, shape = pages.get_axes(squeeze=False), pages.get_shape(squeeze=False)
    grey: Index = (0,) if axes.endswith("S") and shape[-1] == 1 else ()
    axes, shape = (axes[:-1], shape[:-1]) if grey else (axes, shape)
    if pages.dataoffset is not None and not pages.is_multifile and pages.keyframe.is_memmappable:
        dtype = pages.dtype.newbyteorder(file.byteorder)
        return Stored(axes, shape, dtype, mapped(path, dtype, shape, pages.dataoffset))

    @cache
    def blocks() -> Fetch:
        import zarr  # half a second, which most files do not need

        array: Any = zarr.open_array(pages.aszarr(level=0, squeeze=False), mode="r")
        return array.__getitem__

    def fetch(index: Index) -> np.ndarray:
        with _taken_seriously():
            return pages.asarray().reshape(shape) if is_whole(index) else np.asarray(blocks()(index + grey))

    return Stored(axes, shape, pages.dtype, fetch)


def _with_colours(stored: Stored, key: tifffile.TiffPage) -> Stored:
    """The image with its values turned into those that viewers show."""
    meaning = key.tags.valueof(PHOTOMETRIC_TAG, default=PHOTOMETRIC.MINISBLACK)
    samples = stored.shape[stored.axes.index("S")] if "S" in stored.axes else 1
    if meaning == PHOTOMETRIC.PALETTE and key.colormap is not None:
        return _with_palette(stored, (key.colormap >> 8).astype(np.uint8).T)
    if meaning == PHOTOMETRIC.MINISWHITE:
        return _inverted(stored, key.bitspersample)
    if meaning == PHOTOMETRIC.SEPARATED and samples == 4 and stored.dtype in (np.uint8, np.uint16):
        return _from_cmyk(stored)
    if meaning in AS_STORED or (meaning == PHOTOMETRIC.YCBCR and key.compression in JPEGS):     # those are decoded to RGB
        return stored
    name = PHOTOMETRIC(meaning).name if meaning in list(PHOTOMETRIC) else meaning
    raise Refused(f"its colours are {name} with {samples} samples of {stored.dtype}, which are not read; save it as grey or RGB.")


def _with_palette(stored: Stored, colours: np.ndarray) -> Stored:
    def fetch(index: Index) -> np.ndarray:
        return colours[stored.fetch(index[:-1])][..., index[-1]]

    return Stored(stored.axes + "S", (*stored.shape, 3), colours.dtype, fetch)


def _inverted(stored: Stored, bits: int) -> Stored:
    if stored.dtype.kind not in "bu":
        raise Refused(f"it says that 0 is white, but its values are {stored.dtype}, for which black is undefined; invert the "
                      "lookup table in the program that wrote it, and save it anew.")
    black = stored.dtype.type((1 << bits) - 1)

    def fetch(index: Index) -> np.ndarray:
        return black ^ stored.fetch(index)      # black - value, for bits all set

    return Stored(stored.axes, stored.shape, stored.dtype, fetch)


def _from_cmyk(stored: Stored) -> Stored:
    """Red is what cyan and black leave of full light, and so on."""
    samples = stored.axes.index("S")
    full = np.uint32(np.iinfo(stored.dtype).max)

    def fetch(index: Index) -> np.ndarray:
        place = sum(isinstance(entry, slice) for entry in index[:samples])
        ink = np.moveaxis(stored.fetch((*index[:samples], slice(None), *index[samples + 1:])), place, -1).astype(np.uint32)
        light = (((full - ink[..., :3]) * (full - ink[..., 3:]) + full // 2) // full).astype(stored.dtype)
        return np.moveaxis(light, -1, place)[(*[slice(None)] * place, index[samples])]

    shape = tuple(3 if n == samples else size for n, size in enumerate(stored.shape))
    return Stored(stored.axes, shape, stored.dtype, fetch)


def _has_alpha(stored: Stored, key: tifffile.TiffPage) -> bool:
    samples = stored.shape[stored.axes.index("S")] if "S" in stored.axes else 1
    if samples not in (2, 4) or not key.extrasamples:
        return False        # a second sample of unstated meaning is a channel
    return key.extrasamples[-1] in ALPHA or (samples == 4 and key.photometric == PHOTOMETRIC.RGB)
