"""Tiles that are decoded each by itself: every cell once, also where two tiles draw it differently, and no silent loss."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from jaxcell.decode.masks import decode_masks
from jaxcell.inference.windows import predict_image_by_windows

SIZE, TILE, MARGIN, SIDE = 256, 64, 20, 14


def coordinates(size: int) -> np.ndarray:
    rows, columns = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32), indexing="ij")
    return np.stack([rows, columns], axis=-1)


def squares(gap: int = 17) -> np.ndarray:
    """[M, 4], cells of one size on a grid that fits no tile."""
    starts = np.arange(1, SIZE - SIDE, gap)
    corners = np.stack(np.meshgrid(starts, starts, indexing="ij"), -1).reshape(-1, 2)
    return np.concatenate([corners, corners + SIDE], axis=1)


def answers(tiles: np.ndarray, *, boxes: np.ndarray, queries: int, shift: int) -> dict[str, np.ndarray]:
    """What a network says that draws every cell moved by up to `shift` pixels, otherwise in each tile."""
    masks = np.full((len(tiles), queries, TILE, TILE), -9.0, np.float32)
    scores = np.full((len(tiles), queries), -9.0, np.float32)
    for image, corner in enumerate(tiles[:, 0, 0].astype(int)):
        rng = np.random.default_rng(corner.tolist())
        moved = boxes + np.tile(rng.integers(-shift, shift + 1, (len(boxes), 2)), 2) - np.tile(corner, 2)
        seen = moved[(moved[:, :2] < TILE).all(1) & (moved[:, 2:] > 0).all(1)]
        for number, (y0, x0, y1, x1) in enumerate(np.maximum(seen, 0)[:queries]):
            masks[image, number, y0:y1, x0:x1] = scores[image, number] = 9.0
    return {"masks": masks, "scores": scores}


def predict(*, boxes: np.ndarray, queries: int = 40, shift: int = 0, size: int = SIZE, margin: int = MARGIN):
    return predict_image_by_windows(partial(answers, boxes=boxes, queries=queries, shift=shift), coordinates(size),
                                    decode=decode_masks, tile=TILE, margin=margin, batch=3, divisor=8)


@pytest.mark.parametrize("shift", [0, 1])
def test_every_cell_is_found_once_however_tiles_draw_it(shift):
    boxes = squares()
    found = predict(boxes=boxes, shift=shift)
    away = np.abs(found.boxes[:, None, :2] - boxes[None, :, :2]).max(-1)
    assert (np.sort(away.argmin(1)) == np.arange(len(boxes))).all()
    assert away.min(1).max() <= shift


def test_cells_that_overlap_are_both_kept():
    first = np.asarray([[20, 20 + 3 * k, 34, 34 + 3 * k] for k in range(0, 60, 12)])
    boxes = np.concatenate([first, first + [4, 4, 4, 4]])       # half of each cell lies in another one
    assert sorted(predict(boxes=boxes).boxes.tolist()) == sorted(boxes.tolist())


def test_an_image_smaller_than_a_tile_is_one_tile():
    found = predict(boxes=np.asarray([[2, 3, 16, 17], [20, 40, 34, 54]]), size=48)
    assert found.shape == (48, 48)
    assert found.boxes.tolist() == [[2, 3, 16, 17], [20, 40, 34, 48]]


def test_cells_larger_than_the_margin_are_reported():
    with pytest.warns(UserWarning, match=r"2 cells reach the end of their tile of 64 px .* Set margin, now 8 px"):
        predict(boxes=np.asarray([[30, 34, 60, 68]]), margin=8)


def test_more_cells_than_queries_are_reported():
    with pytest.warns(UserWarning, match="all 4 queries of the network are cells in this region of 64 x 64 pixels"):
        predict(boxes=squares(), queries=4)
