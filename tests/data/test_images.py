"""Every kind of image and label file, written small and read back value by value."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from jaxcell.data.formats import stored
from jaxcell.data.images import open_image, read_image, read_label_array, read_pixel_size, readable_files, stem_of

RNG = np.random.default_rng(0)
GRAY8 = RNG.integers(0, 256, (5, 7), np.uint8)
GRAY16 = RNG.integers(0, 65536, (5, 7), np.uint16)
RGB8 = RNG.integers(0, 256, (5, 7, 3), np.uint8)
RGB16 = RNG.integers(0, 65536, (5, 7, 3), np.uint16)
STACK16 = RNG.integers(0, 65536, (4, 5, 7), np.uint16)


def opaque(image: np.ndarray) -> np.ndarray:
    alpha = np.full_like(image[..., :1], np.iinfo(image.dtype).max)
    return np.concatenate([image, alpha], axis=-1)


@pytest.mark.parametrize("stored, expected", [
    (GRAY8, GRAY8[..., None]), (GRAY16, GRAY16[..., None]), (RGB8, RGB8), (RGB16, RGB16),
    (opaque(RGB8), RGB8), (opaque(RGB16), RGB16), (opaque(GRAY8[..., None]), GRAY8[..., None]),
    (np.concatenate([RGB8, GRAY8[..., None]], axis=-1), np.concatenate([RGB8, GRAY8[..., None]], axis=-1)),
    (np.repeat(GRAY8[..., None], 3, axis=2), np.repeat(GRAY8[..., None], 3, axis=2)),
])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_png_and_tiff_keep_every_value(tmp_path, stored, expected, suffix):
    path = tmp_path / f"x{suffix}"
    if suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(stored))
    else:
        color = stored.ndim == 3 and stored.shape[2] > 2
        tifffile.imwrite(path, stored, photometric="rgb" if color else "minisblack", compression="zlib",
                         extrasamples=None if stored.ndim == 2 or stored.shape[2] in (1, 3) else ["unassalpha"],
                         planarconfig="contig" if stored.ndim == 3 else None)
    image = read_image(path)
    assert image.dtype == stored.dtype
    np.testing.assert_array_equal(image, expected)


def test_indexed_color_is_color_in_images_and_numbers_in_labels(tmp_path):
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = Image.fromarray(indices, "P")
    palette = RNG.integers(0, 256, (256, 3), np.uint8)
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), palette[indices])
    np.testing.assert_array_equal(read_label_array(tmp_path / "x.png")[..., 0], indices)
    colors = (palette.astype(np.uint16) * 257).T
    tifffile.imwrite(tmp_path / "x.tif", indices, photometric="palette", colormap=colors)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), palette[indices])
    np.testing.assert_array_equal(read_label_array(tmp_path / "x.tif")[..., 0], indices)


def test_one_bit_jpeg_and_bmp(tmp_path):
    Image.fromarray(GRAY8 > 100).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bit.png")[..., 0], (GRAY8 > 100) * 255)
    Image.fromarray(RGB8).save(tmp_path / "x.bmp")
    np.testing.assert_array_equal(read_image(tmp_path / "x.bmp"), RGB8)
    flat = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    Image.fromarray(flat).save(tmp_path / "x.JPG", "JPEG", quality=95)
    assert np.abs(read_image(tmp_path / "x.JPG").astype(int) - flat).max() <= 3


@pytest.mark.parametrize("options", [
    {"photometric": "minisblack"},
    {"photometric": "minisblack", "metadata": {"axes": "CYX"}, "ome": True},
    {"photometric": "minisblack", "metadata": {"axes": "ZYX"}, "imagej": True},
    {"photometric": "minisblack", "planarconfig": "separate"},
])
def test_pages_become_channels(tmp_path, options):
    path = tmp_path / ("x.ome.tif" if "ome" in options else "x.tif")
    tifffile.imwrite(path, STACK16, **options)
    np.testing.assert_array_equal(read_image(path), np.moveaxis(STACK16, 0, -1))


def test_ome_axes_are_respected_wherever_y_and_x_stand(tmp_path):
    volume = RNG.integers(0, 256, (2, 3, 5, 7), np.uint8)
    tifffile.imwrite(tmp_path / "x.ome.tif", volume, ome=True, metadata={"axes": "CZYX"}, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "x.ome.tif"), np.moveaxis(volume.reshape(6, 5, 7), 0, -1))


def test_npy_has_channels_last(tmp_path):
    np.save(tmp_path / "x.npy", RGB16.astype(np.float32))
    np.testing.assert_array_equal(read_image(tmp_path / "x.npy"), RGB16)
    np.save(tmp_path / "y.npy", np.zeros((3, 100, 120)))
    with pytest.raises(ValueError, match=r"y\.npy.*\(3, 100, 120\).*moveaxis"):
        read_image(tmp_path / "y.npy")


def test_images_beyond_the_limit_of_pil_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    for suffix in (".png", ".bmp", ".jpg"):
        Image.fromarray(RGB8).save(tmp_path / f"x{suffix}")
        assert read_image(tmp_path / f"x{suffix}").shape == (5, 7, 3)


@pytest.mark.parametrize("name, content, message", [
    ("x.xyz", b"", r"x\.xyz.*'\.xyz'.*\.png.*Convert"),
    ("x.png", b"not a picture", r"x\.png: cannot be read as png"),
    ("x.tif", b"II", r"x\.tif: cannot be read as tif"),
])
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for read in (read_image, read_label_array):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        read_image(tmp_path / "absent.png")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha_of_a_grey_image_is_no_channel(tmp_path, suffix):
    path, stored = tmp_path / f"x{suffix}", np.stack([GRAY8, GRAY8[::-1]], axis=-1)
    if suffix == ".png":
        Image.fromarray(stored, "LA").save(path)
    else:
        tifffile.imwrite(path, stored, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(path), GRAY8[..., None])
    tifffile.imwrite(tmp_path / "two.tif", stored, photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read_image(tmp_path / "two.tif"), stored)      # two channels


@pytest.mark.parametrize("options, expected", [
    ({"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.65, "PhysicalSizeY": 0.65}}, 0.65),
    ({"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 650, "PhysicalSizeXUnit": "nm"}}, 0.65),
    ({"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.65, "PhysicalSizeXUnit": "pixel"}}, None),
    ({"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.65, "PhysicalSizeY": 0.5}}, None),
    ({"ome": True, "metadata": {"axes": "YX"}}, None),
    ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "micron"}}, 0.25),
    ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "\\u00B5m"}}, 0.25),
    ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "inch"}}, None),
    ({"imagej": True, "metadata": {"unit": "um"}}, 1.0),
    ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
    ({}, None),
])
def test_pixel_size_is_known_where_the_unit_is(tmp_path, options, expected):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, GRAY16, **options)
    assert read_pixel_size(path) == pytest.approx(expected)
    assert read_pixel_size(tmp_path / "x.png") is None


def test_stems_and_readable_files(tmp_path):
    names = ("well_A.1", "well_A.1.TIF", "sub/x.ome.tif", "x.ome")
    assert [stem_of(name) for name in names] == ["well_A.1", "well_A.1", "x", "x.ome"]
    (tmp_path / "folder.png").mkdir()
    for name in ("b.png", "a.TIF", "._a.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in readable_files(tmp_path)] == ["a.TIF", "b.png"]


# ---------------------------------------------------------------- pictures
def as_png(image: Image.Image, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, "PNG", **options)
    return target.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int, *, depth: int = 8, colour: int = 0) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_of_every_depth_and_with_transparency(tmp_path, bits):
    indices = (np.arange(35).reshape(5, 7) % 2**bits).astype(np.uint8)
    palette = RNG.integers(0, 256, (2**bits, 3), np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(palette.tobytes())
    (tmp_path / "x.png").write_bytes(as_png(picture, bits=bits))
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), palette[indices])
    (tmp_path / "x.png").write_bytes(as_png(picture, bits=bits, transparency=bytes([0, 255])))
    alpha = np.where(indices == 0, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), np.dstack([palette[indices], alpha]))
    np.testing.assert_array_equal(read_label_array(tmp_path / "x.png")[..., 0], indices)


def test_cmyk_jpeg_becomes_rgb_and_bmp_of_every_kind_is_read(tmp_path):
    flat = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "x.jpg").astype(int) - flat).max() <= 4
    for mode in ("1", "L", "P", "RGB"):
        picture = Image.fromarray(RGB8).convert(mode)
        picture.save(tmp_path / "x.bmp")
        expected = np.asarray(picture.convert("L" if mode in ("1", "L") else "RGB"))
        np.testing.assert_array_equal(read_image(tmp_path / "x.bmp"), expected if mode in ("P", "RGB") else expected[..., None])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_pictures_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    smooth = Image.fromarray(np.linspace(0, 255, 40 * 50).reshape(40, 50).astype(np.uint8))
    smooth.save(tmp_path / "x.jpg", exif=exif, quality=95)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "x.jpg")))[..., None]
    with open_image(tmp_path / "x.jpg") as file:
        np.testing.assert_array_equal(file.read(), upright)
        np.testing.assert_array_equal(file.read(region=(2, 3, 30, 20)), upright[2:30, 3:20])
        assert file.size == upright.shape[:2]
    plain, turn = as_png(smooth), exif.tobytes().removeprefix(b"Exif\0\0")
    (tmp_path / "late.png").write_bytes(plain[:-12] + chunk(b"eXIf", turn) + plain[-12:])     # it may follow the pixels
    np.testing.assert_array_equal(read_image(tmp_path / "late.png"), np.asarray(
        ImageOps.exif_transpose(Image.open(io.BytesIO(as_png(smooth, exif=exif)))))[..., None])


def test_broken_exif_turns_nothing(tmp_path):
    plain = as_png(Image.fromarray(GRAY8))
    (tmp_path / "x.png").write_bytes(plain[:-12] + chunk(b"eXIf", b"nonsense") + plain[-12:])
    np.testing.assert_array_equal(read_image(tmp_path / "x.png")[..., 0], GRAY8)


# ---------------------------------------------------------------- arrays
@pytest.mark.parametrize("array", [RGB16, np.asfortranarray(RGB16), RGB16.astype(">u2"), RGB16.astype(">f4"), GRAY8 > 99])
def test_arrays_of_every_layout(tmp_path, array, monkeypatch):
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", cells=array)
    expected = np.atleast_3d(array * np.uint8(255) if array.dtype == bool else array)
    for name in ("x.npy", "x.npz"):
        with open_image(tmp_path / name) as file:
            np.testing.assert_array_equal(file.read(), expected)
            np.testing.assert_array_equal(file.read(region=(1, 2, 4, 6)), expected[1:4, 2:6])
            assert file.read().dtype.isnative and file.dtype == expected.dtype.newbyteorder("=")
    monkeypatch.setattr(stored, "MAP_FROM", 1)
    image = read_image(tmp_path / "x.npy")
    np.testing.assert_array_equal(image, expected)
    assert not image.flags.writeable if array is RGB16 else True


def test_of_several_arrays_one_is_chosen(tmp_path):
    np.savez(tmp_path / "x.npz", a=GRAY8, b=GRAY16)
    for select in ({"array": "b"}, {"array": 1}):
        np.testing.assert_array_equal(read_image(tmp_path / "x.npz", select=select)[..., 0], GRAY16)
    for select, message in (({}, "2 arrays.*'a', 'b'"), ({"array": "c"}, "no array 'c'"), ({"series": 0}, "names 'series'")):
        with pytest.raises(ValueError, match=rf"x\.npz: .*{message}"):
            read_image(tmp_path / "x.npz", select=select)


# ---------------------------------------------------------------- what is refused
def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.ljust(117).encode() + b"\n"


def saved(array: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


def as_npz(member: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", member)
    return target.getvalue()


HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 100000), }"
PNG = as_png(Image.fromarray(RGB8))
JPEG = imagecodecs.jpeg8_encode(np.full((64, 64), 99, np.uint8))
BMP = imagecodecs.bmp_encode(np.full((64, 64), 99, np.uint8))


@pytest.mark.parametrize("name, content, message", [
    ("x.png", b"", "is empty"), ("x.jpg", b"", "is empty"), ("x.tif", b"", "is empty"), ("x.npz", b"", "is empty"),
    ("x.png", PNG[:8], "ends within its header"), ("x.png", PNG[:60], "cannot be read as png"),
    ("x.jpg", JPEG[:len(JPEG) // 2], "cannot be read as jpg"), ("x.bmp", BMP[:len(BMP) // 2], "cannot be read as bmp"),
    ("x.png", JPEG, "says png, but it begins like a JPEG"), ("x.jpg", PNG, "says jpg, but it begins like a PNG"),
    ("x.tif", PNG, "says tif, but it begins like a PNG"), ("x.npy", as_npz(b""), "says npy, but it begins like a zip"),
    ("x.png", png_header(10**5, 10**5) + PNG[33:], "decoded in blocks of 10.0 GB"), ("x.png", png_header(0, 5), "one pixel"),
    ("x.png", png_header(5, 5, colour=7) + PNG[33:], "colour type 7"),
    ("x.bmp", BMP[:18] + struct.pack("<ii", 10**5, 10**5) + BMP[26:], "decoded in blocks of"),
    ("x.npy", npy(HUGE), "pixels end 10000000000 bytes too early"), ("x.npz", as_npz(npy(HUGE)), "decoded in blocks of 10.0 GB"),
    ("x.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-5, 5), }"), r"shape is \(-5, 5\)"),
    ("x.npy", npy("__import__('os').abort()"), "cannot be read as npy"), ("x.npy", b"\x80\x04K\x01.", "cannot be read as npy"),
    ("x.npy", saved(GRAY8)[:-3], "3 bytes too early"), ("x.npy", saved(np.array([{}], object)), "Python objects"),
    ("x.npz", as_npz(saved(np.array([{}], object))), "Python objects"), ("x.npz", as_npz(b"nonsense"), "cannot be read as npz"),
    ("x.npy", saved(np.zeros((4, 5), complex)), "its values are complex128"), ("x.npy", saved(np.zeros((4, 0))), "one pixel"),
    ("x.npy", saved(np.zeros((4, 5), "M8[s]")), "its values are datetime64"), ("x.npy", saved(np.zeros(4)), r"shape is \(4,\)"),
    ("x.npz", b"nonsense" * 9, "cannot be read as npz"),
])
def test_malformed_files_are_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    readers = (read_image,) if name.endswith("jpg") else (read_image, read_label_array)
    for read in readers:
        with pytest.raises(ValueError, match=message) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    for name, message in (("folder.png", "is a folder"), ("pipe.png", "device or pipe"), ("endless.png", "device or pipe")):
        with pytest.raises(ValueError, match=rf"{name}: {message}|{name}: is a {message}"):
            read_image(tmp_path / name)


def test_a_file_larger_than_the_limit_is_not_read(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.write(PNG)
        file.truncate(10**10)
    with pytest.raises(ValueError, match=r"x\.png: the file takes 10\.0 GB, more than max_gb=8"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("region", [(0, 0, 6, 7), (-1, 0, 2, 2), (2, 2, 2, 5), (3, 3, 1, 5)])
def test_regions_lie_in_the_picture(tmp_path, region):
    (tmp_path / "x.png").write_bytes(PNG)
    with open_image(tmp_path / "x.png") as file, pytest.raises(ValueError, match=r"x\.png: the region .* 5 x 7 pixels"):
        file.read(region=region)


def test_what_was_read_may_be_changed(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(PNG)
    with open_image(tmp_path / "x.png") as file:
        for region in (None, (0, 0, 5, 7)):
            file.read(region=region)[:] = 0
            np.testing.assert_array_equal(file.read(region=region), RGB8)
