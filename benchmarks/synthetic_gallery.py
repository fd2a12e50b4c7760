"""Real images beside synthetic ones, their statistics, and how fast the synthetic ones are drawn.

    python benchmarks/synthetic_gallery.py DATA_DIR gallery.png      # rows of modalities: four real crops, four synthetic images
    python benchmarks/synthetic_gallery.py --time                    # images per second of every kind and shape

DATA_DIR holds bbbc038, bbbc039, usiigaci_t98g, yeastvision_phase and baby_yeast, each with its manifest.csv.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageDraw

from jaxcell.data.sources.synthetic import SyntheticSource

SIDE, COLUMNS, GAP, TITLE = 256, 4, 12, 18
KINDS = ("fluorescence", "stained", "brightfield", "phase", "dic", "pair", "mixed")
SHAPES = ("round", "elongated", "irregular", "neurites", "mixed")

Crops = Callable[[Path], list[np.ndarray]]


# ---------------------------------------------------------------- real crops, [256, 256] or [256, 256, 3]
def crops(folder: str, cluster: str, *, every: int, corner: tuple[int, int] = (0, 0), side: int = SIDE) -> Crops:
    """Reads crops of every n-th training image of the clusters whose name begins with `cluster`; smaller ones are enlarged."""

    def read(root: Path) -> list[np.ndarray]:
        with (root / folder / "manifest.csv").open(newline="") as file:
            rows = [r for r in csv.DictReader(file) if r["source_cluster"].startswith(cluster) and int(r["n_objects"]) > 2]
        images = [np.asarray(Image.open(root / folder / r["image_file"])) for r in rows[1::every][:COLUMNS]]
        return [resized(window(image, corner, side)) for image in images]

    return read


def planes(root: Path) -> list[np.ndarray]:
    """The outer focal planes of two yeast traps."""
    stacks = [tifffile.imread(root / "baby_yeast" / f"baby_{name}.tif") for name in ("prime95b_testC_tp1", "prime95b_testC_tp5")]
    return [resized(stack[k][:112, :112]) for stack in stacks for k in (0, 4)]


def window(image: np.ndarray, corner: tuple[int, int], side: int) -> np.ndarray:
    """A square crop without opacity; grey where the colours are equal."""
    y, x = (min(c, max(0, s - side)) for c, s in zip(corner, image.shape, strict=False))
    part = image[y:y + side, x:x + side]
    if part.ndim == 3:
        part = part[..., :3]
        part = part[..., 0] if (part == part[..., :1]).all() else part
    return part


def resized(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) if image.shape[0] != SIDE else image


# ---------------------------------------------------------------- rows
@dataclass(frozen=True)
class Row:
    """One row of the picture: what is real in it, and the options of its synthetic half."""

    title: str
    real: Crops | None
    options: dict[str, Any]
    side: int = SIDE
    apart: bool = field(default=False)      # planes are shown beside each other


ROWS = (
    Row("nuclei (BBBC038, 256 px)", crops("bbbc038", "fluo_256x256", every=61),
        {"kind": "fluorescence", "radius": (5, 10), "coverage": (0.02, 0.2), "clustering": 0.25, "overlap": 0.1}),
    Row("nuclei (BBBC038, 360 px)", crops("bbbc038", "fluo_360", every=17),
        {"kind": "fluorescence", "radius": (19, 25), "coverage": (0.2, 0.4), "clustering": 0.3, "overlap": 0.05}),
    Row("nuclei, 16 bit (BBBC039)", crops("bbbc039", "", every=9, corner=(130, 150)),
        {"kind": "fluorescence", "bits": 16, "radius": (13, 15), "coverage": (0.12, 0.25), "clustering": 0.3, "overlap": 0.1}),
    Row("tissue on violet (BBBC038)", crops("bbbc038", "purple_on_violet", every=12, corner=(0, 30)),
        {"kind": "stained", "stain": "violet", "radius": (8, 15), "coverage": (0.1, 0.4)}),
    Row("tissue on white (BBBC038)", crops("bbbc038", "purple_on_white", every=8, corner=(0, 30)),
        {"kind": "stained", "stain": "white", "radius": (9, 12), "coverage": (0.15, 0.4)}),
    Row("cytology (BBBC038)", crops("bbbc038", "cyto_gray", every=3, corner=(300, 300), side=512),
        {"kind": "stained", "stain": "grey", "shape": "irregular", "radius": (26, 34),
         "coverage": (0.3, 0.6), "clustering": 0.8, "overlap": 0.9}),
    Row("phase contrast (T98G)", crops("usiigaci_t98g", "", every=4, corner=(300, 320)),
        {"kind": "phase", "shape": "irregular", "bits": 16, "radius": (30, 36), "coverage": (0.15, 0.35)}),
    Row("phase contrast (budding yeast)", crops("yeastvision_phase", "", every=2, corner=(190, 300)),
        {"kind": "phase", "bits": 16, "radius": (9, 11), "coverage": (0.2, 0.4), "clustering": 0.97, "overlap": 0.0}),
    Row("brightfield, two planes (budding yeast)", planes,
        {"kind": "brightfield", "bits": 16, "radius": (10, 12), "coverage": (0.2, 0.3), "clustering": 0.8}, side=112, apart=True),
    Row("DIC", None, {"kind": "dic", "shape": "mixed", "radius": (14, 20), "coverage": (0.2, 0.4)}),
    Row("phase contrast, rods", None, {"kind": "phase", "shape": "elongated"}),
    Row("phase contrast, neurites", None, {"kind": "phase", "shape": "neurites", "radius": (12, 18)}),
    Row("fluorescence, spread, neurites, rods", None, {"kind": "fluorescence", "shape": "mixed", "radius": (12, 16)}),
    Row("pairs: phase contrast, brightfield below and above focus", None,
        {"kind": "pair", "shape": "mixed", "radius": (14, 18)}, apart=True),
)


def synthetic(row: Row, count: int, *, seed: int) -> list[np.ndarray]:
    """The first `count` images of a source, none chosen by hand."""
    images = [sample.image for sample in SyntheticSource(count, size=row.side, seed=seed, **row.options)]
    if row.apart:
        images = [image[..., k] for image in images for k in range(image.shape[2])]
    return [resized(window(image, (0, 0), row.side)) for image in images[:count]]


def gallery(data: Path, out: Path, *, seed: int) -> None:
    """Writes the picture and prints the statistics."""
    high, wide = len(ROWS) * (SIDE + TITLE), 2 * COLUMNS * SIDE + GAP
    sheet = Image.new("RGB", (wide, high), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    print(f"{'':42s}{'mean':>15s}{'deviation':>15s}{'gradient':>15s}{'correlation px':>17s}   (each real, synthetic)")
    for number, row in enumerate(ROWS):
        top = number * (SIDE + TITLE)
        pen.text((4, top + 3), row.title + (": real left, synthetic right" if row.real else ": synthetic"), fill=(0, 0, 0))
        left = row.real(data) if row.real else []
        right = synthetic(row, COLUMNS if left else 2 * COLUMNS, seed=seed)
        for column, image in enumerate([*left, *right]):
            x = column * SIDE + (GAP if column >= COLUMNS else 0)
            sheet.paste(Image.fromarray(stretched(image)), (x, top + TITLE))
        if left:
            pairs = zip(statistics(left), statistics(right), strict=True)
            print(f"{row.title:42s}" + "  ".join(f"{a:7.3f}{b:7.3f}" for a, b in pairs))
    sheet.save(out)


def stretched(image: np.ndarray) -> np.ndarray:
    """8-bit RGB; grey from its 0.2 to its 99.8 percentile, colours as they are."""
    if image.ndim == 3:
        return image
    low, high = np.percentile(image, (0.2, 99.8))
    grey = np.uint8(np.clip((image.astype(float) - low) / max(high - low, 1e-9), 0, 1) * 255)
    return np.repeat(grey[..., None], 3, axis=2)


def statistics(images: list[np.ndarray]) -> np.ndarray:
    """Medians over images, stretched as they are shown: mean, deviation, mean gradient, and the distance of correlation 1/e."""
    rows = []
    for image in images:
        grey = stretched(image).mean(axis=2) / 255
        rise, run = np.gradient(grey)
        centred = grey - grey.mean()
        power = np.abs(np.fft.fft2(centred)) ** 2
        correlation = np.fft.ifft2(power).real
        along = (correlation[0, :100] + correlation[:100, 0]) / (2 * correlation[0, 0])
        rows.append((grey.mean(), grey.std(), np.hypot(rise, run).mean(), np.argmax(along < np.exp(-1))))
    return np.median(np.asarray(rows), axis=0)


# ---------------------------------------------------------------- speed
def time_all(count: int, repeats: int) -> None:
    """Prints images per second of one core, 256 x 256, for every kind and shape: CPU time, and the clock in brackets.

    Each image is drawn `repeats` times and its fastest drawing counts, because other processes slow caches and cores down.
    """
    cv2.setNumThreads(1)
    print(f"{'images/s':14s}" + "".join(f"{shape:>16s}" for shape in SHAPES))
    for kind in KINDS:
        rates = []
        for shape in SHAPES:
            source = SyntheticSource(count, modality=kind, shape=shape)
            fastest = np.min([[drawing_time(source, index) for index in range(count)] for _ in range(repeats)], axis=0)
            rates.append(count / fastest.sum(axis=0))
        print(f"{kind:14s}" + "".join(f"{f'{cpu:.0f} ({clock:.0f})':>16s}" for cpu, clock in rates), flush=True)


def drawing_time(source: SyntheticSource, index: int) -> tuple[float, float]:
    cpu, clock = time.process_time(), time.perf_counter()
    source[index]
    return time.process_time() - cpu, time.perf_counter() - clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="folder of the real images")
    parser.add_argument("out", nargs="?", type=Path, help="PNG to write")
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic images")
    parser.add_argument("--time", action="store_true", help="measure speed")
    parser.add_argument("--count", type=int, default=40, help="images timed per kind and shape")
    parser.add_argument("--repeats", type=int, default=3, help="drawings of each, of which the fastest counts")
    arguments = parser.parse_args()
    if arguments.time:
        time_all(arguments.count, arguments.repeats)
    if arguments.out:
        gallery(arguments.data, arguments.out, seed=arguments.seed)
    elif not arguments.time:
        parser.error("give DATA_DIR and OUT, or --time")


if __name__ == "__main__":
    main()
