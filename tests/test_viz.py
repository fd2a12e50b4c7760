"""Pictures: right size, right colours in the right place, any image type."""

import json
import tracemalloc

import numpy as np
import pytest
from metrics.cells import random_cells, squares
from PIL import Image

from jaxcell import viz


def has(picture, colour):
    """Whether a colour occurs (anti-aliased lines keep it in their middle)."""
    return (np.abs(picture.astype(int) - colour).max(-1) <= 4).any()


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4, 7])
def test_any_image_becomes_rgb(dtype, channels):
    shape = (20, 30) if channels is None else (20, 30, channels)
    image = (np.random.default_rng(0).random(shape) * (1 if np.dtype(dtype).kind in "bf" else 200)).astype(dtype)
    rgb = viz.to_rgb(image)
    assert rgb.shape == (20, 30, 3) and rgb.dtype == np.uint8


def test_contrast_is_stretched_and_hues_are_kept():
    grey = viz.to_rgb(np.linspace(1000, 1200, 400, dtype=np.uint16).reshape(20, 20))
    assert grey.min() == 0 and grey.max() == 255 and (grey[..., 0] == grey[..., 2]).all()
    colour = np.zeros((10, 10, 3), np.float32)
    colour[..., 0], colour[:5] = 0.5, (1.0, 1.0, 1.0)
    np.testing.assert_array_equal(viz.to_rgb(colour)[9, 9], [128, 0, 0])
    opaque = np.concatenate([colour, np.ones((10, 10, 1), np.float32)], -1)
    np.testing.assert_array_equal(viz.to_rgb(opaque), viz.to_rgb(colour))
    assert not viz.to_rgb(np.full((5, 5), np.nan)).any()
    with pytest.raises(ValueError, match="must be"):
        viz.to_rgb(np.zeros((2, 3, 4, 5)))


def test_outlines_lie_on_the_border_of_the_mask():
    cells = squares((10, 10, 30, 30))
    picture = viz.overlay(np.zeros((40, 40), np.uint8), cells, scale=1)
    drawn = picture.any(-1)
    assert drawn[10, 10:30].all() and drawn[29, 10:30].all() and drawn[10:30, 10].all()
    assert not drawn[13:27, 13:27].any() and not drawn[:8].any()
    large = viz.overlay(np.zeros((40, 40), np.uint8), cells, scale=4).any(-1)
    assert large.shape == (160, 160) and large[60, 36:44].any() and not large[60, 48:112].any()


def test_overlapping_cells_keep_both_outlines():
    cells = squares((5, 5, 25, 25), (15, 15, 35, 35))
    picture = viz.overlay(np.zeros((40, 40), np.uint8), cells, scale=1)
    # Anti-aliasing dims a line but keeps its hue. Each of the last two pixels lies inside the other cell.
    first, second, first_inside, second_inside = (
        picture[p] / np.linalg.norm(picture[p]) for p in ((5, 15), (34, 25), (24, 19), (19, 15)))
    assert first @ first_inside > 0.99 and second @ second_inside > 0.99 and first @ second < 0.9


def test_truth_beside_prediction_shows_found_missed_and_false():
    truth = squares((2, 2, 12, 12), (25, 2, 35, 12))
    prediction = squares((2, 2, 12, 11), (25, 25, 35, 35))
    picture = viz.overlay(np.zeros((40, 40), np.uint8), prediction, truth=truth, scale=4)
    left, right = picture[28:, :160], picture[28:, -160:]       # below the captions
    assert picture.shape == (28 + 160, 160 + 8 + 160, 3)
    assert has(left, viz.FOUND) and has(left, viz.MISSED) and not has(left, viz.FALSE)
    assert has(right, viz.FOUND) and has(right, viz.FALSE) and not has(right, viz.MISSED)
    assert has(left[:56, :56], viz.FOUND) and has(right[96:, 96:], viz.FALSE)


def test_overlay_without_cells_and_of_the_wrong_size():
    image = np.zeros((40, 40, 3), np.uint8)
    assert not viz.overlay(image, squares()).any()
    assert viz.overlay(image, squares(), truth=squares()).shape[2] == 3
    with pytest.raises(ValueError, match="belong"):
        viz.overlay(image[:30], random_cells(np.random.default_rng(0), 3))


def test_a_large_image_is_drawn_small_with_its_outlines_in_place():
    image = np.zeros((300, 9000), np.uint8)
    image[0, 0] = 1
    cells = squares((30, 3000, 270, 6000), (0, 8999, 1, 9000), shape=image.shape)
    picture = viz.overlay(image, cells)
    assert picture.shape == (100, 3000, 3)                 # every third pixel, and no enlargement beyond the limit
    drawn = picture.any(-1)
    assert drawn[10, 1000:2000].all() and drawn[89, 1000:2000].all() and drawn[10:90, 1000].all() and drawn[0, 2999]
    assert not drawn[13:87, 1003:1997].any() and not drawn[:, 100:998].any()
    assert viz.overlay(np.zeros((100, 3000), np.uint8), squares(shape=(100, 3000)), scale=4).shape == (100, 3000, 3)


def test_a_large_image_is_not_copied():
    image = np.zeros((9000, 9000, 3), np.uint8)
    tracemalloc.start()
    viz.overlay(image, squares(shape=(9000, 9000)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 9000 * 9000


def test_png_and_curves(tmp_path):
    viz.save_png(tmp_path / "new" / "a.png", np.full((4, 5, 3), 7, np.uint8))
    assert np.asarray(Image.open(tmp_path / "new" / "a.png")).tolist() == np.full((4, 5, 3), 7).tolist()
    rows = [{"step": s, "loss": 1 / s, "constant": 0.0, "sometimes": None if s < 5 else float(s)} for s in range(1, 60)]
    rows += [{"step": 30, "val/loss": 0.1, "val/f1": 0.5}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + '\n{"step": 60, "lo')     # killed while writing
    viz.curves(path, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 1000        # three columns
    path.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="no numbers"):
        viz.curves(path, tmp_path / "none.png")


def test_running_mean_is_centred():
    np.testing.assert_allclose(viz._smooth(np.arange(20.0), 6), np.arange(20.0))


def test_a_contact_sheet_shows_every_image_with_its_outlines():
    cells = squares((5, 5, 25, 25), (15, 15, 35, 35))
    tiles = [viz.Tile(np.zeros((40, 40), np.uint8), cells, ["one", "2 cells"]),
             viz.Tile(np.zeros((10, 40, 3), np.uint8), None, ["two"]),
             viz.Tile(np.zeros((400, 400, 5), np.uint16), squares(shape=(400, 400)), [])]
    sheet = viz.contact_sheet(iter(tiles), size=80, columns=2)
    first, below = 80 + 2 * 18 + 4, 80 + 4
    assert sheet.shape == (8 + first + 8 + below + 8, 8 + 80 + 8 + 80 + 8, 3)
    drawn = sheet[8:88, 8:88].any(-1)
    assert drawn[11, 12:50].all() and drawn[12:50, 11].all()
    assert drawn[69, 32:70].all() and drawn[32:70, 69].all()                # of the other, which overlaps
    assert not drawn[14:28, 14:28].any() and not drawn[:9].any()
    assert not sheet[8:28, 96:176].any()                                   # four times as wide as high
    letters = (sheet > 200).all(-1)
    assert letters[90:126, 8:88].any() and letters[30:50, 96:176].any() and not letters[60:128, 96:176].any()
    assert not sheet[8 + first + 8:8 + first + 88, 8:88].any()


def test_a_contact_sheet_of_what_training_sees_is_not_stretched():
    image = np.full((20, 20, 1), 0.5, np.float32)
    image[0, 0] = 0.6
    sheet = viz.contact_sheet([viz.Tile(image, None, [])], size=20, stretch=False)
    assert (sheet[12:24, 12:24] == 128).all()
    long = viz.contact_sheet([viz.Tile(image, None, ["a name that is far too long for so small a tile"])], size=40)
    assert long.shape[1] == 56
    with pytest.raises(ValueError, match="no tiles"):
        viz.contact_sheet([])
