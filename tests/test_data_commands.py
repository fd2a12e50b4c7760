"""`jaxcell data` as a user calls it: exit statuses, what is printed and written, and one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxcell import cli
from jaxcell.data.sources.folder import FolderSource
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.data_commands import open_config, open_folder
from jaxcell.export.layouts import convert
from jaxcell.geometry.labels import resolve_overlaps

CONFIG = "configs/contour_proposal.py:own"


def write_pairs(folder, numbers, *, size=96):
    folder.mkdir(parents=True, exist_ok=True)
    source = SyntheticSource(20, size=size, seed=3)
    for number in numbers:
        sample = source[number]
        Image.fromarray(sample.image.squeeze()).save(folder / f"well_{number}.1.png")
        Image.fromarray(resolve_overlaps(sample.labels).astype(np.uint16)).save(folder / f"well_{number}.1_label.png")
    return folder


@pytest.fixture
def lab(tmp_path):
    """A folder as a lab has it, without splits."""
    return write_pairs(tmp_path / "lab", range(6))


def call(*arguments) -> int:
    return cli.main(["data", *map(str, arguments)])


def failed(capsys, *arguments) -> str:
    """The error of a command that could not do its work: one line."""
    assert call(*arguments) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[-1].startswith("jaxcell data: ") and not any("Traceback" in line for line in printed)
    return printed[-1]


# ---------------------------------------------------------------- check
def test_a_sound_folder_is_status_0_and_divided_as_training_would(lab, tmp_path, capsys):
    assert call("check", lab, "--json", tmp_path / "out" / "report.json", "--quiet") == 0
    text, report = capsys.readouterr().out, json.loads((tmp_path / "out" / "report.json").read_text())
    assert "0 errors" in text and set(report["parts"]) == {"train", "val"} and len(report["samples"]) == 6
    assert FolderSource(lab, split="val").names == [s["name"] for s in report["samples"] if s["part"] == "val"]


def test_planted_faults_decide_the_status(lab, capsys):
    picture = np.asarray(Image.open(lab / "well_0.1_label.png"))
    Image.fromarray(picture[::-1]).save(lab / "well_0.1_label.png")
    assert call("check", lab, "--quiet") == 0 and call("check", lab, "--quiet", "--strict") == 1
    assert "labels that do not fit the image: 1 of " in capsys.readouterr().out
    (lab / "well_2.1.png").write_bytes((lab / "well_2.1.png").read_bytes()[:200])
    assert call("check", lab, "--quiet") == 1
    printed = capsys.readouterr().out
    assert "an image that cannot be used" in printed and "well_2.1.png: cannot be" in " ".join(printed.split())


def test_a_folder_that_cannot_be_opened_is_an_error_found(lab, capsys):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(lab / "well_0.1_mask.png")
    assert call("check", lab, "--quiet") == 1
    assert "all answer to 'well_0.1'" in " ".join(capsys.readouterr().out.split())


def test_copies_are_found_between_subfolders(tmp_path, capsys):
    write_pairs(tmp_path / "train", range(4))
    write_pairs(tmp_path / "val", range(3, 6))
    assert call("check", tmp_path, "--quiet", "--strict") == 1
    printed = capsys.readouterr().out
    assert "images alike in two splits" in printed and "well_3.1 (is well_3.1)" in printed
    assert call("check", tmp_path, "--quiet", "--strict", "--split", "val") == 0


def test_images_that_are_not_read_are_named(tmp_path, capsys):
    nest = write_pairs(tmp_path / "nest", range(3))
    write_pairs(nest / "day2", range(3, 7))
    assert call("check", nest, "--quiet") == 0 and call("check", nest, "--quiet", "--strict") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "WARNING all: images that are not read: 4 images: day2/well_3.1.png, " in printed
    assert "passed over: day2 (4 images); move them" in printed
    assert call("check", CONFIG, f"--config.data.root={nest}", "--quiet") == 0
    assert "passed over: day2 (4 images)" in capsys.readouterr().out
    assert call("convert", nest, "--to", "coco", "--out", tmp_path / "coco") == 0
    assert "  not read: day2 (4 images).\n" in capsys.readouterr().out


def test_what_seems_to_be_a_split_is_named(tmp_path, capsys):
    write_pairs(tmp_path / "tv" / "train", range(4))
    write_pairs(tmp_path / "tv" / "validation", (4, 5))
    assert call("check", tmp_path / "tv", "--quiet") == 0
    assert "1 warning" in (printed := capsys.readouterr().out) and "validation to val" in " ".join(printed.split())
    assert call("convert", tmp_path / "tv", "--to", "coco", "--out", tmp_path / "coco") == 0
    assert "not read: validation (2 images). If they are splits, rename validation to val." in capsys.readouterr().out
    assert "rename validation to val" in failed(capsys, "check", tmp_path / "tv", "--split", "val")
    (tmp_path / "tv" / "validation").rename(tmp_path / "tv" / "val")
    write_pairs(tmp_path / "tv", [6])
    assert call("check", tmp_path / "tv", "--quiet") == 0
    assert "the folder itself (1 image)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("to", ["qupath", "imagej"])
def test_a_manifest_without_splits_is_divided(lab, tmp_path, to, capsys):
    assert call("convert", lab, "--to", to, "--out", tmp_path / "new", "--overlaps", "top") == 0
    assert {split: len(source) for split, source in open_folder(tmp_path / "new").items()} == {"": 6}
    assert open_folder(tmp_path / "new", divide=True)["val"].names == FolderSource(lab, split="val").names
    assert call("check", CONFIG, f"--config.data.root={tmp_path / 'new'}", "--quiet") == 0
    assert "train/own" in capsys.readouterr().out


def test_labels_of_another_name_are_an_error(lab, capsys):
    for path in lab.glob("*_label.png"):
        path.rename(str(path).replace("_label.png", "_gt.png"))
    assert call("check", lab, "--quiet") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "ERROR train: no image is annotated" in printed and "rename it well_0.1_label" in printed


@pytest.fixture
def stacks(tmp_path):
    """Movies of two frames, with foreground masks."""
    folder = write_pairs(tmp_path / "stacks", range(4))
    for path in folder.glob("*_label.png"):
        Image.fromarray(((np.asarray(Image.open(path)) > 0) * 255).astype(np.uint8)).save(path)
    for path in folder.glob("*.1.png"):
        plane = np.asarray(Image.open(path))
        tifffile.imwrite(path.with_suffix(".tif"), np.stack([plane, plane]), imagej=True, metadata={"axes": "TYX"})
        path.unlink()
    return folder


def test_coding_and_select_are_options(stacks, tmp_path, capsys):
    chosen = ("--coding", "binary", "--select", "T=0")
    assert call("check", stacks, "--quiet", "--select", "T=0") == 1
    assert "coding is an option: --coding" in " ".join(capsys.readouterr().out.split())
    assert call("check", stacks, "--quiet", *chosen) == 0
    assert call("view", stacks, "--out", tmp_path / "sheet.png", *chosen) == 0
    assert call("convert", stacks, "--to", "folder", "--out", tmp_path / "new", *chosen) == 0
    assert FolderSource(tmp_path / "new")[0].labels.max() > 1 and FolderSource(tmp_path / "new")[0].image.shape[2] == 1
    assert "for folders of images" in failed(capsys, "check", stacks, "--kind", "bbbc038", "--coding", "rgb")


@pytest.mark.parametrize("system", ["contour_proposal", "maunet", "mesmer", "morphoseg", "sparse_seunet"])
def test_coding_and_select_can_be_set_in_the_config_of_own_images(stacks, system):
    keys = [f"--config.data.root={stacks}", "--config.data.train.own.select=T=0"]
    sample = open_config(f"configs/{system}.py:own", [*keys, "--config.data.train.own.coding=binary"]).parts["train/own"][0]
    assert sample.image.shape[2] == 1 and sample.labels.max() > 1
    with pytest.raises(ValueError, match="config.data.train.own.coding"):
        open_config(f"configs/{system}.py:own", keys).parts["train/own"][0]


def test_a_config_adds_what_training_will_do(lab, capsys):
    arguments = ("check", CONFIG, f"--config.data.root={lab}", "--quiet")
    assert call(*arguments) == 0
    printed = capsys.readouterr().out
    assert "train/own" in printed and "images smaller than the crop" in printed and "normalised (1, 99.9 %)" in printed
    assert call(*arguments, "--config.data.normalize.name=wild") == 1
    assert "normaliser 'wild' is unknown" in capsys.readouterr().out
    assert call(*arguments, "--config.data.planes=(4,)") == 1
    assert "the image has planes 0 to 0" in capsys.readouterr().out
    assert call("check", CONFIG, "--config.data.root=absent", "--quiet") == 1
    assert "absent: no such folder" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (("check", "absent"), "absent: no such folder or file"), (("check", "configs/none.py"), "none.py"),
    (("look",), "'look' is not a command; known are check, view, convert"), (("check", CONFIG, "surplus"), "surplus"),
    (("check", CONFIG, "--config.data.cropp=3"), "Did you mean \"crop\""),
    (("check", CONFIG, "--config.data.zzz=3"), "the config has no key 'zzz'"),
    (("check", ".", "--kind", "video"), "--kind=video: is unknown; it is one of folder"),
    (("check", ".", "--kind", "synthetic"), "cannot be opened from a folder alone"),
])
def test_errors_take_one_line(arguments, message, capsys):
    assert message in failed(capsys, *arguments)


@pytest.mark.parametrize("arguments", [
    ("check", ".", "--nonsense"), ("check", CONFIG, "--kind", "folder"), ("check", CONFIG, "--coding", "rgb"),
    ("convert", CONFIG, "--to", "coco", "--out", "x"),
    ("view", ".", "--out", "x.png", "--augmented"), ("view", "."), ("view", ".", "--out", "x.png", "--count", "0"),
])
def test_usage_errors_are_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as status:
        call(*arguments)
    assert status.value.code == 2 and "usage: jaxcell data" in capsys.readouterr().err


def test_help_lists_the_commands(capsys):
    assert call("--help") == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in ("check", "view", "convert")) and call() == 2
    with pytest.raises(SystemExit) as status:
        call("convert", "--help")
    assert status.value.code == 0 and "images/ and one JSON file for each split" in capsys.readouterr().out


def test_looking_at_data_does_not_load_jax(lab, tmp_path):
    code = (f"import sys; from jaxcell import cli; cli.main(['data', 'check', {str(lab)!r}, '--quiet']); "
            f"cli.main(['data', 'view', {str(lab)!r}, '--out', {str(tmp_path / 's.png')!r}]); sys.exit('jax' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# ---------------------------------------------------------------- view
def test_contact_sheets_of_folders_and_of_what_training_sees(lab, tmp_path):
    assert call("view", lab, "--out", tmp_path / "sheets" / "lab.png", "--count", 4, "--size", 64) == 0
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "lab.png"))
    assert sheet.shape[1] == 8 + 2 * 72 and sheet.std() > 10
    config = (CONFIG, f"--config.data.root={lab}", "--config.data.crop=64", "--count", 3, "--size", 64)
    assert call("view", *config, "--out", tmp_path / "stored.png") == 0
    assert call("view", *config, "--out", tmp_path / "augmented.png", "--augmented") == 0
    stored, augmented = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("stored", "augmented"))
    assert augmented.shape[1] == stored.shape[1] and augmented.std() > 10


# ---------------------------------------------------------------- convert
def test_layouts_are_recognised_when_read_again(lab, tmp_path, capsys):
    expected = FolderSource(lab)
    assert call("convert", lab, "--to", "coco", "--out", tmp_path / "coco") == 0
    assert "6 images" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "coco").iterdir()} == {"images", "annotations.json"}
    assert call("convert", tmp_path / "coco", "--to", "folder", "--out", tmp_path / "back") == 0
    back = FolderSource(tmp_path / "back")
    assert back.names == expected.names
    for sample, other in zip(expected, back, strict=True):
        np.testing.assert_array_equal(sample.image, other.image)
        assert len(np.unique(sample.labels)) == len(np.unique(other.labels))
        np.testing.assert_array_equal(sample.labels > 0, other.labels > 0)
    assert call("check", tmp_path / "coco" / "annotations.json", "--quiet") == 0


@pytest.mark.parametrize("kind", ["cellpose", "bbbc038", "tfds"])
def test_other_kinds_are_opened_by_name_with_their_splits(tmp_path, kind):
    one, other = SyntheticSource(2, size=64, overlap=0.0), SyntheticSource(1, size=64, seed=9, overlap=0.0)
    convert({"train": one, "test": other}, tmp_path / kind, kind=kind)
    assert {split: len(source) for split, source in open_folder(tmp_path / kind, kind=kind).items()} == {"train": 2, "test": 1}
    assert call("check", tmp_path / kind, "--kind", kind, "--split", "test", "--quiet") == 0
    assert call("convert", tmp_path / kind, "--kind", kind, "--to", "folder", "--out", tmp_path / "back") == 0
    back = FolderSource(tmp_path / "back", split="train")
    np.testing.assert_array_equal(back[1].image, one[1].image)
    np.testing.assert_array_equal(back[1].labels > 0, one[1].labels > 0)


def test_what_is_not_kept_is_said_and_splits_can_be_renamed(lab, tmp_path, capsys):
    (lab / "manifest.csv").write_text("image_file,label_file,split,pixel_size\n" + "".join(
        f"well_{i}.1.png,well_{i}.1_label.png,{'train' if i < 4 else 'val'},0.5\n" for i in range(6)))
    assert call("convert", lab, "--to", "cellpose", "--out", tmp_path / "a", "--split", "train", "--split", "val=test") == 0
    printed = capsys.readouterr().out
    assert "not kept: pixel size, in images: 6" in printed and "split" not in printed
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["test", "train"]
    assert "is not empty" in failed(capsys, "convert", lab, "--to", "coco", "--out", tmp_path / "a")
    assert "no split 'test'; it has train, val" in failed(capsys, "check", lab, "--split", "test")


def test_coco_folders_are_told_by_their_files(tmp_path):
    part = SyntheticSource(2, size=64)
    convert({"train": part, "val": SyntheticSource(1, size=64, seed=9)}, tmp_path / "coco", kind="coco")
    assert list(open_folder(tmp_path / "coco")) == ["train", "val"]
    assert list(open_folder(tmp_path / "coco", splits=["val"])) == ["val"]
    assert open_folder(tmp_path / "coco" / "val.json")["val"].names == ["synthetic_9_00000.png"]
    (tmp_path / "coco" / "notes.json").write_text("{}")       # no longer certain
    assert isinstance(open_folder(tmp_path / "coco")[""], FolderSource)
    assert list(open_folder(tmp_path / "coco" / "train.json", images=tmp_path / "coco" / "images")) == ["train"]
    (tmp_path / "coco" / "notes.json").unlink()
    (tmp_path / "coco" / "train_2.json").write_text((tmp_path / "coco" / "train.json").read_text())
    with pytest.raises(ValueError, match="same split as train.json"):
        open_folder(tmp_path / "coco")
