"""Bad samples are refused by name, or left out and counted; sources made of sources keep their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcell.data.sources import open_source
from jaxcell.data.sources.combined import SelectedSource, readable_samples
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.data.validate import validate
from jaxcell.types import Sample


def image(dtype=np.float32, shape=(4, 5, 2)) -> np.ndarray:
    return np.ones(shape, dtype)


def with_value(value: float) -> np.ndarray:
    pixels = image()
    pixels[2, 3, 1] = pixels[3, 0, 0] = value
    return pixels


@pytest.mark.parametrize("sample, message", [
    (Sample(with_value(np.nan), name="a"), r"a: 2 of 40 values .* infinite, the first \(nan\) at .* \(2, 3\) of plane 1"),
    (Sample(with_value(-np.inf), name="a"), r"the first \(-inf\)"),
    (Sample(image(shape=(0, 5, 1)), name="a"), r"\(0, 5, 1\); it must have pixels"),
    (Sample(image(np.complex64), name="a"), "values are complex64"),
    (Sample(image(object), name="a"), "values are object"),
    (Sample(image(), np.full((4, 5, 2), -1, np.int32), name="a"), "-1 .ignore. everywhere"),
])
def test_what_cannot_be_computed_with_is_refused(sample, message):
    with pytest.raises(ValueError, match=message):
        validate(sample)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int32, np.float16, np.float32, np.float64])
def test_real_numbers_pass_with_and_without_cells(dtype):
    validate(Sample(image(dtype)))
    validate(Sample(image(dtype), np.zeros((4, 5, 1), np.int32)))
    labels = np.full((4, 5, 1), -1, np.int32)
    labels[0, 0] = 0
    validate(Sample(image(dtype), labels))


def test_large_finite_values_pass():
    validate(Sample(np.full((4, 4, 1), np.finfo(np.float32).max, np.float32)))


# ---------------------------------------------------------------- refuse or skip
def lab(folder: Path, *, good: int, bad: int) -> None:
    folder.mkdir()
    for number in range(good + bad):
        Image.fromarray(np.full((6, 8), 10 + number, np.uint8)).save(folder / f"{number:03}.png")
        Image.fromarray(np.full((6, 8), 1, np.uint8)).save(folder / f"{number:03}_label.png")
    for number in range(bad):
        path = folder / f"{2 * number:03}.png"
        if number % 2:
            path.write_bytes(path.read_bytes()[:20])
        else:
            path.with_suffix(".npy").unlink(missing_ok=True)
            path.unlink()
            np.save(path.with_suffix(".npy"), with_value(np.nan))
            Image.fromarray(np.full((4, 5), 1, np.uint8)).save(folder / f"{path.stem}_label.png")


def opened(tmp_path: Path, **options):
    return open_source({"lab": {"kind": "folder", "root": "lab"}}, root=tmp_path, cache_gb=1.0, **options)


def test_a_bad_sample_is_refused_when_it_is_read(tmp_path):
    lab(tmp_path / "lab", good=2, bad=2)
    source = opened(tmp_path)
    assert len(source) == 4 and source[1].name == "001"
    for index, message in ((0, "000: 2 of 40 values"), (2, "002")):
        with pytest.raises(ValueError, match=message):
            source[index]


@pytest.mark.parametrize("cached", [False, True])
def test_bad_samples_are_left_out_and_named(tmp_path, capsys, cached):
    lab(tmp_path / "lab", good=3, bad=2)
    for _ in range(2):
        source = opened(tmp_path, unreadable="skip", disk_cache=tmp_path / "c" if cached else "")
        assert list(source.names) == ["001", "003", "004"] == [source[i].name for i in range(3)]
        out = capsys.readouterr().out
        assert "skipped 2 of 5 samples of lab:" in out and "000: ValueError: 000: 2 of 40 values" in out and "\n  002: " in out
    assert len(list((tmp_path / "c").rglob("*.sample"))) == (3 if cached else 0)


def test_only_the_first_names_are_told(tmp_path, capsys):
    lab(tmp_path / "lab", good=22, bad=22)
    assert len(opened(tmp_path, unreadable="skip")) == 22
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("skipped 22 of 44") and len(lines) == 22 and lines[-1] == "  ... and 2 more"


def test_a_source_without_a_good_sample_is_refused(tmp_path):
    lab(tmp_path / "lab", good=0, bad=1)
    with pytest.raises(ValueError, match="lab: none of its 1 samples can be used; the first: 000: ValueError"):
        opened(tmp_path, unreadable="skip")
    with pytest.raises(ValueError, match="'drop' is unknown; it is one of refuse, skip"):
        opened(tmp_path, unreadable="drop")


def test_a_source_of_good_samples_stays_as_it_is(capsys):
    source = SyntheticSource(3, size=32, seed=1)
    assert readable_samples(source, label="drawn") is source and not capsys.readouterr().out


def test_a_selection_keeps_names_and_samples_together():
    source = SyntheticSource(4, size=32, seed=1)
    part = SelectedSource(source, [3, 1])
    assert len(part) == 2 and part.names == [source.names[3], source.names[1]] == [part[0].name, part[1].name]


def test_parts_of_a_source_and_hidden_labels():
    spec = {"kind": "synthetic", "count": 7, "size": 32}
    names = SyntheticSource(7, size=32).names
    opened = {key: open_source({"x": spec | options}, root=".", cache_gb=0.1) for key, options in {
        "some": {"every": 3}, "others": {"except_every": 3}, "hidden": {"except_every": 3, "hide_labels": True}}.items()}
    assert list(opened["some"].names) == names[::3]
    assert list(opened["others"].names) == list(opened["hidden"].names) == [n for i, n in enumerate(names) if i % 3]
    assert opened["others"][0].labels is not None
    assert opened["hidden"][0].labels is None and opened["hidden"][0].name == names[1]
