"""Two processes of two devices each train as one device does, and write one run."""

from __future__ import annotations

import re

import pytest

from benchmarks.topology import losses, run


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_continues(tmp_path):
    steps = "--config.train.steps=6"
    one = run(tmp_path / "one", steps)
    run(tmp_path / "two", steps, "--config.train.stop_step=4", processes=2, devices=2)
    assert losses(tmp_path / "two") == pytest.approx({k: v for k, v in losses(tmp_path / "one").items() if k <= 4}, rel=1e-4)
    two = run(tmp_path / "two", steps)                   # a checkpoint of two processes continues on one device
    assert "continuing from step 4" in two
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert all(re.search(r"^state sha256: [0-9a-f]{64}$", said, re.MULTILINE) for said in (one, two))
