"""Virtual outliers in a batch's logits, MorphoSeg's: jaxcell's, and the released way with PyTorch's distributions.

    python -m benchmarks.outliers                          (10,000 of 100,000 draws in batches of 8, 32 and 128 at 224 x 224)
    python -m benchmarks.outliers --batches 4 --crop 96 --sample_from 20000 --select 2000

They take turns in one process and get the same logits. Before anything is timed the outliers of both are looked at: so many, and
as far from the mean as the least likely share of a Gaussian is. "replace" gives logits of which some are outliers, "with
gradient" also the gradient of their mean square. jaxcell puts outliers into pixels ("jaxcell ms") or, as released, into runs of
one class's memory ("memory"); "queues" is the paper's way, each class from a queue of its own, which the released code has not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from scipy.stats import chi2

from benchmarks.battery import PAUSE
from benchmarks.report import Row, machine, middle, spread, write
from benchmarks.rivals.morphoseg import with_outliers
from jaxcell.losses.outliers import PLACEMENTS, Synthesis, batch_synthesis, class_synthesis
from jaxcell.models.backend import compiler_options

CLASSES, RIDGE = 2, 0.01
QUEUE, PER_IMAGE = 10_000, 1000
WORKS = ("replace", "with gradient")
TOLERANCE = 0.05    # of the outliers' least distance, which is random

Call = Callable[[], Any]


def logits_of(batch: int, crop: int) -> np.ndarray:
    """[B, H, W, K] float32 whose classes depend on one another."""
    rng = np.random.default_rng(0)
    mixture = np.asarray([[2.0, -1.5], [0.0, 0.5]])
    return (rng.standard_normal((batch, crop, crop, CLASSES)) @ mixture + (1, -2)).astype(np.float32)


def synthesis_of(name: str, sample_from: int, select: int) -> Synthesis:
    """An entry of `PLACEMENTS`, or "queues"."""
    if name == "queues":
        return class_synthesis(classes=CLASSES, queue=QUEUE, per_image=PER_IMAGE, sample_from=sample_from, select=select)
    return batch_synthesis(sample_from=sample_from, select=select, ridge=RIDGE, place=PLACEMENTS[name])


def jaxcell_calls(synthesis: Synthesis, logits: np.ndarray) -> dict[str, Call]:
    """Work -> a call that waits until it is done."""
    placed, rng = jax.device_put(logits), jax.random.key(0)
    classes = jax.device_put((logits[..., 0] < logits[..., 1]).astype(np.int32))

    def replace(logits: jax.Array) -> jax.Array:
        remember_rng, replace_rng = jax.random.split(rng)
        memory = synthesis.remember(synthesis.start(), logits, classes, remember_rng)
        return synthesis.replace(logits, classes, memory, replace_rng)

    works = {"replace": replace, "with gradient": jax.value_and_grad(lambda x: jnp.mean(jnp.square(replace(x))))}
    return {work: partial(_finished, jax.jit(function, compiler_options=compiler_options()), placed)
            for work, function in works.items()}


def _finished(function: Callable[[jax.Array], Any], logits: jax.Array) -> Any:
    return jax.block_until_ready(function(logits))


def torch_calls(logits: np.ndarray, sample_from: int, select: int) -> dict[str, Call]:
    """The same of PyTorch."""
    device = torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")
    placed = torch.from_numpy(logits).permute(0, 3, 1, 2).contiguous().to(device)
    own = partial(with_outliers, sample_from=sample_from, select=select, ridge=RIDGE)

    def finished(result: torch.Tensor) -> torch.Tensor:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return result

    def with_gradient() -> torch.Tensor:
        held = placed.detach().requires_grad_()
        return finished(torch.autograd.grad(own(held).square().mean(), held)[0])

    return {"replace": torch.inference_mode()(lambda: finished(own(placed))), "with gradient": with_gradient}


def check(logits: np.ndarray, before: np.ndarray, after: np.ndarray, sample_from: int, select: int) -> None:
    """Looks at what was replaced.

    Args:
      logits: [B, H, W, K], whose Gaussian it is.
      before, after: [N, K], the vectors in the memory that outliers go to.
      sample_from, select: draws, and those that are kept.

    Raises:
      RuntimeError: they are not `select`, or not the least likely share of the Gaussian.
    """
    vectors = logits.reshape(-1, CLASSES).astype(np.float64)
    precision = np.linalg.inv(np.cov(vectors.T) + RIDGE * np.eye(CLASSES))
    offsets = after[(before != after).any(1)] - vectors.mean(0)
    wanted = chi2.isf(select / sample_from, CLASSES)
    least = np.einsum("ni,ij,nj->n", offsets, precision, offsets).min(initial=np.inf)
    if len(offsets) != select or not abs(least / wanted - 1) < TOLERANCE:
        raise RuntimeError(f"{len(offsets)} outliers whose squared distances begin at {least:.3f}; there must be {select}, from "
                           f"{wanted:.3f} on.")


def all_calls(logits: np.ndarray, sample_from: int, select: int) -> dict[str, dict[str, Call]]:
    """Way -> work -> call, after a look at the outliers of PyTorch and of jaxcell's placements.

    Raises:
      RuntimeError: see `check`.
    """
    calls = {"PyTorch": torch_calls(logits, sample_from, select)}
    calls |= {name: jaxcell_calls(synthesis_of(name, sample_from, select), logits) for name in (*PLACEMENTS, "queues")}
    pixels, memory = (np.asarray(calls[name]["replace"]()) for name in ("pixels", "memory"))
    theirs, first = calls["PyTorch"]["replace"]().cpu().numpy(), np.moveaxis(logits, -1, 1)
    for before, after in ((logits, pixels), (first, np.moveaxis(memory, -1, 1)), (first, theirs)):
        check(logits, before.reshape(-1, CLASSES), after.reshape(-1, CLASSES), sample_from, select)
    return calls


def outlier_rows(batch: int, crop: int, sample_from: int, select: int, rounds: int) -> list[Row]:
    """Milliseconds of PyTorch and of each of jaxcell's ways, in turns, after two calls of each.

    Raises:
      RuntimeError: see `check`.
    """
    logits = logits_of(batch, crop)
    calls = all_calls(logits, sample_from, select)
    rows = []
    for work in WORKS:
        times = in_turns({name: works[work] for name, works in calls.items()}, rounds)
        theirs, ours = times["PyTorch"], times["pixels"]
        row: Row = {"batch x crop": f"{batch} x {crop}", "work": work,
                    "PyTorch ms": middle(theirs), "its quartiles": spread(theirs),
                    "jaxcell ms": middle(ours), "our quartiles": spread(ours), "PyTorch / jaxcell": middle(theirs) / middle(ours)}
        rows.append(row | {f"{name} ms": middle(times[name]) for name in ("memory", "queues")})
    return rows


def in_turns(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(-2, rounds):
        for name, call in calls.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            call()
            if done >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128], help="the published run had 128")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--sample_from", type=int, default=100_000)
    parser.add_argument("--select", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/outliers"), help="without ending")
    options = parser.parse_args()
    about = machine(("jax", "torch")) | {"device": jax.devices()[0].device_kind, "rounds": options.rounds}
    rows = [row for batch in options.batches
            for row in outlier_rows(batch, options.crop, options.sample_from, options.select, options.rounds)]
    write(options.out, {f"{options.select:,} of {options.sample_from:,} draws": rows}, about)
    print(options.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
