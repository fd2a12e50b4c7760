"""One row per cell: position, size, shape, intensity, score and uncertainties, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from skimage.measure import regionprops

from jaxcell.export.fields import cell_fields
from jaxcell.types import Instances

__all__ = ["cell_table", "table_writer"]

Table = dict[str, list[Any]]

# column -> (power of the pixel size, suffix) of what has a length
LENGTHS = {"area": (2, "um2"), "centroid_y": (1, "um"), "centroid_x": (1, "um"), "perimeter": (1, "um"),
           "equivalent_diameter": (1, "um"), "major_axis": (1, "um"), "minor_axis": (1, "um")}
SIDES = ("top", "left", "bottom", "right")
NAMES = {"uncertainties": tuple(f"uncertainty_{side}" for side in SIDES)}     # columns of a field; other fields number theirs
FIRST = ("image", "id", "area", "centroid_y", "centroid_x", "y0", "x0", "y1", "x1", "score", "perimeter", "eccentricity",
         "solidity", "equivalent_diameter", "major_axis", "minor_axis", "orientation", "touches_border")


def cell_table(instances: Instances, image: np.ndarray, *, name: str = "", pixel_size: float | None = None) -> Table:
    """The measurements of every cell of an image, by column.

    Args:
      instances: M cells.
      image: [H, W, C], pixel values as stored; intensities are in its units.
      name: of the image, the first column.
      pixel_size: micrometres per pixel; adds columns in micrometres (`_um`, `_um2`).

    Returns:
      column -> M values. `id` is the cell's number in the label image and in the COCO file (`cell_id`), from 1. Lengths are
      pixels, `y0 x0 y1 x1` half-open; perimeter, eccentricity, solidity, axes and orientation (radians, from the y axis) as
      scikit-image's regionprops defines them; `touches_border` is 1 where the cell reaches an edge of the image;
      `mean_intensity_<channel>` from 0. The cell's further fields follow (see `cell_fields`).

    Raises:
      ValueError: the image has another size than the instances.
    """
    if image.ndim != 3 or image.shape[:2] != instances.shape:
        raise ValueError(f"image {name!r} has shape {image.shape} for cells of an image of {instances.shape}; "
                         "it must be [H, W, C] of the same size.")
    rows = [_measure(mask, box, image) for mask, box in zip(instances.masks, instances.boxes.tolist(), strict=True)]
    y0, x0, y1, x1 = instances.boxes.T
    border = (y0 == 0) | (x0 == 0) | (y1 == instances.shape[0]) | (x1 == instances.shape[1])
    given: Table = {"image": [name] * len(rows), "id": list(range(1, len(rows) + 1)), "y0": y0.tolist(), "x0": x0.tolist(),
                    "y1": y1.tolist(), "x1": x1.tolist(), "score": instances.scores.tolist(),
                    "touches_border": border.astype(int).tolist()}
    intensities = [f"mean_intensity_{channel}" for channel in range(image.shape[2])]
    table = {column: given[column] if column in given else [row[column] for row in rows] for column in (*FIRST, *intensities)}
    if pixel_size is not None:
        table |= {f"{column}_{unit}": [value * pixel_size ** power for value in table[column]]
                  for column, (power, unit) in LENGTHS.items()}
    for key, values in cell_fields(instances).items():
        table |= _columns(key, values)
    return table


@contextmanager
def table_writer(path: str | Path) -> Iterator[Callable[[Mapping[str, Sequence[Any]]], None]]:
    """Writes a CSV table image by image; columns that only some images have stay empty for the others.

    Yields:
      add(columns of equal length).
    """
    path = Path(path)
    header = list(FIRST)
    _start(path, header)

    def add(table: Mapping[str, Sequence[Any]]) -> None:
        if new := [column for column in table if column not in header]:
            header.extend(new)
            _widen(path, header)
        rows = zip(*(table[column] if column in table else [""] * len(table["id"]) for column in header), strict=True)
        with open(path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([f"{value:.7g}" if isinstance(value, float) else value for value in row] for row in rows)

    yield add


def _measure(mask: np.ndarray, box: Sequence[int], image: np.ndarray) -> dict[str, float]:
    y0, x0, y1, x1 = box
    region = regionprops(mask.astype(np.uint8))[0]
    y, x = region.centroid
    means = image[y0:y1, x0:x1][mask].mean(axis=0, dtype=np.float64)
    return {"area": int(region.area), "centroid_y": y0 + float(y), "centroid_x": x0 + float(x),
            "perimeter": float(region.perimeter), "eccentricity": float(region.eccentricity), "solidity": float(region.solidity),
            "equivalent_diameter": float(region.equivalent_diameter_area), "major_axis": float(region.axis_major_length),
            "minor_axis": float(region.axis_minor_length), "orientation": float(region.orientation),
            **{f"mean_intensity_{channel}": float(mean) for channel, mean in enumerate(means)}}


def _columns(key: str, values: np.ndarray) -> Table:
    if values.ndim == 1:
        return {key: values.tolist()}
    numbered = tuple(f"{key}_{i}" for i in range(values.shape[1]))
    names = NAMES[key] if key in NAMES and len(NAMES[key]) == len(numbered) else numbered
    return {name: column.tolist() for name, column in zip(names, values.T, strict=True)}


def _start(path: Path, header: Sequence[str]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(header)


def _widen(path: Path, header: Sequence[str]) -> None:
    """Gives a table that has begun a longer header."""
    part = path.with_name(path.name + ".part")
    with open(path, newline="", encoding="utf-8") as old, open(part, "w", newline="", encoding="utf-8") as new:
        rows = csv.reader(old)
        next(rows)
        writer = csv.writer(new)
        writer.writerow(header)
        writer.writerows([*row, *[""] * (len(header) - len(row))] for row in rows)
    part.replace(path)
