"""From a network's maps to cells: jaxcell's deep watershed and scikit-image's plain calls (deepcell's), stage by stage.

    python -m benchmarks.postprocessing                                        (4096 x 4096 pixels, 20,000 cells)
    python -m benchmarks.postprocessing --side 2048 --cells 5000 --radius 10

Both get the same maps, take turns in one process, and must agree in every pixel after every stage. The settings are Mesmer's for
whole cells with the paper's thresholds. "apart" has cells in small groups, "confluent" a nearly closed layer.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.measure import label, regionprops
from skimage.morphology import disk
from skimage.morphology import h_maxima as plain_h_maxima
from skimage.segmentation import relabel_sequential, watershed

from benchmarks.report import Row, machine, middle, spread, write
from jaxcell.decode.components import fill_holes, instances_from_labels, relabel, remove_small
from jaxcell.decode.watershed import h_maxima, seeded_watershed
from jaxcell.targets.distance import inner_distance
from jaxcell.targets.pixels import pixelwise

MAXIMA, INTERIOR, SMOOTHING, SMALL, HOLES = 0.1, 0.3, 2.0, 15, 15
RADII = {"apart": (0.25, 0.45), "confluent": (0.4, 0.7)}     # of cells, of the distance between them


def cell_labels(rng: np.random.Generator, shape: tuple[int, int], cells: int, radii: tuple[float, float]) -> np.ndarray:
    """Ellipses around the points of a disturbed grid; where they overlap a pixel is of the nearer one."""
    columns = int(np.ceil(np.sqrt(cells * shape[1] / shape[0])))
    pitch = shape[1] / columns
    labels, nearest = np.zeros(shape, np.int32), np.ones(shape, np.float32)
    for number in range(cells):
        cy, cx = (np.asarray(divmod(number, columns)) + rng.uniform(0.2, 0.8, 2)) * pitch
        radius, turn = rng.uniform(*radii) * pitch, rng.uniform(0, np.pi)
        low, high = np.clip(np.asarray([(cy, cx)] * 2) + [[-1.4 * radius], [1.4 * radius + 1]], 0, shape).astype(int)
        window = slice(low[0], high[0]), slice(low[1], high[1])
        y, x = np.ogrid[window]
        along, across = (y - cy) * np.sin(turn) + (x - cx) * np.cos(turn), (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        distance = (along / 1.25) ** 2 + (across / 0.8) ** 2
        closer = distance / radius**2 < nearest[window]
        nearest[window][closer], labels[window][closer] = (distance / radius**2)[closer], number + 1
    return labels


def maps(side: int, cells: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(inner distance, interior) as a trained network would give them: blurred, with errors as large as a few pixels."""
    rng = np.random.default_rng(0)
    labels = cell_labels(rng, (side, side), cells, RADII[kind])

    def rough(target: np.ndarray, blur: float, errors: float) -> np.ndarray:
        noise = ndimage.gaussian_filter(rng.standard_normal(target.shape, np.float32), 1.5)
        return np.clip(ndimage.gaussian_filter(target, blur) + errors * noise, 0, 1)

    return rough(inner_distance(labels), 1.0, 0.08), rough(pixelwise(labels)[..., 1], 0.7, 0.15)


def plain_small(labels: np.ndarray) -> np.ndarray:
    """remove_small_objects, whose argument has two names among the versions that jaxcell allows."""
    few = np.bincount(labels.ravel()) < SMALL
    few[0] = False
    labels = labels.copy()
    labels[few[labels]] = 0
    return labels


def plain_holes(labels: np.ndarray) -> np.ndarray:
    """deepcell's fill_holes."""
    filled = labels.copy()
    for cell in regionprops(labels, cache=False):
        if cell.euler_number < 1:
            patch = filled[cell.slice]
            pieces = ndimage.label(patch != cell.label)[0]
            small = np.bincount(pieces.ravel()) < HOLES
            small[0] = False
            patch[small[pieces]] = cell.label
    return filled


def plain_instances(labels: np.ndarray, interior: np.ndarray) -> list[tuple[Any, float]]:
    return [(cell.image, cell.intensity_mean) for cell in regionprops(labels, interior)]


Stage = tuple[str, Callable[..., Any], Callable[..., Any], tuple[str, ...]]


def stages(radius: int) -> Sequence[Stage]:
    """(name, plain call, jaxcell's, names of the results that it takes)."""
    smooth = partial(ndimage.gaussian_filter, sigma=SMOOTHING)
    return (
        ("smoothing", smooth, smooth, ("interior",)),
        ("h-maxima", lambda x: plain_h_maxima(x, MAXIMA, footprint=disk(radius)).astype(bool),
         lambda x: h_maxima(x, MAXIMA, radius=radius), ("inner",)),
        ("markers", label, lambda x: ndimage.label(x, np.ones((3, 3)))[0], ("h-maxima",)),
        ("watershed", lambda s, m: watershed(-s, m, mask=s > INTERIOR), lambda s, m: seeded_watershed(-s, m, s > INTERIOR),
         ("smoothing", "markers")),
        ("small cells", plain_small, lambda x: remove_small(x, SMALL), ("watershed",)),
        ("holes", plain_holes, lambda x: fill_holes(x, HOLES), ("small cells",)),
        ("numbering", lambda x: relabel_sequential(x)[0], relabel, ("holes",)),
        ("instances", plain_instances, instances_from_labels, ("numbering", "interior")),
    )


def seconds(inner: np.ndarray, interior: np.ndarray, radius: int, runs: int) -> tuple[dict[str, list[list[float]]], int]:
    """Stage -> (seconds of the plain runs, of jaxcell's), and the number of cells.

    Raises:
      RuntimeError: the two differ after a stage.
    """
    times: dict[str, list[list[float]]] = defaultdict(lambda: [[], []])
    cells = 0
    for _ in range(runs):
        results: list[dict[str, Any]] = [{"inner": inner, "interior": interior} for _ in range(2)]
        for name, *functions, needs in stages(radius):
            for which, function in enumerate(functions):
                start = time.perf_counter()
                results[which][name] = function(*(results[which][need] for need in needs))
                times[name][which].append(time.perf_counter() - start)
            if name != "instances" and not np.array_equal(results[0][name], results[1][name]):
                raise RuntimeError(f"{name}: jaxcell's result differs from the plain call's.")
        cells = len(results[1]["instances"])
    for which in range(2):
        times["all"][which] = np.sum([parts[which] for parts in times.values() if parts[which]], axis=0).tolist()
    return times, cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096, help="of the maps, pixels")
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--radius", type=int, default=2, help="of a peak's neighbourhood: Mesmer's 2, deepcell's default 10")
    parser.add_argument("--kinds", nargs="+", choices=tuple(RADII), default=list(RADII))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/postprocessing"))
    options = parser.parse_args()
    about = machine(("numpy", "scipy", "scikit-image", "opencv-python-headless"))
    tables: dict[str, list[Row]] = {}
    for kind in options.kinds:
        times, cells = seconds(*maps(options.side, options.cells, kind), options.radius, options.runs)
        tables[f"{kind}: {options.side} x {options.side} pixels, {cells:,} cells found, radius {options.radius}, ms"] = [
            {"stage": name, "scikit-image": middle(plain), "quartiles": spread(plain), "jaxcell": middle(ours),
             "its quartiles": spread(ours), "times faster": middle(plain) / middle(ours)}
            for name, (plain, ours) in times.items()]
    write(options.out, tables, about | {"runs": options.runs})
    print(options.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
