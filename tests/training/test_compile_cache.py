"""The cache of compiled programs is its owner's alone."""

from __future__ import annotations

import stat
import subprocess
import sys

import pytest

from jaxcell.training.compile_cache import default_folder, use_compile_cache

PROGRAM = """
import sys, jax
from jaxcell.training import compile_cache
compile_cache.WORTH_KEEPING_S = 0.0
compile_cache.use_compile_cache(sys.argv[1])
print(float(jax.jit(lambda x: (x * 2).sum())(jax.numpy.arange(4.0))))
"""


def test_programs_are_kept_for_the_owner_alone(tmp_path):
    folder = tmp_path / "a" / "cache"
    result = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True)
    assert result.stdout == "12.0\n", result.stderr
    assert list(folder.glob("jit__lambda*")), "nothing was kept"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_others_may_write_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ValueError, match="mode 777.*chmod 700"):
        use_compile_cache(tmp_path)


def test_a_home_that_cannot_be_written_is_said_and_nothing_more(monkeypatch, tmp_path, capsys):
    (tmp_path / ".cache").write_text("a file in the way")
    monkeypatch.setenv("HOME", str(tmp_path))
    use_compile_cache()
    assert "not kept" in capsys.readouterr().err


def test_the_default_lies_in_the_home_and_names_the_processor(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder().parent == tmp_path / ".cache" / "jaxcell"
    assert default_folder() == default_folder()
