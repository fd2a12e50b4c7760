"""What the input side does in a second on one core, and how many cores a device needs.

    python -m benchmarks.input --data ../shared/data --out benchmarks/results/input

Prints and writes (.md, .json) four tables: reading samples, from files and from the disk cache; every augmentation policy; every
system's targets; the whole pipeline of batches. "ms" and "images/s per core" are CPU time with OpenCV on one thread, best of
several rounds, which other programs disturb little; "wall" is what a clock shows, which they disturb. The budget below them is
computed, not measured on such a device: `--device-images-per-second` says how many crops a second it is assumed to train on.
About 4 minutes on 2 idle cores.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxcell.data.augment import POLICIES
from jaxcell.data.cache import encode_sample
from jaxcell.data.pipeline import make_train_iterator
from jaxcell.data.sources import CachedSource, Source, open_source
from jaxcell.data.sources.combined import SelectedSource
from jaxcell.geometry.labels import outlines
from jaxcell.systems import SYSTEMS, build_system
from jaxcell.types import Sample

CONFIGS = {"contour_proposal": ("bbbc038", "neurips2022")}
"""system -> (its small variant, its large one)."""

FOLDERS = ("baby_yeast", "bbbc038", "bbbc039", "usiigaci_t98g", "yeastvision_phase")
PACKAGES = ("jaxcell", "numpy", "opencv-python-headless", "imagecodecs", "scipy", "grain", "jax")
CORES = 16
Row = dict[str, Any]


def main() -> None:
    arguments = _parser().parse_args()
    cv2.setNumThreads(1)
    systems = [name for name in SYSTEMS if name in CONFIGS]
    configs = {name: [_config(name, variant, arguments.data) for variant in CONFIGS[name]] for name in systems}
    policies = [row for config in _distinct(configs.values()) for row in policy_rows(config, arguments.rounds)]
    tables = {
        "Reading one sample": reading_rows(arguments.data, arguments.rounds),
        "Augmentation: reading from memory, normalising, policy": policies,
        "Targets": [row for name in systems for config in configs[name] for row in target_rows(config, arguments.rounds)],
        "The whole pipeline": [row for name in systems for config in configs[name]
                               for row in pipeline_rows(config, arguments.workers, arguments.rounds)],
    }
    whole = [row for row in tables["The whole pipeline"] if row["workers"] == 0]
    tables[f"Budget: a device that trains on {arguments.device_images_per_second:.0f} images/s (assumed)"] = [
        _budget(row, arguments.device_images_per_second) for row in whole]
    machine = {"processor": _processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    machine |= {"python": platform.python_version()} | {package: importlib.metadata.version(package) for package in PACKAGES}
    text = "\n\n".join([f"## {title}\n\n{_markdown(rows)}" for title, rows in tables.items()])
    text = f"{text}\n\n{', '.join(f'{key} {value}' for key, value in machine.items())}\n"
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text)
    arguments.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "tables": tables}, indent=2))
    if missing := set(SYSTEMS) - set(CONFIGS):
        print(f"not measured, because CONFIGS lacks them: {', '.join(sorted(missing))}")


def _config(system: str, variant: str, data: Path) -> Any:
    config = importlib.import_module(f"configs.{system}").get_config(variant)
    config.data.root = str(data)
    config.name = f"{system}:{variant}"
    return config


def _distinct(configs: Iterable[Sequence[Any]]) -> list[Any]:
    """One config for every size of crop."""
    return list({config.data.crop: config for pair in configs for config in pair}.values())


# ---------------------------------------------------------------- reading
def reading_rows(data: Path, rounds: int) -> list[Row]:
    """Decoding and the disk cache, of every folder, of polygons and of synthetic cells."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        specs = {f"folder {name}": {"kind": "folder", "root": name, "limit": 20} for name in FOLDERS if (data / name).is_dir()}
        if (data / "bbbc039").is_dir():
            specs["coco polygons of bbbc039"] = _polygons(data, Path(temporary) / "polygons.json")
        specs["synthetic 256"] = {"kind": "synthetic", "count": 20, "size": 256}
        for title, spec in specs.items():
            plain, cached = (open_source({title: spec}, root=data.absolute(), cache_gb=0.0, disk_cache=cache)
                             for cache in ("", Path(temporary) / "cache"))
            first = [plain[i] for i in range(len(plain))]
            decode = _best(partial(_read_all, plain), rounds)
            _read_all(cached)
            warm = _best(partial(_read_all, cached), rounds)
            rows.append({"source": title, "megapixels": _mean(s.image.size / s.image.shape[2] / 1e6 for s in first),
                         "decode ms": 1e3 * decode / len(plain), "decoded images/s": len(plain) / decode,
                         "disk cache ms": 1e3 * warm / len(plain), "cached images/s": len(plain) / warm,
                         "MB in the cache": _mean(sum(map(len, encode_sample(s))) / 1e6 for s in first)})
    return rows


def _read_all(source: Source) -> None:
    for index in range(len(source)):
        source[index]


def _polygons(data: Path, path: Path) -> dict[str, object]:
    """Writes the cells of a folder as COCO polygons; gives the source of that file."""
    folder, images, cells = data / "bbbc039", [], []
    source = open_source({"x": {"kind": "folder", "root": "bbbc039", "limit": 20}}, root=data, cache_gb=0.0)
    for number in range(len(source)):
        sample = source[number]
        (file,) = folder.glob(f"{sample.name}.*")
        height, width = sample.image.shape[:2]
        images.append({"id": number, "file_name": file.name, "height": height, "width": width})
        cells += [{"id": len(cells) + i, "image_id": number, "category_id": 1, "iscrowd": 0, "segmentation": [polygon]}
                  for i, polygon in enumerate(_outlines(sample))]
    path.write_text(json.dumps({"images": images, "annotations": cells, "categories": [{"id": 1, "name": "cell"}]}))
    return {"kind": "coco", "annotations": str(path), "image_dir": str(folder.absolute())}


def _outlines(sample: Sample) -> list[list[float]]:
    """x, y, x, y, ... around every cell of at least 3 corners."""
    assert sample.labels is not None
    lines = [max(pieces, key=len)[:, ::-1] for pieces in outlines(sample.labels).values()]
    return [line.astype(float).ravel().tolist() for line in lines if len(line) > 2]


# ---------------------------------------------------------------- augmentation, targets, all together
def policy_rows(config: Any, rounds: int) -> list[Row]:
    """Every policy at the config's crop."""
    source, rows = _in_memory(config), []
    for name in POLICIES:
        cpu, _ = _batches(config, source, rounds, augment=name, targets=_no_targets)
        rows.append({"config": config.name, "crop": config.data.crop, "policy": name, "ms": 1e3 * cpu,
                     "images/s per core": 1 / cpu})
    return rows


def _no_targets(sample: Sample, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {}


def target_rows(config: Any, rounds: int) -> list[Row]:
    """The system's targets, of crops of the config's training images."""
    crops: list[Sample] = []

    def keep(sample: Sample, rng: np.random.Generator) -> dict[str, np.ndarray]:
        crops.append(sample)
        return {}

    iterator = _iterator(config, _in_memory(config), targets=keep, augment="flips")
    while len(crops) < 64:
        next(iterator)
    iterator.close()
    targets = build_system(config).targets

    def all_targets() -> None:
        for number, crop in enumerate(crops[:64]):
            targets(crop, np.random.default_rng(number))

    seconds = _best(all_targets, rounds) / 64
    return [{"config": config.name, "crop": config.data.crop, "cells": _mean(len(np.unique(c.labels)) - 1 for c in crops[:64]),
             "ms": 1e3 * seconds, "images/s per core": 1 / seconds}]


def pipeline_rows(config: Any, workers: Sequence[int], rounds: int) -> list[Row]:
    """Batches as in training, from images in memory."""
    rows, source = [], _in_memory(config)
    targets = build_system(config).targets
    for count in workers:
        cpu, wall = _batches(config, source, rounds, augment=config.data.augment, targets=targets, workers=count)
        row = {"config": config.name, "crop": config.data.crop, "policy": config.data.augment, "workers": count,
               "wall images/s": 1 / wall}
        rows.append(row | {"ms": 1e3 * cpu, "images/s per core": 1 / cpu} if count == 0 else row)
    return rows


def _in_memory(config: Any) -> Source:
    """Every so many of the training images, about 48, decoded and held."""
    source = open_source({k: dict(v) for k, v in config.data.train.items()}, root=config.data.root, cache_gb=0.0)
    held = CachedSource(SelectedSource(source, range(0, len(source), max(1, len(source) // 48))), max_bytes=8 * 2**30)
    _read_all(held)
    return held


def _iterator(config: Any, source: Source, *, targets: Any, augment: str, workers: int = 0) -> Any:
    data = config.data
    return make_train_iterator(source, targets=targets, batch_size=data.batch_size, crop=data.crop, augment=augment,
                               normalize=dict(data.normalize), channels=data.channels, reject_empty=data.reject_empty,
                               workers=workers, prefetch=0 if workers == 0 else 2)


def _batches(config: Any, source: Source, rounds: int, *, augment: str, targets: Any, workers: int = 0) -> tuple[float, float]:
    """(CPU seconds of this process, wall seconds) an image, after every image's statistics were taken once."""
    iterator = _iterator(config, source, targets=targets, augment=augment, workers=workers)
    epoch = -(-len(source) // config.data.batch_size)
    for _ in range(epoch * max(1, workers)):
        next(iterator)
    cpu, wall = [], []
    for _ in range(rounds):
        starts = time.process_time(), time.perf_counter()
        for _ in range(epoch):
            next(iterator)
        cpu.append(time.process_time() - starts[0])
        wall.append(time.perf_counter() - starts[1])
    iterator.close()
    images = epoch * config.data.batch_size
    return min(cpu) / images, min(wall) / images


def _budget(row: Row, rate: float) -> Row:
    return {"config": row["config"], "crop": row["crop"], "CPU ms an image": row["ms"], "cores needed": rate * row["ms"] / 1e3,
            f"images/s of {CORES} cores": CORES * row["images/s per core"],
            f"share of {CORES} cores": rate * row["ms"] / 1e3 / CORES}


# ---------------------------------------------------------------- time and text
def _best(call: Callable[[], None], rounds: int) -> float:
    """CPU seconds of the fastest of several calls."""
    times = []
    for _ in range(rounds + 1):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times[1:])


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _markdown(rows: Sequence[Row]) -> str:
    keys = list(rows[0])
    lines = [f"| {' | '.join(keys)} |", f"| {' | '.join('---' if isinstance(rows[0][k], str) else '---:' for k in keys)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(_cell(row.get(key, '')) for key in keys)} |" for row in rows)])


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the real images")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/input"), help="without ending")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--device-images-per-second", type=float, default=400.0,
                        help="of the accelerator, assumed; default %(default)s")
    return parser


if __name__ == "__main__":
    main()
