"""Faults done to runs on purpose, many times over: kills, damaged checkpoints, steps that are not finite.

    python -m benchmarks.faults --kills 50 --damages 200 --skips 20 --out benchmarks/results/faults.md

Every trial must end as an undisturbed run does (the same `state sha256`) or with the fault named; the table counts those that do.
About 25 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

__all__ = ["damage"]

ROOT = Path(__file__).parent.parent
STEPS = 40
KILLS_OF_A_RUN = 10


def damage(folder: Path, rng: random.Random) -> str:
    """Does one random harm to one random file below `folder`; says which."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.stat().st_size)
    file, = rng.choices(files, weights=[f.stat().st_size ** 0.5 for f in files])
    data = bytearray(file.read_bytes())
    place = rng.randrange(len(data))
    kind = rng.choice(("flip a bit", "flip a bit", "truncate", "zero 64 bytes", "delete"))
    if kind == "delete":
        file.unlink()
        return f"delete {file.relative_to(folder)}"
    if kind == "flip a bit":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del data[place:]
    else:
        data[place:place + 64] = bytes(len(data[place:place + 64]))
    file.write_bytes(data)
    return f"{kind} of {file.relative_to(folder)} at {place}"


# ---------------------------------------------------------------- runs of the toy config, as a user starts them
def command(workdir: Path, cache: Path) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / "configs/contour_proposal.py:toy"), "--workdir",
            str(workdir), f"--compile_cache={cache}", f"--config.train.steps={STEPS}", "--config.train.checkpoint_every=2"]


def finish(workdir: Path, cache: Path) -> str:
    """The digest that a run prints when it is left alone."""
    result = subprocess.run(command(workdir, cache), capture_output=True, text=True)
    found = re.search(r"^state sha256: ([0-9a-f]{64})$", result.stdout, re.MULTILINE)
    if result.returncode or not found:
        raise SystemExit(f"a run that was left alone failed:\n{result.stderr[-3000:]}")
    return found[1]


KILL = """
import os, random, signal, sys, threading
from dataclasses import replace
from jaxcell import cli, train
moment, left = sys.argv.pop(1).split(":")
left, lock = int(left), threading.Lock()
def reached(name):
    global left
    with lock:
        left -= name == moment
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
def first_tell(name, function):
    def told(*arguments, **options):
        reached(name)
        return function(*arguments, **options)
    return told
def then_tell(name, function):
    def told(*arguments, **options):
        result = function(*arguments, **options)
        reached(name)
        return result
    return told
build, save = train.build_system, train.Checkpoints.save
def build_system(config):
    system = build(config)
    return replace(system, targets=first_tell("data", system.targets))
def saving(self, state, cursor):
    save(self, state, cursor)
    if moment == "save":        # the files are written by threads from now on
        threading.Timer(random.uniform(0, 0.05), reached, ["save"]).start()
train.build_system, train.Checkpoints.save = build_system, saving
train.shard_batch = first_tell("step", train.shard_batch)
for name in ("rename", "replace"):
    setattr(os, name, then_tell("after rename", first_tell("before rename", getattr(os, name))))
sys.exit(cli.main(sys.argv[1:]))
"""

MOMENTS = {"data": 40, "step": 10, "save": 4, "before rename": 12, "after rename": 12, "any time": 0}
"""Where kills strike: at a sample's targets, before a step, while files are written, around the renames that make a checkpoint
whole; and the greatest number of times that this is reached before."""


def kill_once(workdir: Path, cache: Path, moment: str, rng: random.Random, length: float) -> bool:
    """Starts or continues a run and kills it; False if it ended first."""
    line = command(workdir, cache)
    if moment != "any time":
        line = [sys.executable, "-c", KILL, f"{moment}:{rng.randint(1, MOMENTS[moment])}", "train", *line[2:]]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    if moment == "any time":
        time.sleep(rng.uniform(0, 0.9) * length)
        process.kill()
    return process.wait() == -signal.SIGKILL


def kill_runs(count: int, cache: Path, rng: random.Random) -> tuple[int, Counter]:
    """(runs that did not end as the undisturbed one, kills at each moment) of `count` kills, at most ten a run."""
    with tempfile.TemporaryDirectory() as folder:
        whole = finish(Path(folder) / "whole", cache)
        start = time.monotonic()
        finish(Path(folder) / "timed", cache)
        length = time.monotonic() - start
        moments: Counter = Counter()
        wrong = runs = 0
        while moments.total() < count:
            workdir, moment = Path(folder) / f"run{runs}", ""
            for _ in range(min(KILLS_OF_A_RUN, count - moments.total())):
                moment = list(MOMENTS)[moments.total() % len(MOMENTS)]
                moments[moment] += kill_once(workdir, cache, moment, rng, length)
            if (digest := finish(workdir, cache)) != whole:
                print(f"WRONG: run {runs} ends with {digest}, undisturbed {whole}", file=sys.stderr)
                wrong += 1
            runs += 1
        return wrong, moments


def damage_checkpoints(count: int, cache: Path, rng: random.Random) -> tuple[int, Counter]:
    """(wrong states, outcomes) of `count` damages to the latest of three checkpoints of a real run."""
    import contextlib
    import io

    import jax

    from jaxcell.configuration import load_config
    from jaxcell.start import initial_state
    from jaxcell.systems import build_system
    from jaxcell.training.checkpoint import restore_state
    from jaxcell.training.log import quiet_libraries
    from jaxcell.training.mesh import make_mesh, replicated
    from jaxcell.training.state import digests

    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        run, copy = Path(folder) / "run", Path(folder) / "copy"
        finish(run, cache)
        config = load_config(run)
        abstract = jax.eval_shape(initial_state(config, build_system(config))[2])
        place = replicated(make_mesh())
        steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
        truth = {step: digests(*restore_state(run / "checkpoints", abstract, place, step=step)) for step in steps}
        outcomes: Counter = Counter()
        wrong = 0
        for _ in range(count):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(run / "checkpoints", copy)
            harm = damage(copy / str(steps[-1]), rng)
            with contextlib.redirect_stderr(io.StringIO()) as said:
                state, cursor = restore_state(copy, abstract, place)
            step = int(state.step)
            right = digests(state, cursor) == truth.get(step)
            named = step == steps[-1] or f"{steps[-1]} is damaged" in said.getvalue()
            if not (right and named):
                wrong += 1
                print("WRONG:", harm, step, said.getvalue(), file=sys.stderr)
            outcomes["named, the one before used" if step != steps[-1] else "of no consequence, all values right"] += 1
        return wrong, outcomes


INJECT = """
import sys
import numpy as np
from jaxcell import cli, train
at = {int(step) for step in sys.argv.pop(1).split(",")}
place, count = train.shard_batch, 0
def shard_batch(batch, mesh):
    global count
    if "fourier" in batch:      # of a training step
        count += 1
        if count in at:
            batch = {**batch, "image": np.where(np.arange(len(batch["image"]))[:, None, None, None] == 0, np.nan, batch["image"])}
    return place(batch, mesh)
train.shard_batch = shard_batch
sys.exit(cli.main(sys.argv[1:]))
"""


def inject(steps: list[int], workdir: Path, cache: Path) -> subprocess.CompletedProcess:
    """A run whose batches of these steps hold NaN."""
    line = [sys.executable, "-c", INJECT, ",".join(map(str, steps)), "train", *command(workdir, cache)[2:]]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def skip_steps(count: int, cache: Path, rng: random.Random) -> tuple[int, Counter]:
    """(steps not skipped and named, outcomes) of `count` steps with NaN, and of a run of nothing but NaN."""
    with tempfile.TemporaryDirectory() as folder:
        steps = sorted(rng.sample(range(2, STEPS), count))
        result = inject(steps, Path(folder) / "some", cache)
        lines = [json.loads(line) for line in (Path(folder) / "some" / "skipped.jsonl").read_text().splitlines()]
        named = {line["step"] for line in lines if line["samples"] and "loss nan" in line["not_finite"]}
        all_of_it = inject(list(range(21, STEPS + 1)), Path(folder) / "all", cache)
        stopped = "10 updates in a row were not finite" in all_of_it.stderr and all_of_it.returncode == 2
        latest = max(int(p.name) for p in (Path(folder) / "all" / "checkpoints").iterdir() if p.name.isdigit())
        outcomes = Counter({"skipped and named with its samples": len(named & set(steps)),
                            f"run of NaN stopped after 10 in a row, checkpoint {latest} intact": int(stopped)})
        return len(set(steps) ^ named) + (result.returncode != 0) + (not stopped), outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 50), ("damages", 200), ("skips", 20), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "faults.md")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for kind, count, trial in (("kill -9", options.kills, kill_runs),
                                   ("damaged checkpoint file", options.damages, damage_checkpoints),
                                   ("batch with NaN", options.skips, skip_steps)):
            start = time.monotonic()
            wrong, outcomes = trial(count, Path(cache), rng)
            told = "; ".join(f"{n} {what}" for what, n in sorted(outcomes.items()))
            rows.append(f"| {kind} | {count} | {wrong} | {told} |")
            print(rows[-1], f"{time.monotonic() - start:.0f} s", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(["| fault | trials | wrong | what happened |", "| --- | ---: | ---: | --- |", *rows])
    options.out.write_text(f"`{__doc__.splitlines()[2].strip()}`\n\n{text}\n")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
