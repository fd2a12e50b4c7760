"""Runs that end with an error: as early as they can, and with what was saved on disk."""

from __future__ import annotations

import ml_collections
import pytest

from configs import contour_proposal
from configs.maunet import get_config
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.export.layouts import convert
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


@pytest.mark.parametrize("key", ["data", "semi"])
def test_a_batch_that_does_not_divide_over_the_devices_is_refused_before_the_first_step(key, config, tmp_path):
    config.semi.update({"scheme": "cross", "batch_size": 4, "unlabelled": dict(config.data.train)})
    config[key].batch_size = 6
    with pytest.raises(ValueError, match=f"config.{key}.batch_size=6 does not divide over 4 devices"):
        train(config, tmp_path)


@pytest.mark.parametrize("key", ["log_every", "eval_every", "checkpoint_every"])
def test_every_zero_steps_is_refused_before_the_first(key, config, tmp_path):
    config.train[key] = 0
    with pytest.raises(ValueError, match=rf"config.train.{key}=0; it is a number of steps, 1 or more"):
        train(config, tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_images_wherever_they_lie(tmp_path, capsys):
    for name in ("mine", "others"):
        parts = {"train": SyntheticSource(3, size=64, seed=len(name)), "val": SyntheticSource(1, size=64, seed=9)}
        convert(parts, tmp_path / name, kind="folder")
    config = contour_proposal.get_config("toy")
    source = {"kind": "folder", "root": "", "labelled": True}
    config.data.root = str(tmp_path / "mine")
    config.data.train = ml_collections.ConfigDict({"own": {**source, "split": "train"}})
    config.data.val = ml_collections.ConfigDict({"own": {**source, "split": "val"}})
    config.train.update({"steps": 1, "log_every": 1, "eval_every": 1, "checkpoint_every": 1})
    run = tmp_path / "run"
    train(config, run)
    before = (run / "config.json").read_text()
    config.data.root = str(tmp_path / "others")
    with pytest.raises(ValueError, match="began with 3 training images; these are 3 of other names, such as 'synthetic_6_00000"):
        train(config, run)
    assert (run / "config.json").read_text() == before
    (tmp_path / "mine").rename(tmp_path / "moved")
    config.data.root = str(tmp_path / "moved")
    capsys.readouterr()
    train(config, run)
    assert "has these 1 steps already; nothing is trained" in capsys.readouterr().out


@pytest.mark.slow
def test_a_validation_that_fails_leaves_a_whole_checkpoint(config, tmp_path):
    config.data.val.synthetic = {"kind": "synthetic", "modality": "brightfield", "count": 1, "size": 64}    # of two planes
    with pytest.raises(ValueError, match="does not fit a network of 3 channels"):
        train(config, tmp_path)
    assert latest_step(tmp_path / "checkpoints") == 1
