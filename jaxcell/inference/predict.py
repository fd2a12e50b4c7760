"""Files in, files out: label TIFF, overlay, COCO JSON and a table of cells."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from jaxcell.data.images import SUFFIXES, annotation_stems, ending_of, open_image, readable_files, stem_of
from jaxcell.export.coco import coco_writer
from jaxcell.export.labels import write_float_tiff, write_label_tiff
from jaxcell.export.table import cell_table, table_writer
from jaxcell.geometry.labels import instances_to_labels
from jaxcell.types import Instances
from jaxcell.viz import overlay

__all__ = ["find_images", "output_names", "predict_files"]


def find_images(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    """The image files among some paths, in order.

    Args:
      inputs: files, or folders whose image files are taken by name (not those of subfolders). In a folder, hidden files are
        left out, and so is a file that is called like another one plus an ending of `ANNOTATION_ENDINGS`: it is that one's
        annotation.

    Returns:
      Existing or not, every file named; each once.

    Raises:
      ValueError: a folder without images, or nothing given.
    """
    paths = [Path(inputs)] if isinstance(inputs, (str, Path)) else [Path(p) for p in inputs]
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir() or ending_of(path):       # (`x.zarr` is a folder, and an image)
            found[path] = None
            continue
        images = readable_files(path)
        taken = annotation_stems(map(stem_of, images))
        images = [p for p in images if stem_of(p) not in taken]
        if not images:
            raise ValueError(f"no images in {path}: none of its files ends in {', '.join(SUFFIXES)}. Name the folder that "
                             "holds them.")
        found |= dict.fromkeys(images)
    if not found:
        raise ValueError("no images given; name files or a folder.")
    return list(found)


def _unread_folders(inputs: str | Path | Sequence[str | Path], out: Path) -> list[str]:
    """Subfolders of the given folders that hold images and were not given themselves, with how many they hold."""
    paths = [Path(inputs)] if isinstance(inputs, (str, Path)) else [Path(p) for p in inputs]
    given = {path.resolve() for path in (*paths, out)}
    below = [child for path in paths if path.is_dir() and not ending_of(path) for child in sorted(path.iterdir())
             if child.is_dir() and not ending_of(child) and not child.name.startswith(".") and child.resolve() not in given
             and os.access(child, os.R_OK | os.X_OK)]
    return [f"{folder} ({count} files)" for folder in below if (count := len(readable_files(folder)))]


def output_names(files: Sequence[Path]) -> list[str]:
    """A name for the results of each file: its stem, or where two files share one, its path below their common folder.

    `a/x.png` and `b/x.png` become `a_x.png` and `b_x.png`; `x.png` and `x.tif` keep their endings.

    Raises:
      ValueError: names are still not unique.
    """
    counts = Counter(map(stem_of, files))
    folder = os.path.commonpath([file.absolute().parent for file in files])
    names = [stem_of(file) if counts[stem_of(file)] == 1 else "_".join(file.absolute().relative_to(folder).parts)
             for file in files]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(f"the results of several files would be called {twice[0]!r}; rename one or predict the folders apart.")
    return names


def predict_files(inputs: str | Path | Sequence[str | Path], out_dir: str | Path, *, predict: Callable[..., Instances],
                  select: Mapping[str, int | str] | None = None, pixel_size: float | None = None, uncertainty: bool = False,
                  progress: bool = True) -> int:
    """Finds the cells of image files and writes them down.

    For every image `<name>_labels.tif` (32-bit label image; where cells overlap, a pixel belongs to one of them) and
    `<name>_overlay.png`, with `uncertainty` also `<name>_uncertainty.tif` (32-bit floats: how unsure the network is of each
    pixel); for all together `predictions.json` (COCO, overlaps kept, scores and uncertainties) and `cells.csv` (one row per
    cell). A cell has one number in all of them. How many cells the label images cannot show whole is printed.
    `<name>` is the file's stem, see `output_names`. A file that fails is reported and the others go on.

    Args:
      inputs: image files and folders of them, see `find_images`.
      out_dir: folder for the results, made if absent; files of an earlier run are replaced.
      predict: image [H, W, C] as stored in the file -> Instances; for `uncertainty` it is also given `uncertainty=` an array
        [H, W] float32 to be filled.
      select: of files with more axes than an image, such as {"T": 0, "Z": "max"}, see `read_image`.
      pixel_size: micrometres per pixel of all images, for the table and the label images; None takes each file's own, where it
        has one that can be trusted (see `read_pixel_size`).
      uncertainty: write the maps of uncertainty.
      progress: show a progress bar.

    Returns:
      0, or 1 if a file failed: the exit status of a command.

    Raises:
      ValueError: no images; results whose names would clash; `out_dir` holds an input, which could be overwritten.
    """
    files, out = find_images(inputs), Path(out_dir)
    names = output_names(files)
    if beside := [file for file in files if file.absolute().parent.resolve() == out.resolve()]:
        raise ValueError(f"the results would go to {out}, where {beside[0].name} comes from: a file such as "
                         f"{stem_of(beside[0])}_labels.tif may be your own annotation. Name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    failed: dict[Path, str] = {}
    cells = covered = hidden = 0
    with coco_writer(out / "predictions.json") as add_to_coco, table_writer(out / "cells.csv") as add_to_table:
        bar = tqdm(zip(files, names, strict=True), total=len(files), unit="image", disable=not progress)
        for file, name in bar:
            bar.set_postfix_str(f"{cells} cells so far, now {file.name}")
            try:
                with open_image(file, select=select) as opened:
                    image, size = opened.read(), pixel_size or opened.pixel_size
                unsure = np.zeros(image.shape[:2], np.float32) if uncertainty else None
                instances = predict(image) if unsure is None else predict(image, uncertainty=unsure)
                table = cell_table(instances, image, name=file.name if name == stem_of(file) else name, pixel_size=size)
                labels = instances_to_labels(instances)
                write_label_tiff(out / f"{name}_labels.tif", labels, pixel_size=size)
                Image.fromarray(overlay(image, instances)).save(out / f"{name}_overlay.png")
                if unsure is not None:
                    write_float_tiff(out / f"{name}_uncertainty.tif", unsure, pixel_size=size)
                add_to_coco(file.name if name == stem_of(file) else name, instances)
            except Exception as error:     # whatever is wrong with one file, the night's other thousand must not be lost
                failed[file] = f"{type(error).__name__}: {error}"
                tqdm.write(f"FAILED {file}: {failed[file]}")
                continue
            add_to_table(table)
            cells += len(instances)
            shown = _shown_pixels(instances, labels)
            covered += int(np.count_nonzero(shown < instances.areas()))
            hidden += int(np.count_nonzero(shown == 0))
    print(f"{len(files) - len(failed)} of {len(files)} images, {cells} cells -> {out}")
    if covered:
        print(f"{covered} cells are covered by others in the label images ({hidden} are not seen at all); "
              "predictions.json has them whole")
    if unread := _unread_folders(inputs, out):
        print(f"not read: {', '.join(unread)}; name these folders too if they hold images")
    for file, message in failed.items():
        print(f"  no result for {file}: {message}")
    return 1 if failed else 0


def _shown_pixels(instances: Instances, labels: np.ndarray) -> np.ndarray:
    """[M], how many of its pixels each cell has in the label image [H, W] of all."""
    frames = zip(instances.boxes.tolist(), instances.masks, strict=True)
    return np.asarray([np.count_nonzero(labels[y0:y1, x0:x1][mask] == number)
                       for number, ((y0, x0, y1, x1), mask) in enumerate(frames, start=1)], np.int64)
