"""Files in, files out."""

from __future__ import annotations

import csv
import shutil

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxcell.export.coco import read_coco
from jaxcell.inference.predict import find_images, output_names, predict_files
from jaxcell.types import Instances


def predict(image: np.ndarray) -> Instances:
    """Two overlapping cells and one at the corner; refuses black images."""
    if not image.any():
        raise RuntimeError("black")
    boxes = np.asarray([[5, 5, 15, 15], [10, 10, 20, 20], [0, 0, 3, 3]], np.int32)
    masks = [np.ones((y1 - y0, x1 - x0), bool) for y0, x0, y1, x1 in boxes]
    return Instances(image.shape[:2], boxes, masks, np.asarray([0.9, 0.8, 0.7], np.float32),
                     {"uncertainties": np.full((3, 4), 0.25)})


def save(path, shape=(30, 40), dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).integers(1, np.iinfo(dtype).max, shape).astype(dtype)
    (tifffile.imwrite if path.suffix == ".tif" else imagecodecs.imwrite)(path, image)
    return path


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_kind_of_result(tmp_path):
    save(tmp_path / "in" / "grey.png")
    save(tmp_path / "in" / "colour.png", (30, 40, 3))
    save(tmp_path / "in" / "deep.tif", dtype=np.uint16)
    out = tmp_path / "new" / "out"
    assert predict_files(tmp_path / "in", out, predict=predict, pixel_size=0.5, progress=False) == 0
    expected = {f"{stem}_{end}" for stem in ("grey", "colour", "deep") for end in ("labels.tif", "overlay.png")}
    assert {p.name for p in out.iterdir()} == expected | {"predictions.json", "cells.csv"}
    coco = read_coco(out / "predictions.json")
    assert list(coco) == ["colour.png", "deep.tif", "grey.png"]
    for stem in ("grey", "colour", "deep"):
        labels = tifffile.imread(out / f"{stem}_labels.tif")
        assert labels.dtype == np.uint32 and set(np.unique(labels)) == {0, 1, 2, 3} and labels[6, 6] == 1 and labels[1, 1] == 3
        picture = imagecodecs.imread(out / f"{stem}_overlay.png")
        assert picture.dtype == np.uint8 and picture.shape[0] * 40 == picture.shape[1] * 30 and picture.shape[2] == 3
    assert [m.sum() for m in coco["grey.png"].masks] == [100, 100, 9], "overlaps are kept whole"
    table = rows(out / "cells.csv")
    assert [(r["image"], r["id"], r["area"]) for r in table[1:4]] == [("colour.png", "2", "100"), ("colour.png", "3", "9"),
                                                                     ("deep.tif", "1", "100")]
    assert table[0]["area_um2"] == "25" and table[0]["uncertainty_top"] == "0.25" and table[2]["touches_border"] == "1"
    assert table[0]["mean_intensity_2"] and not table[3]["mean_intensity_2"]


def test_subfolders_that_are_not_read_are_named(tmp_path, capsys):
    for place in ("a.png", "day2/b.png", "day2/c.png", "out/old.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / place)
    (tmp_path / "notes").mkdir()

    def nothing(image):
        return Instances.empty(image.shape[:2])

    predict_files(tmp_path, tmp_path / "out", predict=nothing)
    assert f"not read: {tmp_path / 'day2'} (2 files); name these folders too" in capsys.readouterr().out
    predict_files([tmp_path, tmp_path / "day2"], tmp_path / "out", predict=nothing)
    assert "not read" not in capsys.readouterr().out


@pytest.mark.parametrize(("boxes", "said"), [
    ([[5, 5, 15, 15], [10, 10, 20, 20], [6, 6, 9, 9], [0, 0, 3, 3]], "3 cells are covered by others in the label images (1 are"),
    ([[5, 5, 15, 15], [15, 15, 20, 20]], None)])
def test_cells_that_the_label_images_cannot_show_whole_are_counted(tmp_path, capsys, boxes, said):
    save(tmp_path / "x.png")
    masks = [np.ones((y1 - y0, x1 - x0), bool) for y0, x0, y1, x1 in boxes]
    cells = Instances((30, 40), np.asarray(boxes, np.int32), masks, np.ones(len(boxes), np.float32))
    assert predict_files(tmp_path / "x.png", tmp_path / "out", predict=lambda image: cells, progress=False) == 0
    printed = capsys.readouterr().out
    assert said in printed if said else "covered" not in printed


def test_the_uncertainty_of_pixels_and_cells_on_request(tmp_path):
    save(tmp_path / "x.png")

    def unsure(image, uncertainty):
        uncertainty[...] = np.arange(30)[:, None] - 2.5
        cells = predict(image)
        return Instances(cells.shape, cells.boxes, cells.masks, cells.scores, {"uncertainty": np.float32([-1, -2, -3])})

    assert predict_files(tmp_path / "x.png", tmp_path / "out", predict=unsure, pixel_size=0.5, uncertainty=True,
                         progress=False) == 0
    values = tifffile.imread(tmp_path / "out" / "x_uncertainty.tif")
    assert values.dtype == np.float32 and values.shape == (30, 40) and values[:3, 7].tolist() == [-2.5, -1.5, -0.5]
    assert [row["uncertainty"] for row in rows(tmp_path / "out" / "cells.csv")] == ["-1", "-2", "-3"]


def test_a_bad_file_does_not_stop_the_others(tmp_path, capsys):
    good = save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    black = tmp_path / "black.png"
    imagecodecs.imwrite(black, np.zeros((30, 40), np.uint8))
    files = [tmp_path / "broken.png", black, tmp_path / "absent.png", good]
    assert predict_files(files, tmp_path / "out", predict=predict, progress=False) == 1
    said = capsys.readouterr().out
    assert "1 of 4 images, 3 cells" in said
    assert all(name in said for name in ("broken.png", "black.png: RuntimeError: black", "absent.png"))
    assert list(read_coco(tmp_path / "out" / "predictions.json")) == ["good.png"]
    assert len(rows(tmp_path / "out" / "cells.csv")) == 3 and not (tmp_path / "out" / "black_labels.tif").exists()


def test_images_without_cells(tmp_path):
    save(tmp_path / "x.png")
    assert predict_files(tmp_path / "x.png", tmp_path / "out", predict=lambda image: Instances.empty(image.shape[:2]),
                         progress=False) == 0
    assert not tifffile.imread(tmp_path / "out" / "x_labels.tif").any()
    assert len(read_coco(tmp_path / "out" / "predictions.json")["x.png"]) == 0 and rows(tmp_path / "out" / "cells.csv") == []


def test_files_of_one_stem_do_not_overwrite_each_other(tmp_path):
    files = [save(tmp_path / p) for p in ("a/x.png", "b/x.png", "b/x.tif", "b/y.png")]
    assert output_names(files) == ["a_x.png", "b_x.png", "b_x.tif", "y"]
    assert predict_files([tmp_path / "a", tmp_path / "b"], tmp_path / "out", predict=predict, progress=False) == 0
    assert len(list((tmp_path / "out").glob("*_labels.tif"))) == 4
    assert list(read_coco(tmp_path / "out" / "predictions.json")) == ["a_x.png", "b_x.png", "b_x.tif", "y.png"]
    with pytest.raises(ValueError, match="would be called 'a_b_x.png'"):
        output_names([save(tmp_path / p) for p in ("a/b_x.png", "a_b/x.png", "c/x.png", "d/b_x.png")])


def test_annotations_beside_images_are_neither_inputs_nor_overwritten(tmp_path):
    for name in ("x.png", "x_labels.png", "x_cp_masks.png", "y.tif", "y_label.png", "z_labels.png", "._x.png", "notes.txt"):
        if name.endswith(".txt"):
            (tmp_path / name).write_text("")
        else:
            save(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in find_images(tmp_path)] == ["x.png", "y.tif", "z_labels.png"]
    found = find_images([tmp_path / "x_labels.png", tmp_path])
    assert [p.name for p in found] == ["x_labels.png", "x.png", "y.tif", "z_labels.png"], "a file named on purpose is taken"
    with pytest.raises(ValueError, match="may be your own annotation. Name another folder"):
        predict_files(tmp_path, tmp_path, predict=predict, progress=False)


def test_the_pixel_size_of_a_file_counts_unless_another_is_given(tmp_path):
    image = np.full((30, 40), 7, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, imagej=True, resolution=(4, 4), metadata={"unit": "micron"})
    save(tmp_path / "b.png")
    for size, areas in ((None, ["6.25", ""]), (0.5, ["25", "25"])):
        assert predict_files([tmp_path / "a.tif", tmp_path / "b.png"], tmp_path / "out", predict=predict, pixel_size=size,
                             progress=False) == 0
        table = rows(tmp_path / "out" / "cells.csv")
        assert [table[0]["area_um2"], table[3]["area_um2"]] == areas


def test_nothing_to_do_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no images in .*none of its files ends in .png"):
        predict_files(tmp_path, tmp_path / "out", predict=predict)
    with pytest.raises(ValueError, match="no images given"):
        predict_files([], tmp_path / "out", predict=predict)


def test_real_files(tmp_path, data_dir):
    for folder, name in (("bbbc038", "*.png"), ("usiigaci_t98g", "*")):
        image = next(p for p in sorted((data_dir / folder).rglob(name)) if p.suffix in (".png", ".tif") and "label" not in p.stem)
        shutil.copy(image, tmp_path)
    assert predict_files(tmp_path, tmp_path / "out", predict=predict, progress=False) == 0
    assert len(rows(tmp_path / "out" / "cells.csv")) == 6
