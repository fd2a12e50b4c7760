"""Kinds of pixels drawn as pictures: B background, I interior, E edge, C edge between cells, . ignored."""

import numpy as np

from jaxcell.targets.pixels import annotated, foreground, pixelwise


def picture(kinds, letters):
    """The letter of each pixel's kind; a pixel has one or none."""
    assert set(np.unique(kinds)) <= {0, 1} and kinds.sum(-1).max() <= 1 and kinds.dtype == np.float32
    return ["".join(letters[pixel.argmax()] if pixel.any() else "." for pixel in row) for row in kinds]


LABELS = np.zeros((7, 10), np.int32)
LABELS[1:6, 1:5], LABELS[1:6, 5:9] = 3, 8


def test_pixelwise():
    assert picture(pixelwise(LABELS), "EIB") == [
        "BBBBBBBBBB", "BEEEEEEEEB", "BEIIEEIIEB", "BEIIEEIIEB", "BEIIEEIIEB", "BEEEEEEEEB", "BBBBBBBBBB"]
    assert picture(pixelwise(LABELS, dilation=1), "EIB") == [
        "BEEEEEEEEB", "EEEEEEEEEE", "EEIIEEIIEE", "EEIIEEIIEE", "EEIIEEIIEE", "EEEEEEEEEE", "BEEEEEEEEB"]


def test_edges_between_cells_are_a_kind_of_their_own():
    assert picture(pixelwise(LABELS, separate_edges=True), "CEIB") == [
        "BBBBBBBBBB", "BEEEEEEEEB", "BEIICCIIEB", "BEIICCIIEB", "BEIICCIIEB", "BEEEEEEEEB", "BBBBBBBBBB"]


def test_foreground():
    assert picture(foreground(LABELS, erosion=1), "BF")[2] == "BBFFBBFFBB"
    assert picture(foreground(LABELS, dilation=1), "BF")[0] == "BFFFFFFFFB"
    assert picture(foreground(LABELS), "BF")[1] == "BFFFFFFFFB"


def test_ignored_pixels_are_of_no_kind():
    labels = LABELS.copy()
    labels[:, 7:] = -1
    assert picture(pixelwise(labels, dilation=1), "EIB")[3] == "EEIIEEE..."     # a cell ends where "ignore" begins
    assert picture(foreground(labels, dilation=2), "BF")[0] == "FFFFFFF..."
    assert annotated(labels).tolist() == [[1] * 7 + [0] * 3] * 7
    assert not pixelwise(labels)[labels < 0].any()


def test_one_cell_covering_all_and_none():
    whole = np.ones((3, 4), np.int32)
    assert picture(pixelwise(whole), "EIB") == ["IIII"] * 3 and picture(foreground(whole), "BF") == ["FFFF"] * 3
    empty = np.zeros((3, 4), np.int32)
    assert picture(pixelwise(empty, dilation=1), "EIB") == ["BBBB"] * 3
