"""Images in a folder, with the label files that belong to them and the splits of a manifest."""

from __future__ import annotations

import csv
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from jaxcell.data.images import (
    ANNOTATION_ENDINGS,
    SUFFIXES,
    annotation_stems,
    read_image,
    read_pixel_size,
    readable_files,
    stem_of,
)
from jaxcell.data.labels import read_labels
from jaxcell.types import Sample

__all__ = ["FolderSource"]

LABEL_FOLDERS = ("labels", "masks")
HELD_OUT = 5        # about one image in so many is for validation


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
    pixel_size (micrometres). Without, every image file counts; the labels of `x.png` are `x_label.*`, `x_masks.*` or the like
    beside it (see `ANNOTATION_ENDINGS`). Images may lie in a subfolder `images`, labels in `labels` or `masks` (there also as
    `x.*`), splits in subfolders of their name. An image without a label file has no annotation. A pixel size that the manifest
    does not give is the image file's own, if it has one.

    A folder with neither manifest nor subfolders `train` and `val` is divided all the same: "val" is about every fifth image,
    "train" the others. A checksum of the name decides, so the division is the same on every machine, and an image stays where
    it is when others are added. (Of two images or more both parts get at least one, whatever the checksums.) Images of one slide
    or movie may be parted: where that matters, sort them into the two subfolders or write a manifest.
    """

    def __init__(self, root: str | Path, *, split: str | None = None, modality: str | None = None, limit: int | None = None,
                 labelled: bool = False) -> None:
        """Lists the samples; pixels are read on access.

        Args:
          root: the folder.
          split: "train", "val", ...; None takes all.
          modality: takes samples whose modality contains this text.
          limit: takes the first so many.
          labelled: refuse images without a label file, here and not hours later when one is drawn.

        Raises:
          FileNotFoundError: no such folder, or a file of the manifest is missing.
          ValueError: nothing is left, files whose roles are ambiguous, or images without labels where they must have some.
        """
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; check the path (relative ones count from {Path.cwd()}).")
        manifest = root / "manifest.csv"
        entries = _from_manifest(manifest) if manifest.exists() else _from_folders(root, split or "")
        kept = [entry for entry in entries if split in (None, "", entry.split) and (modality or "") in entry.modality]
        if not kept:
            present = sorted({f"{entry.split or '(none)'}: {entry.modality}" for entry in entries})
            raise ValueError(f"{root}: none of its {len(entries)} images has split {split!r} and a modality that contains "
                             f"{modality!r}. It has {'; '.join(present)}.")
        self._entries = kept[:limit]
        if labelled and (bare := [entry.image.name for entry in self._entries if entry.label is None]):
            raise ValueError(f"{root}: {len(bare)} of {len(self._entries)} images have no label file ({', '.join(bare[:5])}"
                             f"{', ...' if len(bare) > 5 else ''}); expected {stem_of(bare[0])}_label.png, _labels.tif, "
                             "_masks.tif or the like beside them. Move them elsewhere, or list the others in a manifest.csv.")
        self.names = [entry.name for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self._entries[index]
        labels = None if entry.label is None else read_labels(entry.label)
        pixel_size = read_pixel_size(entry.image) if entry.pixel_size is None else entry.pixel_size
        return Sample(read_image(entry.image), labels, pixel_size=pixel_size, name=entry.name, modality=entry.modality,
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
        name = row.get("stem") or stem_of(files[0])
        entries.append(_Entry(files[0], files[1], name, row.get("split") or "", row.get("modality") or "unknown",
                              row.get("group") or name, float(row["pixel_size"]) if row.get("pixel_size") else None))
    return entries


def _from_folders(root: Path, split: str) -> list[_Entry]:
    if (root / split).is_dir():
        return _from_names(root / split, split)
    if split in ("train", "val") and not any((root / part).is_dir() for part in ("train", "val")):
        return _held_out(_from_names(root, ""))
    raise ValueError(f"{root}: has neither manifest.csv nor a subfolder {split!r}, so it has no split {split!r}. Leave split "
                     "out, or sort the files into subfolders train and val.")


def _held_out(entries: list[_Entry]) -> list[_Entry]:
    """The entries with the split "train" or "val" that their names decide."""
    def rank(entry: _Entry) -> tuple[int, int]:
        checksum = zlib.crc32(entry.name.encode())
        return checksum % HELD_OUT, checksum

    ranked = sorted(entries, key=rank)
    held = {entry.name for entry in ranked if rank(entry)[0] == 0} or {ranked[0].name}
    if len(held) == len(ranked):
        held.remove(ranked[-1].name)
    return [replace(entry, split="val" if entry.name in held else "train") for entry in entries]


def _from_names(folder: Path, split: str) -> list[_Entry]:
    images = folder / "images" if (folder / "images").is_dir() else folder
    labels = next((folder / name for name in LABEL_FOLDERS if (folder / name).is_dir()), images)
    files, label_files = readable_files(images), readable_files(labels)
    endings = ANNOTATION_ENDINGS if labels == images else ("", *ANNOTATION_ENDINGS)
    taken = annotation_stems(file.stem for file in files)
    entries = []
    for file in files:
        if file.stem in taken:
            continue
        found = [f for f in label_files if f.stem in {file.stem + ending for ending in endings}]
        if len(found) > 1:      # Cellpose keeps its session in x_seg.npy, beside the masks that it was asked to save
            found = [f for f in found if not f.name.endswith("_seg.npy")]
        if len(found) > 1 or sum(f.stem == file.stem for f in files) > 1:
            rivals = found if len(found) > 1 else [f for f in files if f.stem == file.stem]
            raise ValueError(f"{folder}: {', '.join(f.name for f in rivals)} all answer to {file.stem!r}; keep one image and one "
                             "label file of each name, or write a manifest.csv with the columns image_file and label_file.")
        entries.append(_Entry(file, found[0] if found else None, file.stem, split, group=file.stem))
    if not entries:
        raise ValueError(f"{folder.resolve()}: holds no image; name your folder with --config.data.root=DIR. Files must end in "
                         f"{', '.join(SUFFIXES)}.")
    return entries
