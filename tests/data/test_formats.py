"""TIFF of every kind, written by tifffile and read back value by value, whole and by region; and TIFF that is damaged."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from jaxcell.data.formats import stored
from jaxcell.data.images import open_image, read_image, read_label_array, read_pixel_size

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (40, 50), np.uint8)
GREY16 = RNG.integers(0, 4096, (40, 50), np.uint16)
RGB8 = RNG.integers(0, 256, (40, 50, 3), np.uint8)
STACK = RNG.integers(0, 65536, (3, 40, 50), np.uint16)
REGION = (3, 5, 37, 39)


def check(path: Path, expected: np.ndarray) -> None:
    """The whole image and a region of it are as expected, in native byte order."""
    with open_image(path) as file:
        image, part = file.read(), file.read(region=REGION)
    assert image.dtype == part.dtype == expected.dtype and image.dtype.isnative
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(part, expected[3:37, 5:39])


# ---------------------------------------------------------------- ways to store the same
@pytest.mark.parametrize("options", [
    {}, {"bigtiff": True}, {"byteorder": ">"}, {"compression": "zlib", "predictor": True}, {"compression": "lzw"},
    {"compression": "zstd"}, {"compression": "lzma"}, {"compression": "packbits"}, {"compression": "jpeg2000"},
    {"tile": (16, 16)}, {"tile": (16, 32), "compression": "zlib", "byteorder": ">"}, {"rowsperstrip": 7, "compression": "zlib"},
    {"bitspersample": 12}, {"tile": (16, 16), "compression": "png"},
], ids=str)
def test_however_grey_is_stored(tmp_path, options):
    tifffile.imwrite(tmp_path / "x.tif", GREY16, **options)
    check(tmp_path / "x.tif", GREY16[..., None])


@pytest.mark.parametrize("options", [
    {}, {"planarconfig": "separate"}, {"tile": (16, 16), "compression": "zlib"}, {"planarconfig": "separate", "tile": (16, 16)},
], ids=str)
def test_however_colour_is_stored(tmp_path, options):
    image = np.moveaxis(RGB8, -1, 0) if "planarconfig" in options else RGB8
    tifffile.imwrite(tmp_path / "x.tif", image, photometric="rgb", **options)
    check(tmp_path / "x.tif", RGB8)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint32, np.int32, np.uint64, np.float16, np.float32, np.float64])
def test_every_type_is_kept(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "x.tif", GREY8.astype(dtype), compression="zlib")
    check(tmp_path / "x.tif", GREY8.astype(dtype)[..., None])


def test_only_the_tiles_asked_for_are_decoded(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, GREY16, tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path) as file:
        last = file.pages.first.dataoffsets[-1]
    data = bytearray(path.read_bytes())
    data[last:last + 20] = bytes(20)
    path.write_bytes(data)
    with open_image(path) as file:
        np.testing.assert_array_equal(file.read(region=(0, 0, 20, 20))[..., 0], GREY16[:20, :20])
        with pytest.raises(ValueError, match=r"x\.tif: cannot be read as tif"):
            file.read()


def test_large_uncompressed_pixels_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "MAP_FROM", 1)
    tifffile.imwrite(tmp_path / "x.tif", STACK, photometric="minisblack")
    image = read_image(tmp_path / "x.tif")
    assert isinstance(image, np.memmap) and not image.flags.writeable
    np.testing.assert_array_equal(image, np.moveaxis(STACK, 0, -1))
    with open_image(tmp_path / "x.tif") as file:
        assert file.read(region=REGION).flags.writeable      # a copy, which holds no file


# ---------------------------------------------------------------- what values mean
def test_bright_is_bright_where_0_is_white(tmp_path):
    for image, full in ((GREY8, 255), (GREY16, 65535)):
        tifffile.imwrite(tmp_path / "x.tif", image, photometric="miniswhite", compression="zlib")
        check(tmp_path / "x.tif", (full - image)[..., None])
        np.testing.assert_array_equal(read_label_array(tmp_path / "x.tif")[..., 0], image)      # numbers stay
    tifffile.imwrite(tmp_path / "x.tif", GREY16, photometric="miniswhite", bitspersample=12)
    check(tmp_path / "x.tif", (4095 - GREY16)[..., None])
    tifffile.imwrite(tmp_path / "x.tif", GREY8.astype(np.float32), photometric="miniswhite")
    with pytest.raises(ValueError, match="0 is white, but its values are float32"):
        read_image(tmp_path / "x.tif")


def test_one_bit_becomes_0_and_255(tmp_path):
    for meaning, expected in (("minisblack", GREY8 > 99), ("miniswhite", GREY8 <= 99)):
        tifffile.imwrite(tmp_path / "x.tif", GREY8 > 99, photometric=meaning)
        check(tmp_path / "x.tif", np.where(expected, 255, 0).astype(np.uint8)[..., None])
        np.testing.assert_array_equal(read_label_array(tmp_path / "x.tif")[..., 0], GREY8 > 99)


def test_palettes_become_colours(tmp_path):
    colours = RNG.integers(0, 65536, (3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", GREY8, photometric="palette", colormap=colours, tile=(16, 16))
    check(tmp_path / "x.tif", (colours >> 8).astype(np.uint8).T[GREY8])
    np.testing.assert_array_equal(read_label_array(tmp_path / "x.tif")[..., 0], GREY8)


def test_cmyk_becomes_rgb(tmp_path):
    ink = RNG.integers(0, 256, (40, 50, 4), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", ink, photometric="separated")
    expected = np.asarray(Image.fromarray(ink, "CMYK").convert("RGB"))
    assert np.abs(read_image(tmp_path / "x.tif").astype(int) - expected).max() <= 1      # (PIL rounds in two steps)
    check(tmp_path / "x.tif", read_image(tmp_path / "x.tif"))
    tifffile.imwrite(tmp_path / "x.tif", ink.astype(np.uint16) * 257, photometric="separated", planarconfig="contig")
    assert np.abs(read_image(tmp_path / "x.tif") / 257 - expected).max() <= 1


def test_jpeg_colours_are_read_and_refused_for_labels(tmp_path):
    smooth = np.linspace(0, 255, 40 * 50 * 3).reshape(40, 50, 3).astype(np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", smooth, photometric="rgb", compression="jpeg", compressionargs={"level": 95})
    assert np.abs(read_image(tmp_path / "x.tif").astype(int) - smooth).mean() < 3
    with pytest.raises(ValueError, match=r"x\.tif: its compression, JPEG, changes pixel values"):
        read_label_array(tmp_path / "x.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_as_viewers_show_them(tmp_path, orientation):
    tifffile.imwrite(tmp_path / "x.tif", RGB8, photometric="rgb", extratags=[(274, "H", 1, orientation, True)], tile=(16, 16))
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(RGB8).save(tmp_path / "x.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "x.png")))
    for name in ("x.tif", "x.png"):
        check(tmp_path / name, expected)
        with open_image(tmp_path / name) as file:
            assert file.size == expected.shape[:2]
        np.testing.assert_array_equal(read_label_array(tmp_path / name), expected)


@pytest.mark.parametrize("values, samples", [((255,), 3), ((255, 7), 4)])
def test_regions_agree_on_alpha(tmp_path, values, samples):
    alpha = np.full((2100, 16, 1), values[0], np.uint8)
    alpha[-1] = values[-1]
    tifffile.imwrite(tmp_path / "x.tif", np.concatenate([np.repeat(alpha, 3, axis=2), alpha], axis=2), photometric="rgb",
                     extrasamples=["unassalpha"], tile=(16, 16), compression="zlib")
    with open_image(tmp_path / "x.tif") as file:
        assert file.shape == (2100, 16, 4)
        assert file.read().shape == (2100, 16, samples) and file.read(region=(0, 0, 9, 9)).shape == (9, 9, samples)


# ---------------------------------------------------------------- several pages
def write_pages(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        for plane in STACK:
            writer.write(plane, compression="zlib")


def write_two_images(path: Path) -> None:
    with tifffile.TiffWriter(path, ome=True) as writer:
        for n in range(2):
            writer.write(STACK[n], metadata={"axes": "YX", "Name": f"field {n}", "PhysicalSizeX": 0.5 + n})


def test_pages_are_planes_also_where_written_one_by_one_or_without_metadata(tmp_path):
    write_pages(tmp_path / "x.tif")
    check(tmp_path / "x.tif", np.moveaxis(STACK, 0, -1))
    tifffile.imwrite(tmp_path / "x.tif", STACK, photometric="minisblack", metadata=None, compression="zlib")
    check(tmp_path / "x.tif", np.moveaxis(STACK, 0, -1))
    tifffile.imwrite(tmp_path / "x.tif", np.stack([STACK, STACK + 1]), photometric="minisblack")     # two axes without a name
    check(tmp_path / "x.tif", np.moveaxis(np.concatenate([STACK, STACK + 1]), 0, -1))


def test_planes_are_chosen_by_axis(tmp_path):
    movie = RNG.integers(0, 256, (4, 3, 2, 10, 12), np.uint8)
    path = tmp_path / "x.ome.tif"
    tifffile.imwrite(path, movie, ome=True, photometric="minisblack", compression="zlib",
                     metadata={"axes": "TCZYX", "Channel": {"Name": ["DAPI", "GFP", "RFP"]}})
    for select, expected in [({"T": 3}, movie[3].reshape(6, 10, 12)), ({"T": 0, "C": "GFP"}, movie[0, 1]),
                             ({"T": 2, "C": 2, "Z": "max"}, movie[2, 2].max(axis=0)[None]),
                             ({"T": "max", "Z": 1}, movie[:, :, 1].max(axis=0))]:
        np.testing.assert_array_equal(read_image(path, select=select), np.moveaxis(expected, 0, -1))
    mean = read_image(path, select={"T": "mean", "C": "RFP", "Z": "mean"})
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean[..., 0], movie[:, 2].mean(axis=(0, 1)), rtol=1e-6)


@pytest.mark.parametrize("select, message", [
    ({}, r"movie of 4 time points.*select=\{'T': 0\}"), ({"T": 4}, "from 0 to 3"), ({"T": -1}, "from 0 to 3"),
    ({"T": 0, "C": "X"}, "DAPI, GFP"), ({"T": 0, "Q": 0}, r"names 'Q', but its axes beside Y and X are T \(4\), C \(2\)"),
    ({"T": 0, "Y": 0}, "by region"), ({"T": 0, "scene": 0}, "series and level"), ({"series": 1}, "no series 1"),
    ({"level": 1}, "no level 1"),
])
def test_what_cannot_be_chosen_is_said(tmp_path, select, message):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((4, 2, 5, 6), np.uint8), ome=True, photometric="minisblack",
                     metadata={"axes": "TCYX", "Channel": {"Name": ["DAPI", "GFP"]}})
    with pytest.raises(ValueError, match=rf"x\.tif: .*{message}"):
        read_image(tmp_path / "x.tif", select=select)


def test_of_several_images_one_is_chosen(tmp_path):
    path = tmp_path / "x.ome.tif"
    write_two_images(path)
    with pytest.raises(ValueError, match="holds 2 images.*'field 0', 'field 1'"):
        read_image(path)
    for choice in (1, "field 1"):
        np.testing.assert_array_equal(read_image(path, select={"series": choice})[..., 0], STACK[1])
    assert read_pixel_size(path, select={"series": 1}) == 1.5


def test_levels_of_a_pyramid_and_previews_are_no_images_of_their_own(tmp_path):
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(GREY16, subifds=1, tile=(16, 16), metadata={"axes": "YX", "PhysicalSizeX": 0.5})
        writer.write(GREY16[::2, ::2], subfiletype=1, tile=(16, 16))
    check(path, GREY16[..., None])
    np.testing.assert_array_equal(read_image(path, select={"level": 1})[..., 0], GREY16[::2, ::2])
    assert (read_pixel_size(path), read_pixel_size(path, select={"level": 1})) == (0.5, 1.0)
    with tifffile.TiffWriter(path) as writer:
        writer.write(GREY16)
        writer.write(RGB8[:9, :9], photometric="rgb")
    check(path, GREY16[..., None])


def test_parts_of_an_image_lie_in_files_beside_it_or_are_missed(tmp_path):
    head = ('<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{}">'
            '<Image ID="Image:0">')
    pixels = ('<Pixels ID="Pixels:0" DimensionOrder="XYZCT" SizeX="50" SizeY="40" SizeZ="2" SizeC="1" SizeT="1" Type="uint16">'
              + "".join(f'<TiffData IFD="0" FirstZ="{n}" PlaneCount="1"><UUID FileName="{n}.ome.tif">urn:uuid:{n}</UUID>'
                        "</TiffData>" for n in range(2)) + "</Pixels></Image></OME>")
    for n in range(2):
        tifffile.imwrite(tmp_path / f"{n}.ome.tif", STACK[n], description=head.format(n) + pixels, metadata=None)
    np.testing.assert_array_equal(read_image(tmp_path / "0.ome.tif"), np.moveaxis(STACK[:2], 0, -1))
    (tmp_path / "1.ome.tif").unlink()
    with pytest.raises(ValueError, match=r"0\.ome\.tif: some of the pages .* are missing"):
        read_image(tmp_path / "0.ome.tif")
    tifffile.imwrite(tmp_path / "x.ome.tif", STACK[0], description=(head.format(7) + pixels).replace("0.ome.tif", "/dev/zero"),
                     metadata=None)
    with pytest.raises(ValueError, match=r"x\.ome\.tif: its OME metadata names '/dev/zero'"):
        read_image(tmp_path / "x.ome.tif")


# ---------------------------------------------------------------- damage
def directories(data: bytes | bytearray) -> list[tuple[int, int]]:
    """(where a directory starts, where it names the next) of a classic little-endian TIFF."""
    found, offset = [], struct.unpack("<I", data[4:8])[0]
    while offset:
        following = offset + 2 + 12 * struct.unpack("<H", data[offset:offset + 2])[0]
        found.append((offset, following))
        offset = struct.unpack("<I", data[following:following + 4])[0]
    return found


def link(data: bytearray, page: int, target: int) -> None:
    """Makes a page name another one, or a place in the file, as the next."""
    places = directories(data)
    where = places[page][1]
    data[where:where + 4] = struct.pack("<I", places[target][0] if target < len(places) else target)


def tag(data: bytearray, code: int, value: int, *, count: int = 1) -> None:
    start, end = directories(data)[0]
    where = next(place for place in range(start + 2, end, 12) if struct.unpack("<H", data[place:place + 2])[0] == code)
    data[where + 2:where + 12] = struct.pack("<HII", 4, count, value)


def cut(data: bytearray, keep: float) -> None:
    del data[int(len(data) * keep):]


DAMAGE: dict[str, tuple[int, Callable[[bytearray], None], str]] = {
    "header only": (1, lambda d: cut(d, 8 / len(d)), "cannot be read as tif: it has no page"),
    "directory cut": (1, lambda d: cut(d, 60 / len(d)), "cannot be read as tif"),
    "pixels cut": (1, lambda d: cut(d, 0.99), "cannot be read as tif"),
    "cut between pages": (150, lambda d: cut(d, 0.5), "ends within or before its page"),
    "circle": (150, lambda d: link(d, 149, 20), "page 150 points back"),
    "page after itself": (150, lambda d: link(d, 0, 0), "page 1 points back"),
    "next page beyond the end": (150, lambda d: link(d, 1, 10**9), "ends within or before its page 2"),
    "tags without number": (1, lambda d: d.__setitem__(slice(8, 10), b"\xff\xff"), "cannot be read as tif: .* tag"),
    "huge width": (1, lambda d: tag(d, 256, 2**31), "its pixels, .* are decoded in blocks of"),
    "no width": (1, lambda d: tag(d, 256, 0), "at least one pixel"),
    "huge count of strips": (1, lambda d: tag(d, 273, 8, count=2**31 - 1), "cannot be read as tif"),
    "nothing written": (1, lambda d: tag(d, 279, 0), "never written"),
    "unknown compression": (1, lambda d: tag(d, 259, 999), "999"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(tmp_path, kind):
    pages, damage, message = DAMAGE[kind]
    tifffile.imwrite(tmp_path / "whole.tif", RNG.integers(0, 9, (pages, 8, 9), np.uint8), photometric="minisblack", metadata=None,
                     compression="zlib")
    data = bytearray((tmp_path / "whole.tif").read_bytes())
    damage(data)
    (tmp_path / "x.tif").write_bytes(data)
    for read in (read_image, read_label_array):
        with pytest.raises(ValueError, match=rf"x\.tif: .*{message}") as caught:
            read(tmp_path / "x.tif")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("meaning", [8, 32803, 999])
def test_colours_of_unknown_meaning_are_refused(tmp_path, meaning):
    tifffile.imwrite(tmp_path / "x.tif", GREY8, metadata=None)
    data = bytearray((tmp_path / "x.tif").read_bytes())
    tag(data, 262, meaning)
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.tif: its colours are (CIELAB|CFA|999) with 1 samples"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("xml, message", [
    ('<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><OME>&b;</OME>', "document type"),
    ('<?xml version="1.0"?><OME><Image></OME>', "malformed"),
])
def test_hostile_or_broken_metadata_is_refused(tmp_path, xml, message):
    tifffile.imwrite(tmp_path / "x.tif", GREY8, description=xml, metadata=None)
    with pytest.raises(ValueError, match=rf"x\.tif: its XML metadata .*{message}"):
        read_image(tmp_path / "x.tif")


def test_size_is_judged_before_decoding(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", GREY16, tile=(16, 16), compression="zlib")
    with pytest.raises(ValueError, match=r"x\.tif: its pixels, \(40, 50\) of uint16, would take .* raise max_gb"):
        read_image(tmp_path / "x.tif", max_gb=2e-6)
    with open_image(tmp_path / "x.tif", max_gb=2e-6) as file:
        assert file.read(region=(0, 0, 20, 20)).shape == (20, 20, 1)
    tifffile.imwrite(tmp_path / "x.tif", GREY16, compression="zlib")
    with open_image(tmp_path / "x.tif", max_gb=2e-6) as file, pytest.raises(ValueError, match="decoded in blocks"):
        file.read(region=(0, 0, 20, 20))
