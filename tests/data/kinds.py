"""Every kind of input, good and bad, with what must happen to it: `test_kinds.py` asserts each line.

`PYTHONPATH=tests python -m data.kinds` writes them as the table docs/inputs.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from data.writers import (
    BMP,
    CELLS,
    FLAT,
    GREY8,
    GREY16,
    HUGE,
    MASKS,
    PNG,
    RGB8,
    SQUARE,
    STACK,
    archive,
    archive_bomb,
    array,
    array_header,
    chunk,
    circle,
    coco,
    coloured,
    cut,
    czi,
    dsb,
    entities,
    folder,
    geojson,
    image,
    labels,
    link,
    locked,
    movie,
    nd2,
    no_folder,
    npy,
    ome_zarr,
    opened,
    packed_twice,
    palette,
    part_of,
    patched,
    pil,
    png,
    png16,
    raw,
    roi,
    tiff,
    transparent,
    trapped,
    trapped_npz,
    trapped_zarr,
    turned,
    two_series,
    write_files,
    write_masks,
    zarr_claim,
    zlibbed,
    zstandard,
)
from roifile import ROI_TYPE

TABLE = Path(__file__).parents[2] / "docs" / "inputs.md"
Call = Callable[[], Any]
WHOLE = "Check that the file is whole and is what its name says, and save it anew if not."


# ---------------------------------------------------------------- verdicts
@dataclass(frozen=True)
class Pixels:
    """Read as an image.

    Attributes:
      shape: [H, W, C].
      at: the values at (y, x) = (1, 2), one a channel.
      dtype: of the pixels.
      note: what else is worth knowing.
      within: how far values may be from `at`: JPEG changes them.
      pixel_size: that the file gives, micrometres.
    """

    shape: tuple[int, int, int]
    at: tuple[float, ...]
    dtype: str = "uint8"
    note: str = ""
    within: int = 0
    pixel_size: float | None = None


@dataclass(frozen=True)
class Cells:
    """Read as label layers.

    Attributes:
      areas: pixels of each cell, by id.
      layers: how many.
      note: what else is worth knowing.
      ignored: pixels that are -1.
      ids: of the cells, where they are not 1, 2, ...
    """

    areas: tuple[int, ...]
    layers: int = 1
    note: str = ""
    ignored: int = 0
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Samples:
    """Read as samples of a source.

    Attributes:
      cells: name of the sample -> number of cells, None without annotation.
      note: what else is worth knowing.
      prints: what is said while reading.
    """

    cells: dict[str, int | None]
    note: str = ""
    prints: str = ""


@dataclass(frozen=True)
class Refused:
    """Refused with an error of one line.

    Attributes:
      message: all of it, with the folder left out; "..." stands for what others say: decoders, the system, this machine.
      error: its type, exactly.
    """

    message: str
    error: type[Exception] = ValueError


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
      input: what it is, in words.
      write: writes it into an empty folder, and gives what is to be called.
      verdict: what the call must do.
      needs: a package of an optional extra; "user" where the system must not run it as root, who may read everything.
    """

    input: str
    write: Callable[[Path], Call]
    verdict: Pixels | Cells | Samples | Refused
    needs: str = ""


# ---------------------------------------------------------------- the kinds
SQUARE_RUNS = {"size": [6, 8], "counts": [7, 2, 4, 2, 4, 2, 27]}     # counted down the columns: the pixels of cell 1
HEADER = "image_file,label_file,split\n"
PAIR = {"a.png": GREY8, "a_label.png": CELLS}
BAD = {**PAIR, "b.png": PNG[:60], "b_label.png": CELLS, "c.png": GREY8, "c_label.png": CELLS}

KINDS: Mapping[str, tuple[Kind, ...]] = {
    "Images that are read": (
        Kind("PNG, grey, 8 bits", image("x.png", pil(GREY8)), Pixels((6, 8, 1), (50,))),
        Kind("PNG, grey, 16 bits", image("x.png", pil(GREY16)), Pixels((6, 8, 1), (10000,), "uint16")),
        Kind("PNG, 1 bit", image("x.png", pil(GREY8 > 49)), Pixels((6, 8, 1), (255,), note="1 becomes 255")),
        Kind("PNG, RGB", image("x.png", pil(RGB8)), Pixels((6, 8, 3), (10, 60, 110))),
        Kind("PNG, RGB, 16 bits", image("x.png", png16), Pixels((6, 8, 3), (10000, 10001, 10002), "uint16")),
        Kind("PNG, RGBA, opaque", image("x.png", pil(transparent(255))),
             Pixels((6, 8, 3), (10, 60, 110), note="alpha that hides nothing is dropped")),
        Kind("PNG, RGBA, partly transparent", image("x.png", pil(transparent(0))), Pixels((6, 8, 4), (10, 60, 110, 255))),
        Kind("PNG, grey with alpha", image("x.png", pil(GREY8, "LA")), Pixels((6, 8, 1), (50,), note="without the alpha")),
        Kind("PNG, palette", image("x.png", palette), Pixels((6, 8, 3), (10, 245, 7), note="its colours")),
        Kind("PNG, without its last chunk", image("x.png", raw(PNG[:-12])),
             Pixels((6, 8, 3), (10, 60, 110), note="all pixels are there, and their checksum is right")),
        Kind("JPEG, RGB", image("x.jpg", pil(FLAT, quality=95)), Pixels((6, 8, 3), (200, 100, 50), within=3)),
        Kind("JPEG, CMYK", image("x.jpg", pil(FLAT, "CMYK", quality=95)),
             Pixels((6, 8, 3), (200, 100, 50), note="becomes RGB", within=4)),
        Kind("PNG, turned by EXIF", image("x.png", turned), Pixels((8, 6, 1), (125,), note="upright, as viewers show it")),
        Kind("BMP", image("x.bmp", pil(RGB8)), Pixels((6, 8, 3), (10, 60, 110))),
        Kind("TIFF, 8 bits", image("x.tif", tiff(GREY8)), Pixels((6, 8, 1), (50,))),
        Kind("TIFF, 12 bits", image("x.tif", tiff(GREY16 // 16, bitspersample=12)), Pixels((6, 8, 1), (625,), "uint16")),
        Kind("TIFF, 16 bits, big-endian, LZW", image("x.tif", tiff(GREY16, byteorder=">", compression="lzw")),
             Pixels((6, 8, 1), (10000,), "uint16")),
        Kind("TIFF, 32 bits", image("x.tif", tiff(GREY16.astype(np.uint32) * 5)), Pixels((6, 8, 1), (50000,), "uint32")),
        Kind("TIFF, floats", image("x.tif", tiff(GREY8.astype(np.float32) / 4)), Pixels((6, 8, 1), (12.5,), "float32")),
        Kind("TIFF, 1 bit", image("x.tif", tiff(GREY8 > 49)), Pixels((6, 8, 1), (255,), note="1 becomes 255")),
        Kind("TIFF, tiled and compressed (zlib)", image("x.tif", tiff(GREY16, tile=(16, 16), compression="zlib")),
             Pixels((6, 8, 1), (10000,), "uint16")),
        Kind("BigTIFF, Zstandard", image("x.tif", tiff(GREY16, bigtiff=True, compression="zstd")),
             Pixels((6, 8, 1), (10000,), "uint16")),
        Kind("TIFF, RGB, planes apart", image("x.tif", tiff(np.moveaxis(RGB8, 2, 0), photometric="rgb", planarconfig="separate")),
             Pixels((6, 8, 3), (10, 60, 110))),
        Kind("TIFF, palette",
             image("x.tif", tiff(GREY8, photometric="palette", colormap=np.stack([np.arange(256) * 256] * 3) .astype(np.uint16))),
             Pixels((6, 8, 3), (50, 50, 50), note="its colours")),
        Kind("TIFF, 0 is white", image("x.tif", tiff(GREY8, photometric="miniswhite")),
             Pixels((6, 8, 1), (205,), note="turned round, so that bright is bright")),
        Kind("TIFF, CMYK", image("x.tif", tiff(np.dstack([255 - RGB8, np.zeros((6, 8), np.uint8)]), photometric="separated")),
             Pixels((6, 8, 3), (10, 60, 110), note="becomes RGB")),
        Kind("TIFF, several pages of one size", image("x.tif", tiff(STACK)),
             Pixels((6, 8, 3), (10000, 10001, 10002), "uint16", note="pages become channels")),
        Kind("OME-TIFF, channels first, with pixel size",
             image("x.ome.tif", tiff(STACK, ome=True, metadata={"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5})),
             Pixels((6, 8, 3), (10000, 10001, 10002), "uint16", pixel_size=0.5)),
        Kind("OME-TIFF, one channel selected by name",
             image("x.ome.tif", tiff(STACK, ome=True, metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "RFP"]}}),
                   select={"C": "GFP"}),
             Pixels((6, 8, 1), (10001,), "uint16")),
        Kind("ImageJ TIFF, focal planes, highest value selected",
             image("x.tif", tiff(STACK, imagej=True, metadata={"axes": "ZYX"}), select={"Z": "max"}),
             Pixels((6, 8, 1), (10002,), "uint16")),
        Kind("ImageJ TIFF, movie, one time point selected", image("x.tif", movie(3), select={"T": 0}), Pixels((6, 8, 1), (50,))),
        Kind("ImageJ TIFF, with pixel size", image("x.tif", tiff(GREY8, imagej=True, resolution=(2, 2), metadata={"unit": "um"})),
             Pixels((6, 8, 1), (50,), pixel_size=0.5)),
        Kind("TIFF, 72 pixels an inch", image("x.tif", tiff(GREY8, resolution=(72, 72), resolutionunit="INCH")),
             Pixels((6, 8, 1), (50,), note="no pixel size: such numbers are made up")),
        Kind("npy", image("x.npy", npy(RGB8.astype(np.float64))), Pixels((6, 8, 3), (10, 60, 110), "float64")),
        Kind("npz with one array", image("x.npz", lambda path: np.savez_compressed(path, a=GREY16)),
             Pixels((6, 8, 1), (10000,), "uint16")),
        Kind("npz with several arrays, one selected",
             image("x.npz", lambda path: np.savez(path, a=GREY8, b=GREY16), select={"array": "b"}),
             Pixels((6, 8, 1), (10000,), "uint16")),
        Kind("Zarr, version 2", image("x.zarr", array(GREY16, zarr_format=2)), Pixels((6, 8, 1), (10000,), "uint16")),
        Kind("Zarr, version 3, in shards", image("x.zarr", array(GREY16, chunks=(3, 4), shards=(6, 8))),
             Pixels((6, 8, 1), (10000,), "uint16")),
        Kind("Zarr with missing blocks", image("x.zarr", zarr_claim()),
             Pixels((6, 8, 1), (7,), "uint16", note="they hold the fill value, as Zarr says")),
        Kind("OME-Zarr 0.4, channels first, with pixel size", image("x.ome.zarr", ome_zarr(STACK, version=2)),
             Pixels((6, 8, 3), (10000, 10001, 10002), "uint16", pixel_size=0.5)),
        Kind("OME-Zarr 0.5, one channel selected", image("x.ome.zarr", ome_zarr(STACK), select={"C": 1}),
             Pixels((6, 8, 1), (10001,), "uint16", pixel_size=0.5)),
        Kind("CZI, two channels, with pixel size", image("x.czi", czi),
             Pixels((6, 8, 2), (10000, 10001), "uint16", pixel_size=0.5), needs="pylibCZIrw"),
        Kind("ND2, two channels, with pixel size", image("x.nd2", nd2),
             Pixels((6, 8, 2), (10000, 10001), "uint16", pixel_size=0.325), needs="nd2"),
        Kind("a link to an image",
             image("x.png", lambda path: (pil(GREY8)(path.with_name("there.png")), link("there.png")(path))),
             Pixels((6, 8, 1), (50,))),
    ),
    "Images that are refused": (
        Kind("a file that is not there", image("x.png", lambda path: None),
             Refused("x.png: no such file; check the folder and the name.", FileNotFoundError)),
        Kind("a link to nothing", image("x.png", link("nowhere.png")),
             Refused("x.png: is a link to nowhere.png, which is not there; bring it there, or put the file "
                     "itself in the link's place.", FileNotFoundError)),
        Kind("a folder named x.png", image("x.png", lambda path: path.mkdir()),
             Refused("x.png: is a folder, but what ends in .png must be a file. Check the name.")),
        Kind("a file named x.zarr", image("x.zarr", raw("x")),
             Refused("x.zarr: is a file, but what ends in .zarr must be a folder. Check the name.")),
        Kind("a file without read permission", image("x.png", locked(pil(GREY8))),
             Refused("x.png: you have no permission to read it; ask its owner, or change it with chmod."), needs="user"),
        Kind("an unknown format", image("x.gif", pil(GREY8)),
             Refused("x.gif: a file that ends in '.gif' cannot be read here; known endings are .png, .jpg, ... Convert it, "
                     "for example to TIFF.")),
        Kind("PNG of zero bytes", image("x.png", raw("")),
             Refused("x.png: is empty (0 bytes); copy it anew from where it came.")),
        Kind("PNG cut within its pixels", image("x.png", raw(PNG[:60])), Refused(f"x.png: cannot be read as png: ... {WHOLE}")),
        Kind("PNG cut within its header", image("x.png", raw(PNG[:20])),
             Refused(f"x.png: cannot be read as png: it ends within its header. {WHOLE}")),
        Kind("PNG with a wrong byte", image("x.png", raw(PNG[:60] + b"?" + PNG[61:])),
             Refused(f"x.png: cannot be read as png: ... {WHOLE}")),
        Kind("text named x.png", image("x.png", raw("This is no picture.")),
             Refused(f"x.png: cannot be read as png: it does not begin like a PNG. {WHOLE}")),
        Kind("JPEG named x.png", image("x.png", lambda path: pil(RGB8, format="JPEG")(path)),
             Refused("x.png: its name says png, but it begins like a JPEG file; give it the right ending.")),
        Kind("PNG named x.tif", image("x.tif", raw(PNG)),
             Refused("x.tif: its name says tif, but it begins like a PNG file; give it the right ending.")),
        Kind("JPEG cut in half", image("x.jpg", cut(pil(RGB8.repeat(20, 0).repeat(20, 1)), 0.5)),
             Refused(f"x.jpg: cannot be read as jpg: ... {WHOLE}")),
        Kind("BMP cut in half", image("x.bmp", raw(BMP[:len(BMP) // 2])), Refused(f"x.bmp: cannot be read as bmp: ... {WHOLE}")),
        Kind("TIFF cut within its pixels", image("x.tif", cut(tiff(GREY16, metadata=None), 0.9)),
             Refused(f"x.tif: cannot be read as tif: its pixels end ... bytes too early. {WHOLE}")),
        Kind("TIFF cut within its header", image("x.tif", cut(tiff(GREY16), 0.05)),
             Refused(f"x.tif: cannot be read as tif: ... {WHOLE}")),
        Kind("TIFF whose compressed pixels are damaged",
             image("x.tif", patched(GREY8, {273: -1, 279: -2}, tail=b"damaged", compression="zlib")),
             Refused(f"x.tif: cannot be read as tif: ... {WHOLE}")),
        Kind("TIFF whose pixels were never written", image("x.tif", patched(GREY8, {279: 0}, compression="zlib")),
             Refused("x.tif: some of its pixels were never written, perhaps because the program that wrote it was stopped; "
                     "save it anew.")),
        Kind("TIFF of unknown compression", image("x.tif", patched(GREY8, {259: 999})),
             Refused(f"x.tif: cannot be read as tif: ... {WHOLE}")),
        Kind("TIFF in CIELAB", image("x.tif", patched(GREY8, {262: 8})),
             Refused("x.tif: its colours are CIELAB with 1 samples of uint8, which are not read; save it as grey or RGB.")),
        Kind("TIFF, floats of which 0 is white", image("x.tif", tiff(GREY8.astype(np.float32), photometric="miniswhite")),
             Refused("x.tif: it says that 0 is white, but its values are float32, for which black is undefined; invert the "
                     "lookup table in the program that wrote it, and save it anew.")),
        Kind("OME-TIFF with malformed XML",
             image("x.ome.tif", tiff(GREY8, metadata=None, description="<?xml version='1.0'?><OME><Image></OME>")),
             Refused("x.ome.tif: its XML metadata is malformed (...), so its axes and channels are unknown; save it anew.")),
        Kind("OME-TIFF with two images", image("x.ome.tif", two_series),
             Refused("x.ome.tif: it holds 2 images; choose with select={'series': ...} one of its 2: 'field 0', 'field 1'.")),
        Kind("movie without a selected time point", image("x.tif", movie(3)),
             Refused("x.tif: it holds a movie of 3 time points, and an image is one of them; choose with select={'T': 0}, or "
                     "project with select={'T': 'max'}.")),
        Kind("a selected channel that is not there",
             image("x.ome.tif", tiff(STACK, ome=True, metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "RFP"]}}),
                   select={"C": "Cy5"}),
             Refused("x.ome.tif: select={'C': 'Cy5'} is none of its planes; give a number from 0 to 2, a name of DAPI, GFP, "
                     "RFP, 'max' or 'mean'.")),
        Kind("a selected axis that is not there", image("x.tif", tiff(GREY8), select={"T": 0}),
             Refused("x.tif: select names 'T', but its axes beside Y and X are none; select one of those, and parts of Y and "
                     "X by region.")),
        Kind("npy with channels first", image("x.npy", npy(np.moveaxis(RGB8.repeat(20, 0).repeat(20, 1), 2, 0))),
             Refused("x.npy: its shape is (3, 120, 160); an array must be [H, W] or [H, W, C] with at most 64 planes (8 over "
                     "4 rows or fewer), so move the channels to the end with numpy.moveaxis(array, 0, -1).")),
        Kind("npy with channels first, few pixels", image("x.npy", npy(np.zeros((3, 40, 50)))),
             Refused("x.npy: its shape is (3, 40, 50); an array must be [H, W] or [H, W, C] with at most 64 planes (8 over 4 "
                     "rows or fewer), so move the channels to the end with numpy.moveaxis(array, 0, -1).")),
        Kind("npy cut", image("x.npy", cut(npy(GREY16), 0.9)),
             Refused(f"x.npy: cannot be read as npy: its pixels end ... bytes too early. {WHOLE}")),
        Kind("npy of complex numbers", image("x.npy", npy(GREY8 * 1j)),
             Refused("x.npy: its values are complex128; an image holds whole or real numbers. Save it as one of those.")),
        Kind("npy without pixels", image("x.npy", npy(np.zeros((0, 8)))),
             Refused("x.npy: its shape is (0, 8); an image has at least one pixel. Save it anew.")),
        Kind("npz with several arrays, none selected", image("x.npz", lambda path: np.savez(path, a=GREY8, b=GREY16)),
             Refused("x.npz: it holds 2 arrays, and an image is one; choose with select={'array': ...} one of its 2: 'a', 'b'.")),
        Kind("npz that is no zip", image("x.npz", raw("This is no archive. " * 9)),
             Refused(f"x.npz: cannot be read as npz: ... {WHOLE}")),
        Kind("an empty folder named x.zarr", image("x.zarr", lambda path: path.mkdir()),
             Refused(f"x.zarr: cannot be read as zarr: ... {WHOLE}")),
        Kind("Zarr with malformed metadata", image("x.zarr", lambda path: write_files(path, {".zarray": "{"})),
             Refused(f"x.zarr: cannot be read as zarr: ... {WHOLE}")),
        Kind("Zarr of version 2 with a damaged block",
             image("x.zarr", zarr_claim(b"damaged", compressor={"id": "zstd", "level": 1})),
             Refused("x.zarr: its block 0.0 is damaged, or unpacks to far more than its pixels; copy it anew, or save it anew.")),
        Kind("Zarr with a codec that is not known to be harmless", image("x.zarr", zarr_claim(filters=[{"id": "base64"}])),
             Refused("x.zarr: it is coded with base64, which may not be safe to decode; save it with zstd or blosc.")),
        Kind("OME-Zarr without the array that it names", image("x.ome.zarr", ome_zarr(STACK, path="5")),
             Refused("x.ome.zarr: its OME metadata names the array '5', which is not there; copy it anew as a whole.")),
        Kind("CZI that is damaged", image("x.czi", raw("ZISRAWFILE and nothing else")),
             Refused(f"x.czi: cannot be read as czi: ... {WHOLE}"), needs="pylibCZIrw"),
        Kind("ND2 that is damaged", image("x.nd2", raw(b"\xda\xce\xbe\n and nothing else")),
             Refused(f"x.nd2: cannot be read as nd2: ... {WHOLE}"), needs="nd2"),
    ),
    "Labels that are read": (
        Kind("PNG, 8 bits", labels("x.png", pil(CELLS)), Cells((6, 8))),
        Kind("PNG, palette", labels("x.png", coloured), Cells((6, 8), note="the numbers, whatever their colours")),
        Kind("PNG, grey saved as RGB", labels("x.png", pil(np.dstack([CELLS] * 3))), Cells((6, 8))),
        Kind("TIFF, 16 bits", labels("x.tif", tiff(CELLS.astype(np.uint16) * 300)), Cells((6, 8), ids=(300, 600))),
        Kind("TIFF, 32 bits, a cell numbered above 65,535", labels("x.tif", tiff(CELLS.astype(np.uint32) * 70000)),
             Cells((6, 8), ids=(70000, 140000))),
        Kind("TIFF, more than 65,535 cells",
             labels("x.tif", tiff(np.arange(90000, dtype=np.uint32).reshape(300, 300), compression="zlib"), shape=(300, 300)),
             Cells((1,) * 89999)),
        Kind("npy, 64 bits, numbers above 2,147,483,647", labels("x.npy", npy(CELLS.astype(np.int64) << 40)),
             Cells((6, 8), note="renumbered from 1, as 32 bits do not hold them")),
        Kind("npy, floats without fractions", labels("x.npy", npy(CELLS.astype(np.float32))), Cells((6, 8))),
        Kind("npy with -1", labels("x.npy", npy(np.where(CELLS == 2, -1, CELLS.astype(np.int16)))),
             Cells((6,), ignored=8, note="-1 is \"ignore\"")),
        Kind("OME-Zarr with one label image", labels("x.ome.zarr", ome_zarr(STACK, labels=CELLS)), Cells((6, 8))),
        Kind("PNG, one colour a cell",
             labels("x.png", pil(np.array([[0, 0, 0], [255, 0, 0], [0, 255, 1]], np.uint8)[CELLS]), coding="rgb"),
             Cells((8, 6), note="with coding \"rgb\"; numbered by colour")),
        Kind("PNG, foreground and background", labels("x.png", pil(CELLS > 0), coding="binary"),
             Cells((6, 8), note="with coding \"binary\": every piece is a cell")),
        Kind("TIFF, one mask a page, overlapping", labels("x.tif", tiff(MASKS.astype(np.uint8) * 255)),
             Cells((6, 8, 9), layers=2, note="overlaps are kept")),
        Kind("TIFF, label layers", labels("x.tif", tiff(np.stack([CELLS, MASKS[2] * np.uint8(7)]))),
             Cells((6, 8, 9), layers=2, ids=(1, 2, 7))),
        Kind("a folder with one mask file a cell", labels("x", write_masks),
             Cells((6, 8, 9), layers=2, note="in the order of their names")),
        Kind("GeoJSON of QuPath", labels("x.geojson", raw(geojson([SQUARE], [[[4, 4], [8, 4], [8, 6], [4, 6]]]))), Cells((6, 8))),
        Kind("GeoJSON, partly outside", labels("x.geojson", raw(geojson([[[-9, 1], [4, 1], [4, 3], [-9, 3]]]))),
             Cells((8,), note="what lies outside is cut off")),
        Kind("ImageJ selection (.roi)", labels("x.roi", raw(roi(SQUARE[:4]))), Cells((6,))),
        Kind("ImageJ ROI zip",
             labels("x.zip", archive({"1.roi": roi(SQUARE[:4]), "2.roi": roi([[4, 4], [8, 4], [8, 6], [4, 6]])})),
             Cells((6, 8))),
        Kind("session of Cellpose (_seg.npy)", labels("x_seg.npy", npy({"masks": CELLS, "filename": "x.png", "est_diam": 30.0})),
             Cells((6, 8), note="without running its pickle")),
        Kind("nothing but background", labels("x.png", pil(CELLS * 0)), Cells(())),
    ),
    "Labels that are refused": (
        Kind("a size other than the image's", labels("x.png", pil(CELLS[:5])),
             Refused("x.png: the labels are 5 x 8 pixels, but their image has 6 x 8 (height x width). Check the pairing of "
                     "images and labels.")),
        Kind("negative numbers", labels("x.npy", npy(CELLS.astype(np.int16) - 2)),
             Refused("x.npy: labels hold -2; below 0 only -1 (ignore) has a meaning. Set background to 0.")),
        Kind("background of -1", labels("x.npy", npy(CELLS.astype(np.int16) - 1 - (CELLS == 1))),
             Refused("x.npy: labels hold -1 and no 0: background seems to be -1 and the first cell may be 0. Here 0 is "
                     "background, cells are 1, 2, ... and -1 means \"ignore\": save labels + 1.")),
        Kind("fractions", labels("x.npy", npy(CELLS / 2)),
             Refused("x.npy: labels have fractions (such as 0.5), but a cell's id is a whole number. This looks like an image "
                     "or a probability map; name the label file.")),
        Kind("NaN", labels("x.npy", npy(np.where(CELLS == 1, np.nan, CELLS))),
             Refused("x.npy: labels hold nan on 6 pixels, but a cell's id is a whole number. Set background to 0 "
                     "(numpy.nan_to_num).")),
        Kind("infinity", labels("x.tif", tiff(np.where(CELLS == 1, np.inf, CELLS).astype(np.float32))),
             Refused("x.tif: labels hold inf on 6 pixels, but a cell's id is a whole number. Set background to 0 "
                     "(numpy.nan_to_num).")),
        Kind("a foreground mask where numbers are asked for", labels("x.png", pil((CELLS > 0) * np.uint8(255))),
             Refused("x.png: holds one value beside 0 (255) in 2 separate pieces, so it seems to be a foreground mask, which "
                     "numbers no cells. If every piece is a cell, set coding=\"binary\"; if all are one cell, save it with "
                     "another number, such as 2.")),
        Kind("colours where numbers are asked for", labels("x.png", pil(RGB8)),
             Refused("x.png: is a colour picture of shape (6, 8, 3), but a label image has one number per cell. If each "
                     "colour is one cell, set coding=\"rgb\"; if it is a rendering, save the label array itself.")),
        Kind("colours with smoothed borders", labels("x.png", pil(RGB8), coding="rgb"),
             Refused("x.png: has 48 colours, 48 of them on fewer than 5 pixels each, so they do not stand for cells: it is a "
                     "photograph, or its borders are smoothed. Save it without smoothing.")),
        Kind("one cell on several pages", labels("x.tif", tiff(np.stack([CELLS, CELLS]))),
             Refused("x.tif: cell 1 occurs on several of the 2 pages; a cell lies in one layer only. Save one page with one "
                     "number per cell, or one page per cell.")),
        Kind("JPEG", labels("x.jpg", pil(CELLS)),
             Refused("x.jpg: a label file that ends in '.jpg' cannot be read here: it may be compressed with loss, which "
                     "changes the numbers of cells. Save it anew as PNG or TIFF where it was made.")),
        Kind("TIFF, compressed as JPEG", labels("x.tif", tiff(CELLS, compression="jpeg")),
             Refused("x.tif: its compression, JPEG, changes pixel values; save labels without loss.")),
        Kind("TIFF cut", labels("x.tif", cut(tiff(CELLS.astype(np.uint16), metadata=None), 0.9)),
             Refused(f"x.tif: cannot be read as tif: its pixels end ... bytes too early. {WHOLE}")),
        Kind("TIFF of zero bytes", labels("x.tif", raw("")),
             Refused("x.tif: is empty (0 bytes); copy it anew from where it came.")),
        Kind("movie", labels("x.tif", movie(3)),
             Refused("x.tif: it holds a movie of 3 time points, and an image is one of them; choose with select={'T': 0}, or "
                     "project with select={'T': 'max'}.")),
        Kind("npy, a stack with masks first", labels("x.npy", npy(MASKS.astype(np.uint8))),
             Refused("x.npy: the labels are 3 x 6 pixels, but their image has 6 x 8 (height x width). Check the pairing of "
                     "images and labels.")),
        Kind("an empty folder of masks", labels("x", lambda path: path.mkdir()),
             Refused("x: holds no mask file. Put one file per cell there; if the image has no cell, one that is all 0.")),
        Kind("a folder of masks of several sizes", labels("x", lambda path: write_masks(path, GREY8[:3] > 9)),
             Refused("x/3.png: is 3 x 8 pixels, but 0.png beside it 6 x 8; the masks of an image have one size. Check for a "
                     "stray file.")),
        Kind("GeoJSON cut", labels("x.geojson", raw(geojson([SQUARE])[:-9])),
             Refused("x.geojson is no JSON: ... Check that the file is whole and is what its name says.")),
        Kind("GeoJSON, an outline outside of the image", labels("x.geojson", raw(geojson([[[90, 90], [95, 90], [95, 95]]]))),
             Refused("x.geojson: object 1 covers no pixel of the image of 6 x 8: it lies outside, or is thinner than a pixel. "
                     "Check that the file belongs to this image, or delete the object.")),
        Kind("GeoJSON, NaN as a coordinate", labels("x.geojson", raw(geojson([[[1, 1], [float("nan"), 1], [4, 3]]]))),
             Refused("x.geojson: object 1: its outline has coordinates that are no places in an image, such as nan. Mend or "
                     "delete it in QuPath.")),
        Kind("GeoJSON, a point", labels("x.geojson", raw(geojson([1, 1], kind="Point"))),
             Refused("x.geojson: object 1: it is a 'Point', but a cell must be a Polygon or MultiPolygon. Mend or delete it "
                     "in QuPath.")),
        Kind("GeoJSON that is COCO", labels("x.json", raw('{"images": [], "annotations": []}')),
             Refused("x.json: is no GeoJSON; it must be a FeatureCollection, a list of features or a feature. (A COCO file "
                     "belongs to images of its own: name it as a source of kind 'coco'.)")),
        Kind("outlines without the image's size", labels("x.geojson", raw(geojson([SQUARE])), shape=None),
             Refused("x.geojson: holds outlines, and how large their image is the file does not say. Give shape=(H, W).")),
        Kind("outlines without read permission", labels("x.roi", locked(raw(roi(SQUARE[:4])))),
             Refused("x.roi: you have no permission to read it; ask its owner, or change it with chmod."), needs="user"),
        Kind("ImageJ selection, a line", labels("x.roi", raw(roi(SQUARE[:2], ROI_TYPE.FREELINE))),
             Refused("x.roi: it is of the kind freeline, which is no area. Delete it in ImageJ, or save it anew as an area.")),
        Kind("ImageJ selection, cut", labels("x.roi", raw(roi(SQUARE[:4])[:50])),
             Refused("x.roi: cannot be read as an ImageJ selection: ... Save it anew with ImageJ.")),
        Kind("ImageJ ROI zip, damaged", labels("x.zip", raw("PK\3\4 and nothing else")),
             Refused("x.zip: cannot be read as an archive of ImageJ selections: ... Save it anew with the ROI Manager.")),
        Kind("ImageJ ROI zip without selections", labels("x.zip", archive({"notes.txt": b"none"})),
             Refused("x.zip: holds no ImageJ selection (no .roi). If it is an archive of something else, unpack it; an image "
                     "without cells needs an empty label image.")),
        Kind("session of Cellpose without masks", labels("x_seg.npy", npy({"filename": "x.png"})),
             Refused("x_seg.npy: has no 'masks', so it is no session of Cellpose; it has 'filename'. Save label images as "
                     "plain arrays.")),
        Kind("session of Cellpose, cut", labels("x_seg.npy", cut(npy({"masks": CELLS}), 0.8)),
             Refused("x_seg.npy: cannot be read as a session of Cellpose: ... If you trust the file, open it in Cellpose and "
                     "save its masks as TIFF or PNG.")),
    ),
    "Folders and manifests": (
        Kind("x.png with x_label.png beside it", folder({**PAIR, "b.png": GREY8}), Samples({"a": 2, "b": None})),
        Kind("images/x.png with labels/x.tif", folder({"images/a.png": GREY8, "labels/a.tif": tiff(CELLS)}), Samples({"a": 2})),
        Kind("masks/x/ with one file a cell", folder({"images/a.png": GREY8, "masks/a": write_masks}), Samples({"a": 3})),
        Kind("x.png with x.geojson, x_rois.zip or x_seg.npy",
             folder({"a.png": GREY8, "a.geojson": geojson([SQUARE]), "b.png": GREY8,
                     "b_rois.zip": archive({"1.roi": roi(SQUARE[:4])}), "c.png": GREY8, "c_seg.npy": npy({"masks": CELLS})}),
             Samples({"a": 1, "b": 1, "c": 2})),
        Kind("x_seg.npy beside x_masks.tif", folder({"a.png": GREY8, "a_masks.tif": tiff(CELLS), "a_seg.npy": npy({"masks": 0})}),
             Samples({"a": 2}, "what was saved counts, not the session")),
        Kind("macOS's ._x.png, notes.txt, Thumbs.db among images",
             folder({**PAIR, "._a.png": "junk", "notes.txt": "", "Thumbs.db": "junk", ".DS_Store": "junk"}),
             Samples({"a": 2}, "passed over")),
        Kind("a manifest.csv from a spreadsheet",
             folder({**PAIR, "manifest.csv": "\ufeff" + HEADER + " a.png , a_label.png,val\r\n"}),
             Samples({"a": 2}, "spaces and the mark at its start do not count")),
        Kind("a folder that is not there", no_folder,
             Refused("absent: no such folder (relative ones count from ...); a folder of images looks like "
                     "x.png with x_label.png beside it, images/x.png with labels/x.png, or has a "
                     "manifest.csv with the columns image_file and label_file.", FileNotFoundError)),
        Kind("an empty folder", folder({}),
             Refused("data: holds no image; name your folder with --config.data.root=DIR. Files must end in .png, .jpg, ...")),
        Kind("a folder without read permission", folder({"images/a.png": GREY8, "images": lambda path: path.chmod(0)}),
             Refused("images: you have no permission to read it; ask its owner, or change it with chmod."), needs="user"),
        Kind("images and labels of different sizes", folder({"a.png": GREY8, "a_label.png": CELLS[:5]}),
             Refused("a_label.png: the labels are 5 x 8 pixels, but their image has 6 x 8 (height x width). Check the pairing "
                     "of images and labels.")),
        Kind("labels without an image", folder({**PAIR, "b_label.png": CELLS}),
             Refused("data: b_label.png must be labels by their names, but there is no image of theirs. Add the images; or, "
                     "if these are images, rename them or write a manifest.csv.")),
        Kind("labels without an image, in their folder",
             folder({"images/a.png": GREY8, "labels/a.png": CELLS, "labels/b.png": CELLS}),
             Refused("labels: labels without an image: b.png. The label of x.png is x_label.png or the like; rename them, add "
                     "the images, or write a manifest.csv.")),
        Kind("images without labels where labels are needed", folder({**PAIR, "b.png": GREY8}, labelled=True),
             Refused("data: 1 of 2 images have no label file (b.png); expected b_label.png, _labels.tif, _masks.tif or the "
                     "like beside them. Move them elsewhere, or list the others in a manifest.csv.")),
        Kind("two images of one name", folder({"a.png": GREY8, "a.tif": tiff(GREY8)}),
             Refused("data: a.png, a.tif all answer to 'a'; keep one image and one label of each name, or write a "
                     "manifest.csv with the columns image_file and label_file.")),
        Kind("two labels of one image", folder({**PAIR, "a_masks.png": CELLS}),
             Refused("data: a_label.png, a_masks.png all answer to 'a'; keep one image and one label of each name, or write a "
                     "manifest.csv with the columns image_file and label_file.")),
        Kind("labels of an unknown format", folder({"a.png": GREY8, "a_mask.gif": CELLS}),
             Refused("data: a_mask.gif must be labels by their names, but a label cannot end in '.gif'; known endings are "
                     ".png, ... Convert them, for example to TIFF, or rename them.")),
        Kind("an image that is a link to nothing", folder({**PAIR, "b.png": link("nowhere.png")}),
             Refused("b.png: is a link to nowhere.png, which is not there; bring it there, or put the file "
                     "itself in the link's place.", FileNotFoundError)),
        Kind("labels that are a link to nothing", folder({"a.png": GREY8, "a_label.png": link("nowhere.png")}),
             Refused("a_label.png: is a link to nowhere.png, which is not there; bring it there, or put "
                     "the file itself in the link's place.", FileNotFoundError)),
        Kind("no such split", folder(PAIR, split="test"),
             Refused("data: has neither manifest.csv nor a subfolder 'test', so it has no split 'test'. Leave split out, or "
                     "sort the files into subfolders train and val.")),
        Kind("a manifest that lists a missing image", folder({"manifest.csv": HEADER + "a.png,,\n"}),
             Refused("manifest.csv, line 2: a.png is missing; complete the folder or remove the line.", FileNotFoundError)),
        Kind("a manifest that lists missing labels", folder({"a.png": GREY8, "manifest.csv": HEADER + "a.png,a_label.png,\n"}),
             Refused("manifest.csv, line 2: a_label.png is missing; complete the folder or remove the line.", FileNotFoundError)),
        Kind("a manifest separated by semicolons",
             folder({**PAIR, "manifest.csv": HEADER.replace(",", ";") + "a.png;a_label.png;\n"}),
             Refused("manifest.csv: its values are separated by semicolons; they must be by commas. Save it so.")),
        Kind("a manifest without the column image_file", folder({**PAIR, "manifest.csv": "picture\na.png\n"}),
             Refused("manifest.csv: has no column image_file; its columns are picture. The first line must be a header.")),
        Kind("a manifest with labels in another column", folder({**PAIR, "manifest.csv": "image_file,mask\na.png,a_label.png\n"}),
             Refused("manifest.csv: has a column 'mask', but labels are named in the column label_file. Rename it; if it "
                     "names no labels, call it otherwise.")),
        Kind("a manifest without rows", folder({**PAIR, "manifest.csv": HEADER}),
             Refused("manifest.csv: has a header and no row; one row for each image is needed.")),
        Kind("a manifest with a row that is too long", folder({**PAIR, "manifest.csv": HEADER + "a.png,a_label.png,val,x\n"}),
             Refused("manifest.csv, line 2: has more than 3 values; put a value that holds a comma in quotes.")),
        Kind("a manifest that is not UTF-8", folder({**PAIR, "manifest.csv": b"image_file\n\xff\xfea.png\n"}),
             Refused("manifest.csv: is not UTF-8 text (... at byte 11). Save it as UTF-8.")),
        Kind("a manifest with an unknown split", folder({**PAIR, "manifest.csv": HEADER + "a.png,,validation\n"}),
             Refused("manifest.csv, line 2: split 'validation' is unknown; it must be train, val, test, unlabelled or empty.")),
        Kind("a manifest that lists an image twice", folder({**PAIR, "manifest.csv": HEADER + "a.png,,\na.png,,\n"}),
             Refused("manifest.csv, line 3: 'a' is the name of an earlier line too (a.png); a name stands for one image. Give "
                     "the column stem different values.")),
        Kind("a pixel size that is no number", folder({**PAIR, "manifest.csv": "image_file,pixel_size\na.png,half\n"}),
             Refused("manifest.csv, line 2: pixel_size 'half' is no size; it must be micrometres per pixel, such as 0.65, or "
                     "empty.")),
        Kind("NaN or infinity in an image", opened({"a.npy": npy(np.where(CELLS == 1, np.nan, GREY8))}),
             Refused("a: 6 of 48 values are NaN or infinite, the first (nan) at (y, x) = (1, 1) of plane 0; every value must "
                     "be finite. Replace them in the file, for example with numpy.nan_to_num.")),
        Kind("labels that are \"ignore\" everywhere", opened({"a.png": GREY8, "a_label.npy": npy(np.full((6, 8), -1))}),
             Refused("a_label.npy: labels hold -1 and no 0: background seems to be -1 and the first cell may be 0. Here 0 is "
                     "background, cells are 1, 2, ... and -1 means \"ignore\": save labels + 1.")),
        Kind("one damaged image among three", opened(BAD), Refused(f"b.png: cannot be read as png: ... {WHOLE}")),
        Kind("one damaged image among three, unreadable=\"skip\"", opened(BAD, unreadable="skip"),
             Samples({"a": 2, "c": 2}, "the others; what was left out is counted and named",
                     f"skipped 1 of 3 samples of mine:\n  b: ValueError: b.png: cannot be read as png: ... {WHOLE}")),
        Kind("nothing but damaged images, unreadable=\"skip\"", opened({"b.png": PNG[:60]}, unreadable="skip"),
             Refused("mine: none of its 1 samples can be used; the first: b: ValueError: b.png: cannot be read as png: ... "
                     f"{WHOLE}")),
    ),
    "COCO and tables": (
        Kind("COCO polygons", coco([{"segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]}]), Samples({"a.png": 1})),
        Kind("COCO run lengths", coco([{"segmentation": SQUARE_RUNS}]), Samples({"a.png": 1})),
        Kind("COCO compressed run lengths", coco([{"segmentation": {"size": [6, 8], "counts": "724000g0"}}]),
             Samples({"a.png": 1})),
        Kind("COCO crowd", coco([{"segmentation": SQUARE_RUNS, "iscrowd": 1}]), Samples({"a.png": 0}, "\"ignore\", no cell")),
        Kind("COCO polygons that overlap", coco([{"segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]}, {"segmentation": SQUARE_RUNS}]),
             Samples({"a.png": 2}, "both cells keep all their pixels")),
        Kind("COCO polygon partly outside", coco([{"segmentation": [[-5, 1, 4, 1, 4, 30, -5, 30]]}]),
             Samples({"a.png": 1}, "what lies outside is cut off")),
        Kind("COCO polygon wholly outside", coco([{"segmentation": [[90, 90, 95, 90, 95, 95]]}]),
             Refused("coco.json: a.png: annotation 0 leaves no pixel in its image (1 such annotation(s) in all): fewer than "
                     "three points, thinner than a pixel, or outside. Mend the file, or set degenerate=\"drop\".")),
        Kind("COCO polygon wholly outside, degenerate=\"drop\"",
             coco([{"segmentation": [[90, 90, 95, 90, 95, 95]]}], degenerate="drop"),
             Samples({"a.png": 0}, "it is counted")),
        Kind("COCO image without annotations", coco(), Samples({"a.png": 0}, "no cells")),
        Kind("COCO category that the file does not list", coco([{"segmentation": SQUARE_RUNS, "category_id": 9}]),
             Refused("coco.json: annotation 0 has the category 9, which is not in its 'categories'. Add the category or "
                     "remove the annotation.")),
        Kind("a category asked for that COCO does not list", coco([{"segmentation": SQUARE_RUNS}], categories=["nucleus"]),
             Refused("coco.json: has no category nucleus; it has cell.")),
        Kind("COCO annotation of an image that is not listed", coco([{"segmentation": SQUARE_RUNS, "image_id": 8}]),
             Refused("coco.json: annotation 0 belongs to image 8, which is not in its 'images'. Add the image or remove the "
                     "annotation.")),
        Kind("COCO image file that is not there", coco(write=False),
             Refused("data: 1 of 1 images that coco.json lists are missing ('a.png'). Check the image "
                     "folder.", FileNotFoundError)),
        Kind("COCO size other than the image's", coco(images=[{"id": 7, "file_name": "a.png", "height": 8, "width": 6}]),
             Refused("a.png: (H, W) = (6, 8), but coco.json says (8, 6). Check that the annotations belong to these images.")),
        Kind("COCO run lengths that do not add up", coco([{"segmentation": {"size": [6, 8], "counts": [7, 2]}}]),
             Refused("coco.json: a.png: annotation 0 has damaged run lengths: they must add up to 6 x 8 pixels. Export it "
                     "anew.")),
        Kind("COCO run lengths for another size", coco([{"segmentation": {"size": [8, 6], "counts": [48]}}]),
             Refused("coco.json: a.png: annotation 0 is for (H, W) = (8, 6), but the image has (6, 8). Check that the "
                     "annotations belong to these images.")),
        Kind("COCO with boxes only", coco([{"bbox": [1, 1, 3, 2]}]),
             Refused("coco.json: a.png: annotation 0 has no segmentation, at most a box; polygons or run lengths are needed. "
                     "Remove it from the file, or add its outline.")),
        Kind("COCO polygon with NaN", coco([{"segmentation": [[1, 1, float("nan"), 1, 4, 3]]}]),
             Refused("coco.json: a.png: annotation 0 has coordinates that are no places in an image, such as nan. Mend or "
                     "remove it.")),
        Kind("COCO with one id twice", coco([{"segmentation": SQUARE_RUNS, "id": 3}] * 2),
             Refused("coco.json: a.png: two annotations have the id 3, so a cell may be there twice. Remove one, or number "
                     "them anew.")),
        Kind("COCO cut", coco(text='{"images": ['),
             Refused("coco.json is no JSON: ... Check that the file is whole and is what its name says.")),
        Kind("JSON that is no COCO", coco(text='{"type": "FeatureCollection"}'),
             Refused("coco.json: is not a COCO instance file; it needs the lists 'images' and 'annotations'.")),
        Kind("BBBC038, one mask file a nucleus", dsb({"masks/1.png": CELLS // 2 * 255}), Samples({"a": 1})),
        Kind("BBBC038, a table of run lengths", dsb({}, "a,8 2 14 2\n"), Samples({"a": 1})),
        Kind("BBBC038, run lengths beyond the image", dsb({}, "a,40 20\n"),
             Refused("stage1_train_labels.csv, image a: a run covers the pixels 40 to 59, but the image has 1 to 48. Check "
                     "that the table belongs to these images.")),
        Kind("BBBC038, run lengths that are none", dsb({}, "a,one two\n"),
             Refused("stage1_train_labels.csv, image a: 'one two' are no run lengths; pairs of a start and a length are "
                     "needed. Get the file anew.")),
        Kind("BBBC038, a table without the image", dsb({}, "b,8 2\n"),
             Refused("stage1_train_labels.csv: has no row for a; take the table of this very split, or remove the image.")),
        Kind("BBBC038, neither masks nor table", dsb({}),
             Refused("stage1_train/a: has no subfolder masks, and there is no stage1_train_labels.csv; "
                     "BBBC038 looks like stage1_train/ID/images/ID.png with one file per nucleus in "
                     "stage1_train/ID/masks/, stage1_test/ID/images/ID.png with stage1_solution.csv, and "
                     "stage2_test_final/ID/images/ID.png with stage2_solution_final.csv.", FileNotFoundError)),
    ),
    "Hostile files": (
        Kind("PNG that claims 100,000 x 100,000 pixels", image("x.png", raw(png(10**5, 10**5))),
             Refused("x.png: its pixels, (100000, 100000) of uint8, are decoded in blocks of 10.0 GB, more than max_gb=8; "
                     "raise max_gb, or save it as Zarr or tiled TIFF.")),
        Kind("PNG palette with a text of 1 GB, packed",
             labels("x.png",
                    raw(png(8, 6, colour=3, chunks=chunk(b"PLTE", bytes(768)) + chunk(b"zTXt", b"x\0\0" + zlibbed(1000))))),
             Refused(f"x.png: cannot be read as png: ... {WHOLE}")),
        Kind("BMP that claims 100,000 x 100,000 pixels", image("x.bmp", raw(BMP[:18] + b"\xa0\x86\1\0" * 2 + BMP[26:])),
             Refused("x.bmp: its pixels, (100000, 100000) of uint8, are decoded in blocks of 10.0 GB, more than max_gb=8; "
                     "raise max_gb, or save it as Zarr or tiled TIFF.")),
        Kind("TIFF that claims a width of 2,147,483,648", image("x.tif", patched(GREY8, {256: 2**31}, compression="zlib")),
             Refused("x.tif: its pixels, (6, 2147483648) of uint8, are decoded in blocks of 12.9 GB, more than max_gb=8; "
                     "raise max_gb, or save it as Zarr or tiled TIFF.")),
        Kind("TIFF of 6 x 8 pixels that unpack to 4 GB",
             image("x.tif", patched(GREY8, {273: -1, 279: -2}, tail=zlibbed(4000), compression="zlib")),
             Refused(f"x.tif: cannot be read as tif: ... {WHOLE}")),
        Kind("TIFF whose pages point in a circle", image("x.tif", circle),
             Refused("x.tif: its page 2 points back to an earlier one, so the pages have no end; save it anew.")),
        Kind("OME-TIFF with entities that grow to 1 GB",
             image("x.ome.tif", tiff(GREY8, description=entities("OME"), metadata=None)),
             Refused("x.ome.tif: its XML metadata declares a document type, which could expand without bounds; save it anew "
                     "without.")),
        Kind("TIFF of a slide scanner with such entities",
             image("x.tif", tiff(GREY8, description=entities("scn"), metadata=None)),
             Refused(f"x.tif: cannot be read as tif: ... {WHOLE}")),
        Kind("OME-TIFF that names a file elsewhere as its part",
             image("x.ome.tif", tiff(GREY8, metadata=None, description=part_of("/dev/zero"))),
             Refused("x.ome.tif: its OME metadata names '/dev/zero' as a part of it, but parts are files in the same folder; "
                     "save it anew.")),
        Kind("npy that claims 10 GB", image("x.npy", raw(array_header(HUGE))),
             Refused(f"x.npy: cannot be read as npy: its pixels end ... bytes too early. {WHOLE}")),
        Kind("npz that claims 10 GB", image("x.npz", archive({"a.npy": array_header(HUGE)})),
             Refused("x.npz: its pixels, (100000, 100000) of uint8, are decoded in blocks of 10.0 GB, more than max_gb=8; "
                     "raise max_gb, or save it as Zarr or tiled TIFF.")),
        Kind("npz whose header unpacks to 4 GB",
             image("x.npz", archive_bomb("a.npy", 3900, start=b"\x93NUMPY\x02\0" + b"\0\0\0\xf0")),
             Refused(f"x.npz: cannot be read as npz: ... {WHOLE}")),
        Kind("npy with a pickle, as an image", image("x.npy", trapped(lambda trap: np.array([trap], object))),
             Refused("x.npy: it holds Python objects, as a _seg.npy of Cellpose does, which are not safe to load; save its "
                     "masks as TIFF or PNG.")),
        Kind("npz with a pickle", image("x.npz", trapped_npz),
             Refused("x.npz: it holds Python objects, as a _seg.npy of Cellpose does, which are not safe to load; save its "
                     "masks as TIFF or PNG.")),
        Kind("npy with a pickle, as labels", labels("x.npy", trapped(lambda trap: np.array([trap], object))),
             Refused("x.npy: cannot be read as a session of Cellpose: it asks for '...mkdir', which a session has no use for "
                     "and which is not run. If you trust the file, open it in Cellpose and save its masks as TIFF or PNG.")),
        Kind("session of Cellpose that calls a function", labels("x_seg.npy", trapped(lambda trap: {"masks": CELLS, "x": trap})),
             Refused("x_seg.npy: cannot be read as a session of Cellpose: it asks for '...mkdir', which a session has no use "
                     "for and which is not run. If you trust the file, open it in Cellpose and save its masks as TIFF or PNG.")),
        Kind("Zarr that claims 10^18 pixels", image("x.zarr", zarr_claim(shape=[10**9, 10**9])),
             Refused("x.zarr: its pixels, (1000000000, 1000000000) of uint16, would take 2000000000.0 GB, more than max_gb=8; "
                     "read a region or a part of its planes, or raise max_gb.")),
        Kind("Zarr that claims blocks of 10^12 pixels", image("x.zarr", zarr_claim(chunks=[10**6, 10**6])),
             Refused("x.zarr: its pixels, (6, 8) of uint16, are decoded in blocks of 2000.0 GB, more than max_gb=8; raise "
                     "max_gb, or save it as Zarr or tiled TIFF.")),
        Kind("Zarr of 1.6 billion blocks", image("x.zarr", zarr_claim(shape=[40000, 40000], chunks=[1, 1])),
             Refused("x.zarr: it is cut into blocks of (1, 1), and 1600000000 of them would be read; read a region, or save "
                     "it in larger blocks.")),
        Kind("Zarr with a pickle as a block", image("x.zarr", trapped_zarr),
             Refused(f"x.zarr: cannot be read as zarr: ... {WHOLE}")),
        Kind("Zarr with a block that unpacks to 1.5 GB",
             image("x.zarr", zarr_claim(zstandard(1500), compressor={"id": "zstd", "level": 1})),
             Refused("x.zarr: its block 0.0 is damaged, or unpacks to far more than its pixels; copy it anew, or save it anew.")),
        Kind("Zarr with a block packed twice over",
             image("x.zarr", zarr_claim(packed_twice(), filters=[{"id": "zlib", "level": 1}],
                                        compressor={"id": "zlib", "level": 1})),
             Refused("x.zarr: its blocks are coded again after they are packed (zlib, zlib), so that they may unpack to very "
                     "much; save it with zstd or blosc alone.")),
        Kind("OME-Zarr that names an array outside of it", image("x.ome.zarr", ome_zarr(STACK, path="../../secret")),
             Refused(f"x.ome.zarr: cannot be read as zarr: ... {WHOLE}")),
        Kind("ImageJ ROI zip that unpacks to 1 GB", labels("x.zip", archive_bomb("1.roi", 1000)),
             Refused("x.zip: cannot be read as an archive of ImageJ selections: it unpacks to 1048576000 bytes, far more than "
                     "selections take. Save it anew with the ROI Manager.")),
        Kind("ImageJ ROI zip with a path that leaves it", labels("x.zip", archive({"../../../sprung.roi": roi(SQUARE[:4])})),
             Cells((6,), note="nothing is unpacked to the disk")),
        Kind("GeoJSON nested 100,000 deep", labels("x.geojson", raw("[" * 100_000)),
             Refused("x.geojson is no JSON: ... Check that the file is whole and is what its name says.")),
        Kind("GeoJSON with an outline of 10^7 pixels a side", labels("x.geojson", raw(geojson([[[0, 0], [9e6, 9e6], [0, 9e6]]]))),
             Cells((21,), note="what lies outside is cut off")),
        Kind("COCO polygon at 3,000,000,000", coco([{"segmentation": [[0, 0, 3, 0, 3e9, 3]]}]),
             Refused("coco.json: a.png: annotation 0 has coordinates that are no places in an image, such as 3000000000.0. "
                     "Mend or remove it.")),
        Kind("COCO file name that leaves the folder", coco(images=[{"id": 7, "file_name": "../../a.png"}]),
             Refused("coco.json: the file name '../../a.png' leaves the image folder. Write it relative to that folder.")),
        Kind("COCO file name that begins at the root", coco(images=[{"id": 7, "file_name": "/etc/passwd"}]),
             Refused("coco.json: the file name '/etc/passwd' leaves the image folder. Write it relative to that folder.")),
        Kind("a manifest with a path that leaves the folder", folder({"manifest.csv": HEADER + "../a.png,,\n"}),
             Refused("manifest.csv, line 2: ../a.png does not lie in data; a manifest names files of its own folder only. "
                     "Move the file there, and write its path relative to the manifest.")),
        Kind("a manifest with a path from a drive's root", folder({"manifest.csv": HEADER + "C:\\a.png,,\n"}),
             Refused("manifest.csv, line 2: C:\\a.png does not lie in data; a manifest names files of its own folder only. "
                     "Move the file there, and write its path relative to the manifest.")),
        Kind("a manifest with labels outside of the folder",
             folder({"a.png": GREY8, "manifest.csv": HEADER + "a.png,/etc/passwd,\n"}),
             Refused("manifest.csv, line 2: /etc/passwd does not lie in data; a manifest names files of its own folder only. "
                     "Move the file there, and write its path relative to the manifest.")),
        Kind("a pipe named x.png", image("x.png", os.mkfifo),
             Refused("x.png: is a device or pipe, but what ends in .png must be a file. Check the name.")),
        Kind("an endless device named x.png", image("x.png", link("/dev/zero")),
             Refused("x.png: is a device or pipe, but what ends in .png must be a file. Check the name.")),
    ),
}


# ---------------------------------------------------------------- the table
def happens(verdict: Pixels | Cells | Samples | Refused) -> str:
    """The verdict in words."""
    if isinstance(verdict, Refused):
        return f"refused: `{verdict.message}`"
    if isinstance(verdict, Pixels):
        size = f", {verdict.pixel_size} um a pixel" if verdict.pixel_size else ""
        text = f"{verdict.shape[0]} x {verdict.shape[1]} x {verdict.shape[2]} {verdict.dtype}{size}"
    elif isinstance(verdict, Cells):
        layers = f" in {verdict.layers} layers" if verdict.layers > 1 else ""
        text = f"{len(verdict.areas):,} cell{'s' * (len(verdict.areas) != 1)}{layers}"
    else:
        text = "; ".join(f"{name}: {'no annotation' if n is None else f'{n} cells' if n != 1 else '1 cell'}"
                         for name, n in verdict.cells.items())
    return f"read: {text}" + (f" ({verdict.note})" if verdict.note else "")


def table() -> str:
    """docs/inputs.md."""
    lines = [
        "# What goes in, and what happens to it", "",
        "Every line is a file that `tests/data/writers.py` writes; `tests/data/test_kinds.py` asserts what happens to it. Images "
        "and labels have 6 x 8 pixels where nothing else is said. Refusals are shown as they read, without the folder; \"...\" "
        "stands for the words of decoders and of the system, and for lists.", "",
        f"{sum(map(len, KINDS.values()))} kinds. Written by `PYTHONPATH=tests python -m data.kinds`.", "",
    ]
    for section, kinds in KINDS.items():
        lines += [f"## {section}", "", "| input | what happens |", "| --- | --- |"]
        lines += [f"| {kind.input} | {happens(kind.verdict)} |" for kind in kinds]
        lines += [""]
    return "\n".join(lines)


if __name__ == "__main__":
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table(), encoding="utf-8")
    print(f"wrote {TABLE}")
