"""The public data sets, each as a tiny folder in its real layout; and folders that are incomplete or wrong."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxcell.data.sources import SOURCES
from jaxcell.data.sources.bbbc038 import Bbbc038Source
from jaxcell.data.sources.bbbc039 import Bbbc039Source
from jaxcell.data.sources.cellpose import CellposeSource
from jaxcell.data.sources.folder import FolderSource
from jaxcell.data.sources.livecell import LiveCellSource
from jaxcell.data.sources.neurips2022 import Neurips2022Source
from jaxcell.data.sources.nt2 import Nt2Source
from jaxcell.data.sources.omnipose import OmniposeSource
from jaxcell.data.sources.sartorius import SartoriusSource
from jaxcell.data.sources.tables import decode_runs

SHAPE = (6, 8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.startswith(".tif"):
        tifffile.imwrite(path, array)
    else:
        Image.fromarray(array).save(path)


def picture(value=0, dtype=np.uint8):
    return np.full(SHAPE, value, dtype)


def square(y, x, side=2, value=255, dtype=np.uint8):
    mask = np.zeros(SHAPE, dtype)
    mask[y:y + side, x:x + side] = value
    return mask


def runs(mask, order):
    """The inverse of `decode_runs`."""
    flat = np.concatenate([[0], np.asarray(mask > 0, np.int8).ravel(order), [0]])
    starts, stops = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
    return " ".join(f"{a + 1} {b - a}" for a, b in zip(starts, stops, strict=True))


def cells(sample):
    """The sorted masks of a sample's cells, as sets of pixels."""
    ids = np.unique(sample.labels[sample.labels > 0])
    return sorted(np.flatnonzero((sample.labels == i).any(axis=2)).tolist() for i in ids)


def pixels(*masks):
    return sorted(np.flatnonzero(mask).tolist() for mask in masks)


# ---------------------------------------------------------------- run lengths
@pytest.mark.parametrize("order", ["C", "F"])
def test_run_lengths_count_along_rows_or_columns(order):
    for seed in range(20):
        mask = np.random.default_rng(seed).random(SHAPE) < seed / 20
        np.testing.assert_array_equal(decode_runs(runs(mask, order), SHAPE, order=order, where="x"), mask)
    first_column = decode_runs("1 6", SHAPE, order="F", where="x")
    assert first_column[:, 0].all() and first_column.sum() == 6


@pytest.mark.parametrize("text", ["1", "1 2 3", "a b", "0 3", "48 2", "5 0", "5 -1", "1 99999999999999999999"])
def test_damaged_run_lengths_are_refused(text):
    with pytest.raises(ValueError, match="^train.csv"):
        decode_runs(text, SHAPE, order="C", where="train.csv")


# ---------------------------------------------------------------- BBBC038
def bbbc038(root):
    for name, masks in (("aa", [square(0, 0), square(3, 3)]), ("bb", [square(1, 4)])):
        save(root / "stage1_train" / name / "images" / f"{name}.png", np.full((*SHAPE, 4), 255, np.uint8))
        for number, mask in enumerate(masks):
            save(root / "stage1_train" / name / "masks" / f"{number}f.png", mask)
    for stage, name in (("stage1_test", "cc"), ("stage2_test_final", "dd"), ("stage2_test_final", "ee")):
        save(root / stage / name / "images" / f"{name}.png", picture())
    return root


def test_bbbc038(tmp_path):
    root = bbbc038(tmp_path)
    source = Bbbc038Source(root)
    assert source.names == ["aa", "bb", "cc", "dd", "ee"] and source.splits == ["train", "train", "test", "test2", "test2"]
    assert cells(source[0]) == pixels(square(0, 0), square(3, 3)) and source[0].image.shape == (6, 8, 3)
    assert [sample.labels is None for sample in source] == [False, False, True, True, True]
    assert {sample.group for sample in source} == {"aa", "bb", "cc", "dd", "ee"}
    (root / "stage1_solution.csv").write_text(
        f"ImageId,EncodedPixels,Height,Width,Usage\ncc,{runs(square(2, 5), 'F')},6,8,Public\n")
    (root / "stage2_solution_final.csv").write_text(
        f"ImageId,EncodedPixels,Height,Width,Usage\ndd,1 1,6,8,Ignored\nee,{runs(square(0, 0), 'F')},6,8,Private\n"
        f"ee,{runs(square(3, 0), 'F')},6,8,Private\n")
    assert cells(Bbbc038Source(root, split="test")[0]) == pixels(square(2, 5))
    ignored, scored = Bbbc038Source(root, split="test2")
    assert ignored.labels is None and cells(scored) == pixels(square(0, 0), square(3, 0))


def test_bbbc038_mistakes_are_named(tmp_path):
    root = bbbc038(tmp_path)
    for file in (root / "stage1_train" / "bb" / "masks").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"bb/masks"):
        Bbbc038Source(root, split="train")[1]
    (root / "stage1_train" / "bb" / "masks").rmdir()
    with pytest.raises(FileNotFoundError, match=r"bb: has no subfolder masks.*stage1_train/ID"):
        Bbbc038Source(root)
    (root / "stage1_train_labels.csv").write_text(f"ImageId,EncodedPixels\nbb,{runs(square(1, 4), 'F')}\n")
    assert cells(Bbbc038Source(root, split="train")[1]) == pixels(square(1, 4))
    (root / "stage1_solution.csv").write_text("ImageId,EncodedPixels\nzz,1 1\n")
    with pytest.raises(ValueError, match=r"stage1_solution.csv: has no row for cc"):
        Bbbc038Source(root)
    (root / "stage1_solution.csv").write_text("ImageId,EncodedPixels\ncc,47 3\n")
    with pytest.raises(ValueError, match=r"stage1_solution.csv, image cc: .*49.*48"):
        Bbbc038Source(root, split="test")[0]
    (root / "stage1_test" / "cc" / "images" / "cc.png").unlink()
    with pytest.raises(FileNotFoundError, match="cc: has 0 images"):
        Bbbc038Source(root)


# ---------------------------------------------------------------- BBBC039
def bbbc039(root):
    """Touching nuclei have different numbers in red; the number 1 is used again for one that stands apart."""
    red = np.zeros(SHAPE, np.uint8)
    red[0:2, 0:2], red[2:4, 2:4], red[0:2, 2:4], red[5, 7] = 1, 1, 2, 1       # the first two touch by a corner
    colours = np.zeros((*SHAPE, 4), np.uint8)
    colours[..., 0], colours[..., 1], colours[..., 3] = red, red * 40, 255
    for name in ("IXMtest_A02_s1_w1A", "IXMtest_A02_s2_w1B", "IXMtest_P24_s9_w1C"):
        save(root / "images" / f"{name}.tif", picture(4095, np.uint16))
        save(root / "masks" / f"{name}.png", colours)
    (root / "metadata").mkdir()
    for split, names in (("training", "IXMtest_A02_s2_w1B.png\nIXMtest_A02_s1_w1A.png\n"),
                         ("validation", "IXMtest_P24_s9_w1C.png\n"), ("test", "")):
        (root / "metadata" / f"{split}.txt").write_text(names)
    return root


def test_bbbc039(tmp_path):
    source = Bbbc039Source(bbbc039(tmp_path))
    assert source.splits == ["train", "train", "val"] and [sample.group for sample in source] == ["A02", "A02", "P24"]
    assert source[0].image.dtype == np.uint16
    one = square(0, 0) | square(2, 2)
    assert cells(source[0]) == pixels(one, square(0, 2), square(5, 7, 1))
    assert Bbbc039Source(tmp_path, split="train").names == ["IXMtest_A02_s2_w1B", "IXMtest_A02_s1_w1A"]
    with pytest.raises(ValueError, match="no split 'training'.*train, val, test"):
        Bbbc039Source(tmp_path, split="training")
    (tmp_path / "metadata" / "test.txt").write_text("absent.png")
    with pytest.raises(FileNotFoundError, match=r"test.txt: 1 of its 1 images are missing: absent;"):
        Bbbc039Source(tmp_path, split="test")
    (tmp_path / "masks" / "IXMtest_P24_s9_w1C.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 images have no label: IXMtest_P24_s9_w1C.tif"):
        Bbbc039Source(tmp_path)


def test_folders_in_folders_of_their_own_name_are_found(tmp_path):
    bbbc039(tmp_path / "plain")
    for name in ("images", "masks", "metadata"):
        (tmp_path / name).mkdir()
        (tmp_path / "plain" / name).rename(tmp_path / name / name)
    assert len(Bbbc039Source(tmp_path)) == 3


# ---------------------------------------------------------------- LIVECell
def outline(y, x, side=2):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def livecell(root, *, flat=True):
    names = {"train": [f"A172_Phase_C7_1_0{i}d16h00m_{i}.tif" for i in range(5)] + ["BV2_Phase_D4_2_00d00h00m_1.tif"],
             "val": ["BV2_Phase_D4_1_00d12h00m_2.tif", "A172_Phase_C7_1_00d16h00m_0.tif"],
             "test": ["BV2_Phase_A4_2_00d00h00m_1.tif"]}
    segmentations = outline(0, 0, 3), outline(2, 2), outline(9, 9)
    for split, listed in names.items():
        folder = root / "images" / ("livecell_test_images" if split == "test" else "livecell_train_val_images")
        for name in listed:
            save((folder if flat else folder / name.split("_")[0]) / name, picture(7))
        images = [{"id": 100 + i, "file_name": name, "height": 6, "width": 8} for i, name in enumerate(listed)]
        images.append({"id": 5, "file_name": listed[0], "height": 6, "width": 8})       # annotated twice
        annotations = [{"id": 10 * k + i, "image_id": image["id"], "category_id": 1, "iscrowd": 0, "segmentation": segmentation}
                       for i, image in enumerate(images) for k, segmentation in enumerate(segmentations)]
        path = root / "annotations" / "LIVECell" / f"livecell_coco_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}))
    return root


@pytest.mark.parametrize("flat", [True, False])
def test_livecell(tmp_path, flat):
    source = LiveCellSource(livecell(tmp_path, flat=flat))
    assert source.splits == ["train"] * 6 + ["val", "test"]      # what val shares with train counts once
    sample = source[0]
    assert sample.name == "A172_Phase_C7_1_00d16h00m_0.tif" and sample.modality == "phase contrast (A172)"
    assert {s.group for s in source} == {"A172_Phase_C7", "BV2_Phase_D4", "BV2_Phase_A4"}
    assert sample.labels.shape[2] == 2 and cells(sample) == pixels(square(0, 0, 3), square(2, 2))     # the third lies outside
    assert LiveCellSource(tmp_path, split="val").names == ["BV2_Phase_D4_1_00d12h00m_2.tif", "A172_Phase_C7_1_00d16h00m_0.tif"]
    assert LiveCellSource(tmp_path, limit=7).names == source.names[:7]


def test_livecell_subsets_take_every_nth_image_of_the_chosen_type(tmp_path):
    livecell(tmp_path)
    every = LiveCellSource(tmp_path, split="train").names
    assert LiveCellSource(tmp_path, split="train", percent=50).names == every[::2]
    assert LiveCellSource(tmp_path, split="train", percent=25).names == every[::4]
    assert LiveCellSource(tmp_path, split="train", percent=2).names == every[:1]
    assert LiveCellSource(tmp_path, split="train", cell_type="BV2", percent=50).names == every[5:]
    for wrong in ({"percent": 3}, {"cell_type": "bv2"}, {"split": "train_val"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            LiveCellSource(tmp_path, **wrong)


def test_livecell_can_be_resized_as_the_paper_did(tmp_path):
    plain = LiveCellSource(livecell(tmp_path))[0]
    sample = LiveCellSource(tmp_path, size=(12, 8))[0]
    assert sample.image.shape[:2] == (12, 8) and sample.image.dtype == np.float32 and sample.labels.dtype == np.int32
    np.testing.assert_allclose(sample.image, 7, rtol=1e-6)               # grey levels stay
    np.testing.assert_array_equal(sample.labels, plain.labels.repeat(2, axis=0))
    assert sample.pixel_size is None and sample.name == plain.name


def test_livecell_subsets_are_those_of_the_reference(parity_dir):
    from jaxcell.data.sources.livecell import EVERY

    with np.load(parity_dir / "mesmer" / "fn_subsets.npz") as file:
        for every in EVERY.values():
            for count in (3188, 101):
                np.testing.assert_array_equal(np.arange(count)[::every], file[f"out/n{count}_every{every}"])


def test_livecell_files_of_one_cell_type_serve_alone(tmp_path):
    livecell(tmp_path)
    table = tmp_path / "annotations" / "LIVECell" / "livecell_coco_train.json"
    content = json.loads(table.read_text())
    table.unlink()
    content["annotations"] = {str(annotation["id"]): annotation for annotation in content["annotations"]}
    for name in ("train", "livecell_a172_train"):
        single = tmp_path / "annotations" / "LIVECell_single_cells" / "a172" / f"{name}.json"
        single.parent.mkdir(parents=True, exist_ok=True)
        single.write_text(json.dumps(content))
        source = LiveCellSource(tmp_path, split="train", cell_type="A172")
        assert len(source) == 5 and len(cells(source[0])) == 2
        single.unlink()
    with pytest.raises(FileNotFoundError, match="no annotation file for train"):
        LiveCellSource(tmp_path, split="train", cell_type="A172")


def test_livecell_mistakes_are_named(tmp_path):
    livecell(tmp_path)
    next((tmp_path / "images" / "livecell_test_images").iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images that livecell_coco_test.json lists are missing: BV2_Phase_A4"):
        LiveCellSource(tmp_path, split="test")
    save(tmp_path / "images" / "livecell_test_images" / "BV2_Phase_A4_2_00d00h00m_1.tif", np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(3, 3\).*livecell_coco_test.json.*\(6, 8\)"):
        LiveCellSource(tmp_path, split="test")[0]
    for content in ([], {"images": [{"id": [], "file_name": "x"}], "annotations": []},
                    {"images": [{"id": 1}], "annotations": []}, {"images": [{"id": 1, "file_name": "x"}], "annotations": [{}]}):
        (tmp_path / "annotations" / "LIVECell" / "livecell_coco_test.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"livecell_coco_test.json: is not an annotation file"):
            LiveCellSource(tmp_path, split="test")
    image = {"id": 1, "file_name": "x", "height": 6, "width": 8}
    for content in ({"images": [image], "annotations": [{"image_id": 2}]},
                    {"images": [image, image | {"file_name": "y"}], "annotations": []}):
        (tmp_path / "annotations" / "LIVECell" / "livecell_coco_test.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"livecell_coco_test.json: two images have one id, or an annotation belongs to no"):
            LiveCellSource(tmp_path, split="test")


# ---------------------------------------------------------------- NeurIPS 2022
def neurips2022(root):
    files = (("Training-labeled", "png"), ("Training-labeled", "bmp"), ("Training-labeled", "tiff"), ("Tuning", "tif"),
             ("Testing/Public", "png"))
    for number, (folder, ending) in enumerate(files, start=1):
        save(root / folder / "images" / f"cell_{number:05d}.{ending}", picture(number))
        save(root / folder / "labels" / f"cell_{number:05d}_label.tiff", square(0, 0, value=number, dtype=np.uint16))
    save(root / "Tuning" / "images" / "cell_00001.png", picture())
    save(root / "Tuning" / "labels" / "cell_00001_label.tiff", picture(0, np.uint16))
    for folder, name in (("release-part1", "unlabeled_cell_00001.png"), ("train-unlabeled-part2", "slide_1.tif")):
        save(root / folder / name, np.zeros((*SHAPE, 3), np.uint8))
    return root


def test_neurips2022(tmp_path):
    source = Neurips2022Source(neurips2022(tmp_path))
    assert source.names == ["train_cell_00001", "train_cell_00002", "train_cell_00003", "val_cell_00001", "val_cell_00004",
                            "test_cell_00005"]
    assert [sorted(np.unique(sample.labels)) for sample in source] == [[0, 1], [0, 2], [0, 3], [0], [0, 4], [0, 5]]
    unlabelled = Neurips2022Source(tmp_path, labelled=False)
    assert unlabelled.names == ["unlabeled_cell_00001"] and unlabelled[0].labels is None and unlabelled.splits == ["unlabelled"]
    assert Neurips2022Source(tmp_path, labelled=False, split="train", whole_slides=True).names[1:] == ["unlabelled_slide_1"]
    with pytest.raises(ValueError, match="no split 'val'.*unlabelled"):
        Neurips2022Source(tmp_path, labelled=False, split="val")
    save(tmp_path / "Training-labeled" / "labels" / "cell_00009_label.tiff", picture(1, np.uint16))
    with pytest.raises(ValueError, match="without an image: cell_00009_label.tiff"):
        Neurips2022Source(tmp_path)
    save(tmp_path / "Training-labeled" / "images" / "cell_00001.tif", picture())
    with pytest.raises(ValueError, match=r"cell_00001.png and cell_00001.tif both answer"):
        Neurips2022Source(tmp_path)


def test_the_tuning_images_of_the_challenge_came_without_labels(tmp_path):
    save(tmp_path / "TuningSet" / "cell_00001.tif", picture())
    assert Neurips2022Source(tmp_path, split="val")[0].labels is None
    save(tmp_path / "Train_Labeled" / "images" / "cell_00001.tif", picture())
    with pytest.raises(FileNotFoundError, match="Train_Labeled/labels: no such folder.*Training-labeled/labels"):
        Neurips2022Source(tmp_path)


# ---------------------------------------------------------------- NT2
def test_nt2_polygons(tmp_path):
    for name in ("PXL_20220927_150731664", "PXL_20220930_113706497.MP"):
        save(tmp_path / "training_dataset" / f"{name}.tif", np.zeros((*SHAPE, 3), np.uint8))
        rois = [{"points": [[0, 0], [3, 0], [3, 3], [0, 3]]}, {"points": [[2, 2], [6, 2], [6, 5], [2, 5]], "label": "cell"}]
        path = tmp_path / "roi_jsons_combined" / f"{name.removesuffix('.MP')}_ROI.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rois))
    save(tmp_path / "test_dataset" / "PXL_20221001_000000000.tif", picture())
    source = Nt2Source(tmp_path)
    assert source.names == ["PXL_20220927_150731664", "PXL_20220930_113706497", "PXL_20221001_000000000"]
    assert source.splits == ["train", "train", "test"] and source[2].labels is None
    assert [sample.group for sample in source] == ["PXL_20220927", "PXL_20220930", "PXL_20221001"]
    big = picture()
    big[2:5, 2:6] = 1
    assert source[1].labels.shape[2] == 2 and cells(source[1]) == pixels(square(0, 0, 3), big)
    path.write_text('[{"point": []}]')
    with pytest.raises(ValueError, match=r"113706497_ROI.json: must be a list of cells"):
        source[1]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no label: PXL_20220930_113706497.MP.tif"):
        Nt2Source(tmp_path)


@pytest.mark.parametrize("folder", [".", "masks"])
def test_nt2_foreground_masks_and_patches(tmp_path, folder):
    for name, mask in (("PXL_1", square(0, 0) | square(3, 3)), ("PXL_2", picture()), ("PXL_1_ps224_0_145", square(1, 1))):
        save(tmp_path / f"{name}.png", picture())
        save(tmp_path / folder / f"{name}_mask.png", mask)
    source = Nt2Source(tmp_path)
    assert source.names == ["PXL_1", "PXL_2"]
    assert cells(source[0]) == pixels(square(0, 0), square(3, 3)) and not source[1].labels.any()
    assert Nt2Source(tmp_path, patches=True).names == ["PXL_1_ps224_0_145"]
    with pytest.raises(FileNotFoundError, match="has no folder training_dataset, train"):
        Nt2Source(tmp_path, split="train")


# ---------------------------------------------------------------- Sartorius
def sartorius(root):
    place = "shsy5y[diff]_{}_Vessel-714_Ph_3"
    rows = [("0a", square(0, 0, 3), "shsy5y", "E10-4"), ("0a", square(2, 2, 3), "shsy5y", "E10-4"),
            ("0b", square(1, 1), "shsy5y", "E10-1"), ("0c", square(4, 4), "cort", "D1-1")]
    lines = [f'{name},{runs(mask, "C")},8,6,{kind},11h30m00s,2019-06-16,{place.format(well)},0 days'
             for name, mask, kind, well in rows]
    (root / "train.csv").write_text("id,annotation,width,height,cell_type,plate_time,sample_date,sample_id,elapsed_timedelta\n"
                                    + "\n".join(lines) + "\n")
    for name in ("0a", "0b", "0c"):
        save(root / "train" / f"{name}.png", picture())
    save(root / "train_semi_supervised" / "astros[cereb]_D1-1_Vessel-361_Ph_1.png", picture())
    save(root / "test" / "7a.png", picture())
    return root


def test_sartorius(tmp_path):
    source = SartoriusSource(sartorius(tmp_path))
    assert source.names == ["0a", "0b", "0c", "7a"] and source.splits == ["train"] * 3 + ["test"]
    assert cells(source[0]) == pixels(square(0, 0, 3), square(2, 2, 3)) and source[0].labels.shape[2] == 2
    assert source[0].group == source[1].group == "shsy5y[diff]_E10_Vessel-714" != source[2].group
    assert [sample.modality for sample in source] == ["phase contrast (shsy5y)"] * 2 + ["phase contrast (cort)", "phase contrast"]
    assert source[3].labels is None and SartoriusSource(tmp_path, cell_type="cort").names == ["0c"]
    unlabelled = SartoriusSource(tmp_path, labelled=False, split="train")
    assert unlabelled[0].labels is None and unlabelled[0].modality == "phase contrast (astro)"
    assert unlabelled[0].group == "astros[cereb]_D1_Vessel-361" and unlabelled.splits == ["unlabelled"]
    with pytest.raises(ValueError, match="cell_type 'neuron'.*shsy5y"):
        SartoriusSource(tmp_path, cell_type="neuron")


def test_sartorius_mistakes_are_named(tmp_path):
    sartorius(tmp_path)
    save(tmp_path / "train" / "0d.png", picture())
    with pytest.raises(ValueError, match=r"train.csv: has no row for 1 of 4 images: 0d.png"):
        SartoriusSource(tmp_path, split="train")
    (tmp_path / "train" / "0d.png").unlink()
    save(tmp_path / "train" / "0a.png", np.zeros((5, 5), np.uint8))
    with pytest.raises(ValueError, match=r"train.csv, image 0a: .*\(6, 8\).*\(5, 5\)"):
        SartoriusSource(tmp_path)[0]
    (tmp_path / "train" / "0a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.csv: 1 of its images are missing: 0a"):
        SartoriusSource(tmp_path)
    (tmp_path / "train.csv").write_text("id,annotation,width,height,cell_type\n0b,1 1,eight,6,cort\n")
    with pytest.raises(ValueError, match=r"train.csv, line 2: width 'eight'"):
        SartoriusSource(tmp_path)
    (tmp_path / "train.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.csv: no such file"):
        SartoriusSource(tmp_path)
    assert SartoriusSource(tmp_path, split="test").names == ["7a"]


# ---------------------------------------------------------------- Omnipose and Cellpose
def omnipose(root):
    for place, ending in (("bact_phase/train_sorted/A22", "tif"), ("bact_phase/test_sorted/A22", "tif"),
                          ("bact_fluor/train_sorted/wiggins", "tif"), ("worm/train", "png")):
        save(root / place / f"im_1.{ending}", picture())
        save(root / place / f"im_1_masks.{ending}", square(1, 1, value=3, dtype=np.uint16))
        tifffile.imwrite(root / place / "im_1_flows.tif", np.zeros((5, *SHAPE), np.float32))
    return root


def test_omnipose(tmp_path):
    source = OmniposeSource(omnipose(tmp_path))
    assert source.names == ["bact_phase_train_A22_im_1", "bact_fluor_train_wiggins_im_1", "worm_train_im_1",
                            "bact_phase_test_A22_im_1"]
    assert [sample.modality for sample in source] == ["phase contrast (A22)", "fluorescence (wiggins)", "brightfield",
                                                      "phase contrast (A22)"]
    assert [sample.group for sample in source] == ["bact_phase_train_A22", "bact_fluor_train_wiggins", "worm_train_im_1",
                                                   "bact_phase_test_A22"]
    assert all(cells(sample) == pixels(square(1, 1)) for sample in source)
    assert OmniposeSource(tmp_path, split="train", collection="worm").names == ["worm_train_im_1"]
    with pytest.raises(ValueError, match="collection 'bact'.*bact_phase, bact_fluor, worm"):
        OmniposeSource(tmp_path, collection="bact")
    with pytest.raises(FileNotFoundError, match="has no folder worm/test_sorted, worm/test"):
        OmniposeSource(tmp_path, split="test", collection="worm")
    (tmp_path / "worm" / "train" / "im_1_masks.png").unlink()
    with pytest.raises(FileNotFoundError, match="no label: im_1.png"):
        OmniposeSource(tmp_path)


def cellpose(root):
    for folder in ("train", "test", "train_cyto2"):
        for number in range(2):
            save(root / folder / f"{number:03d}_img.png", np.zeros((*SHAPE, 3), np.uint8))
            save(root / folder / f"{number:03d}_masks.png", square(number, number, value=number + 1, dtype=np.uint16))
    return root


def test_cellpose(tmp_path):
    source = CellposeSource(cellpose(tmp_path))
    assert source.names[:4] == ["train_000", "train_001", "test_000", "test_001"] and len(source) == 6
    assert [cells(sample) for sample in source][:2] == [pixels(square(0, 0)), pixels(square(1, 1))]
    save(tmp_path / "train_cyto2" / "001_masks.png", np.where(square(1, 1), 5, 65535).astype(np.uint16))
    assert cells(CellposeSource(tmp_path, split="train_cyto2")[1]) == pixels(square(1, 1))
    (tmp_path / "test" / "000_img.png").unlink()
    with pytest.raises(ValueError, match=r"test: labels without an image: 000_masks.png;.*train/000_img.png"):
        CellposeSource(tmp_path)


# ---------------------------------------------------------------- all of them
MAKERS = {"bbbc038": bbbc038, "bbbc039": bbbc039, "cellpose": cellpose, "livecell": livecell, "neurips2022": neurips2022,
          "omnipose": omnipose, "sartorius": sartorius}


@pytest.mark.parametrize("kind", MAKERS)
def test_names_are_unique_and_the_same_whichever_part_is_opened(tmp_path, kind):
    whole = SOURCES[kind](MAKERS[kind](tmp_path))
    assert len(set(whole.names)) == len(whole) == len(list(whole))
    assert [sample.name for sample in whole] == whole.names and all(sample.modality != "unknown" for sample in whole)
    for split in dict.fromkeys(whole.splits):
        part = SOURCES[kind](tmp_path, split=split)
        assert {name for name, other in zip(whole.names, whole.splits, strict=True) if other == split} <= set(part.names)
    assert SOURCES[kind](tmp_path, limit=1).names == whole.names[:1]
    copy = pickle.loads(pickle.dumps(whole))
    for index in (0, -1):
        np.testing.assert_array_equal(copy[index].image, whole[index].image)


@pytest.mark.parametrize("kind", [*MAKERS, "nt2"])
def test_a_folder_that_is_none_says_what_it_should_look_like(tmp_path, kind):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileNotFoundError, match="look(s)? like"):
            SOURCES[kind](path)


# ---------------------------------------------------------------- real cells in each coding
def touching_apart(labels):
    """Small numbers, used again, that differ between cells that touch: how BBBC039 is coded."""
    colours = np.zeros(labels.shape, np.uint8)
    padded = np.pad(labels, 1)
    for number in np.unique(labels[labels > 0]):
        rows, columns = np.nonzero(padded == number)
        around = {int(n) for y in (-1, 0, 1) for x in (-1, 0, 1) for n in np.unique(padded[rows + y, columns + x])} - {0, number}
        taken = {int(colours[labels == n][0]) for n in around}
        colours[labels == number] = next(c for c in range(1, 256) if c not in taken)
    return colours


def test_real_nuclei_are_the_same_in_every_coding(tmp_path, data_dir):
    sample = next(s for s in FolderSource(data_dir / "bbbc039") if s.labels.max() > 80)
    labels = sample.labels[..., 0]
    image, masks = sample.image[..., 0], [labels == number for number in range(1, labels.max() + 1)]
    name = "IXMtest_A02_s1_w1A"
    save(tmp_path / "39" / "images" / f"{name}.tif", image)
    save(tmp_path / "39" / "masks" / f"{name}.png", np.repeat(touching_apart(labels)[..., None], 4, axis=2))
    save(tmp_path / "38" / "stage1_train" / "x" / "images" / "x.png", (image >> 4).astype(np.uint8))
    for number, mask in enumerate(masks):
        save(tmp_path / "38" / "stage1_train" / "x" / "masks" / f"{number:03d}.png", mask.astype(np.uint8) * 255)
    height, width = labels.shape
    for folder, order, table, header, tail in (
            ("runs", "F", "stage1_solution.csv", "ImageId,EncodedPixels", ""),
            ("runs", "C", "train.csv", "id,annotation,width,height,cell_type", f",{width},{height},cort")):
        save(tmp_path / folder / ("stage1_test/x/images/x.png" if order == "F" else "train/x.png"), (image >> 4).astype(np.uint8))
        (tmp_path / folder / table).write_text("\n".join([header, *(f"x,{runs(mask, order)}{tail}" for mask in masks)]))
    sources = (Bbbc039Source(tmp_path / "39"), Bbbc038Source(tmp_path / "38"), Bbbc038Source(tmp_path / "runs"),
               SartoriusSource(tmp_path / "runs"))
    expected = pixels(*masks)
    for source in sources:
        assert cells(source[0]) == expected, source
