"""Runs that end with an error: as early as they can, and with what was saved on disk."""

from __future__ import annotations

import pytest

from configs.maunet import get_config
from jaxcell.train import train
from jaxcell.training.checkpoint import latest_step


@pytest.fixture
def config():
    config = get_config("toy")
    config.train.update({"steps": 2, "eval_every": 1, "checkpoint_every": 1})
    return config


def test_a_tile_that_keeps_nothing_is_refused_before_the_first_step(config, tmp_path):
    config.inference.update({"mode": "blocks", "tile": 64, "margin": 32})
    with pytest.raises(ValueError, match="tile 64 with margin 32 keeps nothing"):
        train(config, tmp_path)
    assert latest_step(tmp_path / "checkpoints") is None


@pytest.mark.slow
def test_a_validation_that_fails_leaves_a_whole_checkpoint(config, tmp_path):
    config.data.val.synthetic = {"kind": "synthetic", "modality": "brightfield", "count": 1, "size": 64}    # of two planes
    with pytest.raises(ValueError, match="does not fit a network of 3 channels"):
        train(config, tmp_path)
    assert latest_step(tmp_path / "checkpoints") == 1
