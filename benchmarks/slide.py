"""A whole slide through MAUNet's prediction, part by part: network, merging of its windows, post-processing; time and memory.

    python -m benchmarks.slide                                  (8415 x 10496 pixels, 40,000 cells; the network on 5 batches)
    python -m benchmarks.slide --parts post-processing
    python -m benchmarks.slide --shape 1000 1200 --cells 500    (does it run?)

Every part runs in a process of its own, whose greatest memory is the part's. The slide and the maps that a network would make of
it are synthetic (seed 0) and come from files, which are not timed. A CPU takes long over the network: unless `--calls 0` asks for
all of it, a few calls are measured and the rest is extrapolated, which the table says. Windows and blending are measured in full,
with a network that answers at once. The paper reports 74 s for a slide of this size, all parts together, on its machine.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from benchmarks.postprocessing import RADII, cell_labels
from benchmarks.report import Row, machine, write
from benchmarks.worker import read_config
from jaxcell.data.normalize import fit_normalizer
from jaxcell.geometry.labels import cell_ids
from jaxcell.inference.blocks import decode_blocks
from jaxcell.inference.ensemble import merged_blocks, step_of_overlap
from jaxcell.inference.tiling import plan_blocks
from jaxcell.systems import build_system
from jaxcell.training.step import make_apply
from jaxcell.types import Instances, Sample

PARTS = ("network", "post-processing")
SCALES = ((1.0,), (1.0, 1.25, 1.5))
BLOCKS = (16_384, 4096)     # the config's, which holds the slide, and a small one
MAPS = ("classes", "distance")
NOISE = 2048                # side of the field of errors that is laid over the maps again and again


# ---------------------------------------------------------------- the slide
def make_slide(folder: Path, config: str, shape: tuple[int, int], cells: int) -> int:
    """Writes image.npy [H, W, 3] uint8 and the maps that a trained network would make of it; gives the number of cells.

    The maps are the targets, blurred, with errors as large as a few pixels.
    """
    rng = np.random.default_rng(0)
    labels = cell_labels(rng, shape, cells, RADII["apart"])
    field = cv2.GaussianBlur(rng.standard_normal((NOISE, NOISE), np.float32), (0, 0), 1.5)

    def rough(target: np.ndarray, blur: float, errors: float) -> np.ndarray:
        shift = rng.integers(0, NOISE, 2)
        rows, columns = ((np.arange(side) + start) % NOISE for side, start in zip(shape, shift, strict=True))
        result = cv2.GaussianBlur(target.astype(np.float32), (0, 0), blur)
        result += errors * field[rows[:, None], columns]
        return np.clip(result, 0, 1, out=result)

    image = np.lib.format.open_memmap(folder / "image.npy", "w+", np.uint8, (*shape, 3))
    for channel, (paper, stain) in enumerate(((230, 110), (220, 70), (235, 150))):
        image[..., channel] = np.rint(paper + (stain - paper) * rough(labels > 0, 1.5, 0.2))
    target = build_system(_config(config)).targets(Sample(image, labels[..., None], name="slide"), rng)
    distance = np.lib.format.open_memmap(folder / "distance.npy", "w+", np.float32, (*shape, 1))
    distance[..., 0] = rough(target["distance"][..., 0], 1.0, 0.08)
    classes = np.lib.format.open_memmap(folder / "classes.npy", "w+", np.float32, (*shape, 4))
    for channel in range(3):
        classes[..., channel] = np.log(rough(target["classes"] == channel, 0.7, 0.15) + 1e-3)
    classes[..., 3] = np.log(1e-2)      # the proxy's share
    return len(cell_ids(labels))


# ---------------------------------------------------------------- the parts
def merging(folder: Path, config: str, scales: Sequence[float]) -> Row:
    """Intensities, windows, scales and blending, with a network that answers at once."""
    settings, calls = _config(config), []
    options, divisor = settings.inference, build_system(settings).divisor
    sides = (options.batch, options.tile, options.tile)
    answers = {"classes": np.zeros((*sides, 4), np.float32), "distance": np.zeros((*sides, 1), np.float32)}

    def answer(windows: np.ndarray) -> Mapping[str, np.ndarray]:
        calls.append(len(windows))
        return answers

    image, start = np.load(folder / "image.npy"), _clocks()
    normalize = fit_normalizer(image, dict(settings.data.normalize), channels=settings.data.channels)
    for _ in merged_blocks(answer, image, window=options.tile, step=step_of_overlap(options.tile, options.overlap),
                           edges=options.edges, merge=options.merge, blend=options.blend, scales=scales, block=options.block,
                           halo=options.halo, batch=options.batch, divisor=divisor, large=sys.maxsize, normalize=normalize):
        pass
    return {"part": "windows, blending", "how": f"{len(calls)} calls", "calls": len(calls)} | _spent(_clocks() - start)


def network(config: str, calls: int) -> Row:
    """So many calls of the network with one batch of windows, after one that compiles."""
    settings = _config(config)
    system, options, channels = build_system(settings), settings.inference, settings.data.channels
    variables = jax.jit(system.model.init)(jax.random.key(0), np.zeros((1, 64, 64, channels), np.float32))
    windows = np.random.default_rng(0).random((options.batch, options.tile, options.tile, channels), np.float32)
    apply = make_apply(system.model)
    jax.device_get(apply(variables, windows))
    start = _clocks()
    for _ in range(calls):
        jax.device_get(apply(variables, windows))
    return _spent(_clocks() - start)


def post_processing(folder: Path, config: str, block: int) -> Row:
    """From maps to cells by blocks; reading the maps from their files is not timed."""
    system, halo = build_system(_config(config)), _config(config).inference.halo
    maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in MAPS}
    shape = maps["distance"].shape[:2]
    plan, spent = plan_blocks(shape, block=block, halo=halo, stride=1), np.zeros(2)

    def decode(maps: Mapping[str, np.ndarray]) -> Instances:
        nonlocal spent
        start = _clocks(time.thread_time)       # (meanwhile another thread reads the next block)
        found = system.decode(maps)
        spent += _clocks(time.thread_time) - start
        return found

    blocks = ((window, {name: _read(values, window.frame) for name, values in maps.items()}) for window in plan)
    found = decode_blocks(blocks, shape, decode=decode, halo=halo)
    return {"part": "post-processing, the whole slide at once" if len(plan) == 1 else f"post-processing, blocks of {block}",
            "how": f"{len(found):,} cells found"} | _spent(spent)


def _config(name: str) -> Any:
    return read_config(name, 1, 512)


def _clocks(processor: Callable[[], float] = time.process_time) -> np.ndarray:
    return np.asarray([time.perf_counter(), processor()])


def _spent(seconds: np.ndarray) -> Row:
    """With the greatest memory of this process so far."""
    return {"s": float(seconds[0]), "CPU s": float(seconds[1]),
            "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def _read(values: np.memmap, frame: tuple[int, int, int, int]) -> np.ndarray:
    """A region of a file [H, W, C] as a copy, without mapping the file into the memory that is measured."""
    (y0, x0, y1, x1), (_, width, channels) = frame, values.shape
    offset = values.offset + y0 * width * channels * values.itemsize
    rows = np.fromfile(str(values.filename), values.dtype, (y1 - y0) * width * channels, offset=offset)
    return np.ascontiguousarray(rows.reshape(y1 - y0, width, channels)[:, x0:x1])


# ---------------------------------------------------------------- all of it
def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives, called in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def rows_of(folder: Path, options: argparse.Namespace) -> list[Row]:
    """A row for each part; the network's, if a few calls stand for all, in proportion."""
    rows: list[Row] = []
    if "network" in options.parts:
        merged = {scales: alone(merging, folder, options.config, scales) for scales in SCALES}
        calls = options.calls or merged[SCALES[0]]["calls"]
        once = alone(network, options.config, calls)
        for scales, row in merged.items():
            needed = row.pop("calls")
            how = f"{needed} calls" + (f", extrapolated from {calls}" if calls != needed else "")
            share = {key: once[key] * needed / calls for key in ("s", "CPU s")}
            title = "scale 1" if len(scales) == 1 else f"scales {', '.join(f'{scale:g}' for scale in scales)}"
            rows += [row | {"part": f"{row['part']}, {title}"}, {"part": f"network, {title}", "how": how} | once | share]
    if "post-processing" in options.parts:
        rows += [alone(post_processing, folder, options.config, block) for block in BLOCKS]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="maunet:resnet50", help="a variant of configs/maunet.py; default: %(default)s")
    parser.add_argument("--shape", type=int, nargs=2, default=(8415, 10496), help="rows and columns")
    parser.add_argument("--cells", type=int, default=40_000)
    parser.add_argument("--calls", type=int, default=5, help="of the network that are measured; 0: all of scale 1")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/slide"))
    options = parser.parse_args()
    about = machine(("jaxcell", "jax", "numpy", "opencv-python-headless"))
    height, width = options.shape
    with tempfile.TemporaryDirectory() as folder:
        cells = alone(make_slide, Path(folder), options.config, (height, width), options.cells)
        rows = rows_of(Path(folder), options)
    title = f"{options.config}, a slide of {height} x {width} pixels with {cells:,} cells; the paper: 74 s for all parts"
    write(options.out, {title: rows}, about)
    print(options.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
