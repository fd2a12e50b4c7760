"""jaxcell beside PyTorch: the same networks, batch, loss and optimizer, in turns; then what else a user waits for.

    python -m benchmarks.battery --device cpu       (`make bench`: at most 15 minutes on 2 quiet cores)
    python -m benchmarks.battery --device cpu --networks mesmer --out benchmarks/results/mesmer     (or another system)
    python -m benchmarks.battery --device gpu       (bfloat16 in both, larger batches)
    python -m benchmarks.battery --device cpu --dry --out /tmp/dry      (everything at tiny size; --device gpu does without a GPU)

Prints every row when it is known and writes (.md, .json) after each part. A network that fails is named at the end, the others
stay; the exit status is then 1. How it is measured and what the numbers mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.input import pipeline_rows
from benchmarks.report import Row, machine, markdown, middle, spread, write
from benchmarks.worker import read_config

__all__ = ["Place", "Race", "Worker", "race", "selected"]

ROOT = Path(__file__).parent.parent
PEAK = {"cpu": 2048, "gpu": 8192}       # side of the matrices whose product is the machine's peak
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Greatest difference of outputs as a share of their greatest value: sums in other orders."""
PAUSE = 0.2         # seconds in which the threads of the last worker stop looking for work
PATIENCE = 600      # seconds for one answer
PACKAGES = ("jaxcell", "jax", "jaxlib", "flax", "torch", "numpy")
GPU_SHARE = "0.45"  # of a GPU's memory for jax, which takes its share at the start, so that PyTorch finds the rest
LEAST = 3           # rounds, however long they take


@dataclass(frozen=True)
class Race:
    """One network and the batch at which it is compared.

    Attributes:
      title: for people.
      cpu, gpu: (batch, crop).
      dry: (batch, crop) that only show whether it runs.
    """

    title: str
    cpu: tuple[int, int]
    gpu: tuple[int, int]
    dry: tuple[int, int] = (2, 64)


NETWORKS: Mapping[str, Race] = {
    "contour_proposal:bbbc038": Race("ResNet-18 width 32 U-Net", (8, 256), (64, 256)),
    "contour_proposal:resnet50_fpn": Race("ResNet-50 FPN", (2, 128), (32, 256)),
    "contour_proposal:u22": Race("U-Net 22", (2, 128), (16, 256)),
    "contour_proposal:neurips2022": Race("ResNeXt-101 32x8d U-Net", (2, 128), (10, 512)),
    "maunet:resnet50": Race("MAUNet, ResNet50", (2, 128), (16, 512)),
    "maunet:wideresnet50": Race("MAUNet, WideResNet50", (2, 128), (16, 512)),
    "mesmer:resnet50": Race("PanopticNet, Keras' ResNet50", (2, 128), (16, 512)),
    "mesmer:densenet201": Race("PanopticNet, DenseNet201", (2, 128), (8, 512)),
    "mesmer:efficientnetb7": Race("PanopticNet, EfficientNetB7", (2, 128), (4, 512)),
    "morphoseg:r50_vit_b16_skip0": Race("TransUNet, R50-ViT-B/16", (2, 224), (64, 224)),
    "morphoseg:vit_b16": Race("TransUNet, ViT-B/16", (2, 224), (64, 224)),
    "sparse_seunet:multi": Race("SparseSEU-Net, multi-level", (2, 256), (2, 512), (2, 256)),
    "sparse_seunet:single_overlap": Race("SparseSEU-Net, overlap decoder", (2, 256), (2, 512), (2, 256)),
    "sparse_seunet:semantic_4head": Race("SE-U-Net, four decoders", (2, 256), (4, 512), (2, 256)),
}
"""<system>:<variant> of configs/. A batch of 2 at least: PyTorch refuses batch norm over the single value that pyramid pooling
leaves of one image."""


@dataclass(frozen=True)
class Place:
    """Where both frameworks compute (cpu, gpu), and in which precision."""

    name: str
    precision: str


class Worker:
    """A process of benchmarks/worker.py and its commands."""

    def __init__(self, framework: str, config: str, *, batch: int, crop: int, place: Place, cache: str = "") -> None:
        self.title = f"{framework} of {config}"
        command = [sys.executable, "-m", "benchmarks.worker", framework, config, "--batch", str(batch), "--crop", str(crop),
                   "--place", place.name, "--precision", place.precision, f"--compile_cache={cache}"]
        settings = {"cpu": {"JAX_PLATFORMS": "cpu"}, "gpu": {"XLA_PYTHON_CLIENT_MEM_FRACTION": GPU_SHARE}}
        environment = os.environ | settings[place.name]
        environment |= {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"} if cache else {}
        self._errors = tempfile.TemporaryFile("w+")     # noqa: SIM115 (a pipe that nobody reads would fill and stop the worker)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                                         cwd=ROOT, env=environment)

    def ask(self, name: str, argument: object = "-") -> Any:
        """The answer to one command.

        Raises:
          RuntimeError: the worker ended, or did not answer for PATIENCE seconds; holds the end of what it said.
        """
        assert self._process.stdin and self._process.stdout
        deadline = threading.Timer(PATIENCE, self._process.kill)
        deadline.start()
        try:
            self._process.stdin.write(f"{name} {argument}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            deadline.cancel()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._errors.seek(0)
        raise RuntimeError(f"{self.title} ended with status {status} at {name!r}: {self._errors.read()[-1500:].strip()}")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


# ---------------------------------------------------------------- networks
def race(config: str, title: str, *, batch: int, crop: int, place: Place, rounds: int, seconds: float,
         compiled: bool) -> list[Row]:
    """Training step and forward pass of one network in both frameworks, in turns.

    Args:
      config: <system>:<variant>.
      title: of the network.
      batch: images.
      crop: their sides.
      place: of both frameworks.
      rounds: turns of each at most.
      seconds: after which no further round begins.
      compiled: try torch.compile beside eager; the faster counts.

    Raises:
      RuntimeError: a worker failed, or they do not hold the same network.
    """
    frameworks = ("jaxcell", "eager", "compiled") if compiled else ("jaxcell", "eager")
    workers = {name: Worker(name, config, batch=batch, crop=crop, place=place) for name in frameworks}
    try:
        _same_network(workers, TOLERANCE[place.precision])
        peak = max(worker.ask("peak", PEAK[place.name]) for name, worker in workers.items() if name != "compiled")
        operations = workers["jaxcell"].ask("operations")
        rows: list[Row] = []
        for work, factor in (("step", 3), ("infer", 1)):
            times = _in_turns(workers, work, rounds, seconds)
            best = min((name for name in workers if name != "jaxcell"), key=lambda name: middle(times[name]))
            ours, theirs = middle(times["jaxcell"]), middle(times[best])
            row: Row = {"network": title, "config": config, "batch x crop": f"{batch} x {crop}", "work": work,
                   "GFLOP": factor * operations / 1e9, "rounds": len(times["jaxcell"]),
                   "PyTorch ms": theirs, "its quartiles": spread(times[best]), "its form": best,
                   "jaxcell ms": ours, "our quartiles": spread(times["jaxcell"]), "PyTorch / jaxcell": theirs / ours,
                   "PyTorch's share of peak": factor * operations / peak / theirs * 1e3,
                   "jaxcell's": factor * operations / peak / ours * 1e3}
            if work == "step":
                row |= {"PyTorch GB": workers[best].ask("memory"), "jaxcell GB": workers["jaxcell"].ask("memory")}
            rows.append(row)
        return rows
    finally:
        for worker in workers.values():
            worker.close()


def _same_network(workers: Mapping[str, Worker], tolerance: float) -> None:
    parameters = {name: worker.ask("parameters") for name, worker in workers.items()}
    with tempfile.TemporaryDirectory() as folder:
        workers["jaxcell"].ask("save", f"{folder}/jaxcell.npz")
        others = {name: worker for name, worker in workers.items() if name != "jaxcell"}
        different = {name: worker.ask("compare", f"{folder}/jaxcell.npz") for name, worker in others.items()}
    worst = max(max(values.values()) for values in different.values())
    if len(set(parameters.values())) > 1 or not worst < tolerance:
        raise RuntimeError(f"not the same network: {parameters} parameters; outputs differ by {different} of their greatest.")


def _in_turns(workers: Mapping[str, Worker], work: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of every call, the workers taking turns, after two calls of each that compile and warm up."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    for worker in workers.values():
        worker.ask(work, 2)
    start = time.perf_counter()
    for done in range(rounds):
        if done >= LEAST and time.perf_counter() - start > seconds:
            break
        for name, worker in workers.items():
            time.sleep(PAUSE)
            times[name] += worker.ask(work, 1)
    return times


# ---------------------------------------------------------------- what else a user waits for
def other_rows(config: str, *, batch: int, crop: int, place: Place, rounds: int) -> list[Row]:
    """From maps to cells, saving and restoring, a step with the system's own loss, the first step of a fresh process."""
    sizes = {"batch": batch, "crop": crop, "place": place}
    workers = {"jaxcell": Worker("jaxcell", config, **sizes), "PyTorch": Worker("eager", config, **sizes)}
    try:
        for worker in workers.values():
            worker.ask("step", 1)
        ours, theirs = (worker.ask("decode", rounds) for worker in workers.values())
        rows = [_pair(f"decode 1024 x 1024 pixels, {ours['cells']} cells", middle(ours["seconds"]),
                      middle(theirs["seconds"]) if theirs else None)]
        saved: dict[str, list[Row]] = {name: [] for name in workers}
        for _ in range(LEAST):
            for name, worker in workers.items():
                with tempfile.TemporaryDirectory() as folder:
                    saved[name].append(worker.ask("checkpoint", folder))
        for key, title in (("waiting", "checkpoint: until training goes on"), ("save", "checkpoint: until it is on disk"),
                           ("restore", "checkpoint: restore (jaxcell checks every array's digest)")):
            rows.append(_pair(f"{title}, {saved['jaxcell'][0]['MB']:.0f} MB", *(middle([row[key] for row in saved[name]])
                                                                            for name in workers)))
        objective = _in_turns({"jaxcell": workers["jaxcell"]}, "objective", rounds, 30)["jaxcell"]
        rows.append(_pair("training step with the system's own loss", middle(objective), None))
    finally:
        for worker in workers.values():
            worker.close()
    with tempfile.TemporaryDirectory() as cache:
        cold = [_first_step("jaxcell", config, sizes, cache) for _ in range(2)]
        eager, compiled = (_first_step(name, config, sizes, cache) for name in ("eager", "compiled"))
    return [*rows, _pair("fresh process to first step, nothing compiled before (PyTorch: torch.compile)", cold[0], compiled),
            _pair("fresh process to first step, jaxcell's compile cache filled (PyTorch: eager)", cold[1], eager)]


def _pair(work: str, ours: float, theirs: float | None) -> Row:
    return {"work": work, "PyTorch ms": theirs if theirs else "no rival", "jaxcell ms": ours,
            "PyTorch / jaxcell": theirs / ours if theirs else ""}


def _first_step(framework: str, config: str, sizes: Mapping[str, Any], cache: str) -> float:
    """Milliseconds from the start of a process to the end of its first training step; compiled programs lie in `cache`."""
    start = time.perf_counter()
    worker = Worker(framework, config, cache=cache, **sizes)
    try:
        worker.ask("step", 1)
    finally:
        worker.close()
    return 1e3 * (time.perf_counter() - start)


def input_rows(name: str, data: Path, batch: int, crop: int) -> list[Row]:
    """Batches as training reads them, from images in memory, on one core."""
    config = read_config(name, batch, crop)
    config.data.root, config.name = str(data), name
    return pipeline_rows(config, [0], 2)


# ---------------------------------------------------------------- all of it
def run(parts: Sequence[tuple[str, str, Callable[[], list[Row]]]], out: Path, about: Row) -> list[str]:
    """Runs (table, name, function) one after another, prints and writes what each gives; the failures."""
    tables: dict[str, list[Row]] = {}
    failures: list[str] = []
    start = time.perf_counter()
    for table, name, part in parts:
        try:
            rows = part()
        except RuntimeError as error:
            failures.append(f"{name}: {error}")
            print(f"FAILED {failures[-1]}", file=sys.stderr, flush=True)
            rows = []
        tables.setdefault(table, []).extend(rows)
        spent = round(time.perf_counter() - start)
        print(f"\n{spent} s: {name}\n\n{markdown(rows) if rows else 'nothing'}", flush=True)
        state = {"load after": round(os.getloadavg()[0], 2), "seconds": spent}
        write(out, tables, about | state | ({"FAILED": "; ".join(failures)} if failures else {}))
    return failures


def selected(words: str) -> list[str]:
    """The networks that a list names: "mesmer,contour_proposal:u22" is all of one system and one of another.

    Raises:
      SystemExit: there is no such system or network.
    """
    found = {word: [name for name in NETWORKS if word in (name, name.partition(":")[0])] for word in words.split(",")}
    if wrong := [word for word, names in found.items() if not names]:
        raise SystemExit(f"--networks {wrong}: unknown; there are {', '.join(NETWORKS)}, and their systems.")
    return list(dict.fromkeys(name for names in found.values() for name in names))


def _gpu() -> str:
    """Name and driver of the GPU, or nothing."""
    try:
        line = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--out", type=Path, help="without ending; default: benchmarks/results/<device>")
    parser.add_argument("--networks", default="contour_proposal", help="systems, for all of their networks, or networks: "
                        f"{', '.join(NETWORKS)}; default: %(default)s")
    parser.add_argument("--compiled", help="networks for which torch.compile is tried beside eager, 'all' or 'none'; "
                        "default on a CPU: the first, on a GPU: all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=25, help="after which a network's work gets no further round")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="for the input pipeline; left out if absent")
    parser.add_argument("--dry", action="store_true", help="tiny sizes: does it run?")
    options = parser.parse_args()
    if not importlib.util.find_spec("torch"):
        raise SystemExit("PyTorch is not installed, and it is the rival; run `make bench`, which installs its CPU build.")
    names = selected(options.networks)
    sizes = {name: NETWORKS[name].dry if options.dry else {"cpu": NETWORKS[name].cpu, "gpu": NETWORKS[name].gpu}[options.device]
             for name in names}
    chosen = options.compiled or ("all" if options.device == "gpu" and not options.dry else names[0])
    compiled = {"all": names, "none": []}.get(chosen, chosen.split(","))
    place, rounds = Place(options.device, {"cpu": "float32", "gpu": "bfloat16"}[options.device]), options.rounds
    about = machine(PACKAGES) | {"precision": place.precision} | ({"GPU": _gpu()} if place.name == "gpu" else {})
    if options.dry:
        rounds, about = LEAST, about | {"DRY RUN": "tiny sizes, the times say nothing"}
    if options.device == "gpu" and not about["GPU"]:
        if not options.dry:
            raise SystemExit("no GPU is seen (nvidia-smi); use --device cpu, or --dry to try the commands without one.")
        place, about["GPU"] = Place("cpu", place.precision), "none: this ran on the CPU in bfloat16"
        print("NO GPU IS SEEN: this dry run computes on the CPU, in bfloat16; it shows that the commands run, no more.",
              file=sys.stderr, flush=True)

    def racing(name: str) -> Callable[[], list[Row]]:
        batch, crop = sizes[name]
        return lambda: race(name, NETWORKS[name].title, batch=batch, crop=crop, place=place, rounds=rounds,
                            seconds=options.seconds, compiled=name in compiled)

    first, (batch, crop) = names[0], sizes[names[0]]
    parts: list[tuple[str, str, Callable[[], list[Row]]]] = [("Networks", name, racing(name)) for name in names]
    parts.append((f"What else a user waits for ({first})", "what else a user waits for",
                  lambda: other_rows(first, batch=batch, crop=crop, place=place, rounds=rounds)))
    if all((options.data / source.root).is_dir() for source in read_config(first, batch, crop).data.train.values()):
        parts.append(("Input pipeline, one core", "input pipeline", lambda: input_rows(first, options.data, batch, crop)))
    out = options.out or ROOT / "benchmarks" / "results" / options.device
    if failures := run(parts, out, about):
        raise SystemExit(f"{len(failures)} of {len(parts)} parts failed: {'; '.join(f.partition(':')[0] for f in failures)}")


if __name__ == "__main__":
    main()
