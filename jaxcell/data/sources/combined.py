"""What every source of samples offers, and sources made of sources: joined, and held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jaxcell.types import Sample

__all__ = ["CachedSource", "ConcatSource", "Source"]


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
