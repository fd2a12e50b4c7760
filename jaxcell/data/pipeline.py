"""Samples -> training batches: normalised, augmented, cropped, with the system's targets.

Batch b is a pure function of (source, options, seed, b). So training can stop and go on after any batch, and neither the
number of workers nor what they prepare in advance changes a single value.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, cast

import cv2
import grain
import numpy as np
from absl import flags

from jaxcell.data.augment import POLICIES, Policy, apply_mix, apply_steps, cut
from jaxcell.data.normalize import Curve, fit_normalizer
from jaxcell.data.sources import Source
from jaxcell.types import Sample

__all__ = ["TrainIterator", "make_train_iterator", "order_of_epoch", "read_ahead"]

Batch = dict[str, np.ndarray]
Targets = Callable[[Sample, np.random.Generator], Mapping[str, np.ndarray]]

ORDER, EXAMPLE = 0, 1      # what a random stream is for: its first number after the seed
KILLED = "Worker process was terminated unexpectedly with exit code"        # how grain's error begins


def make_train_iterator(source: Source, *, targets: Targets, batch_size: int, crop: int, normalize: Mapping[str, Any],
                        channels: int = 3, planes: Sequence[int] | None = None, augment: str | Policy = "none",
                        reject_empty: float = 0.0, epoch_fraction: float = 1.0, seed: int = 0, workers: int = 0, threads: int = 1,
                        prefetch: int = 2, shard_index: int = 0, shard_count: int = 1) -> TrainIterator:
    """Endless batches of random crops; each epoch visits the samples in a new order.

    Args:
      source: of samples; names are those of its `names`.
      targets: (sample of one crop, rng) -> arrays of fixed shapes.
      batch_size: of all shards together.
      crop: side of the square crops, pixels; smaller images are padded with zeros.
      normalize: settings of `fit_normalizer`; statistics are those of the whole image.
      channels: of the network.
      planes: which planes of the images to take, or None for all.
      augment: a key of `POLICIES`, or a policy.
      reject_empty: probability with which a crop without cells is drawn again.
      epoch_fraction: share of the samples that an epoch visits, drawn anew for each.
      seed: of order, crops, augmentation and targets.
      workers: processes that prepare batches; 0 prepares them in threads of this process.
      threads: threads of each of these processes.
      prefetch: batches prepared in advance by each of them.
      shard_index: number of this host.
      shard_count: number of hosts; host k takes the k-th part of every batch, as the devices of a mesh do.

    Returns:
      Iterator over (batch, names): batch has "image" [b, crop, crop, channels] float32 and the stacked targets, b = batch_size /
      shard_count; names are those of the b samples.

    Raises:
      ValueError: unknown policy, or sizes that do not fit; while iterating: a worker was killed.
      RuntimeError: while iterating; its first line says which sample is wrong, and what is.
    """
    if isinstance(augment, str) and augment not in POLICIES:
        raise ValueError(f"config.data.augment={augment!r} is unknown; it is one of {', '.join(POLICIES)}.")
    if batch_size < 1:
        raise ValueError(f"config.data.batch_size={batch_size}; it must be 1 or more.")
    if not len(source) or batch_size % shard_count or not 0 <= shard_index < shard_count:
        raise ValueError(f"{len(source)} samples, batch_size={batch_size}, shard {shard_index} of {shard_count}: at least one "
                         "sample and a batch size that the shards divide evenly are needed.")
    if not 0 < epoch_fraction <= 1:
        raise ValueError(f"epoch_fraction={epoch_fraction}; it must lie above 0 and at most at 1.")
    policy = POLICIES[augment] if isinstance(augment, str) else augment
    example = partial(_example, source=source, curves={}, targets=targets, crop=crop, normalize=dict(normalize),
                      channels=channels, planes=planes, policy=policy, reject_empty=reject_empty,
                      epoch_length=max(1, round(epoch_fraction * len(source))), seed=seed)
    share = batch_size // shard_count
    batch_at = partial(_batch, example=example, positions=range(shard_index * share, (shard_index + 1) * share),
                       batch_size=batch_size)
    return TrainIterator(grain.MapDataset.range(sys.maxsize).map(batch_at), workers=workers, threads=threads, prefetch=prefetch)


def read_ahead(source: Source, indices: Sequence[int], *, workers: int = 0) -> Iterator[Sample]:
    """Some samples of a source in this order, read in advance while the caller works with the one before.

    Args:
      source: of samples.
      indices: of the samples to read.
      workers: processes that read; 0 reads in a thread of this process.

    Raises:
      ValueError: a worker was killed.
      RuntimeError: its first line says which sample is wrong, and what is.
    """
    samples = grain.MapDataset.range(len(indices)).map(partial(_read, source=source, indices=list(indices)))
    iterator = TrainIterator(samples, workers=workers, threads=1, prefetch=1)
    try:
        yield from cast(Iterator[Sample], iterator)
    finally:
        iterator.close()


def _read(place: int, *, source: Source, indices: Sequence[int]) -> Sample:
    cv2.setNumThreads(1)        # as in _batch
    with _naming(source.names[indices[place]]):
        return source[indices[place]]


class TrainIterator(grain.DatasetIterator):
    """Iterates over (batch, names). Its state is the number of batches taken, whoever prepares them, however far ahead."""

    def __init__(self, batches: grain.MapDataset, *, workers: int, threads: int, prefetch: int) -> None:
        super().__init__()
        self._batches, self._workers = batches, workers
        self._reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads) if prefetch else 0)
        self._taken = 0
        self._ahead: grain.DatasetIterator | None = None
        if workers < 0:
            raise ValueError(f"config.data.workers={workers}; it is a number of processes, 0 or more (0: threads of this one).")

    def __next__(self) -> tuple[Batch, list[str]]:
        if self._ahead is None:
            self._ahead = self._start()
        try:
            batch = next(self._ahead)
        except RuntimeError as error:
            if not str(error).startswith(KILLED):
                raise
            self._ahead.close()         # ends the other workers
            self._ahead = None
            raise ValueError(_ended(self._workers, str(error), self._taken)) from error
        self._taken += 1
        return batch

    def _start(self) -> grain.DatasetIterator:
        ahead = self._batches[self._taken:].to_iter_dataset(self._reading)
        if self._workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()        # grain reads its own flags, which only absl's app.run would have parsed
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1)
            ahead = ahead.mp_prefetch(options, worker_init_fn=_watch_parent)
        iterator = iter(ahead)
        weakref.finalize(self, iterator.close)      # also when the program ends: grain's own clean-up then comes too late
        return iterator

    def get_state(self) -> dict[str, int]:
        """The cursor: batches taken so far."""
        return {"batches": self._taken}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on after the batches that `state` counts."""
        self.close()
        self._closed, self._ahead, self._taken = False, None, int(state["batches"])

    def close(self) -> None:
        """Ends the workers; without this they end with the process."""
        if self._ahead is not None:
            self._ahead.close()
        self._closed = True


def _ended(workers: int, error: str, batch: int) -> str:
    """What to tell when a worker has ended."""
    code = error.removeprefix(KILLED).split(".")[0].strip()
    return (f"config.data.workers={workers}: a worker process ended with exit code {code} before batch {batch} (-9: the system "
            "ended it, as when memory runs out; -7: /dev/shm is full, as in a container without --shm-size). Use fewer workers, "
            "a smaller config.data.cache_gb, which each of them may fill, or a larger /dev/shm; the same command then continues "
            "from what was saved.")


def _watch_parent(worker: int, workers: int) -> None:
    """Ends this worker when the training process is gone, and not before: Ctrl-C, and what a cluster sends, reach all processes.

    A training process that was killed cannot tell its workers to stop; one that is asked to end needs them until it has saved.
    """
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@lru_cache(maxsize=8)
def order_of_epoch(seed: int, epoch: int, length: int) -> np.ndarray:
    """[length] int64, the order in which an epoch visits the samples."""
    return np.random.default_rng((seed, ORDER, epoch)).permutation(length)


def _batch(number: int, *, example: Callable[[int], tuple[Mapping[str, np.ndarray], str]], positions: range, batch_size: int
           ) -> tuple[Batch, list[str]]:
    cv2.setNumThreads(1)        # the cores are shared by batches: threads inside would only disturb the others and the training
    examples, names = zip(*(example(number * batch_size + position) for position in positions), strict=True)
    return {key: np.stack([arrays[key] for arrays in examples]) for key in examples[0]}, list(names)


def _example(position: int, *, source: Source, curves: dict[int, Curve], targets: Targets, crop: int,
             normalize: Mapping[str, Any], channels: int, planes: Sequence[int] | None, policy: Policy, reject_empty: float,
             epoch_length: int, seed: int) -> tuple[Mapping[str, np.ndarray], str]:
    """Number `position` of the endless row of training examples, and its name."""
    epoch, place = divmod(position, epoch_length)
    index = int(order_of_epoch(seed, epoch, len(source))[place])
    rng = np.random.default_rng((seed, EXAMPLE, position))

    def crop_of(index: int, rng: np.random.Generator) -> Sample:
        with _naming(source.names[index]):
            sample = source[index]
            if index not in curves:     # statistics of the whole image are taken once; what is kept is a few numbers
                curves[index] = fit_normalizer(sample.image, normalize, channels=channels, planes=planes)
            return cut(sample, rng, policy, size=crop, normalize=curves[index], reject_empty=reject_empty)

    sample = crop_of(index, rng)
    with _naming(source.names[index]):
        sample = apply_mix(sample, rng, policy.mix, lambda rng: crop_of(int(rng.integers(len(source))), rng))
        sample = apply_steps(sample, rng, policy.after)
        labels = None if sample.labels is None else np.ascontiguousarray(sample.labels)
        sample = dataclasses.replace(sample, image=np.ascontiguousarray(sample.image), labels=labels)
        return {"image": sample.image, **targets(sample, rng)}, sample.name


class _SampleError(RuntimeError):
    """An error that names its sample."""


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except _SampleError:        # of a sample that was mixed in
        raise
    except Exception as error:
        raise _SampleError(f"sample {name!r}: {type(error).__name__}: {error}") from error
