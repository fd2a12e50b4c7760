"""The console command itself."""

from __future__ import annotations

import sys

import pytest

from jaxcell import cli, doctor


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["jaxcell", *arguments])
    return cli.main()


def test_doctor_tells_versions_and_devices_and_tests_itself(monkeypatch, capsys):
    assert call(monkeypatch, "doctor") == 0
    printed = capsys.readouterr().out
    for word in ("jaxlib", "orbax-checkpoint", "will train on", "float32", "memory of the host", "compiled programs",
                 "self-test"):
        assert word in printed


def test_doctor_is_loud_about_an_unused_accelerator_and_a_cache_that_others_may_write(monkeypatch, tmp_path, capsys):
    open_to_all = tmp_path / "cache"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    monkeypatch.setattr(doctor, "unused_accelerators", lambda: "an NVIDIA GPU driver is present, but jax sees only the CPU.")
    monkeypatch.setattr(doctor, "default_folder", lambda: open_to_all)
    assert call(monkeypatch, "doctor") == 1
    said = capsys.readouterr().err
    assert "PROBLEM: an NVIDIA GPU" in said and "PROBLEM: compiled programs are not kept" in said


@pytest.mark.parametrize("arguments, status", [((), 2), (("--help",), 0), (("segment",), 2)])
def test_usage(arguments, status, monkeypatch, capsys):
    assert call(monkeypatch, *arguments) == status
    printed = capsys.readouterr()
    assert "predict" in printed.out + printed.err


def test_what_the_user_can_mend_comes_without_a_traceback(monkeypatch, tmp_path, capsys):
    assert call(monkeypatch, "predict", str(tmp_path), "--workdir", str(tmp_path / "none"), "--out", str(tmp_path / "out")) == 2
    assert "no run was started in this workdir" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", "--config", "configs/maunet.py:toy", "--workdir", "run") == 2
    assert f"configs/maunet.py: no such file, seen from {tmp_path}" in capsys.readouterr().err
    monkeypatch.undo()
    (tmp_path / "file").touch()
    assert call(monkeypatch, "train", "--config", "configs/maunet.py:toy", "--workdir", str(tmp_path / "file")) == 2
    assert "file" in capsys.readouterr().err
