"""Images in a folder, with the label files that belong to them and the splits of a manifest."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from jaxcell.data.images import SUFFIXES, read_image, read_labels
from jaxcell.types import Sample

__all__ = ["FolderSource"]

LABEL_ENDINGS = ("_label", "_labels", "_mask", "_masks", "_cp_masks")
LABEL_FOLDERS = ("labels", "masks")


@dataclass(frozen=True)
class _Entry:
    image: Path
    label: Path | None
    name: str
    split: str = ""
    modality: str = "unknown"
    group: str = ""
    pixel_size: float | None = None


class FolderSource:
    """The samples of one folder.

    With `manifest.csv` its rows count: column image_file and, where present, label_file, stem, split, modality, group,
    pixel_size (micrometres). Without, every image file counts; the labels of `x.png` are `x_label.*`, `x_labels.*`, `x_mask.*`,
    `x_masks.*` or `x_cp_masks.*` beside it. Images may lie in a subfolder `images`, labels in `labels` or `masks` (there also as
    `x.*`), splits in subfolders of their name. An image without a label file has no annotation.
    """

    def __init__(self, root: str | Path, *, split: str | None = None, modality: str | None = None,
                 limit: int | None = None) -> None:
        """Lists the samples; pixels are read on access.

        Args:
          root: the folder.
          split: "train", "val", ...; None takes all.
          modality: takes samples whose modality contains this text.
          limit: takes the first so many.

        Raises:
          FileNotFoundError: no such folder, or a file of the manifest is missing.
          ValueError: nothing is left, or files whose roles are ambiguous.
        """
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; check the path (relative ones count from {Path.cwd()}).")
        manifest = root / "manifest.csv"
        entries = _from_manifest(manifest) if manifest.exists() else _from_names(root, split or "")
        kept = [entry for entry in entries if split in (None, "", entry.split) and (modality or "") in entry.modality]
        if not kept:
            present = sorted({f"{entry.split or '(none)'}: {entry.modality}" for entry in entries})
            raise ValueError(f"{root}: none of its {len(entries)} images has split {split!r} and a modality that contains "
                             f"{modality!r}. It has {'; '.join(present)}.")
        self._entries = kept[:limit]
        self.names = [entry.name for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self._entries[index]
        labels = None if entry.label is None else read_labels(entry.label)
        return Sample(read_image(entry.image), labels, pixel_size=entry.pixel_size, name=entry.name, modality=entry.modality,
                      group=entry.group)


def _from_manifest(manifest: Path) -> list[_Entry]:
    with manifest.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or "image_file" not in rows[0]:
        raise ValueError(f"{manifest}: needs a header with the column image_file and at least one row; columns are "
                         f"{', '.join(rows[0]) if rows else 'absent'}.")
    entries = []
    for number, row in enumerate(rows, start=2):
        files = [manifest.parent / row[column] if row.get(column) else None for column in ("image_file", "label_file")]
        missing = [file.name for file in files if file is not None and not file.exists()]
        if files[0] is None or missing:
            raise FileNotFoundError(f"{manifest}, line {number}: {', '.join(missing) or 'image_file'} is missing; complete the "
                                    "folder or remove the line.")
        name = row.get("stem") or files[0].stem
        entries.append(_Entry(files[0], files[1], name, row.get("split") or "", row.get("modality") or "unknown",
                              row.get("group") or name, float(row["pixel_size"]) if row.get("pixel_size") else None))
    return entries


def _from_names(root: Path, split: str) -> list[_Entry]:
    folder = root / split
    if not folder.is_dir():
        raise ValueError(f"{root}: has neither manifest.csv nor a subfolder {split!r}, so it has no split {split!r}. Leave split "
                         "out, or sort the files into subfolders train and val.")
    images = folder / "images" if (folder / "images").is_dir() else folder
    labels = next((folder / name for name in LABEL_FOLDERS if (folder / name).is_dir()), images)
    files, label_files = _readable(images), _readable(labels)
    stems = {file.stem for file in files}
    endings = LABEL_ENDINGS if labels == images else ("", *LABEL_ENDINGS)
    taken = {stem + ending for stem in stems for ending in LABEL_ENDINGS} if labels == images else set()
    entries = []
    for file in files:
        if file.stem in taken:
            continue
        found = [f for f in label_files if f.stem in {file.stem + ending for ending in endings}]
        if len(found) > 1 or sum(f.stem == file.stem for f in files) > 1:
            rivals = found if len(found) > 1 else [f for f in files if f.stem == file.stem]
            raise ValueError(f"{folder}: {', '.join(f.name for f in rivals)} all answer to {file.stem!r}; keep one image and one "
                             "label file of each name, or write a manifest.csv with the columns image_file and label_file.")
        entries.append(_Entry(file, found[0] if found else None, file.stem, split, group=file.stem))
    if not entries:
        raise ValueError(f"{folder}: holds no image; files must end in {', '.join(SUFFIXES)}.")
    return entries


def _readable(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
