"""Where the time of a training step goes, by kind of layer, in jaxcell beside PyTorch: on one core, one thing after another.

    python -m benchmarks.layers contour_proposal:bbbc038 --batch 2 --crop 128

Each operation counts with the least of several steps, so that other programs disturb little. What XLA fuses counts where the last
of the fused operations belongs. PyTorch (eager) gives one time for both gradients of a convolution; it is divided as oneDNN's own
times say.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import Row, markdown
from benchmarks.worker import images, read_config
from jaxcell.training.allocator import keep_freed_memory

STEPS = 5
KINDS = ("convolution forward", "input gradient", "kernel gradient", "norms", "pooling and resizing", "optimizer",
         "changes of layout", "rest")
SCOPES = (("kernel gradient", r"kernel_gradient"), ("input gradient", r"input_gradient"), ("norms", r"norm\d*(/|$|\))|_norm"),
          ("pooling and resizing", r"pool|resize"))
"""What the scopes of jaxcell's operations hold; the first that matches."""
OPERATIONS = (("convolution forward", r"^aten::mkldnn_convolution$"), ("gradients", r"^aten::convolution_backward$"),
              ("norms", r"norm"), ("pooling and resizing", r"pool|upsample"), ("optimizer", r"adam|foreach"),
              ("changes of layout", r"^aten::(copy_|contiguous|cat)$"))
"""What PyTorch's operations are called."""


def jaxcell_times(config: Any) -> dict[str, float]:
    """Milliseconds of each kind of layer."""
    import jax
    import optax
    from jax.profiler import ProfileData

    from benchmarks.network import squares
    from jaxcell.systems import build_system
    from jaxcell.training.mesh import make_mesh, shard_batch
    from jaxcell.training.objectives import supervised
    from jaxcell.training.state import init_state
    from jaxcell.training.step import descending, make_train_step

    system, mesh, transformation = build_system(config), make_mesh(jax.devices()[:1]), optax.adamw(1e-3, weight_decay=1e-4)
    state = jax.jit(lambda: init_state(system.model, transformation, seed=0, image_shape=(1, 64, 64, config.data.channels)))()
    batch = shard_batch({"image": images(config)}, mesh)
    step = make_train_step(descending(supervised(system, loss=squares), transformation), mesh)
    program = step.lower(state, batch).compile().as_text()
    lines = {match[1]: match[2] for match in re.finditer(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$", program, re.MULTILINE)}
    runs: list[dict[str, float]] = []
    for _ in range(STEPS + 1):
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                state, metrics = step(state, batch)
                float(metrics["loss"])
            (file,) = Path(folder).rglob("*.xplane.pb")
            times: Counter[str] = Counter()
            for plane in ProfileData.from_file(str(file)).planes:
                for event in (event for line in plane.lines for event in line.events if event.name in lines):
                    times[event.name] += event.duration_ns / 1e6
        runs.append(dict(times))
    return _sums((_kind(lines[name]), value) for name, value in _least(runs[1:]).items())


def _least(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: min(run[name] for run in runs if name in run) for name in runs[-1]}


def _sums(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    kinds: Counter[str] = Counter()
    for kind, value in pairs:
        kinds[kind] += value
    return dict(kinds)


def _kind(line: str) -> str:
    found = re.search(r'op_name="([^"]*)"', line)
    scope = found[1] if found else ""
    product = re.search(r"[\])}] (convolution|dot|custom-call)\(", line)
    if product and not scope:       # XLA writes kernel gradients anew, without their names
        return "kernel gradient"
    if kind := next((kind for kind, pattern in SCOPES if re.search(pattern, scope)), None):
        return kind
    if product:
        return "input gradient" if "transpose(" in scope else "convolution forward"
    if not scope or re.search(r"^\(?\w+\[[^=]* (copy|transpose)\(", line):
        return "changes of layout"
    return "rest" if "Network" in scope or "jvp" in scope else "optimizer"


def torch_times(config: Any) -> dict[str, float]:
    """The same of PyTorch, eager."""
    import torch

    from benchmarks.rivals.network import calls

    torch.set_num_threads(1)
    step = calls(config, place="cpu", precision="float32", compiled=False)["step"]
    step("2")
    runs = []
    for _ in range(STEPS):
        with torch.profiler.profile() as profile:
            step("1")
        runs.append({event.key: event.self_cpu_time_total / 1e3 for event in profile.key_averages()})
    kinds = _sums((next((kind for kind, pattern in OPERATIONS if re.search(pattern, name.lower())), "rest"), value)
                  for name, value in _least(runs).items())
    both, share = kinds.pop("gradients"), _share_of_kernel_gradients(step)
    return kinds | {"kernel gradient": share * both, "input gradient": (1 - share) * both}


def _share_of_kernel_gradients(step: Any) -> float:
    """Of the time of both gradients of convolutions, as oneDNN prints them."""
    import torch

    with tempfile.TemporaryFile("w+") as file:
        kept = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                step("1")
        finally:
            os.dup2(kept, 1)
        file.seek(0)
        text = file.read()
    found = re.findall(r",exec,cpu,convolution,[^,]*,backward_(data|weights),.*,([\d.e+-]+)$", text, re.MULTILINE)
    times = _sums((kind, float(value)) for kind, value in found)
    return times["weights"] / sum(times.values())


def rows_of(times: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """One row for each kind of layer, and their sum."""
    ours, theirs = times["jaxcell"], times["torch"]
    rows: list[Row] = [{"kind": kind, "PyTorch ms": theirs.get(kind, 0.0), "jaxcell ms": ours.get(kind, 0.0)} for kind in KINDS]
    return [*rows, {"kind": "all", "PyTorch ms": sum(theirs.values()), "jaxcell ms": sum(ours.values())}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="<system>:<variant>")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--framework", choices=("jaxcell", "torch"), help="of this process; default: one process for each")
    options = parser.parse_args()
    if options.framework:
        keep_freed_memory()
        config = read_config(options.config, options.batch, options.crop)
        print(json.dumps((jaxcell_times if options.framework == "jaxcell" else torch_times)(config)))
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})     # the processes inherit it, before the frameworks count the cores
    line = [sys.executable, "-m", "benchmarks.layers", *sys.argv[1:], "--framework"]
    answers = {name: subprocess.run([*line, name], check=True, capture_output=True, text=True).stdout.splitlines()[-1]
               for name in ("jaxcell", "torch")}
    print(f"{options.config}, {options.batch} x {options.crop}\n\n"
          f"{markdown(rows_of({name: json.loads(answer) for name, answer in answers.items()}))}")


if __name__ == "__main__":
    main()
