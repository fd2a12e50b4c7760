"""What sources of files share: which folders a data set has, which label belongs to which image, and reading the pairs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxcell.data.images import open_image, stem_of
from jaxcell.data.labels import read_labels
from jaxcell.types import Sample

__all__ = ["Entry", "PairedSource", "ReadLabels", "check_pairs", "held_out", "keyed", "name_some", "need_folder",
           "split_folders"]

HELD_OUT = 5        # about one name in so many is for validation


@dataclass(frozen=True)
class Entry:
    """One image of a source, not yet read.

    Attributes:
      image: its file.
      name: unique within the source, the same whichever part of the source is opened.
      label: where its cells are written, a file or a folder of masks; None without annotation.
      split: "train", "val", ...; "" where the source has none.
      modality: as the source says.
      group: shared by the images of one field, slide, well or movie; "" stands for the image alone.
      pixel_size: micrometres per pixel; None asks the image file.
    """

    image: Path
    name: str
    label: Path | None = None
    split: str = ""
    modality: str = "unknown"
    group: str = ""
    pixel_size: float | None = None


ReadLabels = Callable[[Entry, tuple[int, int]], np.ndarray]
"""(entry with a label, (H, W) of its image) -> [H, W, D] int32."""


def read_label_file(entry: Entry, shape: tuple[int, int]) -> np.ndarray:
    """The label layers of an entry whose label is a file or folder that `read_labels` takes."""
    assert entry.label is not None
    return read_labels(entry.label, shape=shape)


class PairedSource:
    """Images in files, each with its labels; pixels are read on access."""

    def __init__(self, entries: Sequence[Entry], *, root: Path, layout: str, read: ReadLabels = read_label_file,
                 read_nuclei: Callable[[Entry, tuple[int, int]], np.ndarray | None] | None = None,
                 select: Mapping[str, int | str] | None = None, limit: int | None = None) -> None:
        """Takes the entries of a source.

        Args:
          entries: at least one, names unique.
          root: the source's folder, for messages.
          layout: what the folder should look like, for messages.
          read: reads the labels of an entry that has one.
          read_nuclei: reads the nuclei [H, W] int32 of such an entry, with the ids of their cells; None where it has none.
          select: which channels, focal planes or time points of the files to take, see `open_image`.
          limit: takes the first so many.

        Raises:
          FileNotFoundError: no entry.
          ValueError: two images of one name, or a limit below 1.
        """
        if not entries:
            raise FileNotFoundError(f"{root}: holds no image of this kind; {layout}.")
        if limit is not None and limit < 1:
            raise ValueError(f"{root}: limit={limit}; it must be 1 or more, or None for all.")
        _check_unique(entries, root)
        self._entries, self._select = list(entries)[:limit], dict(select) if select else None
        self._read, self._read_nuclei = read, read_nuclei
        self.names = [entry.name for entry in self._entries]
        self.files = [entry.image for entry in self._entries]
        self.splits = [entry.split for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self._entries[index]
        with open_image(entry.image, select=self._select) as file:
            image = file.read()
            pixel_size = file.pixel_size if entry.pixel_size is None else entry.pixel_size
        shape = (image.shape[0], image.shape[1])
        labels = None if entry.label is None else self._read(entry, shape)
        if labels is not None and labels.shape[:2] != image.shape[:2]:
            raise ValueError(f"{entry.label}: has (H, W) = {labels.shape[:2]}, but {entry.image.name} has {image.shape[:2]}. "
                             "Check that they belong together.")
        nuclei = None if entry.label is None or self._read_nuclei is None else self._read_nuclei(entry, shape)
        return Sample(image, labels, nuclei, pixel_size, entry.name, entry.modality, entry.group or entry.name)


def _check_unique(entries: Iterable[Entry], root: Path) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.name, entry)
        if other is not entry:
            raise ValueError(f"{root}: {other.image.name} and {entry.image.name} are both named {entry.name!r}; a name stands "
                             "for one image. Remove or rename one of them.")


# ---------------------------------------------------------------- folders
def need_folder(folder: Path, *, layout: str) -> Path:
    """`folder`, or the one of the same name inside it, because archives are often unpacked into a folder named after them.

    Raises:
      FileNotFoundError: neither is there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (relative ones count from {Path.cwd()}); {layout}.")
    inner = folder / folder.name
    return inner if inner.is_dir() else folder


def split_folders(root: Path, split: str | None, folders: Mapping[str, Sequence[str]], *, layout: str) -> dict[str, list[Path]]:
    """The folders that hold a split's images.

    Args:
      root: the data set's folder.
      split: the one asked for; None takes all that are there.
      folders: split -> the folders it may lie in.
      layout: what `root` should look like, for messages.

    Returns:
      split -> folders that exist, only splits that have any.

    Raises:
      FileNotFoundError: no such root, or none of the folders.
      ValueError: a split that the data set does not have.
    """
    need_folder(root, layout=layout)
    if split is not None and split not in folders:
        raise ValueError(f"{root}: has no split {split!r}; this data set has {', '.join(folders)}. Leave split out for all.")
    wanted = folders if split is None else {split: folders[split]}
    found = {key: [need_folder(root / name, layout=layout) for name in names if (root / name).is_dir()]
             for key, names in wanted.items()}
    if not any(found.values()):
        raise FileNotFoundError(f"{root}: has no folder {', '.join(n for names in wanted.values() for n in names)}; {layout}.")
    return {key: paths for key, paths in found.items() if paths}


# ---------------------------------------------------------------- pairs
def keyed(files: Iterable[Path], *, key: Callable[[Path], str] = stem_of) -> dict[str, Path]:
    """key of a file -> file.

    Raises:
      ValueError: two files of one key.
    """
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(key(file), file)
        if other is not file:
            raise ValueError(f"{file.parent}: {other.name} and {file.name} both answer to {key(file)!r}; remove or rename one.")
    return found


def check_pairs(images: Mapping[str, Path], labels: Mapping[str, Path], *, layout: str) -> None:
    """Refuses images without a label and labels without an image.

    Args:
      images: key -> image.
      labels: the same keys -> labels.
      layout: what the folder should look like, for messages.

    Raises:
      FileNotFoundError: an image without a label.
      ValueError: a label without an image.
    """
    if missing := [image for key, image in images.items() if key not in labels]:
        raise FileNotFoundError(f"{missing[0].parent}: {len(missing)} of {len(images)} images have no label: "
                                f"{name_some(missing)}; {layout}.")
    if orphans := [label for key, label in labels.items() if key not in images]:
        raise ValueError(f"{orphans[0].parent}: labels without an image: {name_some(orphans)}; {layout}. Add the images or "
                         "remove the labels.")


def held_out(names: Iterable[str]) -> set[str]:
    """About every fifth of some names, for validation; which, each name's checksum decides, whatever the others are.

    Of two names or more at least one is held out, and not all.
    """
    def rank(name: str) -> tuple[int, int]:
        checksum = zlib.crc32(name.encode())
        return checksum % HELD_OUT, checksum

    ranked = sorted(names, key=rank)
    held = {name for name in ranked if rank(name)[0] == 0} or set(ranked[:1])
    return held - {ranked[-1]} if len(held) == len(ranked) else held


def name_some(names: Sequence[str | Path]) -> str:
    """The first names of a list, for a message; of a path its last part."""
    return ", ".join(name if isinstance(name, str) else name.name for name in names[:5]) + (", ..." if len(names) > 5 else "")
