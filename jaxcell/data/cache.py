"""Decoded samples on disk, for data that take longer to decode than to read and do not fit into memory.

A file holds one sample: its pixels as they are, because reading them is faster than any decompression, and its labels by LZ4,
which makes a fiftieth of them. Nothing in it is executed when it is read: the head is JSON, the rest is numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from jaxcell.types import Sample

__all__ = ["DiskCache", "decode_sample", "encode_sample", "state_of_files"]

MAGIC = b"jaxcell sample 1"
HEAD = len(MAGIC) + 8           # magic, length of the JSON
WHOLE = 0x2144DF1C              # CRC-32 of any bytes with their own CRC-32 behind them, low byte first
ALIGNMENT = 64                  # bytes: every array starts at a multiple of it
LARGEST_BLOCK = 1 << 30         # bytes that LZ4 is given at once
PATIENCE = 2.0                  # seconds to wait for another process's turn; a sample that is not stored is decoded again
ORPHANED = 3600.0               # seconds after which a half-written file is one that nobody finishes
OTHER_RUN = 3600.0              # seconds between two openings after which they are not of one run


class DiskCache:
    """Decoded samples of one source, in a folder that sources and processes share and that never exceeds its size.

    Samples are stored under what they were made of: the source, the state of its files and the code that reads them. If any of
    these changes, none of the former samples is found again, and they are deleted. When space is short, sources that were last
    opened by another run give way, the longest unused first; after that, samples are not stored. A file that is cut short or
    has changed is deleted and counts as absent.
    """

    def __init__(self, directory: str | Path, *, max_bytes: int, source: str, state: str) -> None:
        """Opens or makes the folder.

        Args:
          directory: belongs to its owner alone; made if absent.
          max_bytes: of all files in it, whatever their source.
          source: what tells this source from others; any text.
          state: what its samples were made of, such as `state_of_files`; any text.

        Raises:
          ValueError: the folder belongs to or can be read by others, is a file, or is on a disk that knows no locks.
        """
        self._directory, self._max_bytes, self._opened = Path(directory).absolute(), max_bytes, time.time()
        self._too_large = sys.maxsize       # bytes of pixels for which there was no room
        _own(self._directory)
        home = self._directory / _digest(source)
        self._folder = home / _digest(state, _code())
        for folder in (home, self._folder):     # one by one: "parents" would be made with the ordinary access
            folder.mkdir(mode=0o700, exist_ok=True)
        os.utime(home)
        with self._locked() as ledger:
            for former in set(home.iterdir()) - {self._folder}:
                shutil.rmtree(former, ignore_errors=True)
            if ledger is not None:
                _remove_orphans(self._directory)
                _write_number(ledger, sum(_sizes(self._directory)))
                self._make_room(ledger, 0)

    def get(self, key: str) -> Sample | None:
        """The sample stored as `key`, or None."""
        path = self._path(key)
        try:
            return decode_sample(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, OSError):
            with suppress(OSError):
                path.unlink()
            return None

    def put(self, key: str, sample: Sample) -> None:
        """Stores the sample as `key`, if there is room and nobody else just did; what cannot be stored is left out in silence."""
        if sample.image.nbytes >= self._too_large:
            return
        path, parts = self._path(key), encode_sample(sample)
        with suppress(OSError):         # a full disk, or another run removed the folder
            unfinished = self._reserve(path, sum(map(len, parts)), of_pixels=sample.image.nbytes)
            if unfinished is None:
                return
            try:
                with unfinished.open("r+b") as file:
                    file.writelines(parts)
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)

    def _reserve(self, path: Path, size: int, *, of_pixels: int) -> Path | None:
        """A new file beside `path` that already has its size, so that whoever counts the folder counts it too, or None."""
        with self._locked() as ledger:
            if ledger is None or path.exists():
                return None
            if not self._make_room(ledger, size):
                self._too_large = min(self._too_large, of_pixels)
                return None
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=".unfinished")      # (its owner's alone)
            os.truncate(handle, size)
            os.close(handle)
            _write_number(ledger, _read_number(ledger) + size)
            return Path(name)

    def _path(self, key: str) -> Path:
        return self._folder / f"{_digest(key)}.sample"

    def _make_room(self, ledger: int, size: int) -> bool:
        """Whether `size` more bytes fit, after removing sources of other runs where needed."""
        others = sorted((home.stat().st_mtime, home) for home in self._directory.iterdir()
                        if home.is_dir() and home != self._folder.parent)
        while _read_number(ledger) + size > self._max_bytes:
            if not others or others[0][0] > self._opened - OTHER_RUN:
                return False
            _, oldest = others.pop(0)
            shutil.rmtree(oldest, ignore_errors=True)
            _write_number(ledger, sum(_sizes(self._directory)))
        return True

    @contextmanager
    def _locked(self) -> Iterator[int | None]:
        """The open ledger, which holds the bytes in use, while no other thread or process has it; None if that took too long."""
        import fcntl  # not on Windows, where everything but this cache works

        ledger = os.open(self._directory / "bytes", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        yield None
                        return
                    time.sleep(0.002)
                except OSError as error:
                    raise ValueError(f"{self._directory}: files cannot be locked there ({error}), which the cache of decoded "
                                     "samples needs. Name a folder on a local disk in config.data.disk_cache.") from error
            yield ledger
        finally:
            os.close(ledger)


# ---------------------------------------------------------------- what a sample was made of
def state_of_files(paths: Mapping[str, Path], *, leave_out: Path) -> str:
    """Digest of the names, sizes and times of all files in and under some paths; it changes when one is changed, added or gone.

    Args:
      paths: files and folders by the role they play; links are followed.
      leave_out: a folder that does not count, such as the cache itself.
    """
    digest = hashlib.sha256()
    for role, path in sorted(paths.items()):
        digest.update(f"{role}\0{path.absolute()}\0".encode(errors="surrogateescape"))
        for line in _states(path, leave_out.absolute(), frozenset()):
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _states(path: Path, leave_out: Path, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    if path.absolute() == leave_out:
        return
    try:
        status = path.stat()
    except OSError:                     # a link to nowhere
        yield f"{path}\0absent\0"
        return
    place = status.st_dev, status.st_ino
    if not path.is_dir():
        # The time of the last change of the inode (ctime) tells even a file that was given back its old size and date.
        yield f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0{place}\0"
    elif place not in above:            # a folder that contains itself by a link
        for entry in sorted(path.iterdir()):
            yield from _states(entry, leave_out, above | {place})


@cache
def _code() -> str:
    """Digest of the code that reads samples: another version may read the same file differently."""
    package = Path(__file__).parent.parent
    files = [package / "types.py", *(package / "data").rglob("*.py"), *(package / "geometry").rglob("*.py")]
    return _digest(*(file.read_text(encoding="utf-8") for file in sorted(files)))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()[:32]


# ---------------------------------------------------------------- one sample as bytes
def encode_sample(sample: Sample) -> list[bytes]:
    """The sample as bytes, in parts that follow one another."""
    plain, arrays, blocks, end = {}, {}, [], 0
    for field in dataclasses.fields(sample):
        value = vars(sample)[field.name]
        if not isinstance(value, np.ndarray):
            plain[field.name] = value
            continue
        code, block = _encode_array(value, compress=field.name != "image")
        arrays[field.name] = {"dtype": value.dtype.str, "shape": value.shape, "code": code, "start": end, "bytes": len(block)}
        padding = bytes(-len(block) % ALIGNMENT)
        blocks += [block, padding]
        end += len(block) + len(padding)
    text = json.dumps({"plain": plain, "arrays": arrays}, default=float).encode()       # (a numpy number is none for JSON)
    text += b" " * (-(HEAD + len(text)) % ALIGNMENT)
    parts = [MAGIC, len(text).to_bytes(8, "little"), text, *blocks]
    return [*parts, imagecodecs.deflate_crc32(b"".join(parts)).to_bytes(4, "little")]


def decode_sample(data: bytes) -> Sample:
    """The sample that `encode_sample` made into bytes; its image is a part of them and cannot be written to.

    Raises:
      ValueError: the bytes are cut short or have changed.
    """
    if not data.startswith(MAGIC) or imagecodecs.deflate_crc32(data) != WHOLE:
        raise ValueError(f"a cached sample of {len(data)} bytes is cut short or has changed; it must be decoded again.")
    first = HEAD + int.from_bytes(data[len(MAGIC):HEAD], "little")
    head = json.loads(data[HEAD:first])
    return Sample(**head["plain"], **{name: _decode_array(data, first, entry) for name, entry in head["arrays"].items()})


def _encode_array(array: np.ndarray, *, compress: bool) -> tuple[str, bytes]:
    """(code, bytes): "raw", or "lz4" of the narrower integers named behind it."""
    if not compress or array.nbytes > LARGEST_BLOCK:
        return "raw", array.tobytes()
    fits = np.iinfo(np.int16).min <= array.min(initial=0) and array.max(initial=0) <= np.iinfo(np.int16).max
    narrow = array.astype("<i2" if fits else "<i4")
    return f"lz4 {narrow.dtype.str}", bytes(imagecodecs.lz4_encode(narrow.tobytes(), header=True))


def _decode_array(data: bytes, first: int, entry: Mapping[str, Any]) -> Any:
    start, dtype, shape = first + entry["start"], np.dtype(entry["dtype"]), entry["shape"]
    if entry["code"] == "raw":
        return np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
    block = imagecodecs.lz4_decode(data[start:start + entry["bytes"]], header=True)
    return np.frombuffer(block, entry["code"].removeprefix("lz4 ")).reshape(shape).astype(dtype)


# ---------------------------------------------------------------- the folder
def _own(directory: Path) -> None:
    """Makes the folder, or checks that it belongs to this user alone; an empty one of this user is closed to others."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{directory}: is a file; config.data.disk_cache must be a folder.") from None
    status = directory.stat()
    if status.st_uid == os.getuid() and status.st_mode & 0o077 and not any(directory.iterdir()):
        directory.chmod(0o700)
        status = directory.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ValueError(f"{directory}: belongs to user {status.st_uid} with access {status.st_mode & 0o777:o}; the cache of "
                         "decoded samples must be its owner's alone. Name a new folder in config.data.disk_cache, or close this "
                         f"one: chmod 700 {directory}")


def _sizes(directory: Path) -> Iterator[int]:
    for path in directory.rglob("*"):
        with suppress(OSError):         # removed meanwhile
            if not path.is_dir():
                yield path.stat().st_size


def _remove_orphans(directory: Path) -> None:
    for path in directory.rglob("*.unfinished"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - ORPHANED:
                path.unlink()


def _read_number(ledger: int) -> int:
    return int(os.pread(ledger, 20, 0) or b"0")


def _write_number(ledger: int, number: int) -> None:
    os.pwrite(ledger, b"%020d" % number, 0)
