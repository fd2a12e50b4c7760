"""What `jaxcell synthesize` writes is what was composed, and training reads it as it is."""

from __future__ import annotations

import numpy as np
import pytest

from configs.pix2pix import get_config as pix2pix
from configs.synthesis import get_config
from jaxcell.cli import main
from jaxcell.data.sources.folder import FolderSource
from jaxcell.synthesize import composed_parts, synthesize
from jaxcell.train import train


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


def test_no_split_of_another_seed_has_the_same_images():
    config = get_config("toy")
    config.count.update({"train": 1, "val": 1, "test": 1})
    images = set()
    for config.seed in range(3):
        images |= {source[0].image.tobytes() for source in composed_parts(config).values()}
    assert len(images) == 9


@pytest.mark.slow
def test_images_that_a_network_makes(tmp_path):
    config = pix2pix("toy")
    config.train.update({"steps": 2, "eval_every": 2, "checkpoint_every": 2})
    train(config, tmp_path / "run")
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
