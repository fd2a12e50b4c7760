"""Sources written as tensorflow-datasets in array_record files, and read back without TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import pickle
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tifffile
from PIL import Image

from jaxcell.data.sources import SOURCES
from jaxcell.data.sources.folder import FolderSource
from jaxcell.data.sources.tfds import TfdsSource
from jaxcell.data.tfds.builders import BUILDERS, build
from jaxcell.data.tfds.examples import from_example, to_example
from jaxcell.types import Sample

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (6, 8, 3), np.uint8), RNG.integers(0, 65536, (7, 5), np.uint16),
          RNG.normal(size=(4, 9)).astype(np.float32), RNG.integers(0, 4096, (3, 3, 6), np.uint16)]


def same(a: Sample, b: Sample) -> None:
    assert a.image.dtype == b.image.dtype
    np.testing.assert_array_equal(a.image, b.image)
    for one, other in ((a.labels, b.labels), (a.nuclei, b.nuclei)):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    assert (a.name, a.modality, a.group, a.pixel_size) == (b.name, b.modality, b.group, b.pixel_size)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", ">u2", "uint32", "float16", "float32", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_sample_becomes_an_example_and_back(dtype, order):
    image = np.asarray(RNG.integers(0, 2**16, (4, 5, 3)).astype(dtype), order=order)
    labels, nuclei = np.full((4, 5, 2), -1, np.int32), np.ones((4, 5), np.int32)
    for sample in (Sample(image, name="a", pixel_size=1 / 3),
                   Sample(image, labels, nuclei, name="\u00e4 b", modality="phase", group="g")):
        back = from_example(to_example(sample))
        same(back, dataclasses.replace(sample, image=image.astype(image.dtype.newbyteorder("="))))
        assert back.image.flags.writeable


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of several types, one with overlapping cells, one without annotation, in two splits."""
    root = tmp_path_factory.mktemp("folder")
    Image.fromarray(IMAGES[0]).save(root / "a.png")
    for stem, image in zip("bcd", IMAGES[1:], strict=True):
        tifffile.imwrite(root / f"{stem}.tif", np.moveaxis(image, -1, 0) if image.ndim == 3 else image, photometric="minisblack")
    overlapping = np.zeros((2, 6, 8), np.uint8)
    overlapping[0, :4, :4], overlapping[1, 2:, 2:] = 255, 255
    tifffile.imwrite(root / "a_labels.tif", overlapping, photometric="minisblack")
    Image.fromarray(RNG.integers(0, 60000, (7, 5)).astype(np.uint16)).save(root / "b_label.png")
    np.save(root / "d_label.npy", np.full((3, 3), 2**31 - 1, np.int64))
    (root / "manifest.csv").write_text("image_file,label_file,split,modality,group,pixel_size\n"
                                       "a.png,a_labels.tif,train,phase,g,0.65\nb.tif,b_label.png,val,fluorescence,h,\n"
                                       "c.tif,,train,,,\nd.tif,d_label.npy,train,,,\n")
    return root


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    return build("folder", folder, tmp_path_factory.mktemp("tfds"))


def test_what_is_read_is_what_was_written_bit_for_bit(folder, written):
    whole = TfdsSource(written)
    for split in ("train", "val"):
        original, stored = FolderSource(folder, split=split), TfdsSource(written, split=split)
        assert stored.names == original.names and len(stored) == len(original)
        for k in (len(original) - 1, 0, -1):        # in any order
            same(stored[k], original[k])
    assert whole.names == ["a", "c", "d", "b"] and whole.splits == ["train", "train", "train", "val"]
    assert [sample.name for sample in whole] == whole.names and TfdsSource(written, limit=2).names == ["a", "c"]
    assert whole[0].labels.shape[2] == 2 and whole[1].labels is None and whole[1].image.dtype == np.float32
    assert "tensorflow" not in sys.modules


def test_tensorflow_datasets_reads_them_itself(written):
    builder = tfds.builder_from_directory(written)
    records = builder.as_data_source(split="val")
    assert len(records) == 1 and records[0]["name"] == b"b" and records[0]["labels"].shape == (7, 5, 1)
    np.testing.assert_array_equal(records[0]["image"].view("<u2")[..., 0], IMAGES[1])
    by_name = tfds.data_source("folder", data_dir=written.parent.parent, split="train")
    assert [record["name"] for record in by_name] == [b"a", b"c", b"d"]
    assert builder.info.file_format.value == "array_record"


def _names_and_sums(source):
    return [(sample.name, float(sample.image.sum())) for sample in source]


def test_other_processes_read_them(written):
    source = TfdsSource(written)
    here = _names_and_sums(source)          # its files are open now
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_names_and_sums, (source,)) == here
    assert len(pickle.dumps(source)) < 1000


def test_a_folder_above_is_enough(written, tmp_path):
    for root in (written.parent, written.parent.parent):
        assert TfdsSource(root).names == TfdsSource(written).names
    with pytest.raises(FileNotFoundError, match="no data set of tensorflow-datasets"):
        TfdsSource(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        TfdsSource(tmp_path / "absent")
    for name in ("1.0.0", "2.0.0"):
        shutil.copytree(written, tmp_path / name)
    with pytest.raises(ValueError, match=r"several data sets; name one of 1\.0\.0, 2\.0\.0"):
        TfdsSource(tmp_path)
    with pytest.raises(ValueError, match="no split 'test'.*train, val"):
        TfdsSource(written, split="test")


def test_damaged_and_foreign_files_are_named(written, tmp_path):
    copy = shutil.copytree(written, tmp_path / "1.0.0")
    (records,) = copy.glob("*train.array_record*")
    content = records.read_bytes()
    for damaged in (content[:len(content) // 2], content[:-9], b"", content[:200] + bytes(200) + content[400:]):
        records.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"1\.0\.0: .*anew"):
            list(TfdsSource(copy, split="train"))
    names = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps({"names": {"train": names["names"]["train"][::-1]}}))
    records.write_bytes(content)
    with pytest.raises(ValueError, match="its list says 'd' where the record is of 'a'"):
        TfdsSource(copy)[0]
    records.unlink()
    (copy / "metadata.json").write_text(json.dumps(names))
    with pytest.raises(ValueError, match=r"1\.0\.0: .*anew"):
        TfdsSource(copy, split="train")[0]
    features = json.loads((copy / "features.json").read_text())
    features["featuresDict"]["features"]["name"]["pythonClassName"] = "antigravity.Text"
    (copy / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match="does not describe samples of jaxcell"):
        TfdsSource(copy, split="val")[0]
    assert "antigravity" not in sys.modules
    for content in ("", "{}", '{"names": ["a"]}', '{"names": {"train": 3}}'):
        (copy / "metadata.json").write_text(content)
        with pytest.raises(ValueError, match="metadata.json: holds no names"):
            TfdsSource(copy)
    (copy / "metadata.json").unlink()
    with pytest.raises(ValueError, match="has no metadata.json"):
        TfdsSource(copy)


def test_what_cannot_be_built_is_named(folder, written, tmp_path):
    with pytest.raises(ValueError, match="'bbbc' is unknown.*bbbc038"):
        build("bbbc", folder, tmp_path)
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        build("folder", tmp_path / "absent", tmp_path)
    with pytest.raises(ValueError, match="exists already"):
        build("folder", folder, written.parent.parent)
    with pytest.raises(FileNotFoundError, match="BBBC038 looks like"):
        build("bbbc038", folder, tmp_path)
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"b\.png"):
        build("folder", tmp_path, tmp_path / "out")
    (tmp_path / "b.png").unlink()
    build("folder", tmp_path, tmp_path / "out")         # a build that failed leaves nothing behind
    assert TfdsSource(tmp_path / "out").splits == ["unsplit"]


def test_every_public_source_has_a_builder():
    made = {"coco", "composed", "synthetic", "tfds"}
    assert set(BUILDERS) - {"neurips2022_unlabelled", "sartorius_unlabelled"} == set(SOURCES) - made
    for kind, builder in BUILDERS.items():
        assert builder.name == kind and (builder.citation and builder.homepage or kind == "folder")


# ---------------------------------------------------------------- real images
@pytest.mark.parametrize("name", ["baby_yeast", "yeastvision_phase"])
def test_real_folders_survive(data_dir, tmp_path, name):
    original = FolderSource(data_dir / name)
    stored = TfdsSource(build("folder", data_dir / name, tmp_path))
    places = {sample: k for k, sample in enumerate(original.names)}
    assert sorted(stored.names) == sorted(original.names)
    for k, sample in enumerate(stored):
        same(sample, original[places[stored.names[k]]])
