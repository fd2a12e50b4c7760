"""Every kind of label file, written small and read back cell by cell; and what is refused, with its reason."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import tifffile
from PIL import Image
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi
from scipy import ndimage
from skimage.measure import find_contours

from jaxcell.data.annotations import crops
from jaxcell.data.annotations.polygons import fill_rings
from jaxcell.data.annotations.qupath import read_qupath_nuclei
from jaxcell.data.labels import LABEL_SUFFIXES, pack_masks, read_labels

RNG = np.random.default_rng(0)
GRAY8 = RNG.integers(0, 256, (5, 7), np.uint8)
GRAY16 = RNG.integers(0, 65536, (5, 7), np.uint16)
RGB8 = RNG.integers(0, 256, (5, 7, 3), np.uint8)


def cells_of(layers: np.ndarray) -> list[np.ndarray]:
    """The mask [H, W] of every cell, by id."""
    return [(layers == number).any(axis=2) for number in np.unique(layers[layers > 0])]


def blobs(value: int, count: int, dtype=np.uint8) -> np.ndarray:
    """`count` squares of one value."""
    labels = np.zeros((8, 6 * count + 6), dtype)
    for k in range(count):
        labels[2:6, 6 * k + 2:6 * k + 6] = value
    return labels


# ---------------------------------------------------------------- numbers
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64, np.uint64, np.float32, np.float64])
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
    np.save(tmp_path / "unsigned.npy", np.array([[2**64 - 1, 0], [7, 7]], np.uint64))
    np.testing.assert_array_equal(read_labels(tmp_path / "unsigned.npy")[..., 0], [[2, 0], [1, 1]])


def test_more_cells_than_16_bits_count_keep_their_ids(tmp_path):
    labels = np.arange(300 * 300, dtype=np.uint32).reshape(300, 300)
    tifffile.imwrite(tmp_path / "x.tif", labels, compression="zlib")
    np.testing.assert_array_equal(read_labels(tmp_path / "x.tif")[..., 0], labels)


@pytest.mark.parametrize("labels, message", [
    (np.array([[0.5, 1]]), r"fractions \(such as 0\.5\)"),
    (np.array([[-2, 1]]), "labels hold -2"),
    (np.array([[0, np.nan]]), "labels hold nan on 1 pixels"),
    (np.array([[0, np.inf], [-np.inf, 1]], np.float32), "labels hold inf on 2 pixels"),
    (np.array([[0, 2.0**60]]), "floats no longer tell"),
    (np.array([[1j, 0]]), "complex128"), (np.array([["a", "b"]]), "<U1"), (np.zeros((0, 4), np.uint8), r"shape is \(0, 4"),
])
def test_what_cannot_be_labels_is_refused(tmp_path, labels, message):
    np.save(tmp_path / "x.npy", labels)
    with pytest.raises(ValueError, match=rf"x\.npy.*{message}"):
        read_labels(tmp_path / "x.npy")


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


@pytest.mark.parametrize("name, content, message", [
    ("x.xyz", b"", r"x\.xyz.*'\.xyz'.*\.png.*Convert"),
    ("x.png", b"not a picture", r"x\.png: cannot be read as png"),
    ("x.tif", b"II", r"x\.tif: cannot be read as tif"),
    ("x.npy", b"", r"x\.npy: is empty"), ("x.npy", b"\x93NUMPY\x01\x00\xff\xff(", r"x\.npy: cannot be read as npy"),
])
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / name)


@pytest.mark.parametrize("ending", [".png", ".tif", ".npy", ".zarr", ".geojson", ".json", ".roi", ".zip"])
def test_a_missing_file_is_named_whatever_its_ending(tmp_path, ending):
    assert ending in LABEL_SUFFIXES
    with pytest.raises(FileNotFoundError, match=rf"absent\{ending}"):
        read_labels(tmp_path / f"absent{ending}", shape=(5, 7))


def test_the_size_must_be_that_of_the_image(tmp_path):
    np.save(tmp_path / "x.npy", GRAY8)
    assert read_labels(tmp_path / "x.npy", shape=(5, 7)).shape == (5, 7, 1)
    with pytest.raises(ValueError, match=r"x\.npy: the labels are 5 x 7 pixels, but their image has 7 x 5.*pairing"):
        read_labels(tmp_path / "x.npy", shape=(7, 5))
    with pytest.raises(ValueError, match="coding 'colour' is unknown; known are ids, rgb, binary"):
        read_labels(tmp_path / "x.npy", coding="colour")


# ---------------------------------------------------------------- stacks
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
    np.save(tmp_path / "ignore.npy", np.array([[[1, 0], [1, -1], [0, -1]]], np.int16))      # no mask of a cell -1
    np.testing.assert_array_equal(read_labels(tmp_path / "ignore.npy"), [[[1, 0], [1, -1], [0, -1]]])
    np.save(tmp_path / "twice.npy", np.array([[[1, 0], [1, 2], [2, 0]]], np.uint16))
    with pytest.raises(ValueError, match="cell 2 occurs on several of the 2 pages"):
        read_labels(tmp_path / "twice.npy")


def test_pack_masks_of_nothing_is_one_empty_layer():
    layers = pack_masks([], (3, 4))
    assert layers.shape == (3, 4, 1) and layers.dtype == np.int32 and not layers.any()


def test_layers_are_bounded(monkeypatch):
    masks = [np.ones((20, 30), bool)] * 5
    assert pack_masks(masks, (20, 30)).shape == (20, 30, 5)
    monkeypatch.setattr(crops, "MOST_GB", 4 * 20 * 30 * 4 / 2**30)
    assert pack_masks(masks[:4], (20, 30)).shape == (20, 30, 4)
    with pytest.raises(ValueError, match="5 cells lie over one another in an image of 20 x 30"):
        pack_masks(masks, (20, 30))


# ---------------------------------------------------------------- colours
@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_pictures_are_no_ids(tmp_path, suffix):
    Image.fromarray(RGB8).save(tmp_path / f"x{suffix}")
    with pytest.raises(ValueError, match="colour picture.*coding=\"rgb\""):
        read_labels(tmp_path / f"x{suffix}")
    Image.fromarray(np.repeat(GRAY8[..., None], 3, axis=2)).save(tmp_path / f"gray{suffix}")
    np.testing.assert_array_equal(read_labels(tmp_path / f"gray{suffix}")[..., 0], GRAY8)


def test_jpeg_holds_no_labels(tmp_path):
    Image.fromarray(GRAY8).save(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="'.jpg' cannot be read here"):
        read_labels(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="'.jpg' cannot be read here"):
        read_labels(tmp_path / "x.jpg", coding="rgb")


def test_indices_of_a_palette_are_numbers_and_its_colours_are_colours(tmp_path):
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = Image.fromarray(indices, "P")
    palette = np.zeros((256, 3), np.uint8)
    palette[5:, 1] = np.arange(5, 256)          # the first five are black
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "x.png")[..., 0], indices)
    np.testing.assert_array_equal(read_labels(tmp_path / "x.png", coding="rgb")[..., 0], np.maximum(indices.astype(int) - 4, 0))
    tifffile.imwrite(tmp_path / "x.tif", indices, photometric="palette", colormap=(palette.astype(np.uint16) * 257).T)
    np.testing.assert_array_equal(read_labels(tmp_path / "x.tif")[..., 0], indices)


@pytest.mark.parametrize("dtype, suffix", [(np.uint8, ".png"), (np.uint8, ".tif"), (np.uint16, ".tif")])
def test_every_colour_is_a_cell(tmp_path, dtype, suffix):
    picture = np.zeros((8, 9, 3), dtype)
    picture[1:3, 1:3] = picture[6, 6] = (255, 0, 0)       # one cell in two pieces
    picture[4:6, 1:4] = (0, 255, 1)
    picture[1:3, 5:8] = (0, 255, 0)
    if suffix == ".png":
        Image.fromarray(picture).save(tmp_path / "x.png")
    else:
        tifffile.imwrite(tmp_path / "x.tif", picture, photometric="rgb")
    layers = read_labels(tmp_path / f"x{suffix}", coding="rgb")
    assert layers.shape == (8, 9, 1)
    for mask in cells_of(layers):
        assert len(np.unique(picture[mask], axis=0)) == 1
    assert [int(mask.sum()) for mask in cells_of(layers)] == [6, 6, 5] and ((layers[..., 0] > 0) == picture.any(axis=2)).all()


def test_transparent_is_background_and_smoothed_or_photographed_is_refused(tmp_path):
    picture = np.full((6, 6, 4), (9, 8, 7, 255), np.uint8)
    picture[:3] = (50, 60, 70, 0)
    Image.fromarray(picture).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "x.png", coding="rgb")[..., 0], [[0] * 6] * 3 + [[1] * 6] * 3)
    picture[2, 2, 3] = 100
    Image.fromarray(picture).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="half-transparent"):
        read_labels(tmp_path / "x.png", coding="rgb")
    Image.fromarray(RGB8).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="35 colours, 35 of them on fewer than 5 pixels"):
        read_labels(tmp_path / "x.png", coding="rgb")
    Image.fromarray(GRAY8).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="needs a colour picture.*coding 'ids'"):
        read_labels(tmp_path / "x.png", coding="rgb")


# ---------------------------------------------------------------- foreground
def test_binary_labels_are_split_into_pieces(tmp_path):
    mask = RNG.random((40, 50)) < 0.3
    expected = ndimage.label(mask, np.ones((3, 3)))[0]
    np.save(tmp_path / "x.npy", mask)
    tifffile.imwrite(tmp_path / "x.tif", mask.astype(np.uint8) * 255)
    Image.fromarray(mask).save(tmp_path / "x.png")
    for suffix in (".npy", ".tif", ".png"):
        layers = read_labels(tmp_path / f"x{suffix}", coding="binary")
        assert layers.dtype == np.int32 and layers.shape == (40, 50, 1) and layers.max() == expected.max()
        pairs = np.unique(np.stack([layers[..., 0].ravel(), expected.ravel()]), axis=1)
        assert pairs.shape[1] == expected.max() + 1       # one number here for one there
    np.save(tmp_path / "x.npy", GRAY8)
    with pytest.raises(ValueError, match=r"one page of 0 and one other value.*coding 'ids'"):
        read_labels(tmp_path / "x.npy", coding="binary")


@pytest.mark.parametrize("labels", [
    blobs(255, 2), blobs(255, 9), blobs(65535, 2, np.uint16), blobs(1, 4), blobs(True, 2, bool),
])
def test_a_foreground_mask_is_no_label_image(tmp_path, labels):
    np.save(tmp_path / "x.npy", labels)
    with pytest.raises(ValueError, match="separate pieces.*coding=\"binary\".*another number"):
        read_labels(tmp_path / "x.npy")
    assert read_labels(tmp_path / "x.npy", coding="binary").max() in (2, 4, 9)


@pytest.mark.parametrize("labels", [
    blobs(255, 1), blobs(1, 1), blobs(1, 3), blobs(2, 9), blobs(True, 1, bool), blobs(0, 3),
    np.concatenate([blobs(255, 3), blobs(7, 3)]), np.pad(blobs(1, 1), 20, constant_values=0),
])
def test_one_cell_in_pieces_is_believed(tmp_path, labels):
    np.save(tmp_path / "x.npy", labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "x.npy")[..., 0], labels)


def test_specks_make_no_foreground_mask(tmp_path):
    labels = np.zeros((60, 60), np.uint8)
    labels[20:40, 20:40] = 1
    labels[::6, 0] = 1
    np.save(tmp_path / "x.npy", labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "x.npy")[..., 0], labels)


# ---------------------------------------------------------------- one file per cell
def test_a_folder_of_masks_holds_one_cell_a_file(tmp_path):
    masks = np.zeros((4, 6, 8), np.uint8)
    masks[0, :3, :3] = 255
    masks[1, 2:4, 2:5] = 1          # overlaps the first
    masks[3, 4:, 6:] = 255          # the third is empty
    for name, mask in zip("bdce", masks, strict=True):
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    Image.fromarray(np.repeat(masks[1][..., None], 3, axis=2)).save(tmp_path / "d.png")      # grey saved as colour
    (tmp_path / ".DS_Store").write_bytes(b"junk")
    (tmp_path / "notes.txt").write_text("")
    layers = read_labels(tmp_path, shape=(6, 8))
    assert layers.shape == (6, 8, 2)
    for number, page in ((1, 0), (2, 2), (3, 1), (4, 3)):       # by name: b, c, d, e
        np.testing.assert_array_equal((layers == number).any(axis=2), masks[page] > 0)


@pytest.mark.parametrize("array, message", [
    (np.array([[0, 1], [2, 0]], np.uint8), r"b\.png: a mask is one page of 0 and one other value.*0, 1, 2"),
    (np.ones((2, 3), np.uint8), r"b\.png: is 2 x 3 pixels, but a\.png beside it 2 x 2"),
    (RGB8, "colour picture"),
])
def test_folders_of_other_files_are_refused(tmp_path, array, message):
    with pytest.raises(ValueError, match="holds no mask file"):
        read_labels(tmp_path)
    Image.fromarray(np.eye(2, dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(array).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path)
    with pytest.raises(ValueError, match="a folder of masks need none"):
        read_labels(tmp_path, coding="binary")


# ---------------------------------------------------------------- outlines
def inside(points: np.ndarray, y: float, x: float) -> bool:
    """Even-odd rule by counting crossings of a ray, edge by edge."""
    crossings = 0
    for (y0, x0), (y1, x1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        crossings += (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    return crossings % 2 == 1


def drawn(rings: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    (y0, x0, y1, x1), crop = fill_rings(rings, shape)
    mask = np.zeros(shape, bool)
    mask[y0:y1, x0:x1] = crop
    return mask


def test_rings_hold_the_pixels_whose_centres_lie_inside():
    for corners in (3, 5, 12, 40):
        points = RNG.uniform(-6, 26, (corners, 2))          # crosses itself, and the image's borders
        expected = np.array([[inside(points, y + 0.5, x + 0.5) for x in range(21)] for y in range(17)])
        np.testing.assert_array_equal(drawn([points], (17, 21)), expected)


def test_neighbours_share_no_pixel_and_leave_no_gap():
    corner, centre = [[0, 0], [0, 24], [24, 24], [24, 0]], [[9.0, 13.0]]        # every border runs through pixel centres
    borders = zip(corner, corner[1:] + corner[:1], strict=True)
    parts = [drawn([np.array([a, b, *centre], float) + 0.5], (26, 26)) for a, b in borders]
    np.testing.assert_array_equal(np.sum(parts, axis=0), drawn([np.array(corner, float) + 0.5], (26, 26)))


def test_outlines_that_memory_could_not_hold_are_refused():
    zigzag = np.stack([np.tile([0.0, 5000.0], 5000), np.linspace(0, 5000, 10_000)], axis=1)
    with pytest.raises(ValueError, match="crosses 50000000 rows"):
        fill_rings([zigzag], (5000, 5000))


SQUARE = [[1, 1], [5, 1], [5, 5], [1, 5], [1, 1]]       # (x, y), pixel edges: 4 x 4 pixels


def feature(coordinates=None, *, kind="Polygon", nucleus=None, plane=None, **properties):
    made = {"type": "Feature", "id": "0f9c", "properties": properties,
            "geometry": {"type": kind, "coordinates": [SQUARE] if coordinates is None else coordinates}}
    if plane is not None:
        made["geometry"]["plane"] = plane
    return made | ({"nucleusGeometry": {"type": "Polygon", "coordinates": nucleus}} if nucleus else {})


def save(path, features):
    path.write_text(json.dumps(features))
    return path


def box(x: float, y: float, side: float = 3) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


@pytest.mark.parametrize("wrap", [lambda f: {"type": "FeatureCollection", "features": [f]}, lambda f: [f], lambda f: f])
def test_coordinates_of_qupath_count_pixel_edges(tmp_path, wrap):
    layers = read_labels(save(tmp_path / "x.geojson", wrap(feature())), shape=(7, 8))
    expected = np.zeros((7, 8), np.int32)
    expected[1:5, 1:5] = 1
    np.testing.assert_array_equal(layers[..., 0], expected)


def test_outlines_drawn_round_pixels_give_them_back(tmp_path):
    """Of cells with holes and parts, by the files of both programs; no axis can be swapped or half a pixel lost unseen."""
    noise = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(60, 90)), 3)
    expected = (noise > 0.02).astype(np.int32) + 2 * (noise < -0.08)
    features, rois = [], []
    for number in (1, 2):
        lines = [line[:, ::-1] - 0.5 for line in find_contours(np.pad(expected == number, 1), 0.5)]     # between centres
        features.append(feature([line.tolist() for line in lines]))
        rois.append((f"{number}.roi", composite(*[segment for line in lines for segment in path_of(line.tolist())]).tobytes()))
    for path in (save(tmp_path / "x.geojson", features), archive(tmp_path / "x.zip", rois)):
        np.testing.assert_array_equal(read_labels(path, shape=(60, 90))[..., 0], expected)


def test_holes_parts_overlaps_and_borders_of_qupath(tmp_path):
    features = [feature([box(0, 0, 6), box(2, 2, 2)]), feature([[box(0, 8)], [box(5, 8)]], kind="MultiPolygon"),
                feature([box(4, 4)]), feature([box(8, -2, 5)])]
    layers = read_labels(save(tmp_path / "x.json", features), shape=(12, 10))
    cells = cells_of(layers)
    assert layers.shape == (12, 10, 2) and [int(c.sum()) for c in cells] == [32, 18, 9, 6]
    assert not cells[0][2:4, 2:4].any() and cells[0][4:6, 4:6].all() and cells[2][4:7, 4:7].all()
    assert cells[1][8:11, 0:3].all() and cells[1][8:11, 5:8].all() and cells[3][:3, 8:].all()


@pytest.mark.parametrize("first, second, count", [
    ({"objectType": "annotation"}, {"objectType": "cell"}, 1),          # an annotation round cells is where they were sought
    ({"objectType": "annotation"}, {"objectType": "detection"}, 1),
    ({"objectType": "detection"}, {"objectType": "cell"}, 1),           # spots within cells
    ({"objectType": "annotation"}, {"object_type": "annotation"}, 2),
    ({}, {"objectType": "annotation"}, 2),
    ({"objectType": "tile"}, {"objectType": "annotation"}, 1),
    ({"objectType": "annotation", "classification": {"name": "Region*"}}, {}, 1),
    ({}, {"classification": {"names": ["Tumor", "Positive"]}}, 2),
])
def test_what_counts_as_a_cell(tmp_path, first, second, count):
    path = save(tmp_path / "x.geojson", [feature([box(0, 0, 9)], **first), feature(**second)])
    assert len(cells_of(read_labels(path, shape=(9, 9)))) == count
    root = {"type": "Feature", "geometry": None, "properties": {"objectType": "root", "childObjects": [feature(), feature()]}}
    assert len(cells_of(read_labels(save(path, root), shape=(9, 9)))) == 2
    legacy = [feature([box(0, 0, 9)]) | {"id": "PathAnnotationObject"}, feature() | {"id": "PathCellObject"}]
    assert len(cells_of(read_labels(save(path, legacy), shape=(9, 9)))) == 1


def test_children_of_objects_are_objects_and_regions_can_be_ignored(tmp_path):
    parent = feature([box(0, 0, 9)], objectType="annotation", childObjects=[feature(objectType="cell"), feature([box(6, 6)],
                     objectType="cell")])
    ignored = feature([box(4, 4, 4)], objectType="annotation", classification={"name": "Ignore*"})
    layers = read_labels(save(tmp_path / "x.geojson", [parent, ignored]), shape=(9, 9))
    assert [int(mask.sum()) for mask in cells_of(layers)] == [16, 9]
    np.testing.assert_array_equal(layers[4:8, 4:8, 0], [[1, -1, -1, -1], [-1, -1, -1, -1], [-1, -1, 2, 2], [-1, -1, 2, 2]])


def test_nuclei_have_the_numbers_of_their_cells(tmp_path):
    features = [feature([box(0, 0, 4)], objectType="cell"), feature([box(5, 0, 4)], objectType="cell", nucleus=[box(6, 1, 2)])]
    path = save(tmp_path / "x.geojson", features)
    nuclei = read_qupath_nuclei(path, (5, 9))
    assert nuclei.dtype == np.int32 and set(np.unique(nuclei)) == {0, 2} and (nuclei[1:3, 6:8] == 2).all()
    assert read_qupath_nuclei(save(path, features[:1]), (5, 9)) is None


def test_no_objects_are_no_cells(tmp_path):
    layers = read_labels(save(tmp_path / "x.geojson", {"type": "FeatureCollection", "features": []}), shape=(5, 6))
    assert layers.shape == (5, 6, 1) and not layers.any()


@pytest.mark.parametrize("content, message", [
    ("", "is no JSON"), ("[", "is no JSON"), ("[" * 100_000, "is no JSON"), (b"\xff\xfe[\0", "is no JSON"),
    ('{"images": [], "annotations": []}', "is no GeoJSON.*kind 'coco'"), ("3", "is no GeoJSON"),
    ('{"type": "Feature"}', "no geometry"), ("[7]", "holds a int that is no GeoJSON feature"),
    ([feature(objectType="tile")], "only objects of the kinds tile"),
    ([feature(objectType="neuron")], "of the kind 'neuron'; known are cell"),
    ([feature(kind="Point", coordinates=[1, 2])], "object 1 .*it is a 'Point', but a cell must be a Polygon"),
    ([feature(kind="LineString", coordinates=SQUARE)], "it is a 'LineString'"),
    ([feature(), feature([box(70, 70)])], "object 2 .*covers no pixel of the image of 9 x 9"),
    ([feature([[[1, 1], [1, 1]]])], "covers no pixel"), ([feature([[[1.1, 1], [1.2, 1], [1.2, 4]]])], "covers no pixel"),
    ([feature([[[1, 1], [float("nan"), 1], [4, 4]]])], "no places in an image, such as nan"),
    ([feature([[[1, 1], [1e300, 1], [4, 4]]])], "no places in an image, such as 1e\\+300"),
    ([feature([[[1, 1], ["a", 1], [4, 4]]])], "no list of points"), ([feature([SQUARE[0]])], "must be a list of points"),
    ([feature([[]])], "must be a list of points"), ([feature({})], "no list of rings"), ([feature([])], "no list of rings"),
    ([feature(plane={"z": 0, "t": 0}), feature(plane={"z": 1, "t": 0})], "several planes \\(z = 0, t = 0; z = 1, t = 0\\)"),
])
def test_geojson_that_is_wrong_is_named_with_its_reason(tmp_path, content, message):
    path = tmp_path / "x.geojson"
    if isinstance(content, list):
        save(path, content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"(?s)x\.geojson.*{message}") as error:
        read_labels(path, shape=(9, 9))
    assert "\n" not in str(error.value)


def test_outlines_need_the_size_and_no_coding(tmp_path):
    path = save(tmp_path / "x.geojson", [feature()])
    with pytest.raises(ValueError, match=r"x\.geojson: holds outlines.*Give shape=\(H, W\)"):
        read_labels(path)
    with pytest.raises(ValueError, match="coding 'rgb' is for label images; outlines need none"):
        read_labels(path, shape=(9, 9), coding="rgb")


# ---------------------------------------------------------------- ImageJ
def roi(kind=ROI_TYPE.POLYGON, points=None, **fields) -> ImagejRoi:
    if points is not None:
        made = ImagejRoi.frompoints(points)
        made.roitype = kind
    else:
        made = ImagejRoi(roitype=kind)
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def archive(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries:
            file.writestr(name, data)
    return path


def composite(*segments) -> ImagejRoi:
    path = np.array([number for segment in segments for number in segment], np.float32)
    return roi(ROI_TYPE.RECT, multi_coordinates=path, shape_roi_size=len(path), right=1, bottom=1)


def path_of(points) -> list[list[float]]:
    return [[0, *points[0]], *([1, *point] for point in points[1:]), [4]]


SUBPIXEL = ROI_OPTIONS.SUB_PIXEL_RESOLUTION


@pytest.mark.parametrize("selection, rows, columns, area", [
    (roi(ROI_TYPE.POLYGON, SQUARE[:4]), (1, 5), (1, 5), 16),
    (roi(ROI_TYPE.FREEHAND, SQUARE[:4]), (1, 5), (1, 5), 16),
    (roi(ROI_TYPE.TRACED, [[2, 1], [7, 1], [7, 5], [4, 5], [4, 3], [2, 3]]), (1, 5), (2, 7), 16),
    (roi(ROI_TYPE.FREEHAND, np.array([[1.6, 1.4], [4.6, 1.4], [4.6, 3.6], [1.6, 3.6]])), (1, 4), (2, 5), 9),
    (roi(ROI_TYPE.FREEHAND, np.array([[2.0, 0], [6, 4], [4, 6], [0, 2]]), subtype=ROI_SUBTYPE.ROTATED_RECT), (0, 6), (1, 6), 16),
    (roi(ROI_TYPE.RECT, left=2, top=1, right=6, bottom=4), (1, 4), (2, 6), 12),
    (roi(ROI_TYPE.RECT, left=1, top=1, right=5, bottom=4, xd=1.6, yd=1.0, widthd=3.0, heightd=3.0, options=SUBPIXEL, version=227),
     (1, 4), (2, 5), 9),
    (roi(ROI_TYPE.RECT, left=-3, top=-2, right=2, bottom=2), (0, 2), (0, 2), 4),
    (composite(*path_of(SQUARE[:4]), *path_of([[2, 2], [4, 2], [4, 4], [2, 4]])), (1, 5), (1, 5), 12),
    (composite(*path_of(SQUARE[:4]), *path_of([[6, 6], [8, 6], [8, 8], [6, 8]])), (1, 8), (1, 8), 20),
])
def test_areas_of_imagej_count_pixel_edges(tmp_path, selection, rows, columns, area):
    selection.tofile(tmp_path / "x.roi")
    layers = read_labels(tmp_path / "x.roi", shape=(9, 9))
    ys, xs = np.nonzero(layers[..., 0])
    assert layers.shape == (9, 9, 1) and len(ys) == area and set(np.unique(layers)) == {0, 1}
    assert (ys.min(), ys.max() + 1) == rows and (xs.min(), xs.max() + 1) == columns


def test_ovals_and_curves_of_imagej(tmp_path):
    roi(ROI_TYPE.OVAL, left=2, top=3, right=22, bottom=17).tofile(tmp_path / "x.roi")
    y, x = np.mgrid[:20, :30] + 0.5
    expected = ((x - 12) / 10) ** 2 + ((y - 10) / 7) ** 2 <= 1
    np.testing.assert_array_equal(read_labels(tmp_path / "x.roi", shape=(20, 30))[..., 0], expected)
    k = 0.5522847       # four cubics are nearly a circle
    quarters = [(1, k, k, 1, 0, 1), (-k, 1, -1, k, -1, 0), (-1, -k, -k, -1, 0, -1), (k, -1, 1, -k, 1, 0)]
    curves = [[3, *(np.array(q).reshape(3, 2) * 8 + 10).ravel()] for q in quarters]
    composite([0, 18, 10], *curves, [4]).tofile(tmp_path / "c.roi")
    circle = (x - 10) ** 2 + (y - 10) ** 2
    read = read_labels(tmp_path / "c.roi", shape=(20, 30))[..., 0] > 0
    assert read[circle < 7.9**2].all() and not read[circle > 8.1**2].any()
    composite([0, 2, 2], [2, 10, 2, 10, 10], [1, 2, 10], [4]).tofile(tmp_path / "q.roi")
    assert 32 < read_labels(tmp_path / "q.roi", shape=(20, 30)).sum() < 64       # the curve cuts a corner off the square


def test_an_archive_keeps_order_and_overlaps(tmp_path):
    rectangle = roi(ROI_TYPE.RECT, left=4, top=4, right=8, bottom=6)
    entries = [("b.roi", roi(points=SQUARE[:4]).tobytes()), ("sub/a.ROI", rectangle.tobytes()), ("__MACOSX/._b.roi", b"junk"),
               ("readme.txt", b"text")]
    layers = read_labels(archive(tmp_path / "RoiSet.zip", entries), shape=(9, 9))
    assert layers.shape == (9, 9, 2) and [int(mask.sum()) for mask in cells_of(layers)] == [16, 8]


def test_a_stack_of_imagej_selections_is_not_flattened(tmp_path):
    slices = [roi(points=SQUARE[:4], position=k) for k in (0, 1, 1)]
    entries = [(f"{k}.roi", one.tobytes()) for k, one in enumerate(slices)]
    assert len(cells_of(read_labels(archive(tmp_path / "x.zip", entries), shape=(9, 9)))) == 3
    entries += [("z.roi", roi(points=SQUARE[:4], position=2).tobytes())]
    with pytest.raises(ValueError, match=r"x\.zip: its selections lie on 2 slices"):
        read_labels(archive(tmp_path / "x.zip", entries), shape=(9, 9))


@pytest.mark.parametrize("data, message", [
    (b"", "cannot be read as an ImageJ selection: .*too short"), (b"Iout" + b"\0" * 50, "too short"),
    (b"\0" * 80, "not an ImageJ ROI"),
    (roi(points=SQUARE[:4]).tobytes()[:66], "cannot be read as an ImageJ selection"),
    (roi(ROI_TYPE.LINE, x1=1.0, y1=1.0, x2=5.0, y2=5.0).tobytes(), "of the kind line, which is no area"),
    (roi(ROI_TYPE.POINT, SQUARE).tobytes(), "of the kind point, which is no area"),
    (roi(ROI_TYPE.FREELINE, SQUARE).tobytes(), "of the kind freeline"), (roi(ROI_TYPE.NOROI).tobytes(), "of the kind noroi"),
    (roi(ROI_TYPE.RECT, subtype=ROI_SUBTYPE.ARROW).tobytes(), "of the kind arrow"),
    (roi(ROI_TYPE.POLYGON, SQUARE, options=ROI_OPTIONS.SPLINE_FIT).tobytes(), "fitted spline"),
    (roi(ROI_TYPE.RECT, right=5, bottom=5, rounded_rect_arc_size=3).tobytes(), "round corners"),
    (roi(ROI_TYPE.RECT, left=50, top=50, right=60, bottom=60).tobytes(), "covers no pixel of the image of 9 x 9"),
    (roi(ROI_TYPE.OVAL, left=5, top=5, right=5, bottom=5).tobytes(), "an oval at"),
    (roi(ROI_TYPE.OVAL, left=50, top=5, right=55, bottom=9).tobytes(), "covers no pixel"),
    (composite([7, 1, 1]).tobytes(), "its path is damaged"), (composite([0, 1]).tobytes(), "its path is damaged"),
    (composite([1, 1, 1]).tobytes(), "its path is damaged"),
    (roi(ROI_TYPE.RECT, xd=np.nan, widthd=3.0, heightd=3.0, options=SUBPIXEL, version=227).tobytes(), "no places in an image"),
    (roi(ROI_TYPE.OVAL, xd=1.0, widthd=np.inf, heightd=3.0, options=SUBPIXEL, version=227).tobytes(), "no place in an image"),
])
def test_selections_that_are_wrong_are_named_with_their_reason(tmp_path, data, message):
    (tmp_path / "x.roi").write_bytes(data)
    with pytest.raises(ValueError, match=rf"x\.roi.*({message})"):
        read_labels(tmp_path / "x.roi", shape=(9, 9))
    with pytest.raises(ValueError, match=rf"x\.zip: cell\.roi.*({message})"):
        read_labels(archive(tmp_path / "x.zip", [("cell.roi", data)]), shape=(9, 9))


def test_archives_that_are_wrong_or_hostile_are_refused(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(ValueError, match=r"x\.zip: cannot be read as an archive"):
        read_labels(path, shape=(9, 9))
    with pytest.raises(ValueError, match=r"holds no ImageJ selection"):
        read_labels(archive(path, [("x.png", b"")]), shape=(9, 9))
    with pytest.raises(ValueError, match=r"unpacks to 134217728 bytes"):        # 128 MB of zeros in 130 kB
        read_labels(archive(path, [("x.roi", bytes(2**27))]), shape=(9, 9))
    whole = archive(path, [("x.roi", roi(points=SQUARE[:4]).tobytes() * 30)]).read_bytes()
    path.write_bytes(whole[:60] + b"????" + whole[64:])
    with pytest.raises(ValueError, match=r"cannot be read as an archive"):
        read_labels(path, shape=(9, 9))


# ---------------------------------------------------------------- Cellpose
def session(**fields):
    return {"filename": "x.tif", "outlines": GRAY16, "est_diam": np.float64(30.5), "ismanual": np.zeros(3, bool), "model_path": 0,
            "flows": [np.zeros((5, 7, 3), np.uint8), None, []], "zdraw": [None] * 3,
            "normalize": {"lower": (1, 2.5, -7, 2**70)}} | fields


def write_pickle(path, data: bytes):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(data)
    return path


@pytest.mark.parametrize("masks", [GRAY16, np.asfortranarray(GRAY16), GRAY16.astype(">i4"), GRAY16.astype(np.int64), GRAY8[None]])
def test_sessions_of_cellpose_give_their_masks(tmp_path, masks):
    np.save(tmp_path / "x_seg.npy", session(masks=masks, path=tmp_path), allow_pickle=True)
    layers = read_labels(tmp_path / "x_seg.npy", shape=(5, 7))
    assert layers.shape == (5, 7, 1) and layers.dtype == np.int32
    np.testing.assert_array_equal(layers[..., 0], masks.reshape(5, 7))


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_sessions_of_old_and_new_numpy(tmp_path, protocol, module):
    data = pickle.dumps(np.array(session(masks=GRAY16), dtype=object), protocol=protocol)
    data = data.replace(b"\x16numpy._core.m", b"%cnumpy.core.m" % 21) if module == b"numpy.core" else data     # with its length
    data = data.replace(b"numpy._core", module)
    np.testing.assert_array_equal(read_labels(write_pickle(tmp_path / "x_seg.npy", data))[..., 0], GRAY16)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_hostile_session_is_refused_and_never_run(tmp_path):
    proof = tmp_path / "proof"
    np.save(tmp_path / "x_seg.npy", session(masks=GRAY16, extra=Hostile(proof)), allow_pickle=True)
    with pytest.raises(ValueError, match=r"x_seg\.npy.*asks for '(posix|nt)\.system'.*not run"):
        read_labels(tmp_path / "x_seg.npy")
    assert not proof.exists()
    np.load(tmp_path / "x_seg.npy", allow_pickle=True)      # what it would have done
    assert proof.exists()


NESTED = b"(" * 10 + b")" + b"\x85" * 200_000      # a tuple in a tuple in a tuple ...


@pytest.mark.parametrize("data, message", [
    (b"", "cannot be read as a session"), (b"\x80\x04.", "cannot be read"), (b"garbage", "cannot be read"),
    (pickle.dumps(np.array(session(masks=GRAY16), dtype=object), protocol=4)[:-400], "cannot be read"),
    (pickle.dumps([1, 2]), "it is no dictionary"),
    (b"cos\nsystem\n(S'true'\ntR.", "asks for 'os.system'"),
    (b"cbuiltins\neval\n(V1\ntR.", "asks for 'builtins.eval'"),
    (b"cnumpy\nndarray\n(tR}b.", "it is no dictionary"),
    (b"(i__builtin__\nprint\n.", "instruction INST"), (b"\x80\x02\x82\x01.", "instruction EXT1"),
    (b"P1\n.", "instruction PERSID"),
    (b"\x96" + struct.pack("<Q", 2**40) + b".", "cannot be read"),          # a terabyte, says the file
    (b"}" + NESTED + b"Ns.", "has a tuple as a key"),
    (b"}r\xff\xff\xff\xff.", "it is no dictionary"),                        # a memo of four billion entries
])
def test_pickles_that_are_damaged_or_hostile_are_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=rf"x_seg\.npy: cannot be read as a session of Cellpose: .*({message})|{message}"):
        read_labels(write_pickle(tmp_path / "x_seg.npy", data))


@pytest.mark.parametrize("content, message", [
    (session(), "has no 'masks'.*'filename'"), (session(masks=None), "no array but a NoneType"),
    (session(masks=np.zeros((3, 5, 7), np.uint16)), r"masks have the shape \(3, 5, 7\), but an image here is one plane"),
    (session(masks=np.array([1, "a"], object)), "no numbers"), (session(masks=np.array(["a"])), "no numbers"),
    (session(masks=GRAY16 + 0.5), "fractions"), (session(masks=np.zeros((0, 4), np.uint8)), "has no pixels"),
])
def test_sessions_without_masks_of_one_plane_are_refused(tmp_path, content, message):
    np.save(tmp_path / "x_seg.npy", content, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"x_seg\.npy.*{message}"):
        read_labels(tmp_path / "x_seg.npy")


def test_a_plain_array_is_read_whatever_its_name(tmp_path):
    np.save(tmp_path / "x_seg.npy", GRAY16)
    np.testing.assert_array_equal(read_labels(tmp_path / "x_seg.npy")[..., 0], GRAY16)
