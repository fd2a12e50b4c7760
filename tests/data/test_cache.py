"""The disk cache gives back what was stored, never what has changed since, and stays within its size."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcell.data import cache as module
from jaxcell.data.cache import DiskCache, decode_sample, encode_sample, state_of_files
from jaxcell.data.sources import open_source
from jaxcell.types import Sample

RNG = np.random.default_rng(0)


def sample(side: int = 32, dtype=np.uint16, **fields) -> Sample:
    labels = RNG.integers(-1, 5, (side, side, 2)).astype(np.int32)
    return Sample(RNG.integers(0, 200, (side, side, 3)).astype(dtype), labels, name="x", **fields)


def assert_equal(left: Sample, right: Sample) -> None:
    for field in dataclasses.fields(Sample):
        a, b = (vars(s)[field.name] for s in (left, right))
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


def open_cache(folder: Path, *, max_bytes: int = 10**7, source: str = "s", state: str = "1") -> DiskCache:
    return DiskCache(folder, max_bytes=max_bytes, source=source, state=state)


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.sample"))


# ---------------------------------------------------------------- one sample
@pytest.mark.parametrize("stored", [
    sample(), sample(dtype=np.uint8), sample(dtype=np.float32), sample(dtype=">u2"), sample(dtype=bool),
    sample(nuclei=RNG.integers(0, 3, (32, 32)).astype(np.int32), pixel_size=0.65, modality="phase", group="slide 1"),
    dataclasses.replace(sample(), labels=None, name="zelle \udc80 ä"),
    dataclasses.replace(sample(), labels=np.full((32, 32, 1), 3_000_000, np.int32)),
    dataclasses.replace(sample(), image=sample().image[::-1, ::2][:, :, [0]], labels=None),
    Sample(np.zeros((0, 4, 1), np.uint8), np.zeros((0, 4, 1), np.int32)),
], ids=["16 bit", "8 bit", "float", "big-endian", "bool", "all fields", "no labels", "huge ids", "view", "no pixels"])
def test_every_kind_of_sample_comes_back_as_it_was(stored):
    found = decode_sample(b"".join(encode_sample(stored)))
    assert_equal(found, stored)
    assert found.image.flags.aligned


def test_a_number_of_numpy_is_a_number():
    assert decode_sample(b"".join(encode_sample(sample(pixel_size=np.float32(0.5))))).pixel_size == 0.5


def test_any_damage_is_found():
    data = b"".join(encode_sample(sample(8)))
    damaged = [b"", data[:-1], data[:40], data + b"x", bytes(len(data)), data[:-1] + bytes([data[-1] ^ 1])]
    for position in range(0, len(data), 7):
        damaged.append(data[:position] + bytes([data[position] ^ 4]) + data[position + 1:])
    for text in damaged:
        with pytest.raises(ValueError, match=f"of {len(text)} bytes is cut short or has changed"):
            decode_sample(text)


# ---------------------------------------------------------------- the folder
def test_what_is_stored_is_found_by_whoever_opens_the_same_source(tmp_path):
    stored = sample()
    cache = open_cache(tmp_path / "c")
    assert cache.get("a") is None
    cache.put("a", stored)
    assert_equal(cache.get("a"), stored)
    assert_equal(open_cache(tmp_path / "c").get("a"), stored)
    assert open_cache(tmp_path / "c", source="other").get("a") is None and cache.get("b") is None


def test_damaged_files_are_removed_and_stored_again(tmp_path):
    cache, stored = open_cache(tmp_path / "c"), sample()
    for damage in (lambda p: p.write_bytes(p.read_bytes()[:100]), lambda p: p.write_bytes(b""), lambda p: os.truncate(p, 10**5)):
        cache.put("a", stored)
        (path,) = entries(tmp_path / "c")
        damage(path)
        assert cache.get("a") is None and not path.exists()
    cache.put("a", stored)
    assert_equal(cache.get("a"), stored)


def test_another_state_removes_what_was_stored(tmp_path, monkeypatch):
    open_cache(tmp_path / "c").put("a", sample())
    open_cache(tmp_path / "c", source="other").put("a", sample())
    assert open_cache(tmp_path / "c", state="2").get("a") is None
    assert len(entries(tmp_path / "c")) == 1 and open_cache(tmp_path / "c", source="other").get("a")
    monkeypatch.setattr(module, "_code", lambda: "a later version of jaxcell")
    assert open_cache(tmp_path / "c", source="other").get("a") is None and not entries(tmp_path / "c")


def test_the_folder_never_exceeds_its_size(tmp_path):
    size = sum(map(len, encode_sample(sample())))
    cache = open_cache(tmp_path / "c", max_bytes=3 * size + size // 2)
    for key in "abcdef":
        cache.put(key, sample())
        assert used(tmp_path / "c") <= 3 * size + size // 2
    assert [cache.get(key) is not None for key in "abcdef"] == [True] * 3 + [False] * 3
    open_cache(tmp_path / "c", source="other", max_bytes=3 * size + size // 2).put("a", sample())
    assert len(entries(tmp_path / "c")) == 3        # both sources are of this run: neither gives way


def test_sources_of_former_runs_give_way_the_oldest_first(tmp_path):
    size = sum(map(len, encode_sample(sample())))
    for age, source in ((3, "oldest"), (2, "old")):
        open_cache(tmp_path / "c", source=source).put("a", sample())
        home = next(path for path in (tmp_path / "c").iterdir() if path.is_dir() and path.stat().st_mtime > time.time() - 60)
        os.utime(home, (0, time.time() - 86400 * age))
    new = open_cache(tmp_path / "c", source="new", max_bytes=2 * size + size // 2)
    new.put("a", sample())
    new.put("b", sample())
    assert new.get("a") and new.get("b") and len(entries(tmp_path / "c")) == 2
    new.put("c", sample())
    assert new.get("c") is None and new.get("a")
    smaller = open_cache(tmp_path / "c", source="another", max_bytes=size // 2)     # opened with less: of one run, so they stay
    smaller.put("a", sample())
    assert smaller.get("a") is None and new.get("a")


def test_what_was_never_finished_is_removed_after_a_while(tmp_path):
    cache = open_cache(tmp_path / "c")
    cache.put("a", sample())
    folder = entries(tmp_path / "c")[0].parent
    for name, age in (("old", 7200), ("new", 60)):
        (folder / f"{name}.unfinished").write_bytes(b"x")
        os.utime(folder / f"{name}.unfinished", (0, time.time() - age))
    open_cache(tmp_path / "c")
    assert [path.name for path in folder.glob("*.unfinished")] == ["new.unfinished"]


def test_the_folder_is_its_owners_alone(tmp_path):
    open_cache(tmp_path / "c").put("a", sample())
    assert all(path.stat().st_mode & 0o077 == 0 for path in [tmp_path / "c", *(tmp_path / "c").rglob("*")])
    (tmp_path / "empty").mkdir(mode=0o755)
    open_cache(tmp_path / "empty")
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700
    (tmp_path / "shared").mkdir(mode=0o755)
    (tmp_path / "shared" / "file").write_text("")
    with pytest.raises(ValueError, match=r"shared: belongs to user \d+ with access 755.*chmod 700"):
        open_cache(tmp_path / "shared")
    with pytest.raises(ValueError, match="is a file"):
        open_cache(tmp_path / "shared" / "file")


def test_a_folder_that_vanishes_is_no_error(tmp_path):
    cache = open_cache(tmp_path / "c")
    shutil.rmtree(tmp_path / "c")
    cache.put("a", sample())
    assert cache.get("a") is None


def fill(folder: Path, number: int, max_bytes: int) -> None:
    cache = open_cache(folder, max_bytes=max_bytes)
    for key in range(12):
        side = 16 + 4 * key
        cache.put(str(key), Sample(np.full((side, side, 1), key, np.uint8), name=str(key)))
        assert used(folder) <= max_bytes
        found = cache.get(str((key * number) % 12))
        assert found is None or (found.image == int(found.name)).all()


def test_processes_fill_it_together(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(tmp_path / "c", number, 20_000)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert 15_000 < used(tmp_path / "c") <= 20_000 and not list((tmp_path / "c").rglob("*.unfinished"))


# ---------------------------------------------------------------- what a sample was made of
def test_the_state_changes_with_every_change_of_a_file(tmp_path):
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    (data / "a.png").write_bytes(b"12")
    (data / "deep" / "a_label.png").write_bytes(b"34")
    states = [state_of_files({"root": data}, leave_out=tmp_path)]

    def now(change) -> None:
        change()
        states.append(state_of_files({"root": data}, leave_out=data / "cache"))

    label = data / "deep" / "a_label.png"
    before = label.stat()

    def overwrite_and_set_back() -> None:
        time.sleep(0.02)
        label.write_bytes(b"56")
        os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))

    now(overwrite_and_set_back)
    now(lambda: (data / "b.png").write_bytes(b""))
    now(lambda: (data / "b.png").unlink())
    now(lambda: label.rename(data / "deep" / "b_label.png"))
    assert len(set(states)) == 5 or len(set(states)) == 4 and states[1] == states[3]
    now(lambda: (data / "cache").mkdir())
    now(lambda: (data / "cache" / "x").write_bytes(b"9"))
    assert len(set(states[-3:])) == 1                   # the cache itself does not count
    (data / "loop").symlink_to(data)
    (data / "nowhere").symlink_to(tmp_path / "absent")
    assert state_of_files({"root": data}, leave_out=tmp_path) == state_of_files({"root": data}, leave_out=tmp_path)


def test_files_behind_links_count(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labels").symlink_to(tmp_path / "elsewhere")
    before = state_of_files({"root": tmp_path / "data"}, leave_out=tmp_path / "c")
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"1")
    assert state_of_files({"root": tmp_path / "data"}, leave_out=tmp_path / "c") != before


# ---------------------------------------------------------------- as a source
def lab(folder: Path, value: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    for name in "abc":
        Image.fromarray(np.full((8, 8), 7, np.uint8)).save(folder / f"{name}.png")
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(folder / f"{name}_label.png")


def opened(tmp_path: Path, **options):
    return open_source({"lab": {"kind": "folder", "root": "lab"}}, root=tmp_path, cache_gb=0.0, **options)


def test_a_changed_label_file_is_read_anew(tmp_path):
    lab(tmp_path / "lab")
    for value in (1, 2):
        lab(tmp_path / "lab", value)
        for _ in range(2):          # cold, warm
            source = opened(tmp_path, disk_cache=tmp_path / "c")
            assert [int(source[i].labels.max()) for i in range(3)] == [value] * 3
        assert len(entries(tmp_path / "c")) == 3
    for i in range(3):
        assert_equal(source[i], opened(tmp_path)[i])


def test_a_warm_cache_reads_no_image(tmp_path, monkeypatch):
    lab(tmp_path / "lab")
    expected = list(opened(tmp_path, disk_cache=tmp_path / "c"))
    warm = opened(tmp_path, disk_cache=tmp_path / "c")
    for path in (tmp_path / "lab").iterdir():
        path.unlink()
    for i in range(3):
        assert_equal(warm[i], expected[i])
