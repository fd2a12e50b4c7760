"""PNG, JPEG and BMP."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin

from jaxcell.data.formats.planes import UPRIGHT
from jaxcell.data.formats.stored import Refused, Stored, decoded_whole

__all__ = ["open_bmp", "open_jpeg", "open_png"]

ORIENTATION = 0x0112    # EXIF tag
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""Colour type of a PNG -> samples a pixel, palettes as colours."""
PALETTE = 3


def open_png(path: Path, *, parts: Mapping[str, int | str], numbers: bool, limit: int) -> Stored:
    """Opens a PNG; see `Opener`. One, two and four bits become eight, the tRNS chunk alpha; 16 bits are kept."""
    data = _bytes_of(path, limit)
    if not data.startswith(PNG_SIGNATURE):
        raise ValueError("it does not begin like a PNG")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    if colour not in PNG_SAMPLES:
        raise ValueError(f"it has the unknown colour type {colour}")
    chunks = _png_chunks(data)
    if colour == PALETTE and numbers:
        shape: tuple[int, ...] = (height, width)
        decode = partial(_palette_numbers, path)
    else:
        samples = PNG_SAMPLES[colour] + (b"tRNS" in chunks and colour != 4 and colour != 6)
        shape = (height, width, samples) if samples > 1 else (height, width)
        decode = partial(_decode_png, data, shape)      # (PIL would cut 16-bit colour to 8 bits)
    dtype = np.dtype(np.uint16 if depth == 16 else np.uint8)
    return Stored("YXS"[:len(shape)], shape, dtype, decoded_whole(decode), block_bytes=prod(shape) * dtype.itemsize,
                  orientation=_orientation(chunks.get(b"eXIf", b"")), alpha=len(shape) == 3 and shape[2] in (2, 4))


def open_jpeg(path: Path, *, parts: Mapping[str, int | str], numbers: bool, limit: int) -> Stored:
    """Opens a JPEG; see `Opener`. CMYK, with Adobe's inverted ink, becomes RGB."""
    return _open_with_pil(JpegImagePlugin.JpegImageFile(path), numbers=numbers)


def open_bmp(path: Path, *, parts: Mapping[str, int | str], numbers: bool, limit: int) -> Stored:
    """Opens a BMP; see `Opener`."""
    return _open_with_pil(BmpImagePlugin.BmpImageFile(path), numbers=numbers)


def _open_with_pil(file: ImageFile.ImageFile, *, numbers: bool) -> Stored:
    # (The plugin's own class: Image.open has a limit of its own on the number of pixels.)
    width, height = file.size
    grey = file.mode in ("1", "L") or (file.mode == "P" and numbers)
    samples = 1 if grey else 4 if file.mode == "RGBA" else 3
    shape = (height, width) if grey else (height, width, samples)
    exif = file.info.get("exif", b"")
    return Stored("YXS"[:len(shape)], shape, np.dtype(np.uint8), decoded_whole(partial(_decode_with_pil, file, numbers=numbers)),
                  block_bytes=prod(shape), orientation=_orientation(exif), alpha=samples == 4, close=file.close)


def _decode_with_pil(file: ImageFile.ImageFile, *, numbers: bool) -> np.ndarray:
    if file.mode == "1":
        return np.asarray(file).astype(np.uint8) * 255
    if file.mode in ("L", "RGB", "RGBA") or (file.mode == "P" and numbers):
        return np.asarray(file)
    return np.asarray(file.convert("RGB"))


def _decode_png(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    return imagecodecs.png_decode(data).reshape(shape)


def _palette_numbers(path: Path) -> np.ndarray:
    with PngImagePlugin.PngImageFile(path) as file:
        return np.asarray(file)


def _bytes_of(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise Refused(f"the file takes {size / 1e9:.1f} GB, more than max_gb={limit / 1e9:g}; raise max_gb.")
        return file.read()


def _png_chunks(data: bytes) -> dict[bytes, bytes]:
    """Kind -> content of the chunks that say more than the pixels; they may follow them."""
    found, place = {}, len(PNG_SIGNATURE)
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place:place + 4]), data[place + 4:place + 8]
        if kind in (b"eXIf", b"tRNS"):
            found[kind] = data[place + 8:place + 8 + size]
        place += size + 12
    return found


def _orientation(exif: bytes) -> int:
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(ORIENTATION, 1)
    except Exception:       # of many kinds; viewers show a picture whose EXIF is broken as it is stored
        return 1
    return value if isinstance(value, int) and value in UPRIGHT else 1
