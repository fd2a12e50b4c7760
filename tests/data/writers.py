"""Writes files of every kind, good and bad, each a few pixels large; what `kinds.py` lists."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import zarr
from PIL import Image
from roifile import ROI_TYPE, ImagejRoi

from jaxcell.data.images import read_image
from jaxcell.data.labels import read_labels
from jaxcell.data.sources import open_source
from jaxcell.data.sources.bbbc038 import Bbbc038Source
from jaxcell.data.sources.coco import CocoSource
from jaxcell.data.sources.folder import FolderSource
from jaxcell.types import Sample

Call = Callable[[], Any]


# ---------------------------------------------------------------- what is written
RAMP = np.arange(48).reshape(6, 8)      # 10 at (1, 2)
GREY8 = (RAMP * 5).astype(np.uint8)
GREY16 = (RAMP * 1000).astype(np.uint16)
RGB8 = np.stack([RAMP, RAMP + 50, RAMP + 100], axis=2).astype(np.uint8)
STACK = np.stack([GREY16, GREY16 + 1, GREY16 + 2])
FLAT = np.full((6, 8, 3), (200, 100, 50), np.uint8)
CELLS = np.zeros((6, 8), np.uint8)
CELLS[1:3, 1:4], CELLS[4:, 4:] = 1, 2
MASKS = np.stack([CELLS == 1, CELLS == 2, np.pad(np.ones((3, 3), bool), ((2, 1), (3, 2)))])      # the third overlaps both
SQUARE = [[1, 1], [4, 1], [4, 3], [1, 3], [1, 1]]       # (x, y): the pixels of cell 1


def image(name: str, write: Callable[[Path], Any], **options: Any) -> Callable[[Path], Call]:
    """A file, and the call that reads it as an image."""
    return partial(_write, read_image, name, write, options)


def labels(name: str, write: Callable[[Path], Any], **options: Any) -> Callable[[Path], Call]:
    """A file, and the call that reads it as labels of an image of 6 x 8 pixels."""
    return partial(_write, read_labels, name, write, {"shape": (6, 8)} | options)


def folder(files: dict[str, Any], **options: Any) -> Callable[[Path], Call]:
    """Files, and the call that reads them all as a folder of samples."""
    def write(root: Path) -> Call:
        write_files(root, files)
        return lambda: list(FolderSource(root, **options))
    return write


def no_folder(root: Path) -> Call:
    return lambda: FolderSource(root / "absent")


def opened(files: dict[str, Any], **options: Any) -> Callable[[Path], Call]:
    """Files, and the call that reads them as training does."""
    def write(root: Path) -> Call:
        write_files(root, files)

        def read() -> list[Sample]:
            source = open_source({"mine": {"kind": "folder", "root": "."}}, root=root, cache_gb=0, **options)
            return [source[k] for k in range(len(source))]
        return read
    return write


def coco(annotations: Any = (), *, images: Any = None, text: str = "", write: bool = True, **options: Any
         ) -> Callable[[Path], Call]:
    """A COCO file for the image a.png of 6 x 8 pixels, and the call that reads it."""
    def prepare(root: Path) -> Call:
        if write:
            save(root / "a.png", GREY8)
        listed = [{"id": 7, "file_name": "a.png", "height": 6, "width": 8}] if images is None else images
        cells = [{"id": k, "image_id": 7, "category_id": 1, **entry} for k, entry in enumerate(annotations)]
        content = {"images": listed, "categories": [{"id": 1, "name": "cell"}], "annotations": cells}
        (root / "coco.json").write_text(text or json.dumps(content))
        return lambda: list(CocoSource(root / "coco.json", root, **options))
    return prepare


def _write(read: Callable[..., Any], name: str, write: Callable[[Path], Any], options: dict[str, Any], root: Path) -> Call:
    write(root / name)
    return partial(read, root / name, **options)


def write_files(root: Path, files: dict[str, Any]) -> None:
    """Name -> array, text, bytes, a function of the path, or None for a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, np.ndarray):
            save(path, content)
        elif callable(content):
            content(path)
        elif content is None:
            path.mkdir()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


def dsb(files: dict[str, Any], runs: str = "") -> Callable[[Path], Call]:
    """A training image of BBBC038, a.png, in its layout, and the call that reads all of it."""
    def write(root: Path) -> Call:
        write_files(root / "stage1_train" / "a", {"images/a.png": GREY8} | files)
        if runs:
            write_files(root, {"stage1_train_labels.csv": "ImageId,EncodedPixels\n" + runs})
        return lambda: list(Bbbc038Source(root))
    return write


def save(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


def pil(array: np.ndarray, mode: str = "", **options: Any) -> Callable[[Path], None]:
    return lambda path: (Image.fromarray(array).convert(mode) if mode else Image.fromarray(array)).save(path, **options)


def tiff(array: np.ndarray, **options: Any) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, array, **({"photometric": "minisblack"} | options))


def npy(array: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, array, allow_pickle=True)


def raw(content: bytes | str) -> Callable[[Path], None]:
    return lambda path: write_files(path.parent, {path.name: content})


def cut(write: Callable[[Path], Any], keep: float) -> Callable[[Path], None]:
    """The first part of what is written."""
    def both(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:int(path.stat().st_size * keep)])
    return both


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def locked(write: Callable[[Path], Any]) -> Callable[[Path], None]:
    """What is written, with all permissions taken away."""
    def both(path: Path) -> None:
        write(path)
        path.chmod(0)
    return both


def png16(path: Path) -> None:
    path.write_bytes(imagecodecs.png_encode(np.dstack(STACK)))


def coloured(path: Path) -> None:
    """Cells as a palette, in which all numbers look alike."""
    picture = Image.fromarray(CELLS, "P")
    picture.putpalette([9] * 768)
    picture.save(path)


def write_masks(path: Path, *more: np.ndarray) -> None:
    """A folder with one mask file a cell."""
    write_files(path, {f"{n}.png": mask * np.uint8(255) for n, mask in enumerate((*MASKS, *more))})


def palette(path: Path) -> None:
    """Numbers 0 to 47, each with a colour: (n, 255 - n, 7)."""
    picture = Image.fromarray(RAMP.astype(np.uint8), "P")
    picture.putpalette([value for n in range(256) for value in (n, 255 - n, 7)])
    picture.save(path)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6       # the camera lay on its side
    Image.fromarray(GREY8).save(path, exif=exif)


def transparent(alpha: int) -> np.ndarray:
    plane = np.full((6, 8, 1), 255, np.uint8)
    plane[0, 0] = alpha
    return np.concatenate([RGB8, plane], axis=2)


def geojson(*outlines: Any, kind: str = "Polygon") -> str:
    return json.dumps({"type": "FeatureCollection", "features": [
        {"type": "Feature", "properties": {"objectType": "annotation"}, "geometry": {"type": kind, "coordinates": outline}}
        for outline in outlines]})


def roi(points: Any, kind: ROI_TYPE = ROI_TYPE.POLYGON) -> bytes:
    selection = ImagejRoi.frompoints(np.asarray(points))
    selection.roitype = kind
    return selection.tobytes()


def archive(entries: dict[str, bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in entries.items():
                file.writestr(name, data)
    return write


def movie(frames: int, **options: Any) -> Callable[[Path], None]:
    return tiff(np.stack([GREY8] * frames), imagej=True, metadata={"axes": "TYX"}, **options)


def two_series(path: Path) -> None:
    with tifffile.TiffWriter(path, ome=True) as writer:
        for n in range(2):
            writer.write(STACK[n], metadata={"axes": "YX", "Name": f"field {n}"})


def circle(path: Path) -> None:
    """Two pages, of which the second says that the first follows."""
    tifffile.imwrite(path, STACK[:2], photometric="minisblack", metadata=None)
    data = bytearray(path.read_bytes())
    first = struct.unpack("<I", data[4:8])[0]
    second = struct.unpack("<I", data[_end(data, first):][:4])[0]
    data[_end(data, second):_end(data, second) + 4] = struct.pack("<I", first)
    path.write_bytes(data)


def _end(data: bytearray, directory: int) -> int:
    """Where a directory of a TIFF says which follows."""
    return directory + 2 + 12 * int(struct.unpack("<H", data[directory:directory + 2])[0])


def patched(array: np.ndarray, tags: dict[int, int], *, tail: bytes = b"", **options: Any) -> Callable[[Path], None]:
    """A TIFF of which tags are changed, -1 into the place of the tail, -2 into its length."""
    def write(path: Path) -> None:
        tifffile.imwrite(path, array, metadata=None, photometric="minisblack", **options)
        data = bytearray(path.read_bytes())
        start = struct.unpack("<I", data[4:8])[0]
        for place in range(start + 2, _end(data, start), 12):
            code = struct.unpack("<H", data[place:place + 2])[0]
            if code in tags:
                value = {-1: len(data), -2: len(tail)}.get(tags[code], tags[code])
                data[place + 2:place + 12] = struct.pack("<HII", 4, 1, value)
        path.write_bytes(bytes(data) + tail)
    return write


def array(values: np.ndarray, **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        made = zarr.create_array(path, shape=values.shape, dtype=values.dtype, **{"chunks": values.shape} | options)
        made[...] = values
    return write


def ome_zarr(values: np.ndarray, *, version: int = 3, path: str = "0", labels: np.ndarray | None = None
             ) -> Callable[[Path], None]:
    """An image with channels, half a micrometre a pixel."""
    def said(content: dict[str, Any]) -> dict[str, Any]:
        return {"ome": content} if version == 3 else content

    def write(where: Path) -> None:
        group = zarr.open_group(where, mode="w", zarr_format=version)
        array(values, zarr_format=version)(where / "0")
        axes = [{"name": name, **({"unit": "micrometer"} if name != "c" else {})} for name in "cyx"[-values.ndim:]]
        scale = {"type": "scale", "scale": [1.0, 0.5, 0.5][-values.ndim:]}
        datasets = [{"path": path, "coordinateTransformations": [scale]}]
        group.attrs.update(said({"multiscales": [{"axes": axes, "datasets": datasets}]}))
        if labels is not None:
            zarr.open_group(where / "labels", mode="w", zarr_format=version).attrs.update(said({"labels": ["cells"]}))
            ome_zarr(labels, version=version)(where / "labels" / "cells")
    return write


def zarr_claim(block: bytes = b"", **changes: Any) -> Callable[[Path], None]:
    """A Zarr whose metadata say what they like, and its first block."""
    def write(path: Path) -> None:
        metadata = {"zarr_format": 2, "shape": [6, 8], "chunks": [6, 8], "dtype": "<u2", "fill_value": 7, "order": "C",
                    "filters": None, "compressor": None} | changes
        write_files(path, {".zarray": json.dumps(metadata)} | ({"0.0": block} if block else {}))
    return write


def czi(path: Path) -> None:
    from pylibCZIrw import czi as writer

    with writer.create_czi(str(path)) as file:
        for channel in range(2):
            file.write(STACK[channel][..., None], plane={"C": channel})
        file.write_metadata(document_name="x", channel_names={0: "DAPI", 1: "GFP"}, scale_x=0.5e-6, scale_y=0.5e-6)


def nd2(path: Path) -> None:
    from data.test_formats_microscopes import write_nd2

    write_nd2(path, [np.moveaxis(STACK[:2], 0, -1)], loops={}, channels=["DAPI", "GFP"])


# ---------------------------------------------------------------- what is hostile
class Trap:
    """What a hostile pickle does: it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def trapped(content: Callable[[Trap], Any]) -> Callable[[Path], None]:
    """An npy whose pickle makes a folder outside of what it was given."""
    return lambda path: np.save(path, content(Trap(path.parent.parent / "sprung")), allow_pickle=True)


def trapped_npz(path: Path) -> None:
    np.savez(path, a=np.array([Trap(path.parent.parent / "sprung")], object))


def trapped_zarr(path: Path) -> None:
    zarr_claim(pickle.dumps(Trap(path.parent.parent / "sprung")), filters=[{"id": "pickle"}])(path)


def deflated(mebibytes: int) -> bytes:
    """Deflate of so many zeros, in a thousandth of the room."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)) * mebibytes + b"\x03\0"


def zlibbed(mebibytes: int) -> bytes:
    return b"\x78\xda" + deflated(mebibytes) + struct.pack(">HH", (mebibytes << 20) % 65521, 1)     # its Adler checksum


def zstandard(mebibytes: int) -> bytes:
    """Zstandard of so many zeros, in a thirty-thousandth of the room: blocks of 128 kB that repeat one byte."""
    block, last = (struct.pack("<I", kind | 1 << 20)[:3] + b"\0" for kind in (0b010, 0b011))
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", mebibytes << 20) + block * (8 * mebibytes - 1) + last


def archive_bomb(name: str, mebibytes: int, *, start: bytes = b"") -> Callable[[Path], None]:
    """A zip with one entry, which begins with `start` and goes on with so many zeros."""
    def write(path: Path) -> None:
        packed = b"\0" + struct.pack("<HH", len(start), len(start) ^ 0xffff) + start + deflated(mebibytes)
        about = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(packed), len(start) + (mebibytes << 20), len(name), 0)
        entry = b"PK\1\2" + struct.pack("<H", 20) + about + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
        end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), 30 + len(name) + len(packed), 0)
        path.write_bytes(b"PK\3\4" + about + name.encode() + packed + entry + b"PK\5\6" + end)
    return write


def packed_twice() -> bytes:
    """A gigabyte of zeros, packed and packed again into two kilobytes."""
    return zlib.compress(zlibbed(1000), 9)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, colour: int = 0, chunks: bytes = b"") -> bytes:
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)) + chunks
            + chunk(b"IDAT", zlib.compress(bytes(54))) + chunk(b"IEND", b""))


def array_header(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.ljust(117).encode() + b"\n"


def entities(element: str) -> str:
    """XML of two kilobytes that expands to a gigabyte."""
    grow = "".join(f'<!ENTITY a{n} "{"&a" + str(n - 1) + ";" if n else "x"}{("&a" + str(n - 1) + ";" if n else "x") * 9}">'
                   for n in range(9))
    return f'<?xml version="1.0"?><!DOCTYPE x [{grow}]><{element}>&a8;</{element}>'


def part_of(name: str) -> str:
    """OME metadata that call another file a part of the image."""
    return ('<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels '
            'ID="Pixels:0" DimensionOrder="XYZCT" SizeX="8" SizeY="6" SizeZ="1" SizeC="1" SizeT="1" Type="uint8"><TiffData '
            f'IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:1</UUID></TiffData></Pixels></Image></OME>')


def saved(write: Callable[[Any], Any]) -> bytes:
    target = io.BytesIO()
    write(target)
    return target.getvalue()


HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 100000), }"
PNG = saved(partial(Image.fromarray(RGB8).save, format="PNG"))
BMP = saved(partial(Image.fromarray(GREY8).save, format="BMP"))
