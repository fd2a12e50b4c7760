"""What `jaxcell synthesize` writes is what was composed, and training reads it as it is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from configs.pix2pix import get_config as pix2pix
from configs.synthesis import get_config
from jaxcell.cli import main
from jaxcell.configuration import load_config
from jaxcell.data.sources.folder import FolderSource
from jaxcell.synthesize import composed_parts, synthesize
from jaxcell.train import train
from jaxcell.translate import load_translator


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


@pytest.mark.slow
def test_images_that_a_network_makes(tmp_path, capsys):
    config = pix2pix("toy")
    config.train.update({"steps": 2, "eval_every": 2, "checkpoint_every": 2})
    train(config, tmp_path / "run")
    workdir = str(tmp_path / "run")
    assert main(["evaluate", "--workdir", workdir]) == 0
    assert json.loads((tmp_path / "run" / "evaluation" / "images.json").read_text())["l1"] > 0
    assert main(["predict", str(tmp_path), "--workdir", workdir, "--out", str(tmp_path / "cells")]) == 2
    assert "makes images, not cells" in capsys.readouterr().err
    translate, image = load_translator(workdir), np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8)
    np.testing.assert_array_equal(translate(image), translate(image))       # its noise is drawn from the image
    quiet = load_config(workdir)
    quiet.inference.noise = False
    assert np.abs(translate(image) - load_translator(workdir, config=quiet)(image)).max() > 0
    with pytest.raises(ValueError, match="is shown 1 planes"):
        translate(image[..., :0])
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
