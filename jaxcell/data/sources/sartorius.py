"""The Kaggle competition "Sartorius - Cell Instance Segmentation": neurons, astrocytes and SH-SY5Y cells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from jaxcell.data.images import readable_files, stem_of
from jaxcell.data.labels import pack_masks
from jaxcell.data.sources.paired import Entry, PairedSource, name_some, split_folders
from jaxcell.data.sources.tables import decode_runs, read_table

__all__ = ["SartoriusSource"]

LAYOUT = ("the competition's data look like train/ID.png and train.csv with the columns id, annotation, width, height, "
          "cell_type, sample_id (one row per cell), train_semi_supervised/*.png and test/*.png")
LABELLED = {"train": ("train",), "test": ("test",)}
UNLABELLED = {"unlabelled": ("train_semi_supervised",)}
CELL_TYPES = ("shsy5y", "astro", "cort")
WELL = re.compile(r"(.+_[A-P]\d+)-\d+(_Vessel-\d+)")      # of shsy5y[diff]_E10-4_Vessel-714_Ph_3 all but the position


@dataclass(frozen=True)
class _Image:
    """What the table says of one image."""

    shape: tuple[int, int]
    cell_type: str
    place: str
    runs: list[str] = field(default_factory=list)


class SartoriusSource(PairedSource):
    """Phase contrast, 520x704 pixels of 8 bits; cells that overlap stay whole, so labels may have several layers.

    The modality also names the cell type, where it is known. Images of one well of one plate share a group, whatever their
    position and time.

    Source: https://www.kaggle.com/c/sartorius-cell-instance-segmentation/data. Run lengths count along rows (discussion
      278663), though the competition's page says columns.
    """

    def __init__(self, root: str | Path, *, split: str | None = None, labelled: bool = True, cell_type: str | None = None,
                 limit: int | None = None) -> None:
        """Reads the table and lists the images.

        Args:
          root: the folder that holds `train` and `train.csv`.
          split: "train" or "test" (without annotation); None takes those that are there.
          labelled: False takes the images of `train_semi_supervised`, which have no annotation, as split "unlabelled".
          cell_type: "shsy5y", "astro" or "cort"; None takes all.
          limit: takes the first so many.

        Raises:
          FileNotFoundError: no such folder, no table, or an image that the table lists is missing.
          ValueError: an unknown split or cell type, or a table that does not fit the images.
        """
        root = Path(root)
        if cell_type is not None and cell_type not in CELL_TYPES:
            raise ValueError(f"{root}: has no cell_type {cell_type!r}; there are {', '.join(CELL_TYPES)}. Leave it out for all.")
        if not labelled and split == "train":
            split = "unlabelled"        # they are training images
        entries: list[Entry] = []
        images: Mapping[str, _Image] = {}
        for part, folders in split_folders(root, split, LABELLED if labelled else UNLABELLED, layout=LAYOUT).items():
            files = readable_files(folders[0])
            if part == "train":
                images = _read_annotations(root / "train.csv")
                entries += _annotated(files, images, root / "train.csv")
            else:
                entries += [_entry(file, part, _type_of(stem_of(file)), stem_of(file)) for file in files]
        kept = [entry for entry in entries if cell_type is None or entry.modality.endswith(f"({cell_type})")]
        super().__init__(kept, root=root, layout=LAYOUT, read=partial(_read, images=images), limit=limit)


def _read_annotations(table: Path) -> dict[str, _Image]:
    """id -> what the rows of an image say."""
    images: dict[str, _Image] = {}
    for number, row in read_table(table, columns=("id", "annotation", "width", "height", "cell_type")):
        if not (row["width"].isdecimal() and row["height"].isdecimal()):
            raise ValueError(f"{table}, line {number}: width {row['width']!r} and height {row['height']!r} must be whole "
                             "numbers. Get the table anew.")
        image = _Image((int(row["height"]), int(row["width"])), row["cell_type"], row.get("sample_id", ""))
        images.setdefault(row["id"], image).runs.append(row["annotation"])
    return images


def _annotated(files: Sequence[Path], images: Mapping[str, _Image], table: Path) -> list[Entry]:
    stems = {stem_of(file): file for file in files}
    if missing := [name for name in images if name not in stems]:
        raise FileNotFoundError(f"{table}: {len(missing)} of its images are missing: {name_some(missing)}; {LAYOUT}.")
    if extra := [file.name for stem, file in stems.items() if stem not in images]:
        raise ValueError(f"{table}: has no row for {len(extra)} of {len(files)} images: {name_some(extra)}; {LAYOUT}.")
    return [_entry(file, "train", images[stem].cell_type, images[stem].place, table) for stem, file in stems.items()]


def _entry(file: Path, split: str, cell_type: str, place: str, label: Path | None = None) -> Entry:
    found = WELL.match(place)
    return Entry(file, stem_of(file), label, split, "phase contrast" + (f" ({cell_type})" if cell_type else ""),
                 found[1] + found[2] if found else place)


def _type_of(stem: str) -> str:
    return next((cell_type for cell_type in CELL_TYPES if stem.startswith(cell_type)), "")


def _read(entry: Entry, shape: tuple[int, int], *, images: Mapping[str, _Image]) -> np.ndarray:
    image, where = images[entry.name], f"{entry.label}, image {entry.name}"
    if image.shape != shape:
        raise ValueError(f"{where}: the table says (H, W) = {image.shape}, but the image has {shape}. Check that the table "
                         "belongs to these images.")
    return pack_masks((decode_runs(runs, shape, order="C", where=where) for runs in image.runs), shape)
