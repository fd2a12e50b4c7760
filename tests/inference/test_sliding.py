"""Overlapping windows: where they lie, what they see, and that every one has a say."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from jaxcell.decode.classes import class_cells, energy, softmax
from jaxcell.inference.sliding import EDGES, MERGES, plan_windows, predict_image_sliding, sliding_blocks

SHAPE = (75, 90)
OPTIONS = {"window": 32, "step": 24, "block": 40, "halo": 16, "batch": 3, "divisor": 8}


def network(images: np.ndarray) -> dict[str, np.ndarray]:
    """Logits that depend on the place in the window, so that windows disagree."""
    rows, columns = np.indices(images.shape[1:3])
    return {"logits": np.stack([np.sin(rows / 5) + 0 * images[..., 0], images[..., 0] + 0.1 * np.cos(columns)], -1)
            .astype(np.float32)}


def image_of(shape=SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 1, (*shape, 1)).astype(np.float32)


def brute_force(image: np.ndarray, *, edges: str, votes) -> np.ndarray:
    """The mean over windows of the votes, one window at a time."""
    height, width = image.shape[:2]
    total, count = 0.0, np.zeros((height, width, 1))
    ends = [max(side - 32, 0) if edges == "aligned" else side - 1 for side in (height, width)]
    starts = [[*range(0, end, 24), end] if edges == "aligned" else [*range(0, end + 1, 24)] for end in ends]
    for y in starts[0]:
        for x in starts[1]:
            missing = max(y + 32 - height, 0), max(x + 32 - width, 0)
            seen = np.pad(image[y:y + 32, x:x + 32], ((0, missing[0]), (0, missing[1]), (0, 0)),
                          mode="reflect" if edges == "aligned" else "constant")
            vote = votes(network(seen[None])["logits"][0].astype(np.float64))
            full = np.zeros((height + 32, width + 32, vote.shape[-1]))
            full[y:y + 32, x:x + 32] = vote
            total = total + full[:height, :width]
            count[y:y + 32, x:x + 32] += 1
    return total / count


def whole(image: np.ndarray, **options) -> np.ndarray:
    """The merged logits of an image, put together from the cores of its blocks."""
    canvas = np.zeros((*image.shape[:2], 2), np.float32)
    for window, maps in sliding_blocks(network, image, **(OPTIONS | options)):
        (top, left, _, _), (y0, x0, y1, x1) = window.frame, window.core
        canvas[y0:y1, x0:x1] = maps["logits"][y0 - top:y1 - top, x0 - left:x1 - left]
    return canvas


def hard(logits: np.ndarray) -> np.ndarray:
    return np.eye(2)[logits.argmax(-1)]


@pytest.mark.parametrize("shape", [SHAPE, (32, 80), (24, 49), (33, 57)])
@pytest.mark.parametrize("edges", sorted(EDGES))
def test_every_window_has_a_say(shape, edges):
    image = image_of(shape)
    merged = whole(image, edges=edges)
    np.testing.assert_allclose(softmax(merged), brute_force(image, edges=edges, votes=softmax), atol=2e-6)
    expected = brute_force(image, edges=edges, votes=lambda logits: energy(logits)[..., None])[..., 0]
    np.testing.assert_allclose(energy(merged), expected, atol=1e-5)
    labels = softmax(whole(image, edges=edges, merge="labels"))
    np.testing.assert_allclose(labels, brute_force(image, edges=edges, votes=hard), atol=1e-6)
    assert {0.0, 1.0} < set(np.unique(labels).tolist())
    plain = whole(image, edges=edges, merge="outputs")
    np.testing.assert_allclose(plain, brute_force(image, edges=edges, votes=lambda logits: logits), atol=1e-5)


def test_windows_of_the_paper_and_of_the_release():
    padded = plan_windows((413, 500), window=224, step=168, edges="padded")
    assert [box[:2] for box in padded] == [(y, x) for y in (0, 168, 336) for x in (0, 168, 336)] and padded[-1][2:] == (560, 560)
    aligned = plan_windows((413, 500), window=224, step=168)
    assert [box[:2] for box in aligned] == [(y, x) for y in (0, 168, 189) for x in (0, 168, 276)]
    assert plan_windows((224, 100), window=224, step=168) == [(0, 0, 224, 224)]


def test_zeros_beyond_the_edge_are_zeros_as_stored():
    seen = []

    def look(images: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(images)
        return network(images)

    image = np.full((40, 40, 1), 9, np.uint8)
    list(sliding_blocks(look, image, **OPTIONS, edges="padded", normalize=lambda region: region - 5.0))
    assert seen[0].shape == (3, 32, 32, 1) and len(seen) == 2
    assert (seen[1][0, :16, :16] == 4).all() and (seen[1][0, 16:] == -5).all(), "of the window at (24, 24)"


@pytest.mark.parametrize("block", [32, 48, 200])
def test_cells_do_not_depend_on_blocks(block):
    classes = np.zeros((100, 110), np.float32)
    for y, x in ((3, 3), (20, 40), (30, 4), (44, 60), (60, 20), (58, 84), (80, 50), (30, 90)):
        classes[y:y + 13, x:x + 14] = 1
    image = (classes * 4 - 2)[..., None]
    decode = {"decode": lambda maps: class_cells(maps["logits"])}
    one = predict_image_sliding(network, image, **(OPTIONS | {"block": 200}), **decode)
    found = predict_image_sliding(network, image, **(OPTIONS | {"block": block}), **decode)
    assert len(one) == 8
    order = np.lexsort(found.boxes.T), np.lexsort(one.boxes.T)
    np.testing.assert_array_equal(found.boxes[order[0]], one.boxes[order[1]])
    np.testing.assert_allclose(found.extras["uncertainty"][order[0]], one.extras["uncertainty"][order[1]], rtol=1e-5)


def test_the_watcher_sees_every_pixel_once():
    image, canvas = image_of(), np.zeros(SHAPE)

    def watch(window, maps):
        (top, left, _, _), (y0, x0, y1, x1) = window.frame, window.core
        canvas[y0:y1, x0:x1] += energy(maps["logits"])[y0 - top:y1 - top, x0 - left:x1 - left]

    predict_image_sliding(network, image, **OPTIONS, decode=lambda maps: class_cells(maps["logits"], small_objects=10**6),
                          watch=watch)
    np.testing.assert_allclose(canvas, energy(whole(image)), atol=1e-6)


def test_memory_does_not_grow_with_the_height():
    peaks = []
    for height in (400, 1600):
        image = np.zeros((height, 200, 1), np.uint8)
        tracemalloc.start()
        for _ in sliding_blocks(network, image, **(OPTIONS | {"block": 100})):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_errors_say_what_is_wrong():
    image = image_of()
    for options, message in (({"step": 33}, "not seen"), ({"window": 30}, "multiple of 8"), ({"edges": "wrapped"}, "aligned"),
                             ({"merge": "votes"}, ", ".join(MERGES)), ({"batch": 0}, "batch is 0")):
        with pytest.raises(ValueError, match=message):
            list(sliding_blocks(network, image, **(OPTIONS | options)))
    with pytest.raises(ValueError, match="own size"):
        list(sliding_blocks(lambda x: {"logits": x[:, ::2, ::2]}, image, **OPTIONS))
    with pytest.raises(ValueError, match="channel axis"):
        list(sliding_blocks(network, image[..., 0], **OPTIONS))
