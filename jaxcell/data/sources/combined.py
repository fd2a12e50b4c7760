"""What every source of samples offers, and sources made of sources: checked, joined, and held on disk or in memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from tqdm import tqdm

from jaxcell.data.cache import DiskCache
from jaxcell.data.validate import validate
from jaxcell.types import Sample

__all__ = ["CachedSource", "CheckedSource", "ConcatSource", "DiskCachedSource", "SelectedSource", "Source", "UnlabelledSource",
           "readable_samples"]

NAMED = 20      # samples that are left out are named up to so many


class Source(Protocol):
    """Random access to samples; reading one twice gives the same sample."""

    @property
    def names(self) -> Sequence[str]:
        """Name of each sample, known without reading it."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int) -> Sample:
        """Reads sample `index`; IndexError beyond the last."""


class ConcatSource:
    """Several sources one after another, each `repeats` times over: a small data set is seen as often as a large one.

    Hold the parts in memory, not the whole, or a repeated sample is held several times.
    """

    def __init__(self, sources: Sequence[Source], *, repeats: Sequence[int] | None = None) -> None:
        """Joins `sources`.

        Args:
          sources: at least one.
          repeats: how often each counts; None is once.

        Raises:
          ValueError: no source, or repeats that do not fit.
        """
        repeats = [1] * len(sources) if repeats is None else list(repeats)
        if not sources or len(repeats) != len(sources) or min(repeats) < 1:
            raise ValueError(f"ConcatSource: {len(sources)} sources with repeats {repeats}; at least one source and for each a "
                             "repeat of at least 1 are needed. Leave a source out to repeat it 0 times.")
        self._places = [(source, i) for source, n in zip(sources, repeats, strict=True) for i in [*range(len(source))] * n]
        self.names = [source.names[i] for source, i in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        source, place = self._places[index]
        return source[place]


class SelectedSource:
    """Some samples of a source."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        """Takes the samples at `indices`, in that order."""
        self._source, self._indices = source, list(indices)
        self.names = [source.names[i] for i in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._source[self._indices[index]]


class UnlabelledSource:
    """The samples of a source as if nobody had annotated them."""

    def __init__(self, source: Source) -> None:
        """Wraps `source`."""
        self._source = source
        self.names = source.names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        return dataclasses.replace(self._source[index], labels=None, nuclei=None)


class CheckedSource:
    """Refuses what `validate` refuses, whenever a sample is decoded."""

    def __init__(self, source: Source) -> None:
        """Wraps `source`."""
        self._source = source
        self.names = source.names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        sample = self._source[index]
        validate(sample)
        return sample


class DiskCachedSource:
    """Reads samples from a disk cache, and decodes and stores those that it lacks."""

    def __init__(self, source: Source, cache: DiskCache) -> None:
        """Wraps `source`; `cache` is opened for it alone."""
        self._source, self._cache = source, cache
        self.names = source.names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        key = f"{index} {self.names[index]}"
        if (stored := self._cache.get(key)) is not None:
            return stored
        sample = self._source[index]
        self._cache.put(key, sample)
        return sample


class CachedSource:
    """Keeps decoded samples in memory until `max_bytes` are full; later ones are decoded again each time.

    Nothing is ever dropped: an epoch visits every sample once, so dropping the oldest would drop each just before its turn.
    Data workers start with an empty cache each and may each fill `max_bytes`.
    """

    def __init__(self, source: Source, *, max_bytes: int) -> None:
        """Wraps `source`; `max_bytes` of pixels and labels are kept."""
        self._source, self._max_bytes = source, max_bytes
        self._samples: dict[int, Sample] = {}
        self._bytes = 0
        self.names = source.names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        if index in self._samples:
            return self._samples[index]
        sample = self._source[index]
        size = sum(array.nbytes for array in (sample.image, sample.labels, sample.nuclei) if array is not None)
        if self._bytes + size <= self._max_bytes:
            self._bytes += size     # (threads may race here: then the limit is exceeded by one sample each)
            self._samples[index] = sample
        return sample

    def __reduce__(self) -> tuple[object, ...]:
        return _cached, (self._source, self._max_bytes)     # a worker process gets no copy of what is held here


def _cached(source: Source, max_bytes: int) -> CachedSource:
    return CachedSource(source, max_bytes=max_bytes)


def readable_samples(source: Source, *, label: str) -> Source:
    """The source without the samples that cannot be read or do not pass `validate`; reads each of them once.

    How many were left out, their names and reasons are printed; a progress bar goes to stderr.

    Args:
      source: refuses bad samples by ValueError or OSError.
      label: what to call it.

    Raises:
      ValueError: nothing is left.
    """
    def problem(index: int) -> str:
        try:
            source[index]
        except (ValueError, OSError) as error:
            return " ".join(f"{type(error).__name__}: {error}".split())
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading = pool.map(problem, range(len(source)))
        problems = list(tqdm(reading, total=len(source), desc=f"reading {label}", unit="sample"))
    bad = [index for index, text in enumerate(problems) if text]
    if not bad:
        return source
    lines = [f"  {source.names[index]}: {problems[index]}" for index in bad[:NAMED]]
    more = [f"  ... and {len(bad) - NAMED} more"] if len(bad) > NAMED else []
    if len(bad) == len(source):
        raise ValueError(f"{label}: none of its {len(source)} samples can be used; the first: {lines[0].strip()}")
    print("\n".join([f"skipped {len(bad)} of {len(source)} samples of {label}:", *lines, *more]), flush=True)
    return SelectedSource(source, [index for index, text in enumerate(problems) if not text])
