"""Zarr, versions 2 and 3, as folder or zip, and OME-Zarr 0.4 and 0.5."""

from __future__ import annotations

import os
import posixpath
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxcell.data.formats.metadata import micrometres, one_size
from jaxcell.data.formats.packed import PACKERS, fits
from jaxcell.data.formats.stored import Index, Refused, Stored, array_axes, chosen_part, listed

__all__ = ["open_zarr"]

MOST_BLOCKS = 1 << 16       # in one read; each costs some tenths of a millisecond, present or not
MOST_METADATA = 1 << 26     # bytes
SLACK = 1 << 16             # bytes that a coded block may have beyond twice its pixels
WIDEST = 8                  # what is unpacked may take so many times the room of the pixels, before a filter narrows it
METADATA = (".zarray", ".zgroup", ".zattrs", ".zmetadata", "zarr.json")
CODECS = {"bytes", "endian", "transpose", "sharding_indexed", "crc32c", "blosc", "gzip", "zlib", "zstd", "lz4", "bz2", "lzma",
          "delta", "shuffle", "packbits", "bitround", "quantize", "fixedscaleoffset", "astype", "adler32", "crc32", "fletcher32"}
"""Codecs that only move bytes. Others may not: `pickle` runs whatever a chunk says."""
LETTERS = {"y": "Y", "x": "X", "c": "C", "z": "Z", "t": "T", "s": "S", "channel": "C", "time": "T", "p": "P"}
"""Name of a dimension, in lower case -> axis."""


def open_zarr(path: Path, *, parts: Mapping[str, int | str], numbers: bool, limit: int) -> Stored:
    """Opens an array or an OME-Zarr image; see `Opener`.

    `path` may lie inside a Zarr folder, such as `x.zarr/labels/cells`. Of an OME-Zarr the largest level is opened; of an image
    that is asked for numbers (labels), the only one of its group `labels`. Blocks that are not there hold the fill value.
    """
    import zarr  # half a second, which most files do not need
    from zarr.storage import LocalStore, ZipStore

    if any((path / name).is_file() and (path / name).stat().st_size > MOST_METADATA for name in METADATA):
        raise Refused(f"its metadata takes more than {MOST_METADATA >> 20} MB, which no image needs; save it anew.")
    if not path.is_dir():
        _check_zip(path, limit)
    store = LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r")
    try:
        array, ome, level = _resolved(zarr.open(store, mode="r"), parts, numbers)
        return _stored(array, ome, level, path, store.close)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        store.close()
        raise Refused(f"its metadata is malformed ({error}); save it anew.") from error
    except Exception:
        store.close()
        raise


def _check_zip(path: Path, limit: int) -> None:
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    if largest.file_size > limit:
        raise Refused(f"its member {largest.filename} would take {largest.file_size / 1e9:.1f} GB, more than "
                      f"max_gb={limit / 1e9:g}; raise max_gb.")


# ---------------------------------------------------------------- which array
def _resolved(node: Any, parts: Mapping[str, int | str], numbers: bool) -> tuple[Any, Mapping[str, Any], int]:
    """(array, OME metadata, level) of what an array or group shows."""
    if "shape" in node.metadata.to_dict():
        return node, {}, 0
    ome = _ome(node)
    choice, others = parts.get("array"), {key: value for key, value in parts.items() if key != "array"}
    if isinstance(choice, str):
        if choice not in node:
            raise Refused(f"it has no array {choice!r}; {listed('array', _members(node, ome))}.")
        return _resolved(node[choice], others, numbers)
    if "multiscales" in ome:
        if numbers and "image-label" not in ome and "labels" in node:
            return _resolved(node[f"labels/{_only_label(node)}"], others, numbers)
        levels = _required(ome, "multiscales", 0, "datasets")
        level = chosen_part("level", ("",) * len(levels), parts.get("level")) or 0
        name = str(_required(levels, level, "path"))
        if name not in node:
            raise Refused(f"its OME metadata names the array {name!r}, which is not there; copy it anew as a whole.")
        return node[name], ome, level
    names = _members(node, ome)
    number = chosen_part("array", names, choice)
    if number is None and len(names) != 1:
        raise Refused(f"it holds {len(names)} images, and one is needed; "
                      f"{listed('array', names) if names else 'name a folder that holds one'}.")
    return _resolved(node[names[number or 0]], others, numbers)


def _ome(group: Any) -> Mapping[str, Any]:
    """What OME-Zarr says about a group: from 0.5 on under "ome", before that among the other attributes."""
    attributes = dict(group.attrs)
    inner = attributes.get("ome")
    return inner if isinstance(inner, dict) else attributes


def _members(group: Any, ome: Mapping[str, Any]) -> tuple[str, ...]:
    """The images of a group: fields of a plate or well as OME lists them, else its arrays and groups."""
    if "plate" in ome:
        return tuple(f"{_required(well, 'path')}/0" for well in _required(ome, "plate", "wells"))
    if "well" in ome:
        return tuple(str(_required(image, "path")) for image in _required(ome, "well", "images"))
    return tuple(sorted((*group.array_keys(), *(name for name in group.group_keys() if name not in ("OME", "labels")))))


def _only_label(image: Any) -> str:
    names = [str(name) for name in _ome(image["labels"]).get("labels", ())]
    if len(names) != 1:
        raise Refused(f"it is an image with {len(names)} label images ({', '.join(names)}); name the folder of one, such as "
                      "labels/cells inside it.")
    return names[0]


def _required(thing: Any, *keys: str | int) -> Any:
    for key in keys:
        try:
            thing = thing[key]
        except (KeyError, IndexError, TypeError) as error:
            raise Refused(f"its OME metadata is incomplete: there is no {'/'.join(map(str, keys))}; save it anew.") from error
    return thing


# ---------------------------------------------------------------- one array
def _stored(array: Any, ome: Mapping[str, Any], level: int, path: Path, close: Callable[[], None]) -> Stored:
    shape, blocks = tuple(map(int, array.shape)), tuple(map(int, array.chunks))
    packer = _packer(array.metadata.to_dict())
    if 0 in blocks:
        raise Refused(f"its blocks have the shape {blocks}; save it anew.")

    def fetch(index: Index) -> np.ndarray:
        _check_blocks(array, index, path, packer)
        return np.asarray(array[index])

    axes = _axes(array, ome, len(shape))
    return Stored(axes, shape, array.dtype, fetch, _pixel_size(ome, level, axes), _channel_names(ome),
                  block_bytes=prod(blocks) * array.dtype.itemsize, close=close)


def _check_blocks(array: Any, index: Index, path: Path, packer: str) -> None:
    """Refuses to read very many blocks, or one that is larger than its pixels, packed or not."""
    blocks = array.shards or array.chunks
    touched = [range(ceil(size / block)) if entry == slice(None) else range(entry // block, entry // block + 1)
               if isinstance(entry, int) else range(entry.start // block, (entry.stop - 1) // block + 1)
               for entry, size, block in zip(index, array.shape, blocks, strict=True)]
    count = prod(map(len, touched))
    if count > MOST_BLOCKS:
        raise Refused(f"it is cut into blocks of {blocks}, and {count} of them would be read; read a region, or save it in "
                      "larger blocks.")
    most = 2 * prod(blocks) * array.dtype.itemsize + SLACK
    with nullcontext() if path.is_dir() else zipfile.ZipFile(path) as archive:
        for place in product(*touched):
            key = array.metadata.encode_chunk_key(place)
            name = posixpath.join(array.path, key)
            with (suppress(FileNotFoundError, KeyError),       # blocks may be absent
                  archive.open(name) if archive else open(os.path.join(path, name), "rb") as file):
                size = file.seek(0, os.SEEK_END)
                if size > most:
                    raise Refused(f"its block {key} takes {size} bytes, more than its pixels do unpacked; save it anew.")
                _check_unpacking(array, file, size, key, packer)


def _check_unpacking(array: Any, file: IO[bytes], size: int, key: str, packer: str) -> None:
    if not packer:
        return
    most = WIDEST * prod(array.chunks) * array.dtype.itemsize + SLACK
    parts = _parts_of_shard(array, file, size) if array.shards else [(0, size)]
    if not all(start + length <= size and fits(packer, file, start, length, most=most) for start, length in parts):
        raise Refused(f"its block {key} is damaged, or unpacks to far more than its pixels; copy it anew, or save it anew.")


def _parts_of_shard(array: Any, file: IO[bytes], size: int) -> Iterator[tuple[int, int]]:
    """(start, length) of the blocks in a shard; its index, at one of its ends, has a pair of 64 bits for each."""
    sharding = next(codec for codec in array.metadata.to_dict()["codecs"] if codec["name"] == "sharding_indexed")
    settings = sharding["configuration"]
    inner = [codec["name"] for codec in settings["index_codecs"]]
    room = 16 * prod(n // m for n, m in zip(array.shards, array.chunks, strict=True)) + 4 * inner.count("crc32c")
    if inner not in (["bytes"], ["bytes", "crc32c"]) or room > size:
        yield size, 1       # beyond its end
        return
    file.seek(size - room if settings["index_location"] == "end" else 0)
    for start, length in np.frombuffer(file.read(room), "<u8", room // 16 * 2).reshape(-1, 2).tolist():
        if (start, length) != (2**64 - 1, 2**64 - 1):       # absent
            yield start, length


def _packer(metadata: Any) -> str:
    """The one codec of an array that makes less of much, "" for none.

    Raises:
      Refused: unknown codecs, or several that pack, or one whose work is hidden below another's, so that nobody can tell how
        much a block unpacks to.
    """
    codecs = _codecs(metadata)
    if unknown := sorted(set(codecs) - CODECS):
        raise Refused(f"it is coded with {', '.join(unknown)}, which may not be safe to decode; save it with zstd or blosc.")
    packers = [codec for codec in codecs if codec in PACKERS]
    after = codecs[codecs.index(packers[0]) + 1:] if packers else []
    outermost = [codec.get("name") for codec in metadata.get("codecs", ())][-1:]
    if set(after) - {"bytes", "crc32c"} or codecs.count("sharding_indexed") > 1 or (
            "sharding_indexed" in codecs and outermost != ["sharding_indexed"]):
        raise Refused(f"its blocks are coded again after they are packed ({', '.join(codecs)}), so that they may unpack to very "
                      "much; save it with zstd or blosc alone.")
    return packers[0] if packers else ""


def _codecs(metadata: Any) -> list[str]:
    """The names of all codecs and filters in the metadata of an array, nested ones too."""
    if isinstance(metadata, (list, tuple)):
        return [name for entry in metadata for name in _codecs(entry)]
    if not isinstance(metadata, Mapping):
        return []
    inner = [metadata.get(key) for key in ("codecs", "index_codecs", "configuration", "filters", "compressor")]
    own = metadata.get("id", metadata.get("name"))
    return ([str(own).removeprefix("numcodecs.")] if own else []) + _codecs(inner)


def _axes(array: Any, ome: Mapping[str, Any], count: int) -> str:
    metadata = array.metadata.to_dict()
    if "multiscales" in ome:
        axes = _required(ome, "multiscales", 0).get("axes", "tczyx")    # before version 0.3 they were always these
        names = [_required(axis, "name") if isinstance(axis, Mapping) else axis for axis in axes]
    else:
        names = metadata.get("dimension_names") or metadata.get("attributes", {}).get("_ARRAY_DIMENSIONS") or []
    if not names or None in names:
        return array_axes(array.shape)
    letters = [LETTERS.get(str(name).lower(), "") for name in names]
    if len(letters) != count or "" in letters or len(set(letters)) != count:
        raise Refused(f"its {count} dimensions are called {', '.join(map(str, names))}; known names are {', '.join(LETTERS)}, "
                      "each once. Rename them.")
    return "".join(letters)


def _pixel_size(ome: Mapping[str, Any], level: int, axes: str) -> float | None:
    """Micrometres, from the scales of the level and of all levels together, in the units of the axes."""
    if "multiscales" not in ome:
        return None
    image = ome["multiscales"][0]
    steps = [*image["datasets"][level].get("coordinateTransformations", ()), *image.get("coordinateTransformations", ())]
    scales = [step["scale"] for step in steps if step.get("type") == "scale" and len(step.get("scale", ())) == len(axes)]
    if not scales or not all(isinstance(axis, Mapping) for axis in image.get("axes", ("",))):
        return None

    def along(axis: str) -> float:
        place = axes.index(axis)
        return prod(micrometres(scale[place], "um") for scale in scales) * micrometres(1, image["axes"][place].get("unit"))

    return one_size(along("X"), along("Y")) if "X" in axes and "Y" in axes else None


def _channel_names(ome: Mapping[str, Any]) -> tuple[str, ...]:
    omero = ome.get("omero")
    channels = omero.get("channels", ()) if isinstance(omero, Mapping) else ()
    return tuple(str(channel.get("label", "")) for channel in channels if isinstance(channel, Mapping))
