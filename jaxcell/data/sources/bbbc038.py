"""BBBC038: the nuclei of the 2018 Data Science Bowl."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from jaxcell.data.images import readable_files
from jaxcell.data.labels import pack_masks, read_labels
from jaxcell.data.sources.paired import Entry, PairedSource, split_folders
from jaxcell.data.sources.tables import decode_runs, read_table

__all__ = ["Bbbc038Source"]

LAYOUT = ("BBBC038 looks like stage1_train/ID/images/ID.png with one file per nucleus in stage1_train/ID/masks/, "
          "stage1_test/ID/images/ID.png with stage1_solution.csv, and stage2_test_final/ID/images/ID.png with "
          "stage2_solution_final.csv")
FOLDERS = {"train": ("stage1_train",), "test": ("stage1_test",), "test2": ("stage2_test_final",)}
TABLES = {"train": "stage1_train_labels.csv", "test": "stage1_solution.csv", "test2": "stage2_solution_final.csv"}
Runs = Mapping[str, list[str]]


class Bbbc038Source(PairedSource):
    """Nuclei in fluorescence, stained tissue and cytology; one mask file or one row of run lengths per nucleus.

    Masks in files count; where an image has none, the table of its split does, if it is there (`stage1_train_labels.csv`,
    `stage1_solution.csv`, `stage2_solution_final.csv`). Images that the second stage ignored, and those of a split without
    table, have no annotation. Neither the modality nor which images are tiles of one field is told by the layout.

    Source: https://bbbc.broadinstitute.org/BBBC038; Caicedo et al., Nature Methods 16, 2019.
    """

    def __init__(self, root: str | Path, *, split: str | None = None, limit: int | None = None) -> None:
        """Lists the images.

        Args:
          root: the folder that holds `stage1_train`.
          split: "train" (stage 1), "test" (stage 1) or "test2" (stage 2); None takes all that are there.
          limit: takes the first so many.

        Raises:
          FileNotFoundError: no such folder, or an image or its masks are missing.
          ValueError: an unknown split, or a table that does not belong to the images.
        """
        root = Path(root)
        entries: list[Entry] = []
        tables: dict[Path, Runs] = {}
        for part, folders in split_folders(root, split, FOLDERS, layout=LAYOUT).items():
            table = root / TABLES[part]
            if table.exists():
                tables[table] = _read_solution(table)
            entries += [_entry(folder, part, table, tables.get(table)) for home in folders for folder in _image_folders(home)]
        super().__init__(entries, root=root, layout=LAYOUT, read=partial(_read, tables=tables), limit=limit)


def _image_folders(home: Path) -> list[Path]:
    return sorted(folder for folder in home.iterdir() if folder.is_dir() and not folder.name.startswith((".", "_")))


def _entry(folder: Path, split: str, table: Path, runs: Runs | None) -> Entry:
    files = readable_files(folder / "images") if (folder / "images").is_dir() else []
    if len(files) != 1:
        raise FileNotFoundError(f"{folder}: has {len(files)} images in its subfolder images and must have one; {LAYOUT}.")
    label: Path | None = None
    if (folder / "masks").is_dir():
        label = folder / "masks"
    elif runs is not None:
        if folder.name not in runs:
            raise ValueError(f"{table}: has no row for {folder.name}; take the table of this very split, or remove the image.")
        label = table if runs[folder.name] else None
    elif split == "train":
        raise FileNotFoundError(f"{folder}: has no subfolder masks, and there is no {table.name}; {LAYOUT}.")
    return Entry(files[0], folder.name, label, split, "nuclei, mixed modalities")


def _read_solution(table: Path) -> Runs:
    """image -> run lengths of its nuclei; none for an image that the challenge ignored."""
    found: dict[str, list[str]] = defaultdict(list)
    for _, row in read_table(table, columns=("ImageId", "EncodedPixels")):
        found[row["ImageId"]] += [] if row.get("Usage") == "Ignored" else [row["EncodedPixels"]]
    return dict(found)


def _read(entry: Entry, shape: tuple[int, int], *, tables: Mapping[Path, Runs]) -> np.ndarray:
    assert entry.label is not None
    if entry.label.is_dir():
        return read_labels(entry.label, shape=shape)
    where = f"{entry.label}, image {entry.name}"
    runs = (text for text in tables[entry.label][entry.name] if text)       # an image without nuclei has one empty row
    return pack_masks((decode_runs(text, shape, order="F", where=where) for text in runs), shape)
