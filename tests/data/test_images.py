"""Every kind of image and label file, written small and read back value by value."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxcell.data.images import read_image, read_pixel_size, readable_files, stem_of
from jaxcell.data.labels import pack_masks, read_labels

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
    np.testing.assert_array_equal(read_labels(tmp_path / "x.png")[..., 0], indices)
    colors = (palette.astype(np.uint16) * 257).T
    tifffile.imwrite(tmp_path / "x.tif", indices, photometric="palette", colormap=colors)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), palette[indices])
    np.testing.assert_array_equal(read_labels(tmp_path / "x.tif")[..., 0], indices)


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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64, np.float32])
def test_label_images_of_any_width(tmp_path, dtype):
    labels = np.array([[0, 0, 3], [200, 200, 3]], dtype)
    np.save(tmp_path / "x.npy", labels)
    read = read_labels(tmp_path / "x.npy")
    assert read.dtype == np.int32 and read.shape == (2, 3, 1)
    np.testing.assert_array_equal(read[..., 0], labels)


def test_many_cells_survive_16_bits_and_huge_ids_are_renumbered(tmp_path):
    tifffile.imwrite(tmp_path / "many.tif", np.array([[70_000, 0], [65_536, 1]], np.uint32))
    np.testing.assert_array_equal(read_labels(tmp_path / "many.tif")[..., 0], [[70_000, 0], [65_536, 1]])
    np.save(tmp_path / "huge.npy", np.array([[2**40, 5], [2**33, -1], [0, 5]]))
    np.testing.assert_array_equal(read_labels(tmp_path / "huge.npy")[..., 0], [[3, 1], [2, -1], [0, 1]])


def test_mask_pages_share_layers_unless_they_overlap(tmp_path):
    pages = np.zeros((4, 4, 6), np.uint8)
    pages[0, :2, :2] = 255
    pages[1, 1:3, 1:3] = 255      # overlaps page 0; page 2 is empty
    pages[3, 3, 5] = 255
    tifffile.imwrite(tmp_path / "x.tif", pages, photometric="minisblack")
    layers = read_labels(tmp_path / "x.tif")
    assert layers.shape == (4, 6, 2)
    for page, number in ((0, 1), (1, 2), (3, 4)):
        np.testing.assert_array_equal((layers == number).any(axis=-1), pages[page] > 0)
    np.testing.assert_array_equal(np.unique(layers), [0, 1, 2, 4])
    tifffile.imwrite(tmp_path / "empty.tif", pages[2], photometric="minisblack")
    assert read_labels(tmp_path / "empty.tif").shape == (4, 6, 1) and not read_labels(tmp_path / "empty.tif").any()


def test_label_layers_stay_layers(tmp_path):
    layers = np.array([[[1, 0], [1, 3], [2, 0]]], np.uint16)
    np.save(tmp_path / "x.npy", layers)
    np.testing.assert_array_equal(read_labels(tmp_path / "x.npy"), layers)
    np.save(tmp_path / "twice.npy", np.array([[[1, 0], [1, 2], [2, 0]]], np.uint16))
    with pytest.raises(ValueError, match="cell 2 occurs on several of the 2 pages"):
        read_labels(tmp_path / "twice.npy")


def test_pack_masks_of_nothing_is_one_empty_layer():
    layers = pack_masks([], (3, 4))
    assert layers.shape == (3, 4, 1) and layers.dtype == np.int32 and not layers.any()


@pytest.mark.parametrize("name, content, message", [
    ("x.xyz", b"", r"x\.xyz.*'\.xyz'.*\.png.*Convert"),
    ("x.png", b"not a picture", r"x\.png: cannot be read as png"),
    ("x.tif", b"II", r"x\.tif: cannot be read as tif"),
])
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for read in (read_image, read_labels):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        read_image(tmp_path / "absent.png")


@pytest.mark.parametrize("labels, message", [
    (np.array([[0.5, 1]]), "fractions"), (np.array([[-2, 1]]), "-2"),
])
def test_what_cannot_be_labels_is_refused(tmp_path, labels, message):
    np.save(tmp_path / "x.npy", labels)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "x.npy")


def test_pictures_are_no_labels(tmp_path):
    Image.fromarray(RGB8).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="colour picture"):
        read_labels(tmp_path / "x.png")
    Image.fromarray(np.repeat(GRAY8[..., None], 3, axis=2)).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "gray.png")[..., 0], GRAY8)
    Image.fromarray(GRAY8).save(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="'.jpg' cannot be read here"):
        read_labels(tmp_path / "x.jpg")


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
    assert [stem_of(name) for name in ("well_A.1", "well_A.1.TIF", "sub/x.ome.tif")] == ["well_A.1", "well_A.1", "x.ome"]
    (tmp_path / "folder.png").mkdir()
    for name in ("b.png", "a.TIF", "._a.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in readable_files(tmp_path)] == ["a.TIF", "b.png"]


def test_a_session_file_of_cellpose_is_explained(tmp_path):
    np.save(tmp_path / "x_seg.npy", {"masks": GRAY16}, allow_pickle=True)
    with pytest.raises(ValueError, match="x_seg.npy.*Python objects.*save its masks as TIFF or PNG"):
        read_labels(tmp_path / "x_seg.npy")


def test_background_of_minus_one_is_not_taken_for_ignore_in_silence(tmp_path):
    labels = np.full((8, 8), -1, np.int32)
    labels[2:4, 2:4] = 1
    np.save(tmp_path / "x.npy", labels)
    with pytest.raises(ValueError, match="save labels \\+ 1"):
        read_labels(tmp_path / "x.npy")
    labels[6, 6] = 0
    np.save(tmp_path / "x.npy", labels)
    with pytest.warns(UserWarning, match="more than half"):
        assert read_labels(tmp_path / "x.npy").shape == (8, 8, 1)
