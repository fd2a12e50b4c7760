"""The verdict on every kind of input, good and bad: read with these values, or refused with this message; and no harm done."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.kinds import KINDS, TABLE, Cells, Kind, Pixels, Refused, Samples, table

from jaxcell.data.images import read_image, read_pixel_size

PATIENCE = 20       # seconds; no kind needs one
MOST_MEMORY = 2**30
ALL = [pytest.param(kind, id=f"{section}: {kind.input}") for section, kinds in KINDS.items() for kind in kinds]


class Hang(BaseException):
    """Not an Exception: a reader must not take it for damage."""


@pytest.fixture
def patience() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise Hang(f"no verdict after {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_gets_its_verdict(tmp_path, capsys, patience, kind):
    skip_if_needs(kind)
    home = tmp_path / "data"
    home.mkdir()
    call = kind.write(home)
    try:
        CHECKS[type(kind.verdict)](kind.verdict, call, home, capsys)
    finally:
        for path in (home / "images", home):
            if path.is_dir():
                path.chmod(0o755)
    assert list(tmp_path.iterdir()) == [home]       # nothing was run, nothing unpacked


def skip_if_needs(kind: Kind) -> None:
    if kind.needs == "user":
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
    elif kind.needs:
        pytest.importorskip(kind.needs, reason="the extra `microscopes` is not installed")


def check_pixels(verdict: Pixels, call: partial[np.ndarray], home: Path, capsys: Any) -> None:
    image = call()
    assert (image.shape, image.dtype) == (verdict.shape, np.dtype(verdict.dtype)) and image.dtype.isnative
    np.testing.assert_allclose(image[1, 2], verdict.at, rtol=0, atol=verdict.within)
    size = read_pixel_size(call.args[0], select=call.keywords.get("select"))
    assert call.func is read_image and size == (None if verdict.pixel_size is None else pytest.approx(verdict.pixel_size))


def check_cells(verdict: Cells, call: partial[np.ndarray], home: Path, capsys: Any) -> None:
    layers = call()
    ids, areas = np.unique(layers[layers > 0], return_counts=True)
    assert layers.dtype == np.int32 and layers.shape == (*call.keywords["shape"], verdict.layers)
    assert tuple(areas.tolist()) == verdict.areas and np.count_nonzero(layers == -1) == verdict.ignored
    assert tuple(ids.tolist()) == (verdict.ids or tuple(range(1, len(areas) + 1)))


def check_samples(verdict: Samples, call: Any, home: Path, capsys: Any) -> None:
    cells = {s.name: None if s.labels is None else len(np.unique(s.labels[s.labels > 0])) for s in call()}
    assert cells == verdict.cells
    assert_says(verdict.prints, as_shown(capsys.readouterr().out, home))


def check_refused(verdict: Refused, call: Any, home: Path, capsys: Any) -> None:
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is verdict.error and "\n" not in message
    assert message.startswith((str(home), "a: ", "mine: "))     # the file, the sample, or the source
    assert_says(verdict.message, as_shown(message, home))


CHECKS = {Pixels: check_pixels, Cells: check_cells, Samples: check_samples, Refused: check_refused}


def as_shown(text: str, home: Path) -> str:
    """What is said, without the place of the test's own folder."""
    return text.strip().replace(f"{home}/", "").replace(str(home), home.name)


def assert_says(expected: str, message: str) -> None:
    pattern = ".*".join(map(re.escape, expected.split("...")))
    assert re.fullmatch(pattern, message, re.DOTALL), f"said: {message}"


# ---------------------------------------------------------------- memory
HOSTILE = """
import sys
from pathlib import Path
from data.kinds import KINDS

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

start = peak()
for number, kind in enumerate(KINDS["Hostile files"]):
    home = Path(sys.argv[1]) / str(number)
    home.mkdir()
    before = peak()
    call = kind.write(home)
    if peak() - before > 2**29:
        sys.exit(f"{kind.input}: writing it takes too much")
    try:
        call()
    except (ValueError, FileNotFoundError):
        pass
    print(f"{peak() - before:12d} {kind.input}")
print(peak() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_hostile_files_fill_no_memory(tmp_path):
    tests = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", HOSTILE, str(tmp_path)], capture_output=True, text=True, timeout=300,
                         env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])})
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) < MOST_MEMORY, run.stdout


# ---------------------------------------------------------------- the table
def test_the_table_is_the_one_that_is_shown():
    assert sum(map(len, KINDS.values())) >= 80
    names = [kind.input for kinds in KINDS.values() for kind in kinds]
    assert TABLE.read_text(encoding="utf-8") == table(), "write it anew: PYTHONPATH=tests python -m data.kinds"
    assert len({(section, kind.input) for section, kinds in KINDS.items() for kind in kinds}) == len(names)
