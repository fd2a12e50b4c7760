"""Large images: every pixel once, every cell once, whatever the tiles and blocks are."""

from __future__ import annotations

import itertools
import tracemalloc
import warnings
from functools import partial

import numpy as np
import pytest

from jaxcell.inference import seams
from jaxcell.inference.blocks import dense_blocks, predict_image
from jaxcell.inference.seams import clip_instances, seam_duplicates
from jaxcell.inference.tiling import plan_blocks, plan_tiles, read_region
from jaxcell.types import Instances

DIVISOR = 8
OPTIONS = {"tile": 64, "margin": 8, "block": 64, "halo": 24, "batch": 2, "divisor": 8}


def predict(network, image, *, tile, margin, **options):
    return predict_image(network, image, maps=partial(dense_blocks, tile=tile, margin=margin), **options)


def label_image(height: int, width: int, *, seed: int = 0, largest: int = 20) -> np.ndarray:
    """Disjoint random blobs, some at the image's edges, none longer than `largest` on a side."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int32)
    for number in range(1, height * width // 150):
        size = rng.integers(2, largest + 1, 2)
        y, x = rng.integers(-size + 1, (height, width))
        y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + size[0], height), min(x + size[1], width)
        if not labels[max(y0 - 1, 0):y1 + 1, max(x0 - 1, 0):x1 + 1].any():
            labels[y0:y1, x0:x1] = number * (rng.random((y1 - y0, x1 - x0)) < 0.9)
            labels[y0:y1, x0:x1][[0, -1], [0, -1]] = number      # the box is the blob's, whatever the holes
    return labels


def coded(labels: np.ndarray) -> np.ndarray:
    """[H, W, 3]: label, row and column, so that a stand-in network knows where its tile lies."""
    return np.stack([labels, *np.indices(labels.shape)], axis=-1)


class Network:
    """Gives back what it sees at two strides; garbage within `spoilt` pixels of tile sides inside the image."""

    def __init__(self, shape: tuple[int, int], *, spoilt: int = 0):
        self.shape, self.spoilt, self.calls = shape, spoilt, []

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.calls.append(images.shape)
        fine = images.copy()
        for tile in fine if self.spoilt else ():
            k = self.spoilt
            bottom, right = tile[..., 1:].max(axis=(0, 1)) + 1
            inner = (tile[0, 0, 1] > 0, tile[0, 0, 2] > 0, bottom < self.shape[0], right < self.shape[1])
            for side, part in zip(inner, (np.s_[:k], np.s_[:, :k], np.s_[-k:], np.s_[:, -k:]), strict=True):
                if side:
                    tile[part] = 1e6
        return {"fine": fine, "coarse": fine[:, ::4, ::4]}


def decode(maps):
    """Cells are equal labels; each knows its id and has a score of its own."""
    labels = maps["fine"][..., 0].astype(np.int32)
    assert np.array_equal(maps["coarse"], maps["fine"][::4, ::4])
    found = Instances.from_labels(labels)
    ids = np.unique(labels[labels > 0]).astype(np.int64)
    return Instances(found.shape, found.boxes, found.masks, (1 / ids).astype(np.float32),
                     {"ids": ids, "locations": found.boxes[:, :2] + 0.0})


def assemble(found: Instances) -> np.ndarray:
    labels = np.zeros(found.shape, np.int32)
    for (y0, x0, y1, x1), mask, number in zip(found.boxes, found.masks, found.extras["ids"], strict=True):
        assert not labels[y0:y1, x0:x1][mask].any(), f"cell {number} covers another"
        labels[y0:y1, x0:x1][mask] = number
    return labels


# shape, tile, margin, block, halo, batch
SETTINGS = [
    ((200, 200), 64, 8, 64, 24, 4), ((200, 200), 64, 16, 64, 24, 1), ((200, 200), 64, 24, 64, 24, 3),
    ((200, 200), 64, 0, 64, 24, 5), ((200, 200), 64, 8, 32, 24, 4), ((200, 200), 64, 8, 128, 24, 4),
    ((200, 200), 64, 8, 208, 24, 4), ((200, 200), 64, 8, 200, 0, 4), ((200, 200), 256, 8, 64, 24, 2),
    ((200, 200), 200, 8, 104, 32, 1), ((200, 200), 96, 8, 80, 24, 2), ((201, 203), 64, 8, 64, 24, 4),
    ((199, 197), 64, 16, 96, 24, 2), ((64, 64), 64, 8, 64, 24, 1), ((65, 63), 64, 8, 64, 24, 1),
    ((30, 200), 64, 8, 64, 24, 2), ((200, 30), 64, 8, 48, 24, 2), ((9, 11), 64, 8, 64, 24, 2),
    ((1, 300), 64, 8, 64, 24, 2), ((300, 1), 32, 8, 64, 24, 7), ((257, 129), 64, 8, 64, 24, 4),
    ((255, 127), 48, 8, 72, 24, 4), ((150, 151), 40, 16, 40, 40, 9), ((150, 151), 32, 8, 16, 24, 4),
    ((150, 157), 64, 8, 1024, 64, 4), ((128, 128), 64, 8, 64, 64, 4), ((201, 150), 64, 12, 36, 20, 4),
    ((77, 203), 64, 4, 60, 28, 3),
]


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(("shape", "tile", "margin", "block", "halo", "batch"), SETTINGS)
def test_labels_come_back_bit_by_bit_whatever_the_cut(shape, tile, margin, block, halo, batch, monkeypatch):
    monkeypatch.setattr(seams, "SAME_OBJECT", 1.0)     # ownership alone must do; nothing may be left for the removal of twins
    labels = label_image(*shape, seed=sum(shape), largest=20)
    network = Network(shape, spoilt=margin)
    found = predict(network, coded(labels), decode=decode, tile=tile, margin=margin, block=block, halo=halo, batch=batch,
                    divisor=DIVISOR)
    assert np.array_equal(assemble(found), labels)
    assert sorted(found.extras["ids"]) == np.unique(labels[labels > 0]).tolist()
    assert np.array_equal(found.scores, (1 / found.extras["ids"]).astype(np.float32))
    assert np.array_equal(found.extras["locations"], found.boxes[:, :2])
    assert set(network.calls) == {(batch, tile, tile, 3)}, "one compiled shape"
    tiles = plan_tiles(shape, tile=tile, margin=margin, divisor=DIVISOR)
    assert len(network.calls) == -(-len(tiles) // batch), "every tile is computed once"


def test_real_labels_come_back(data_dir):
    tifffile = pytest.importorskip("tifffile")
    imagecodecs = pytest.importorskip("imagecodecs")
    del tifffile
    path = max((data_dir / "bbbc039").rglob("*_label.png"), key=lambda p: p.stat().st_size)
    labels = imagecodecs.imread(path).astype(np.int32)
    for tile, block in ((128, 128), (256, 192)):
        found = predict(Network(labels.shape, spoilt=16), coded(labels), decode=decode, tile=tile, margin=16, block=block,
                        halo=128, batch=4, divisor=16)
        assert np.array_equal(assemble(found), labels)


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 300), (511, 257), (1000, 8)])
@pytest.mark.parametrize(("tile", "margin"), [(64, 0), (64, 8), (64, 24), (256, 64)])
def test_tile_cores_partition_the_padded_image(shape, tile, margin):
    size = tuple(max(tile, -(-s // DIVISOR) * DIVISOR) for s in shape)
    times = np.zeros(size, int)
    for window in plan_tiles(shape, tile=tile, margin=margin, divisor=DIVISOR):
        (y0, x0, y1, x1), (a, b, c, d) = window.frame, window.core
        assert (y1 - y0, x1 - x0) == (tile, tile) and y0 >= 0 and x0 >= 0 and y1 <= size[0] and x1 <= size[1]
        for low, core_low, core_high, high, end in ((y0, a, c, y1, size[0]), (x0, b, d, x1, size[1])):
            assert core_low - low >= margin or low == core_low == 0
            assert high - core_high >= margin or high == core_high == end
        assert not any(v % DIVISOR for v in window.frame)
        times[a:c, b:d] += 1
    assert (times == 1).all()


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 300), (511, 257)])
@pytest.mark.parametrize(("block", "halo"), [(64, 0), (64, 32), (128, 16), (512, 64)])
def test_block_cores_partition_the_image(shape, block, halo):
    times = np.zeros(shape, int)
    windows = plan_blocks(shape, block=block, halo=halo, stride=4)
    for window in windows:
        (y0, x0, y1, x1), (a, b, c, d) = window.frame, window.core
        assert y0 == max(0, a - halo) and x0 == max(0, b - halo)
        assert not any(v % 4 for v in window.frame) and y1 < shape[0] + 4 and x1 < shape[1] + 4
        assert y1 >= min(shape[0], c + halo) and x1 >= min(shape[1], d + halo)
        times[a:c, b:d] += 1
    assert (times == 1).all()
    assert len(windows) == 1 or max(shape) > block


def test_dense_maps_do_not_depend_on_the_blocks():
    """Even a network whose rounding depends on a tile's place in its batch gives one answer."""
    labels = label_image(150, 170)

    def apply(images):
        return {"map": images[::, ::2, ::2] * (1 + np.arange(len(images), dtype=np.float32)).reshape(-1, 1, 1, 1)}

    wholes = []
    for block, halo in ((256, 0), (64, 24), (40, 8)):
        whole = np.full((75, 85, 3), np.nan, np.float32)
        for window, maps in dense_blocks(apply, coded(labels), tile=64, margin=8, block=block, halo=halo, batch=3, divisor=8):
            y0, x0, y1, x1 = (v // 2 for v in window.frame)
            seen = whole[y0:y1, x0:x1]
            assert np.array_equal(seen[~np.isnan(seen)], maps["map"][~np.isnan(seen)])
            whole[y0:y1, x0:x1] = maps["map"]
        wholes.append(whole)
    assert not np.isnan(wholes[0]).any()
    assert all(np.array_equal(wholes[0], other) for other in wholes[1:])


def test_one_block_is_the_decoder_alone():
    """No ownership, no clipping, no merging: touching, overlapping and identical cells all stay, in the decoder's order."""
    labels = label_image(96, 128)
    cells = Instances((96, 128), np.asarray([[0, 0, 96, 128], [0, 0, 96, 128], [95, 127, 96, 128]], np.int32),
                      [np.ones((96, 128), bool)] * 2 + [np.ones((1, 1), bool)], np.asarray([.1, .9, .5], np.float32),
                      {"float_boxes": np.asarray([[0, 0, 96, 128.]] * 3)})

    def decode_all(maps):
        assert np.array_equal(maps["fine"], coded(labels))
        return cells

    found = predict(Network((96, 128)), coded(labels), decode=decode_all, tile=64, margin=8, block=128, halo=8, batch=2,
                    divisor=8)
    assert np.array_equal(found.boxes, cells.boxes) and np.array_equal(found.scores, cells.scores)
    assert np.array_equal(found.extras["float_boxes"], cells.extras["float_boxes"])


def test_the_image_is_read_lazily_and_normalized_by_tile():
    labels = label_image(300, 400)

    class Lazy:
        shape, dtype, most = (300, 400, 3), np.uint16, 0

        def __getitem__(self, key):
            part = coded(labels).astype(np.uint16)[key]
            Lazy.most = max(Lazy.most, part.shape[0] * part.shape[1])
            return part

    network = Network(labels.shape)
    found = predict(network, Lazy(), decode=decode, tile=64, margin=8, block=64, halo=24, batch=2, divisor=8,
                    normalize=lambda pixels: pixels * np.float32([2, 1, 1]))
    assert Lazy.most == 64 * 64
    assert np.array_equal(assemble(found), 2 * labels)


def test_tiles_are_forgotten_when_no_block_needs_them():
    """A tall image: what is held does not grow with its height."""
    image = coded(label_image(2000, 60)).astype(np.float32)
    held = []
    tracemalloc.start()
    for _ in dense_blocks(lambda images: {"fine": images}, image, tile=64, margin=8, block=128, halo=32, batch=1, divisor=8):
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    tile_bytes = 48 * 60 * 3 * 4
    assert len(held) == 16
    assert max(held[2:]) - held[2] < 2 * tile_bytes


def test_a_cell_larger_than_the_halo_is_reported_once_with_the_remedy():
    labels = np.zeros((256, 256), np.int32)
    labels[10:20, 40:240], labels[200:210, 5:200] = 1, 2
    options = {"decode": decode, "tile": 64, "margin": 8, "batch": 4, "divisor": 8}
    with pytest.warns(UserWarning, match=r"cells reach the end .* halo of 16 px .* 10 x \d+ px.*Set halo above") as record:
        predict(Network(labels.shape), coded(labels), block=64, halo=16, **options)
    assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = predict(Network(labels.shape), coded(labels), block=64, halo=200, **options)
    assert np.array_equal(assemble(found), labels)


def test_a_cell_that_two_blocks_see_differently_is_counted_once():
    """Its cut end shifts its centre by a pixel, so both own it: the better-scored survives."""
    def decode_with_jitter(maps):
        start = int(maps["fine"][0, 0, 2])
        box = np.asarray([[20, 61, 40, 68] if start else [20, 60, 40, 67]], np.int32) - np.asarray([0, start, 0, start], np.int32)
        return Instances(maps["fine"].shape[:2], box, [np.ones((20, 7), bool)], np.asarray([0.8 if start else 0.7], np.float32))

    image = coded(np.zeros((64, 128), np.int32))
    found = predict(Network((64, 128)), image, decode=decode_with_jitter, **OPTIONS)
    assert len(found) == 1 and found.scores[0] == np.float32(0.8)


def square(y, x, size=10):
    return [y, x, y + size, x + size]


def test_only_pairs_across_a_seam_are_duplicates():
    cores = [(0, 0, 50, 50), (0, 50, 50, 100)]
    boxes = np.asarray([square(10, 44), square(10, 45), square(10, 46), square(30, 10), square(30, 10), square(10, 60)], np.int32)
    block_of = np.asarray([0, 1, 0, 0, 0, 1])
    cells = Instances((50, 100), boxes, [np.ones((10, 10), bool)] * 6, np.asarray([.5, .9, .6, .3, .2, .1], np.float32))
    assert seam_duplicates(cells, block_of, cores).tolist() == [True, False, True, False, False, False]
    tie = Instances((50, 100), boxes[:2], cells.masks[:2], np.asarray([.5, .5], np.float32))
    assert seam_duplicates(tie, np.asarray([0, 1]), cores).tolist() == [False, True]


def test_seam_duplicates_equal_a_brute_force_search():
    rng = np.random.default_rng(3)
    cores = [(a, b, a + 32, b + 32) for a, b in itertools.product((0, 32), (0, 32))]
    boxes = np.asarray([square(int(y), int(x), 8) for y, x in rng.integers(12, 44, (80, 2))], np.int32)
    masks = [rng.random((8, 8)) < 0.95 for _ in boxes]
    cells = Instances((64, 64), boxes, masks, rng.random(80).astype(np.float32))
    block_of = (boxes[:, 0] + 4 >= 32) * 2 + (boxes[:, 1] + 4 >= 32)
    full = np.zeros((80, 64, 64), bool)
    for plane, (y0, x0, y1, x1), mask in zip(full, boxes, masks, strict=True):
        plane[y0:y1, x0:x1] = mask
    kept: list[int] = []
    for i in np.argsort(-cells.scores):
        ious = [(full[i] & full[j]).sum() / (full[i] | full[j]).sum() for j in kept if block_of[i] != block_of[j]]
        if not any(iou > 0.5 for iou in ious):
            kept.append(int(i))
    assert np.flatnonzero(~seam_duplicates(cells, block_of, cores)).tolist() == sorted(kept)
    assert len(kept) < 80


def test_clipping_keeps_what_is_inside():
    cells = Instances((8, 8), np.asarray([[0, 0, 8, 8], [5, 0, 8, 3], [6, 6, 8, 8]], np.int32),
                      [np.ones((8, 8), bool), np.eye(3, dtype=bool), np.ones((2, 2), bool)], np.ones(3, np.float32),
                      {"contours": np.asarray([[[0, 7.5]], [[5, 1]], [[6, 6]]], np.float32), "weight": np.arange(3)})
    found = clip_instances(cells, (6, 7))
    assert found.shape == (6, 7) and found.boxes.tolist() == [[0, 0, 6, 7], [5, 0, 6, 3]]
    assert [m.shape for m in found.masks] == [(6, 7), (1, 3)]
    assert found.extras["contours"].tolist() == [[[0, 6]], [[5, 1]]] and found.extras["weight"].tolist() == [0, 1]
    assert clip_instances(cells, (8, 8)) is cells


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (7, 3), (20, 20)])
def test_regions_past_the_end_are_reflected_like_numpy(height, width):
    image = np.random.default_rng(0).random((height, width, 2))
    padded = np.pad(image, ((0, 16 - min(height, 15)), (0, 16 - min(width, 15)), (0, 0)), mode="reflect")
    assert np.array_equal(read_region(image, (0, 0, *padded.shape[:2])), padded)
    assert np.array_equal(read_region(image, (height // 2, width // 2, *padded.shape[:2])), padded[height // 2:, width // 2:])


@pytest.mark.parametrize(("change", "message"), [
    ({"tile": 60}, "tile is 60; it must be a multiple of 8, the network's divisor. Use 64"), ({"margin": 32}, "keeps nothing"),
    ({"margin": 2}, "twice the margin is 4; it must be a multiple of 8"),
    ({"margin": 2, "divisor": 4}, "margin is 2; it must be a multiple of 4, the coarsest output's stride. Use 4"),
    ({"block": 62}, "block is 62"), ({"block": 0}, "block is 0"), ({"halo": 5}, "halo is 5"), ({"batch": 0}, "batch is 0"),
    ({"divisor": 2, "tile": 64}, "'coarse' has shape .* stride that divides 2"),
])
def test_wrong_sizes_are_named(change, message):
    options = OPTIONS | change
    with pytest.raises(ValueError, match=message):
        predict(Network((100, 100)), coded(label_image(100, 100)), decode=decode, **options)


def test_wrong_images_and_decoders_are_named():
    with pytest.raises(ValueError, match=r"must be \[H, W, C\]"):
        predict(Network((100, 100)), np.zeros((100, 100)), decode=decode, **OPTIONS)
    with pytest.raises(ValueError, match="no pixels"):
        predict(Network((0, 100)), np.zeros((0, 100, 3)), decode=decode, **OPTIONS)
    with pytest.raises(ValueError, match="decode returned Instances of shape"):
        predict(Network((100, 100)), np.zeros((100, 100, 3)), decode=lambda maps: Instances.empty((5, 5)), **OPTIONS)


def test_no_cells_at_all():
    found = predict(Network((100, 100)), np.zeros((100, 100, 3)), decode=decode, **OPTIONS)
    assert len(found) == 0 and found.shape == (100, 100)
