"""Zarr of both versions and OME-Zarr of both layouts, written by zarr; and Zarr that is damaged or hostile."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
import zarr.codecs
from google_crc32c import value as crc32c
from numcodecs import LZ4, Blosc, Zstd, get_codec

from jaxcell.data.images import open_image, read_image, read_label_array, read_pixel_size, readable_files, stem_of

RNG = np.random.default_rng(0)
GREY16 = RNG.integers(0, 65536, (40, 50), np.uint16)
VOLUME = RNG.integers(0, 65536, (1, 2, 3, 64, 80), np.uint16)      # T C Z Y X


def write_array(where: Any, values: np.ndarray, **options: Any) -> None:
    array = zarr.create_array(where, shape=values.shape, dtype=values.dtype,
                              **{"chunks": tuple(min(16, n) for n in values.shape), **options})
    array[...] = values


def write_ome(path: Path, values: np.ndarray = VOLUME, *, version: int = 2, axes: str = "tczyx", unit: str | None = "micrometer",
              scale: float = 0.65, labels: dict[str, np.ndarray] | None = None, **extra: Any) -> None:
    """An image with two levels: OME-Zarr 0.4 for Zarr version 2, 0.5 for 3."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    levels = []
    for level in range(2):
        step = 2**level
        write_array(group.store_path / str(level), values[..., ::step, ::step], zarr_format=version)
        levels.append({"path": str(level), "coordinateTransformations": [
            {"type": "scale", "scale": [scale * step if axis in "yx" else 1.0 for axis in axes]}]})
    ome = {"multiscales": [{"axes": [{"name": axis, **({"unit": unit} if unit and axis in "zyx" else {})} for axis in axes],
                            "datasets": levels}], **extra}
    group.attrs.update({"ome": {"version": "0.5", **ome}} if version == 3 else ome)
    if labels:
        names = {"labels": list(labels)}
        zarr.open_group(path / "labels", mode="w", zarr_format=version).attrs.update({"ome": names} if version == 3 else names)
        for name, numbers in labels.items():
            write_ome(path / "labels" / name, numbers, version=version, axes="yx", **{"image-label": {}})


# ---------------------------------------------------------------- arrays
@pytest.mark.parametrize("options", [{"zarr_format": 2}, {"zarr_format": 3}, {"shards": (32, 32)}, {"chunks": (40, 50)}], ids=str)
def test_arrays_without_names_are_height_width_channels(tmp_path, options):
    write_array(tmp_path / "x.zarr", GREY16, **options)
    with open_image(tmp_path / "x.zarr") as file:
        assert (file.axes, file.shape, file.dtype, file.pixel_size) == ("YX", (40, 50), np.uint16, None)
        np.testing.assert_array_equal(file.read()[..., 0], GREY16)
        np.testing.assert_array_equal(file.read(region=(3, 5, 37, 41))[..., 0], GREY16[3:37, 5:41])
    np.testing.assert_array_equal(read_label_array(tmp_path / "x.zarr")[..., 0], GREY16)
    write_array(tmp_path / "c.zarr", VOLUME[0, 0].transpose(1, 2, 0))
    np.testing.assert_array_equal(read_image(tmp_path / "c.zarr"), VOLUME[0, 0].transpose(1, 2, 0))
    write_array(tmp_path / "first.zarr", VOLUME[0, 0].repeat(30, axis=2))
    with pytest.raises(ValueError, match=r"first\.zarr: its shape is \(3, 64, 2400\).*moveaxis"):
        read_image(tmp_path / "first.zarr")


def test_dimension_names_are_axes(tmp_path):
    write_array(tmp_path / "x.zarr", VOLUME[0, 0], dimension_names=["c", "y", "x"])
    np.testing.assert_array_equal(read_image(tmp_path / "x.zarr", select={"C": 2})[..., 0], VOLUME[0, 0, 2])
    write_array(tmp_path / "t.zarr", VOLUME[0, 0], dimension_names=["time", "y", "x"])
    with pytest.raises(ValueError, match="movie of 3 time points"):
        read_image(tmp_path / "t.zarr")
    write_array(tmp_path / "odd.zarr", VOLUME[0, 0], dimension_names=["banana", "y", "x"])
    with pytest.raises(ValueError, match="called banana, y, x; known names are"):
        read_image(tmp_path / "odd.zarr")
    write_array(tmp_path / "two.zarr", GREY16, zarr_format=2, attributes={"_ARRAY_DIMENSIONS": ["x", "y"]})
    np.testing.assert_array_equal(read_image(tmp_path / "two.zarr")[..., 0], GREY16.T)


def test_a_zip_is_read_like_a_folder(tmp_path):
    with zarr.storage.ZipStore(tmp_path / "x.zarr.zip", mode="w") as store:
        write_array(store, GREY16)
    np.testing.assert_array_equal(read_image(tmp_path / "x.zarr.zip")[..., 0], GREY16)
    (tmp_path / "y.zarr.zip").write_bytes((tmp_path / "x.zarr.zip").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"y\.zarr\.zip: cannot be read as zarr\.zip"):
        read_image(tmp_path / "y.zarr.zip")


def test_of_several_arrays_one_is_chosen(tmp_path):
    group = zarr.open_group(tmp_path / "x.zarr", mode="w")
    for name, values in (("a", GREY16), ("b", GREY16 + 1)):
        write_array(group.store_path / name, values)
    with pytest.raises(ValueError, match=r"x\.zarr: it holds 2 images.*'a', 'b'"):
        read_image(tmp_path / "x.zarr")
    for path, select in (("x.zarr", {"array": "b"}), ("x.zarr", {"array": 1}), ("x.zarr/b", {})):
        np.testing.assert_array_equal(read_image(tmp_path / path, select=select)[..., 0], GREY16 + 1)
    with pytest.raises(ValueError, match="no array 'c'"):
        read_image(tmp_path / "x.zarr", select={"array": "c"})


def test_a_zarr_folder_counts_as_a_file(tmp_path):
    write_array(tmp_path / "x.ome.zarr", GREY16)
    (tmp_path / "y.zarr").write_bytes(b"x")     # no folder, so no Zarr
    (tmp_path / "z.tif").write_bytes(b"x")
    assert [path.name for path in readable_files(tmp_path)] == ["x.ome.zarr", "z.tif"]
    assert [stem_of(name) for name in ("x.ome.zarr", "x.zarr", "x.ZARR.zip")] == ["x", "x", "x"]
    with pytest.raises(ValueError, match=r"y\.zarr: is a file, but what ends in \.zarr must be a folder"):
        read_image(tmp_path / "y.zarr")


# ---------------------------------------------------------------- OME
@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr_has_axes_levels_names_and_size(tmp_path, version):
    path = tmp_path / "x.ome.zarr"
    write_ome(path, version=version, omero={"channels": [{"label": "DAPI"}, {"label": "GFP"}]})
    with open_image(path) as file:
        assert (file.axes, file.shape, file.channel_names) == ("TCZYX", VOLUME.shape, ("DAPI", "GFP"))
        np.testing.assert_array_equal(file.read(), np.moveaxis(VOLUME.reshape(6, 64, 80), 0, -1))
    np.testing.assert_array_equal(read_image(path, select={"C": "GFP", "Z": "max"})[..., 0], VOLUME[0, 1].max(axis=0))
    np.testing.assert_array_equal(read_image(path, select={"level": 1, "C": 0, "Z": 2})[..., 0], VOLUME[0, 0, 2, ::2, ::2])
    assert (read_pixel_size(path), read_pixel_size(path, select={"level": 1})) == (0.65, 1.3)
    with pytest.raises(ValueError, match="no level 2"):
        read_image(path, select={"level": 2})


@pytest.mark.parametrize("options, expected", [
    ({"unit": "nanometer", "scale": 650.0}, 0.65), ({"unit": None}, None), ({"unit": "pixel"}, None), ({"scale": -1.0}, None),
])
def test_pixel_size_needs_a_unit(tmp_path, options, expected):
    write_ome(tmp_path / "x.zarr", **options)
    assert read_pixel_size(tmp_path / "x.zarr") == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("version", [2, 3])
def test_labels_of_an_image_are_found_where_there_are_only_these(tmp_path, version):
    cells, nuclei = RNG.integers(0, 9, (2, 64, 80), np.uint16)
    write_ome(tmp_path / "x.zarr", version=version, labels={"cells": cells})
    write_ome(tmp_path / "y.zarr", version=version, labels={"cells": cells, "nuclei": nuclei})
    np.testing.assert_array_equal(read_label_array(tmp_path / "x.zarr")[..., 0], cells)
    np.testing.assert_array_equal(read_label_array(tmp_path / "y.zarr" / "labels" / "nuclei")[..., 0], nuclei)
    with pytest.raises(ValueError, match=r"y\.zarr: it is an image with 2 label images \(cells, nuclei\)"):
        read_label_array(tmp_path / "y.zarr")


def test_fields_of_a_plate_are_chosen(tmp_path):
    zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=2).attrs["plate"] = {"wells": [{"path": "A/1"}, {"path": "A/2"}]}
    for n, well in enumerate(("A/1", "A/2")):
        write_ome(tmp_path / "x.zarr" / well / "0", VOLUME + n)
    with pytest.raises(ValueError, match="holds 2 images.*'A/1/0', 'A/2/0'"):
        read_image(tmp_path / "x.zarr")
    for path, select in ((tmp_path / "x.zarr", {"array": "A/2/0"}), (tmp_path / "x.zarr" / "A" / "2" / "0", {})):
        np.testing.assert_array_equal(read_image(path, select=select)[..., 0], VOLUME[0, 0, 0] + 1)


# ---------------------------------------------------------------- damage
def write_metadata(path: Path, **changes: Any) -> None:
    path.mkdir()
    (path / ".zarray").write_text(json.dumps({
        "zarr_format": 2, "shape": [40, 50], "chunks": [16, 16], "dtype": "<u2", "fill_value": 7, "order": "C", "filters": None,
        "compressor": None, "dimension_separator": ".", **changes}))


def test_missing_blocks_hold_the_fill_value(tmp_path):
    write_metadata(tmp_path / "x.zarr")
    assert (read_image(tmp_path / "x.zarr") == np.full((40, 50, 1), 7)).all()


@pytest.mark.parametrize("changes, message", [
    ({"shape": [10**9, 10**9]}, "would take .* GB, more than max_gb=8"),
    ({"chunks": [10**6, 10**6]}, "decoded in blocks of .* GB"),
    ({"shape": [40000, 40000], "chunks": [1, 1]}, "1600000000 of them would be read"),
    ({"shape": [0, 5]}, "at least one pixel"), ({"shape": [-1, 5]}, "cannot be read as zarr"), ({"chunks": [0, 5]}, "blocks"),
    ({"compressor": {"id": "nosuch"}}, "nosuch"), ({"dtype": "<U5", "fill_value": ""}, "its values are <U5"),
    ({"dtype": "|O", "filters": [{"id": "pickle"}]}, "cannot be read as zarr"),
])
def test_absurd_metadata_is_refused_at_once(tmp_path, changes, message):
    write_metadata(tmp_path / "x.zarr", **changes)
    for read in (read_image, read_label_array):
        with pytest.raises(ValueError, match=rf"x\.zarr: .*{message}"):
            read(tmp_path / "x.zarr")


class Trap:
    """What a hostile pickle does: it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("changes", [{"filters": [{"id": "pickle"}]}, {"compressor": {"id": "pickle"}}])
def test_blocks_are_never_run_as_code(tmp_path, changes):
    write_metadata(tmp_path / "x.zarr", **changes)
    (tmp_path / "x.zarr" / "0.0").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ValueError, match=r"x\.zarr: "):
        read_image(tmp_path / "x.zarr")
    assert not (tmp_path / "sprung").exists()


def test_codecs_that_are_not_known_to_be_harmless_are_refused(tmp_path):
    write_metadata(tmp_path / "x.zarr", filters=[{"id": "base64"}])
    with pytest.raises(ValueError, match=r"x\.zarr: it is coded with base64, which may not be safe"):
        read_image(tmp_path / "x.zarr")
    write_metadata(tmp_path / "y.zarr", filters=[{"id": "delta", "dtype": "<u2"}])
    assert (read_image(tmp_path / "y.zarr") == 7).all()


def test_a_block_larger_than_its_pixels_is_not_unpacked(tmp_path):
    write_metadata(tmp_path / "x.zarr", compressor={"id": "gzip", "level": 1})
    (tmp_path / "x.zarr" / "0.0").write_bytes(gzip.compress(bytes(10**8), 1))
    with pytest.raises(ValueError, match=r"x\.zarr: its block 0\.0 takes .* more than its pixels do"):
        read_image(tmp_path / "x.zarr")


@pytest.mark.parametrize("name, content", [
    (".zarray", "garbage"), ("zarr.json", "[]"), ("zarr.json", "{}"), ("zarr.json", "[" * 10**5), ("notes.txt", "x"),
])
def test_what_is_no_zarr_is_named(tmp_path, name, content):
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / name).write_text(content)
    with pytest.raises(ValueError, match=r"^\S*x\.zarr: .*\.$") as caught:
        read_image(tmp_path / "x.zarr")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("multiscales, message", [
    ([{}], "no multiscales/0/datasets"), ([{"datasets": [{"path": "5"}]}], "names the array '5', which is not there"),
    ([{"datasets": [{}]}], "no 0/path"), ("x", "incomplete"),
    ([{"datasets": [{"path": "0"}], "axes": [{"name": "y"}, {"name": "x"}]}], "5 dimensions are called y, x"),
    ([{"datasets": [{"path": "0", "coordinateTransformations": "x"}], "axes": list("tczyx")}], "malformed"),
])
def test_broken_ome_metadata_is_named(tmp_path, multiscales, message):
    write_ome(tmp_path / "x.zarr")
    zarr.open_group(tmp_path / "x.zarr", mode="a", zarr_format=2).attrs["multiscales"] = multiscales
    with pytest.raises(ValueError, match=rf"x\.zarr: its .*{message}"):
        read_image(tmp_path / "x.zarr")


def test_a_cut_block_is_named(tmp_path):
    write_array(tmp_path / "x.zarr", GREY16, zarr_format=2)
    block = tmp_path / "x.zarr" / "0.0"
    block.write_bytes(block.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"x\.zarr: cannot be read as zarr"):
        read_image(tmp_path / "x.zarr")


# ---------------------------------------------------------------- blocks that unpack to very much
ZEROS = bytes(10**7)
SMALL = {"shape": [16, 16], "fill_value": 0}
PACKED = {
    "zlib": zlib.compress(ZEROS, 9), "gzip": gzip.compress(ZEROS[:10]) + gzip.compress(ZEROS), "bz2": bz2.compress(ZEROS),
    "lzma": lzma.compress(ZEROS), "zstd": Zstd(9).encode(ZEROS), "blosc": Blosc("zstd").encode(ZEROS), "lz4": LZ4().encode(ZEROS),
}


@pytest.mark.parametrize("codec", PACKED)
def test_a_block_that_unpacks_to_more_than_its_pixels_is_never_unpacked(tmp_path, codec):
    image = np.arange(256, dtype=np.uint16).reshape(16, 16)
    settings = {"id": codec, **({"cname": "zstd", "clevel": 1, "shuffle": 1} if codec == "blosc" else {})}
    write_metadata(tmp_path / "x.zarr", compressor=settings, **SMALL)
    (tmp_path / "x.zarr" / "0.0").write_bytes(get_codec(settings).encode(image))
    np.testing.assert_array_equal(read_image(tmp_path / "x.zarr")[..., 0], image)
    (tmp_path / "x.zarr" / "0.0").write_bytes(PACKED[codec])
    with zipfile.ZipFile(tmp_path / "y.zarr.zip", "w") as archive:
        for file in (tmp_path / "x.zarr").iterdir():
            archive.write(file, file.name)
    for name in ("x.zarr", "y.zarr.zip"):
        with pytest.raises(ValueError, match="its block 0.0 is damaged, or unpacks to far more than its pixels"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("codec", [zarr.codecs.GzipCodec(), zarr.codecs.ZstdCodec(checksum=True), zarr.codecs.BloscCodec(), None])
@pytest.mark.parametrize("place", ["start", "end"])
def test_shards_are_looked_through(tmp_path, codec, place):
    sharding = zarr.codecs.ShardingCodec(chunk_shape=(16, 16), codecs=[zarr.codecs.BytesCodec(), *([codec] if codec else [])],
                                         index_location=place)
    array = zarr.create_array(tmp_path / "x.zarr", shape=(32, 48), chunks=(32, 48), dtype="u2", serializer=sharding,
                              compressors=None)
    image = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)
    image[:16, :16] = 0     # absent
    array[...] = image
    np.testing.assert_array_equal(read_image(tmp_path / "x.zarr")[..., 0], image)
    if codec is None:
        return
    shard = tmp_path / "x.zarr" / "c" / "0" / "0"
    bomb = {"GzipCodec": PACKED["gzip"], "ZstdCodec": PACKED["zstd"], "BloscCodec": PACKED["blosc"]}[type(codec).__name__]
    room = 16 * 6 + 4
    index = struct.pack("<12Q", *(2**64 - 1,) * 10, room if place == "start" else 0, len(bomb))
    index += struct.pack("<I", crc32c(index))
    shard.write_bytes(index + bomb if place == "start" else bomb + index)
    with pytest.raises(ValueError, match=r"its block c/0/0 is damaged, or unpacks to far more|takes \d+ bytes"):
        read_image(tmp_path / "x.zarr")


@pytest.mark.parametrize("changes", [
    {"filters": [{"id": "zlib"}], "compressor": {"id": "zlib"}},
    {"filters": [{"id": "zstd"}, {"id": "delta", "dtype": "u1"}]},
    {"filters": [{"id": "lz4"}], "compressor": {"id": "shuffle"}},
])
def test_what_hides_how_much_a_block_unpacks_to_is_refused(tmp_path, changes):
    write_metadata(tmp_path / "x.zarr", **changes)
    with pytest.raises(ValueError, match=r"x\.zarr: its blocks are coded again after they are packed"):
        read_image(tmp_path / "x.zarr")
