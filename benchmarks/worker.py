"""One framework with one network in a process of its own, which computes when it is told to.

    python -m benchmarks.worker jaxcell contour_proposal:bbbc038 --batch 8 --crop 256

Reads one command a line, `<name> <count or path>`, and answers one line of JSON: the seconds of each call, or what was asked for.
Between commands it sleeps, so that two of them do not disturb each other.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcell.training.allocator import keep_freed_memory

__all__ = ["Call", "images", "read_config", "seconds_of"]

Call = Callable[[str], Any]
"""Takes the second word of a command, gives what the answer holds."""


def read_config(name: str, batch: int, crop: int) -> Any:
    """configs/<system>.py of "<system>:<variant>", at another batch and crop."""
    system, _, variant = name.partition(":")
    config = importlib.import_module(f"configs.{system}").get_config(variant)
    config.data.batch_size, config.data.crop = batch, crop
    return config


def images(config: Any) -> np.ndarray:
    """The same batch in both frameworks, [B, H, W, C] in [0, 1]."""
    shape = (config.data.batch_size, config.data.crop, config.data.crop, config.data.channels)
    return np.random.default_rng(0).random(shape, np.float32)


def seconds_of(function: Callable[[], None]) -> Call:
    """A command that calls `function` so many times."""
    def run(count: str) -> list[float]:
        times = []
        for _ in range(int(count)):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return times

    return run


def _memory(_: str) -> float:
    """Greatest memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", choices=("jaxcell", "eager", "compiled"), help="the latter two are PyTorch")
    parser.add_argument("config", help="<system>:<variant>")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--crop", type=int, required=True)
    parser.add_argument("--place", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile_cache", default="", help="folder of jaxcell's compiled programs; default: none are kept")
    arguments = parser.parse_args()
    keep_freed_memory()     # as train.py does; PyTorch gains as much
    config = read_config(arguments.config, arguments.batch, arguments.crop)
    answers, sys.stdout = sys.stdout, sys.stderr    # what libraries print must not be taken for an answer
    if arguments.framework == "jaxcell":
        from benchmarks.network import calls
        from jaxcell.training.compile_cache import use_compile_cache
        use_compile_cache(arguments.compile_cache)
    else:
        from benchmarks.rivals.network import calls  # type: ignore[assignment]
    commands = {"memory": _memory} | calls(config, place=arguments.place, precision=arguments.precision,
                                           compiled=arguments.framework == "compiled")
    for line in sys.stdin:
        name, argument = line.split(maxsplit=1)
        print(json.dumps(commands[name](argument.strip())), file=answers, flush=True)


if __name__ == "__main__":
    main()
