"""A run killed with SIGKILL at random moments and started again ends in the same state as one that never stopped."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
STEPS = 40


def command(workdir: Path, *extra: str, system: str = "contour_proposal", steps: int = STEPS) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / f"configs/{system}.py:toy"), "--workdir",
            str(workdir), f"--config.train.steps={steps}", *extra]


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}     # one device, as a user has


def finish(workdir: Path, *extra: str, system: str = "contour_proposal", steps: int = STEPS) -> str:
    """The state's digest after a run that is left alone."""
    arguments = command(workdir, *extra, system=system, steps=steps)
    result = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return digest(result.stdout)


def last_step(workdir: Path) -> int:
    """The last step in the run's log, 0 before the first."""
    log = workdir / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def digest(text: str) -> str:
    found = re.search(r"^state sha256: ([0-9a-f]{64})$", text, re.MULTILINE)
    assert found, text
    return found[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> str:
    return finish(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_five_kills_change_nothing(uninterrupted, tmp_path):
    """Once while starting, then at random steps: between them lie data, steps, validation, saves and renames."""
    moments = random.Random(0)
    start_up = moments.uniform(0.5, 6.0)
    for target in [0, *sorted(moments.sample(range(1, STEPS - 2), 4))]:
        process = subprocess.Popen(command(tmp_path, "--config.train.log_every=1"), env=environment(), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        while target and process.poll() is None and last_step(tmp_path) < target:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.1) if target else start_up)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert finish(tmp_path) == uninterrupted


@pytest.mark.slow
def test_queues_of_virtual_outliers_survive_a_kill(tmp_path):
    run = {"system": "morphoseg", "steps": 12}
    whole = finish(tmp_path / "whole", **run)
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(killed, "--config.train.log_every=1", **run), env=environment(), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    while process.poll() is None and last_step(killed) < 8:     # a checkpoint is written after every fifth step
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finish(killed, **run) == whole


@pytest.mark.slow
def test_sigterm_saves_and_continues(uninterrupted, tmp_path):
    process = subprocess.Popen(command(tmp_path), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    checkpoints = tmp_path / "checkpoints"
    while process.poll() is None and not any(p.name.isdigit() for p in checkpoints.glob("*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, output[-3000:]
    step = int(re.search(r"^step (\d+) of \d+, saved", output, re.MULTILINE)[1])
    assert 5 <= step < STEPS
    assert (checkpoints / str(step)).is_dir(), "the step that SIGTERM interrupted was not saved"
    assert finish(tmp_path) == uninterrupted


def test_another_config_in_the_same_workdir_is_refused(uninterrupted, tmp_path):
    finish(tmp_path, "--config.train.stop_step=5")
    result = subprocess.run(command(tmp_path, "--config.optimizer.schedule.base=0.5"), env=environment(), capture_output=True,
                            text=True)
    assert result.returncode != 0
    assert "optimizer.schedule.base: 0.003 -> 0.5" in result.stderr


def test_a_wrong_key_names_near_ones(tmp_path):
    result = subprocess.run(command(tmp_path, "--config.optimizer.schedule.bse=0.5"), env=environment(), capture_output=True,
                            text=True)
    assert result.returncode != 0
    assert "base" in result.stderr
