"""Which query answers for which cell: scipy in a callback on the host, and the loop that stays on the device.

    python -m benchmarks.matching                          (100, 200 and 500 queries, a batch of 2)
    python -m benchmarks.matching --batch 8 --side 512     (with the scores of all pairs, which both need)

Both find the same sum. "random" are scores without structure, "alike" those of an untrained network, whose queries all see the
same, "trained" those in which every cell has a query of its own; half as many cells as queries, and as many. A step is the
compiled function, with the copies to the host and back; the fastest of `--rounds` is shown beside the median, for other programs
disturb it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks.report import Row, machine, middle, write
from jaxcell.matching import MATCHERS, dice_scores

KINDS: dict[str, Callable[[np.random.Generator, int, int, int], np.ndarray]] = {
    "random": lambda rng, batch, queries, cells: rng.random((batch, queries, cells), np.float32),
    "alike": lambda rng, batch, queries, cells: 0.3 + 1e-3 * rng.random((batch, queries, cells), np.float32),
    "trained": lambda rng, batch, queries, cells: 0.05 * rng.random((batch, queries, cells), np.float32) + 0.7 * np.stack(
        [np.eye(queries, dtype=np.float32)[rng.permutation(queries)[:cells]].T for _ in range(batch)]),
}


def times_of(call: Callable[[], jax.Array], rounds: int) -> list[float]:
    """Seconds of each call after the first."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call().block_until_ready()
        times.append(time.perf_counter() - start)
    return times[1:]


def matching_row(kind: str, batch: int, queries: int, cells: int, rounds: int) -> Row:
    """Milliseconds of both matchers.

    Raises:
      RuntimeError: they do not find the same sum.
    """
    scores = jax.device_put(KINDS[kind](np.random.default_rng(0), batch, queries, cells))
    present = jax.device_put(np.ones((batch, cells), bool))
    row: Row = {"scores": kind, "queries": queries, "cells": cells}
    sums = []
    for name, match in MATCHERS.items():
        step = jax.jit(match)
        times = times_of(lambda step=step: step(scores, present), rounds)     # type: ignore[misc]
        row |= {f"{name} ms": 1e3 * min(times), f"{name} median": middle(times)}
        chosen = np.asarray(step(scores, present))
        sums.append(np.take_along_axis(np.asarray(scores), chosen[:, None], axis=1).sum(dtype=np.float64))
    if not np.isclose(*sums, rtol=1e-5):
        raise RuntimeError(f"{kind}, {queries} queries, {cells} cells: host {sums[0]} and device {sums[1]} differ.")
    return row


def scores_row(side: int, batch: int, queries: int, cells: int, rounds: int) -> Row:
    """Milliseconds of the Dice of all pairs of masks of `side` x `side` pixels."""
    rng = np.random.default_rng(0)
    masks = [jax.device_put(rng.random((batch, count, side, side), np.float32)) for count in (queries, cells)]
    step = jax.jit(dice_scores)
    times = times_of(lambda: step(*masks), rounds)
    return {"masks": f"{side} x {side}", "queries": queries, "cells": cells, "ms": 1e3 * min(times), "median": middle(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, nargs="+", default=[100, 200, 500])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=64, help="of the masks whose Dice is timed")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/matching"), help="without ending")
    options = parser.parse_args()
    about = machine(("jax", "scipy")) | {"device": jax.devices()[0].device_kind, "batch": options.batch, "rounds": options.rounds}
    pairs: Sequence[tuple[int, int]] = [(n, cells) for n in options.queries for cells in (n // 2, n)]
    write(options.out, {
        f"matching, a batch of {options.batch}, ms": [matching_row(kind, options.batch, n, cells, options.rounds)
                                                      for kind in KINDS for n, cells in pairs],
        "Dice of all pairs, ms": [scores_row(options.side, options.batch, n, n, options.rounds) for n in options.queries],
    }, about)
    print(options.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
