"""What a run writes while it goes: metrics.jsonl (one object a line), TensorBoard events, a progress line."""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

__all__ = ["MetricLog", "Stopwatch", "memory_use", "profiled", "progress_bar", "quiet_libraries"]


def quiet_libraries() -> None:
    """Leaves only errors of libraries that tell every save in ten lines (orbax) or every missing TPU (jax).

    And nothing of asyncio, which tells at length of each array that orbax could not read, after we have said it in a line.
    """
    for name, level in (("absl", logging.ERROR), ("jax._src.xla_bridge", logging.ERROR), ("asyncio", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)


class MetricLog:
    """Appends scalars of a step to `<workdir>/metrics.jsonl` and to TensorBoard.

    A resumed run repeats the steps after its checkpoint, so lines beyond `resume_step` are dropped first: a step stands once.
    """

    def __init__(self, workdir: str | Path, *, resume_step: int = 0, active: bool = True) -> None:
        """Opens both. Of several processes one is `active`; the others know what was written and write nothing."""
        self._active = active
        self.path = Path(workdir) / "metrics.jsonl"
        kept = [line for line in self._lines() if line["step"] <= resume_step]
        self._written = {(int(line["step"]), key) for line in kept for key in line}
        if not active:
            return
        partial = self.path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self.path)
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=resume_step + 1)

    def _lines(self) -> list[dict[str, float]]:
        lines = []
        for text in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:     # a kill in the middle of a line: that step will be run again
                continue
        return lines

    def has(self, key: str, step: int) -> bool:
        """Whether `key` was written for `step`."""
        return (step, key) in self._written

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of one step; non-finite ones become null in the JSON, which has no NaN."""
        self._written |= {(step, key) for key in values}
        if not self._active:
            return
        row = {"step": step} | {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for key, value in values.items():
            self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Flushes and closes both."""
        if not self._active:
            return
        self._file.close()
        self._board.close()

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Stopwatch:
    """Counts steps, and how long the device had nothing to do because data was late, since the last `read`."""

    def __init__(self) -> None:
        self._start, self._data, self._count = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting_for_data(self, before: jax.Array | None) -> Iterator[None]:
        """Times the fetch of one batch; it counts as a wait only if `before`, of the last step, was computed by its end."""
        start = time.perf_counter()
        yield
        self._count += 1
        if before is None or before.is_ready():     # type: ignore[attr-defined]    # (jax.Array's stub lacks it)
            self._data += time.perf_counter() - start

    def read(self, images_per_step: int) -> dict[str, float]:
        """Throughput and the share of time spent waiting for data, then starts again."""
        wall = max(time.perf_counter() - self._start, 1e-9)
        values = {"steps_per_second": self._count / wall, "images_per_second": self._count * images_per_step / wall,
                  "data_wait_share": self._data / wall}
        self._start, self._data, self._count = time.perf_counter(), 0.0, 0
        return values


@contextmanager
def profiled(step: int, steps: Sequence[int], folder: str | Path) -> Iterator[None]:
    """Traces the steps from `steps[0]` to `steps[1]` into `folder`, and then says where memory stands; () traces none.

    The trace opens in TensorBoard (profile plugin) or in Perfetto; `memory.prof` of the devices in pprof.
    """
    if not steps or not steps[0] <= step <= steps[1]:
        yield
        return
    if step == steps[0]:
        jax.profiler.start_trace(str(folder))
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
        yield
    if step == steps[1]:
        jax.effects_barrier()
        jax.profiler.stop_trace()
        jax.profiler.save_device_memory_profile(str(Path(folder) / "memory.prof"))
        tqdm.write(f"trace of steps {steps[0]}-{steps[1]} in {folder}; {memory_use()}")


def memory_use() -> str:
    """Peak memory of this process and of its devices, where they count it."""
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    peaks = [stats["peak_bytes_in_use"] / 2**30 for device in jax.local_devices() if (stats := device.memory_stats())]
    devices = f", of its devices {', '.join(f'{peak:.2f}' for peak in peaks)} GiB" if peaks else ""
    return f"peak memory of the process {process:.2f} GiB{devices}"


def progress_bar(*, initial: int, total: int, active: bool = True) -> tqdm:
    """The bar of a run. Without a terminal it prints a line now and then instead of redrawing; of several processes one does."""
    interactive = sys.stderr.isatty()
    return tqdm(initial=initial, total=total, unit="step", dynamic_ncols=True, mininterval=0.5 if interactive else 20.0,
                disable=not active)
