"""The same run on 1 device, 4 devices, and 2 processes of 2 devices: losses side by side, and restored on one another.

    python -m benchmarks.topology --steps 50 --out benchmarks/results/topology.md

Devices are CPU cores that XLA is told to take for several. The rate is low: rounding differs with the topology, and Adam's
first full steps multiply any difference by a hundred. About 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["losses", "run"]

ROOT = Path(__file__).parent.parent


def run(workdir: Path, *options: str, processes: int = 1, devices: int = 1, cache: Path | str = "") -> str:
    """Trains the toy config to the end; standard output of process 0.

    Raises:
      RuntimeError: a process failed; holds the end of what it said.
    """
    line = [sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / "configs/contour_proposal.py:toy"), "--workdir",
            str(workdir), f"--compile_cache={cache}", "--config.train.log_every=1", "--config.train.eval_every=1000",
            "--config.train.eval_images=1", "--config.optimizer.schedule.base=1e-4", "--cpu", *options]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            line += [f"--coordinator=localhost:{free.getsockname()[1]}", f"--processes={processes}"]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    started = [subprocess.Popen(line + ([f"--process={i}"] if processes > 1 else []), env=environment, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True) for i in range(processes)]
    said = [process.communicate(timeout=1200) for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"{processes} x {devices}: exit {process.returncode}\n{errors[-3000:]}")
    return said[0][0]


def losses(workdir: Path) -> dict[int, float]:
    """Step -> loss of a run that logged every step."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "topology.md")
    options = parser.parse_args()
    steps, half = options.steps, options.steps // 2
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        place, cache = Path(folder), Path(folder) / "cache"
        for name, shape in (("1 device", (1, 1)), ("4 devices", (1, 4)), ("2 processes x 2 devices", (2, 2))):
            run(place / name, f"--config.train.steps={steps}", processes=shape[0], devices=shape[1], cache=cache)
            found[name] = losses(place / name)
        for name, first, then in (("4 devices, then 1", 4, 1), ("1 device, then 4", 1, 4)):
            run(place / name, f"--config.train.steps={steps}", f"--config.train.stop_step={half}", devices=first, cache=cache)
            run(place / name, f"--config.train.steps={steps}", devices=then, cache=cache)
            found[name] = losses(place / name)
    reference = found["1 device"]
    shown = [step for step in (1, 2, 5, 10, 25, 50) if step <= steps]
    rows = ["| topology | " + " | ".join(f"step {s}" for s in shown) + " | largest relative difference |",
            "| --- |" + " ---: |" * (len(shown) + 1)]
    for name, values in found.items():
        difference = max(abs(values[s] - reference[s]) / abs(reference[s]) for s in reference)
        rows.append(f"| {name} | " + " | ".join(f"{values[s]:.5f}" for s in shown) + f" | {difference:.1e} |")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(f"Loss by step. `{__doc__.splitlines()[2].strip()}`\n\n" + "\n".join(rows) + "\n")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
