"""What `jaxcell synthesize` writes is what was composed, and training reads it as it is."""

from __future__ import annotations

import json
import subprocess
import sys
import time

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


def test_the_same_command_goes_on_after_an_interruption(tmp_path):
    config, part = get_config("toy"), tmp_path / "made.part"
    synthesize(config, tmp_path / "whole")
    config.layout = "cellpose"
    with pytest.raises(ValueError, match="more than one cell"):     # everything is composed, nothing written
        synthesize(config, tmp_path / "made")
    kept = sorted((part / "samples").iterdir())
    assert len(kept) == 3 and not (tmp_path / "made").exists()
    changed = get_config("toy")
    changed.compose.sigma = 3.0
    with pytest.raises(ValueError, match=r"(?s)made.part holds .* another config.*compose.sigma: 2.0 -> 3.0"):
        synthesize(changed, tmp_path / "made")
    # As if killed while it wrote an image, and another time while it wrote the folder; other workers go on.
    times = [path.stat().st_mtime_ns for path in kept]
    for path in kept[1:]:
        path.unlink()
    (part / "data.part").mkdir()
    with pytest.raises(ValueError, match="more than one cell"):
        synthesize(config, tmp_path / "made")
    assert [path.stat().st_mtime_ns == time for path, time in zip(kept, times, strict=True)] == [True, False, False]
    kept[1].unlink()
    config.update({"layout": "qupath"})
    config.data.workers = 1
    synthesize(config, tmp_path / "made")
    assert files_in(tmp_path / "made") == files_in(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "whole"]
    with pytest.raises(ValueError, match="exists and is not empty"):
        synthesize(config, tmp_path / "made")


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
