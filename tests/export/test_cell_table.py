"""The table of cells against scikit-image on the whole label image."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from skimage.draw import ellipse
from skimage.measure import regionprops

from jaxcell.export.table import FIRST, cell_table, table_writer
from jaxcell.types import Instances


def picture() -> tuple[np.ndarray, Instances]:
    labels = np.zeros((90, 120), np.int32)
    shapes = [(20, 20, 12, 6, 0.5), (60, 30, 8, 8, 0), (45, 90, 20, 9, -1), (88, 60, 6, 10, 0)]
    for number, (y, x, a, b, turn) in enumerate(shapes, start=1):
        labels[ellipse(y, x, a, b, shape=labels.shape, rotation=turn)] = number
    labels[5, 100] = 5
    labels[0, 40:60] = 6
    image = np.random.default_rng(0).integers(0, 65535, (90, 120, 2)).astype(np.uint16)
    return image, Instances.from_labels(labels)


def read(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_measurements_are_those_of_the_whole_label_image():
    image, cells = picture()
    table = cell_table(cells, image, name="a.png")
    labels = np.zeros(cells.shape, np.int32)
    for number, ((y0, x0, y1, x1), mask) in enumerate(zip(cells.boxes, cells.masks, strict=True), start=1):
        labels[y0:y1, x0:x1][mask] = number
    regions = regionprops(labels, intensity_image=image)
    for column, name in {"id": "label", "area": "area", "perimeter": "perimeter", "eccentricity": "eccentricity",
                         "solidity": "solidity", "equivalent_diameter": "equivalent_diameter_area",
                         "major_axis": "axis_major_length", "minor_axis": "axis_minor_length",
                         "orientation": "orientation"}.items():
        np.testing.assert_allclose(table[column], [region[name] for region in regions], rtol=1e-9, atol=1e-9, err_msg=column)
    np.testing.assert_allclose(list(zip(table["centroid_y"], table["centroid_x"], strict=True)), [r.centroid for r in regions])
    assert list(zip(*(table[c] for c in ("y0", "x0", "y1", "x1")), strict=True)) == [r.bbox for r in regions]
    np.testing.assert_allclose(list(zip(table["mean_intensity_0"], table["mean_intensity_1"], strict=True)),
                               [r.intensity_mean for r in regions])
    assert table["touches_border"] == [0, 0, 0, 1, 0, 1] and table["image"] == ["a.png"] * 6
    assert table["area"][4] == 1 and table["solidity"][4] == 1 and table["eccentricity"][4] == 0


def test_micrometres_and_uncertainties():
    image, cells = picture()
    extras = {"uncertainties": np.arange(24).reshape(6, 4) / 24, "rank": np.arange(6), "locations": np.zeros((6, 2)),
              "embedding": np.ones((6, 3)), "contours": np.zeros((6, 8, 2)), "nms_weights": np.ones(6)}
    table = cell_table(Instances(cells.shape, cells.boxes, cells.masks, cells.scores, extras), image, pixel_size=0.5)
    assert table["area_um2"] == [a / 4 for a in table["area"]] and table["perimeter_um"] == [p / 2 for p in table["perimeter"]]
    assert table["centroid_x_um"] == [x / 2 for x in table["centroid_x"]]
    assert [table[f"uncertainty_{side}"][1] for side in ("top", "left", "bottom", "right")] == [4 / 24, 5 / 24, 6 / 24, 7 / 24]
    assert table["rank"] == list(range(6)) and table["embedding_2"] == [1] * 6
    assert not any(name in column for name in ("locations", "contours", "nms_weights") for column in table)
    assert len({len(values) for values in table.values()}) == 1


def test_overlapping_cells_are_each_measured_whole():
    mask = np.ones((10, 10), bool)
    cells = Instances((20, 20), np.asarray([[0, 0, 10, 10], [5, 5, 15, 15]], np.int32), [mask, mask], np.ones(2, np.float32))
    assert cell_table(cells, np.ones((20, 20, 1)))["area"] == [100, 100]


def test_a_csv_of_images_with_different_columns(tmp_path):
    image, cells = picture()
    tables = [cell_table(cells, image[..., :1], name="one"),
              cell_table(Instances.empty((5, 5)), np.zeros((5, 5, 3)), name="none"),
              cell_table(cells.select(np.arange(2)), image, name="two, with comma", pixel_size=0.5),
              cell_table(cells, image[..., :1])]
    with table_writer(tmp_path / "cells.csv") as add:
        for table in tables:
            add(table)
    rows = read(tmp_path / "cells.csv")
    assert len(rows) == 14 and rows[6]["image"] == "two, with comma"
    assert list(rows[0])[:len(FIRST)] == list(FIRST)
    assert rows[0]["mean_intensity_1"] == "" and rows[0]["area_um2"] == ""
    assert float(rows[7]["area_um2"]) == tables[2]["area"][1] / 4
    assert rows[8]["mean_intensity_1"] == "" and float(rows[8]["area"]) == tables[0]["area"][0]
    assert float(rows[3]["eccentricity"]) == pytest.approx(tables[0]["eccentricity"][3], rel=1e-6)


def test_no_cells_is_a_table_with_a_header(tmp_path):
    with table_writer(tmp_path / "cells.csv"):
        pass
    assert (tmp_path / "cells.csv").read_text().strip() == ",".join(FIRST)


def test_an_image_of_another_size_is_named():
    with pytest.raises(ValueError, match=r"'a' has shape \(9, 9, 1\) for cells of an image of \(90, 120\)"):
        cell_table(picture()[1], np.zeros((9, 9, 1)), name="a")


def test_a_thousand_cells_of_a_large_image():
    disk = np.hypot(*np.indices((31, 31)) - 15) <= 15.5
    corners = np.random.default_rng(0).integers(0, 960, (1000, 2))
    cells = Instances((1000, 1000), np.concatenate([corners, corners + 31], axis=1).astype(np.int32), [disk] * 1000,
                      np.ones(1000, np.float32))
    rows = cell_table(cells, np.zeros((1000, 1000, 3), np.uint8))
    assert len(rows["area"]) == 1000
