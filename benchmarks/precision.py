"""The same run in float32 and in bfloat16 (float32 parameters, norms and losses in both): loss curves and scores side by side.

    python -m benchmarks.precision --steps 400 --out benchmarks/results/precision

On a machine without bfloat16 convolutions it says how close the curves are, not how fast. About 12 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs/contour_proposal.py"
DTYPES = ("float32", "bfloat16")
SMOOTHING = 20      # steps whose mean the curve shows


def train(workdir: Path, dtype: str, variant: str, steps: int, options: list[str]) -> list[dict[str, float]]:
    """The log of a run, a line for each step."""
    subprocess.run([sys.executable, ROOT / "train.py", "--config", f"{CONFIG}:{variant}", "--workdir", workdir,
                    f"--config.model.dtype={dtype}", f"--config.train.steps={steps}", "--config.train.log_every=1",
                    f"--config.train.eval_every={steps}", *options], check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def values(log: list[dict[str, float]], key: str) -> np.ndarray:
    return np.array([line[key] for line in log if key in line])


def draw(logs: dict[str, list[dict[str, float]]], out: Path) -> None:
    """Loss over the step, in means of some steps."""
    figure = Figure(figsize=(7, 3.5), dpi=130, layout="constrained")
    axes = figure.subplots()
    for dtype, log in logs.items():
        loss = np.convolve(values(log, "loss"), np.full(SMOOTHING, 1 / SMOOTHING), "valid")
        axes.plot(np.arange(SMOOTHING, SMOOTHING + len(loss)), loss, label=dtype, linewidth=1)
    axes.set(xlabel="step", ylabel=f"loss, mean of {SMOOTHING} steps", yscale="log")
    axes.legend()
    figure.savefig(out.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--variant", default="synthetic")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "precision", help="without ending")
    arguments, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        logs = {dtype: train(Path(folder) / dtype, dtype, arguments.variant, arguments.steps, options) for dtype in DTYPES}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw(logs, arguments.out)
    rows = [f"| {dtype} | " + " | ".join(f"{part.mean():.3f}" for part in np.array_split(values(log, "loss"), 4))
            + f" | {values(log, 'val/f1')[-1]:.4f} |" for dtype, log in logs.items()]
    text = "\n".join(["| arithmetic | " + " | ".join(f"mean loss, quarter {i}" for i in (1, 2, 3, 4)) + " | validation F1@0.5 |",
                      "| --- |" + " ---: |" * 5, *rows])
    command = f"python -m benchmarks.precision --variant {arguments.variant} --steps {arguments.steps}"
    arguments.out.with_suffix(".md").write_text(f"`{command}`\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
