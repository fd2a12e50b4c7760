"""What `jaxcell synthesize` writes is what was composed, and training reads it as it is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from unittest.mock import Mock

import numpy as np
import pytest

from configs.maunet import get_config as maunet
from configs.pix2pix import get_config as pix2pix
from configs.synthesis import get_config
from jaxcell.cli import main
from jaxcell.data.sources.folder import FolderSource
from jaxcell.synthesize import composed_parts, synthesize
from jaxcell.train import train
from jaxcell.translate import load_features, load_translator


def masks_of(sample) -> list[bytes]:
    return sorted((sample.labels == number).any(-1).tobytes() for number in np.unique(sample.labels) if number > 0)


def test_a_folder_that_training_reads(tmp_path):
    config = get_config("toy")
    written = synthesize(config, tmp_path / "made")
    assert written.images == 3 and not written.lost
    for split, source in composed_parts(config).items():
        read = FolderSource(tmp_path / "made", split=split, labelled=True)
        assert len(read) == len(source) == config.count[split]
        for index in range(len(read)):
            made, stored = source[index], read[index]
            np.testing.assert_array_equal(stored.image, made.image)
            assert masks_of(stored) == masks_of(made)
            np.testing.assert_array_equal(stored.nuclei > 0, made.nuclei > 0)


def files_in(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_command_goes_on_after_an_interruption(tmp_path, monkeypatch):
    config, part = get_config("toy"), tmp_path / "made.part"
    synthesize(config, tmp_path / "whole")

    def interrupted():
        """Everything is composed, nothing written."""
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("jaxcell.synthesize.convert", Mock(side_effect=KeyboardInterrupt))
            synthesize(config, tmp_path / "made")

    interrupted()
    kept = sorted((part / "samples").iterdir())
    assert len(kept) == 3 and not (tmp_path / "made").exists()
    changed = get_config("toy")
    changed.compose.sigma = 3.0
    with pytest.raises(ValueError, match=r"(?s)made.part holds .* another config.*compose.sigma: 2.0 -> 3.0"):
        synthesize(changed, tmp_path / "made")
    # As if killed while it wrote an image, or without power just after, and another time while it wrote the folder.
    times = [path.stat().st_mtime_ns for path in kept]
    kept[1].unlink()
    kept[2].write_bytes(kept[2].read_bytes()[:-9])
    (part / "data.part").mkdir()
    interrupted()
    assert [path.stat().st_mtime_ns == time for path, time in zip(kept, times, strict=True)] == [True, False, False]
    kept[1].unlink()
    config.data.workers = 1         # other workers go on
    synthesize(config, tmp_path / "made")
    assert files_in(tmp_path / "made") == files_in(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "whole"]
    with pytest.raises(ValueError, match="exists and is not empty"):
        synthesize(config, tmp_path / "made")


@pytest.mark.parametrize(("change", "message"), [
    ({"layout": "cellpose"}, "'cellpose' gives each pixel to one cell.*qupath"), ({"layout": "paper"}, "'paper' is unknown"),
    ({"layout": "bbbc038", "count.test": 1}, "calls the splits .* test, .*test.*; two cannot be one"),
    ({"count.train": 0, "count.val": 0}, "one of them at least 1"), ({"count.train": -1}, "0 or more"),
    ({"data.workers": -1}, "workers=-1"), ({"compose.planes": (5,)}, r"planes=\(5,\), but synthetic_1_0000. has 3"),
])
def test_what_cannot_be_written_is_said_before_anything_is_composed(change, message, tmp_path, monkeypatch):
    config = get_config("toy")
    config.update_from_flattened_dict(change)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match=message):
        synthesize(config, "made")
    assert not (tmp_path / "made").exists() and not list(tmp_path.glob("made.part/samples/*"))


def test_the_folder_may_be_the_one_where_the_command_is_given(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert synthesize(get_config("toy"), ".").images == 3
    assert (tmp_path / "here" / "manifest.csv").exists()


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on(tmp_path):
    program = "import sys; from jaxcell.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "synthesize", "--config=configs/synthesis.py:toy", "--config.count.train=60",
               "--config.data.workers=1", f"--out={tmp_path / 'made'}"]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("made.part/samples/*.sample"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert 5 <= len(list(tmp_path.glob("made.part/samples/*.sample"))) < 61
    config = get_config("toy")
    config.count.train = 60
    for name in ("made", "whole"):
        synthesize(config, tmp_path / name)
    assert files_in(tmp_path / "made") == files_in(tmp_path / "whole") and not (tmp_path / "made.part").exists()


def test_no_split_of_another_seed_has_the_same_images():
    config = get_config("toy")
    config.count.update({"train": 1, "val": 1, "test": 1})
    images = set()
    for config.seed in range(3):
        images |= {source[0].image.tobytes() for source in composed_parts(config).values()}
    assert len(images) == 9


@pytest.mark.slow
def test_images_that_a_network_makes(tmp_path, capsys):
    config = pix2pix("toy")
    config.train.update({"steps": 2, "eval_every": 2, "checkpoint_every": 2})
    config.model.levels = 6     # the fewest of which one drops features
    train(config, tmp_path / "run")
    workdir = str(tmp_path / "run")
    assert main(["evaluate", "--workdir", workdir]) == 0
    assert json.loads((tmp_path / "run" / "evaluation" / "images.json").read_text())["l1"] > 0
    assert main(["predict", str(tmp_path), "--workdir", workdir, "--out", str(tmp_path / "cells")]) == 2
    assert "makes images, not cells" in capsys.readouterr().err
    translate, image = load_translator(workdir), np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8)
    np.testing.assert_array_equal(translate(image), translate(image))       # its noise is drawn from the image
    with pytest.raises(ValueError, match="is shown 1 planes"):
        translate(image[..., :0])

    cells = maunet("toy")       # another run's network says what a Fréchet distance compares
    cells.train.update({"steps": 1, "eval_every": 2, "checkpoint_every": 1})
    train(cells, tmp_path / "cells_run", allow_cpu=True)
    pair = np.concatenate([image, image[::-1]], axis=-1) / 255
    name, seen = load_features(tmp_path / "cells_run", planes=2)
    apart = seen(pair)          # a network of colours sees each plane alone
    assert name == "frechet" and apart.shape[0] == 2 and np.isfinite(apart).all()
    cells.data.channels = 2     # and one of two planes both
    for source in (cells.data.train, cells.data.val):
        source.synthetic = {"kind": "synthetic", "modality": "brightfield", "count": 4, "size": 64}
    train(cells, tmp_path / "two", allow_cpu=True)
    assert load_features(tmp_path / "two", planes=2).of(pair).shape == (1, apart.shape[1])
    with pytest.raises(ValueError, match="sees 2 planes, and the images to compare have 3"):
        load_features(tmp_path / "two", planes=3)
    assert main(["evaluate", "--workdir", workdir, f"--config.train.features={tmp_path / 'cells_run'}"]) == 0
    assert json.loads((tmp_path / "run" / "evaluation" / "images.json").read_text())["frechet"] > 0
    synthesis = get_config("toy")
    synthesis.translator = str(tmp_path / "run")
    synthesize(synthesis, tmp_path / "made")
    sample, composed = FolderSource(tmp_path / "made", split="val")[0], composed_parts(get_config("toy"))["val"][0]
    assert sample.image.shape == (*composed.image.shape[:2], 2) and sample.image.dtype == np.uint8
    assert masks_of(sample) == masks_of(composed)


def test_errors_take_one_line(tmp_path, capsys):
    for arguments, words in ((["--config", "configs/synthesis.py:toy"], "--out must be given"),
                             (["--config", "configs/synthesis.py:none", "--out", str(tmp_path)], "no variant 'none'")):
        assert main(["synthesize", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert main(["synthesize", "--help"]) == 0
