"""Windows, scales and networks merged: where windows lie, what they see, that every one has a say; against the plain whole-image
formulas, whatever the blocks are, in bounded memory."""

from __future__ import annotations

import tracemalloc
from functools import partial

import flax.linen as nn
import ml_collections
import numpy as np
import pytest
from scipy import ndimage
from scipy.special import expit

from jaxcell.decode.classes import class_cells, energy, softmax
from jaxcell.evaluate import make_predict
from jaxcell.inference.blocks import predict_image
from jaxcell.inference.ensemble import (
    BLENDS,
    EDGES,
    MERGES,
    gaussian_weights,
    mean_outputs,
    merged_blocks,
    plan_windows,
    resample,
    step_of_overlap,
)
from jaxcell.inference.tiling import read_region
from jaxcell.system import System
from jaxcell.training.mesh import make_mesh
from jaxcell.types import Instances

OPTIONS = {"window": 32, "step": 24, "edges": "centred", "batch": 3, "divisor": 8, "block": 512, "halo": 0}
BLOCKS = OPTIONS | {"edges": "aligned", "merge": "probabilities", "block": 40, "halo": 16}
KERNEL = np.random.default_rng(7).normal(size=(5, 5)).astype(np.float32)


def network(images):
    """A convolution that sees its window's edges, so that windows differ where they overlap."""
    response = ndimage.correlate(images.mean(-1), KERNEL[None], mode="constant")
    return {"classes": np.stack([response, -2 * response], -1), "distance": response[..., None] + 1}


def picture(height, width, seed=0):
    return np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)


def resized(image, height, width):
    """Bilinear, corner on corner."""
    rows, columns = (np.linspace(0, old - 1, new) for old, new in zip(image.shape[:2], (height, width), strict=True))
    grid = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([ndimage.map_coordinates(image[..., c], grid, order=1, mode="nearest") for c in range(image.shape[-1])], -1)


def starts(size, *, window=32, step=24):
    return [*range(0, size - window, step), size - window]


def plain_windows(image, *, window=32, weights=None):
    """Every window of the padded image in turn, with numpy's reflection."""
    weights = np.ones((window, window)) if weights is None else weights
    height, width = image.shape[:2]
    before = [(max(window, side) - side) // 2 for side in (height, width)]
    pads = [(b, max(window, side) - side - b) for b, side in zip(before, (height, width), strict=True)]
    padded = np.pad(image, [*pads, (0, 0)], mode="reflect")
    sums = {key: np.zeros((*padded.shape[:2], value.shape[-1])) for key, value in network(padded[None, :1, :1]).items()}
    count = np.zeros(padded.shape[:2])
    for y in starts(padded.shape[0]):
        for x in starts(padded.shape[1]):
            for key, value in network(padded[None, y:y + window, x:x + window]).items():
                sums[key][y:y + window, x:x + window] += value[0] * weights[..., None]
            count[y:y + window, x:x + window] += weights
    crop = np.s_[before[0]:before[0] + height, before[1]:before[1] + width]
    return {key: (value / count[..., None])[crop] for key, value in sums.items()}


def merged(image, **changes):
    return list(merged_blocks(network, image, **(OPTIONS | changes)))


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("shape", [(70, 61), (32, 32), (33, 90), (20, 50), (17, 18), (100, 25)])
def test_windows_are_blended_as_the_plain_formula_says(shape, blend):
    image = picture(*shape)
    (_, maps), = merged(image, blend=blend)
    for key, expected in plain_windows(image, weights=BLENDS[blend](32)).items():
        np.testing.assert_allclose(maps[key], expected, atol=1e-4)


def test_scales_are_resized_there_and_back_and_averaged():
    image, scales = picture(50, 41), (1, 1.25, 1.5)
    (_, maps), = merged(image, scales=scales)
    each = [plain_windows(resized(image, int(s * 50), int(s * 41))) for s in scales]
    for key in maps:
        np.testing.assert_allclose(maps[key], np.mean([resized(one[key], 50, 41) for one in each], axis=0), atol=1e-4)


def test_large_images_are_seen_at_one_scale():
    image = picture(40, 50)
    for large, scales in ((2000, (1,)), (2001, (1, 1.5))):
        (_, maps), (_, expected) = merged(image, scales=(1, 1.5), large=large)[0], merged(image, scales=scales, large=10 ** 9)[0]
        np.testing.assert_array_equal(maps["distance"], expected["distance"])


@pytest.mark.parametrize("scales", [(1,), (1, 1.25, 1.5), (0.5,)])
@pytest.mark.parametrize("block, halo", [(32, 8), (48, 0), (64, 40), (512, 16)])
@pytest.mark.parametrize("batch", (1, 7, 40))
def test_blocks_and_batches_change_nothing(scales, block, halo, batch):
    image = picture(120, 83)
    (_, whole), = merged(image, scales=scales)
    windows = merged(image, scales=scales, block=block, halo=halo, batch=batch)
    covered = np.zeros((120, 83), int)
    for window, maps in windows:
        y0, x0, y1, x1 = window.frame
        covered[window.core[0]:window.core[2], window.core[1]:window.core[3]] += 1
        for key, value in maps.items():
            np.testing.assert_allclose(value, whole[key][y0:y1, x0:x1], atol=1e-5)
    assert (covered == 1).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (5, 3), (10, 100)])
def test_images_far_smaller_than_a_window(shape):
    """There the released script fails."""
    (_, maps), = merged(picture(*shape), scales=(1, 1.5))
    assert maps["distance"].shape == (*shape, 1) and np.isfinite(maps["distance"]).all()


def test_intensities_are_normalised_before_resizing():
    image = (picture(40, 50) * 255).astype(np.uint8)
    (_, maps), = merged(image, scales=(1.5,), normalize=lambda region: (region > 99).astype(np.float32))
    (_, expected), = merged((image > 99).astype(np.float32), scales=(1.5,))
    np.testing.assert_allclose(maps["distance"], expected["distance"], atol=1e-5)


def test_resampling_at_whole_pixels_copies():
    image = picture(6, 7)
    np.testing.assert_array_equal(resample(image, np.arange(6.0), np.arange(7.0)), image)
    np.testing.assert_allclose(resample(image, np.asarray([2.5]), np.asarray([3.25]))[0, 0],
                               (0.75 * image[2:4, 3] + 0.25 * image[2:4, 4]).mean(0), rtol=1e-5)


def corners(shape, **options):
    return [box[:2] for box in plan_windows(shape, **options)]


def test_windows_of_the_papers_and_of_the_releases():
    options = {"window": 224, "step": 168}
    assert corners((413, 500), **options, edges="padded") == [(y, x) for y in (0, 168, 336) for x in (0, 168, 336)]
    assert corners((413, 500), **options) == [(y, x) for y in (0, 168, 189) for x in (0, 168, 276)]
    assert plan_windows((224, 100), **options) == [(0, 0, 224, 224)]
    assert plan_windows((224, 101), **options, edges="centred") == [(0, -61, 224, 163)]
    options = {"window": 64, "step": 48, "edges": "centred"}
    assert corners((64, 150), **options) == [(0, 0), (0, 48), (0, 86)] and corners((65, 64), **options) == [(0, 0), (1, 0)]
    assert corners((1024, 512), window=512, step=step_of_overlap(512, 0.5)) == [(0, 0), (256, 0), (512, 0)]
    assert step_of_overlap(64, 0.25) == 48 and step_of_overlap(10, 0.99) == 1
    with pytest.raises(ValueError, match="overlap is 1.0"):
        step_of_overlap(64, 1.0)


def test_weights_of_a_window():
    weights = gaussian_weights(32)
    assert weights.min() == np.float32(1e-3) and weights.max() == pytest.approx(np.exp(-2 * 0.5 ** 2 / (2 * 16)), rel=1e-5)
    np.testing.assert_array_equal(weights, weights.T[::-1])


def test_networks_are_averaged_key_by_key():
    one, two = {"a": np.ones(2)}, {"a": np.asarray([3.0, 5.0])}
    assert mean_outputs([one, two])["a"].tolist() == [2, 3] and mean_outputs([one])["a"] is one["a"]
    with pytest.raises(ValueError, match="must be the same"):
        mean_outputs([one, {"b": np.ones(2)}])


def test_cells_of_blocks_are_found_once():
    """The stand-in gives back what it sees, so decoding thresholds the picture itself."""
    image = np.zeros((150, 170, 1), np.float32)
    for y in range(10, 140, 20):
        for x in range(10, 160, 20):
            image[y:y + 9, x:x + 7] = 1

    def decode(maps):
        return Instances.from_labels(ndimage.label(maps["image"][..., 0] > 0.5)[0].astype(np.int32))

    found = predict_image(lambda images: {"image": images}, image, decode=decode, block=48, halo=16, batch=3, divisor=8,
                          maps=partial(merged_blocks, window=32, step=24, scales=(1, 1.5)))
    assert len(found) == 7 * 8 and found.shape == (150, 170)


def test_a_config_merges_scales_and_partners():
    """The networks multiply the picture by 1 and by 3; only their mean passes the decoder's threshold."""
    config = ml_collections.ConfigDict({
        "inference": {"mode": "merged", "tile": 32, "overlap": 0.25, "edges": "centred", "merge": "outputs", "blend": "gaussian",
                      "scales": (1.0, 1.5), "large": 10 ** 6, "block": 64, "halo": 16, "batch": 2},
        "data": {"normalize": {"name": "type_range"}, "channels": 1, "planes": ()}})
    image = np.zeros((90, 100), np.uint8)
    image[20:30, 30:42] = image[60:80, 50:60] = 255

    def decode(maps):
        return Instances.from_labels(ndimage.label(maps["image"][..., 0] > 1.2)[0].astype(np.int32))

    system = System(model=nn.Dense(1), targets=lambda sample, rng: {}, loss=lambda outputs, batch: {}, decode=decode, divisor=8)
    found = [make_predict(system, lambda factor, x: {"image": factor * x}, make_mesh(), config, partners=partners)(1.0, image)
             for partners in ([], [lambda x: {"image": 3 * x}])]
    assert [len(cells) for cells in found] == [0, 2] and found[1].shape == (90, 100)


def peak_memory(height, **changes):
    image = np.zeros((height, 64, 32), np.uint8)
    tracemalloc.start()
    for _ in merged_blocks(lambda images: {"image": images}, image, **(OPTIONS | changes)):
        pass
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_grows_with_a_block_and_not_with_the_image():
    assert peak_memory(4000, block=64, halo=8) < 1.2 * peak_memory(500, block=64, halo=8)


def test_further_scales_take_little_memory_where_one_block_is_all():
    maps = 4000 * 64 * 32 * 4
    assert peak_memory(4000, block=4096, scales=(1, 1.5)) < 2.2 * maps


@pytest.mark.parametrize("changes, message", [
    ({"window": 30}, "Use 32"), ({"step": 33}, "not seen"), ({"edges": "wrapped"}, ", ".join(EDGES)),
    ({"merge": "votes"}, ", ".join(MERGES)), ({"blend": "mean"}, "constant, gaussian"), ({"scales": ()}, "at least one scale"),
    ({"block": 0}, "block is 0"), ({"batch": 0}, "batch is 0"),
])
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        merged(picture(40, 40), **changes)


def test_wrong_images_and_outputs_are_refused():
    with pytest.raises(ValueError, match="Add a channel axis"):
        merged(np.zeros((40, 40)))
    with pytest.raises(ValueError, match="Only maps of the image's own size"):
        list(merged_blocks(lambda images: {"small": images[:, ::2, ::2]}, picture(40, 40), **OPTIONS))


# ---------------------------------------------------------------- edges, and what is averaged
def classes_by_place(images):
    """Logits that depend on the place in the window, so that windows disagree."""
    rows, columns = np.indices(images.shape[1:3])
    return {"logits": np.stack([np.sin(rows / 5) + 0 * images[..., 0], images[..., 0] + 0.1 * np.cos(columns)], -1)
            .astype(np.float32)}


def grey(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.3, 1, (*shape, 1)).astype(np.float32)


def brute_force(image, *, edges, votes):
    """The mean over windows of the votes, one window at a time."""
    height, width = image.shape[:2]
    total, count = 0.0, np.zeros((height, width, 1))
    boxes = plan_windows((height, width), window=32, step=24, edges=edges)
    before, after = np.maximum(0, [-boxes[0][0], -boxes[0][1]]), np.maximum(0, np.subtract(boxes[-1][2:], (height, width)))
    padded = np.pad(image, [*np.stack([before, after], 1), (0, 0)], mode="constant" if edges == "padded" else "reflect")
    for y, x in np.add([box[:2] for box in boxes], before):
        vote = votes(classes_by_place(padded[None, y:y + 32, x:x + 32])["logits"][0].astype(np.float64))
        full, seen = np.zeros((*padded.shape[:2], vote.shape[-1])), np.zeros((*padded.shape[:2], 1))
        full[y:y + 32, x:x + 32], seen[y:y + 32, x:x + 32] = vote, 1
        inside = np.s_[before[0]:before[0] + height, before[1]:before[1] + width]
        total, count = total + full[inside], count + seen[inside]
    return total / count


def whole(image, **changes):
    """The merged logits of an image, put together from the cores of its blocks."""
    canvas = np.zeros((*image.shape[:2], 2), np.float32)
    for window, maps in merged_blocks(classes_by_place, image, **(BLOCKS | changes)):
        (top, left, _, _), (y0, x0, y1, x1) = window.frame, window.core
        canvas[y0:y1, x0:x1] = maps["logits"][y0 - top:y1 - top, x0 - left:x1 - left]
    return canvas


@pytest.mark.parametrize("shape", [(75, 90), (32, 80), (24, 49), (33, 57)])
@pytest.mark.parametrize("edges", sorted(EDGES))
def test_every_window_has_a_say(shape, edges):
    image = grey(*shape)
    merged = whole(image, edges=edges)
    np.testing.assert_allclose(softmax(merged), brute_force(image, edges=edges, votes=softmax), atol=2e-6)
    expected = brute_force(image, edges=edges, votes=lambda logits: energy(logits)[..., None])[..., 0]
    np.testing.assert_allclose(energy(merged), expected, atol=1e-5)
    labels = softmax(whole(image, edges=edges, merge="labels"))
    expected = brute_force(image, edges=edges, votes=lambda logits: np.eye(2)[logits.argmax(-1)])
    np.testing.assert_allclose(labels, expected, atol=1e-6)
    assert {0.0, 1.0} < set(np.unique(labels).tolist())
    planes = expit(whole(image, edges=edges, merge="planes"))
    np.testing.assert_allclose(planes, brute_force(image, edges=edges, votes=expit), atol=2e-6)
    plain = whole(image, edges=edges, merge="outputs")
    np.testing.assert_allclose(plain, brute_force(image, edges=edges, votes=lambda logits: logits), atol=1e-5)


def test_certain_planes_stay_certain():
    """Where every window is sure the mean is 0 or 1, whose logits are infinite."""
    image, options = np.sign(grey(40, 40)), OPTIONS | {"merge": "planes"}
    (_, maps), = merged_blocks(lambda images: {"cells": 999 * images}, image, **options)
    np.testing.assert_array_equal(expit(maps["cells"]), image > 0)


def test_zeros_beyond_the_edge_are_zeros_as_stored():
    seen = []

    def look(images):
        seen.append(images)
        return classes_by_place(images)

    image = np.full((40, 40, 1), 9, np.uint8)
    list(merged_blocks(look, image, **(BLOCKS | {"edges": "padded"}), normalize=lambda region: region - 5.0))
    assert seen[0].shape == (3, 32, 32, 1) and len(seen) == 2
    assert (seen[1][0, :16, :16] == 4).all() and (seen[1][0, 16:] == -5).all(), "of the window at (24, 24)"


@pytest.mark.parametrize("block", [32, 48, 200])
def test_cells_do_not_depend_on_blocks(block):
    classes = np.zeros((100, 110), np.float32)
    for y, x in ((3, 3), (20, 40), (30, 4), (44, 60), (60, 20), (58, 84), (80, 50), (30, 90)):
        classes[y:y + 13, x:x + 14] = 1
    image, maps = (classes * 4 - 2)[..., None], partial(merged_blocks, window=32, step=24, merge="probabilities")
    one, found = (predict_image(classes_by_place, image, maps=maps, decode=lambda maps: class_cells(maps["logits"]), block=side,
                                halo=16, batch=3, divisor=8) for side in (200, block))
    assert len(one) == 8
    order = np.lexsort(found.boxes.T), np.lexsort(one.boxes.T)
    np.testing.assert_array_equal(found.boxes[order[0]], one.boxes[order[1]])
    np.testing.assert_allclose(found.extras["uncertainty"][order[0]], one.extras["uncertainty"][order[1]], rtol=1e-5)


def test_a_region_that_begins_at_the_last_row_is_reflected():
    image = np.arange(20.0).reshape(10, 2, 1)
    assert read_region(image, (9, 0, 12, 2))[..., 0].tolist() == [[18, 19], [16, 17], [14, 15]]
