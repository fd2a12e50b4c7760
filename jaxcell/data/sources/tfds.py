"""Data sets that tensorflow-datasets wrote as array_record files, read without TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxcell.data.tfds.examples import from_example
from jaxcell.types import Sample

__all__ = ["TfdsSource"]

PARTS = ("features.json", "dataset_info.json", "metadata.json")     # what a folder written by jaxcell has beside the records


class TfdsSource:
    """The samples that `jaxcell.data.tfds.builders.build` wrote, bit for bit, by random access.

    tensorflow-datasets is imported when the first sample is read, in each process anew.
    """

    def __init__(self, root: str | Path, *, split: str | None = None, limit: int | None = None) -> None:
        """Reads the names; samples are read on access.

        Args:
          root: the folder that `build` returned (`.../bbbc038/1.0.0`), or one above it that holds no other data set.
          split: one of the data set's; None takes all, one after another.
          limit: takes the first so many.

        Raises:
          FileNotFoundError: no such folder, or no data set in it.
          ValueError: several data sets, an unknown split, or a data set that jaxcell did not write.
        """
        self._folder = _version_folder(Path(root))
        names = _names(self._folder)
        if split is not None and split not in names:
            raise ValueError(f"{self._folder}: has no split {split!r}; this data set has {', '.join(names)}. Leave split out for "
                             "all.")
        self._places = [(part, i) for part in names if split in (None, part) for i in range(len(names[part]))][:limit]
        self.names = [names[part][i] for part, i in self._places]
        self.splits = [part for part, _ in self._places]
        self._records: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        part, place = self._places[index]
        if part not in self._records:
            from jaxcell.data.tfds.records import open_records  # (slow to import)

            self._records[part] = open_records(self._folder, part)
        try:
            sample = from_example(self._records[part][place])
        except Exception as error:      # a damaged record fails in the file's format, in zlib, or in an array's shape
            raise ValueError(f"{self._folder}: sample {self.names[index]!r} cannot be read: {error}. Write the data set "
                             "anew.") from error
        if sample.name != self.names[index]:
            raise ValueError(f"{self._folder}: its list says {self.names[index]!r} where the record is of {sample.name!r}. Write "
                             "the data set anew.")
        return sample

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_records": {}}     # open files stay in their process


def _version_folder(root: Path) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder (relative ones count from {Path.cwd()}).")
    found = sorted(path.parent for depth in ("", "*/", "*/*/") for path in root.glob(f"{depth}features.json"))
    if not found:
        raise FileNotFoundError(f"{root}: holds no data set of tensorflow-datasets; write one with "
                                "jaxcell.data.tfds.builders.build.")
    if len(found) > 1:
        raise ValueError(f"{root}: holds several data sets; name one of {', '.join(str(p.relative_to(root)) for p in found)}.")
    return found[0]


def _names(folder: Path) -> dict[str, list[str]]:
    """split -> names of its samples."""
    if missing := [part for part in PARTS if not (folder / part).is_file()]:
        raise ValueError(f"{folder}: has no {', '.join(missing)}; jaxcell's data sets do. Write it anew with "
                         "jaxcell.data.tfds.builders.build.")
    try:
        names = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["names"]
        return {str(split): [str(name) for name in names[split]] for split in names}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{folder / 'metadata.json'}: holds no names of samples ({error!r}). Write the data set anew with "
                         "jaxcell.data.tfds.builders.build.") from error
