"""Images in a folder, with the label files that belong to them and the splits of a manifest."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PureWindowsPath

import numpy as np

from jaxcell.data.annotations.qupath import read_qupath_nuclei
from jaxcell.data.images import (
    ANNOTATION_ENDINGS,
    SUFFIXES,
    annotation_stems,
    check_permission,
    ending_of,
    parse_select,
    readable_files,
    stem_of,
)
from jaxcell.data.labels import CODINGS, LABEL_SUFFIXES, read_labels
from jaxcell.data.sources.paired import Entry, PairedSource, held_out, name_some
from jaxcell.data.sources.tables import read_table

__all__ = ["LABEL_ENDINGS", "FolderSource", "name_folders", "rename_labels", "rename_splits", "unread_images"]

LAYOUT = ("a folder of images looks like x.png with x_label.png beside it, images/x.png with labels/x.png, or has a manifest.csv "
          "with the columns image_file and label_file")
LABEL_FOLDERS = ("labels", "masks")
LABEL_ENDINGS = (*ANNOTATION_ENDINGS, "_rois", "_RoiSet")
OUTLINES = tuple(suffix for suffix in LABEL_SUFFIXES if suffix not in SUFFIXES)     # files that are never images
UNSURE = (".zip", ".json")      # beside the images these may be anything: only those named like a label are labels
SPLITS = ("train", "val", "test", "unlabelled", "")
LIKELY_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
                 "testing": "test", "unlabelled": "unlabelled", "unlabeled": "unlabelled"}
DEPTH = 3                       # subfolders are looked into so far, lest somebody's whole disk be
CODING_OPTION = ("(coding is an option: --coding of `jaxcell data`, --config.data.train.own.coding and "
                 "--config.data.val.own.coding of training.)")


class FolderSource(PairedSource):
    """The samples of one folder.

    With `manifest.csv` its rows count: column image_file and, where present, label_file, stem, split (train, val, test,
    unlabelled), modality, group, pixel_size (micrometres). Without, every image file counts; the labels of `x.png` are
    `x_label.*`, `x_masks.*` or the like beside it (see `ANNOTATION_ENDINGS`), also `x.geojson`, `x.roi`, `x_rois.zip` or a
    folder `x_masks` with one file per cell. Images may lie in a subfolder `images`, labels in `labels` or `masks` (there also as
    `x.*` or `x/*`), splits in subfolders of their name. An image without labels has no annotation; labels without an image are
    refused. `x_seg.npy`, the session of Cellpose, counts where there is nothing else. Nuclei are those of QuPath's cells. A
    pixel size that the manifest does not give is the image file's own, if it has one.

    A folder with neither manifest nor subfolders `train` and `val`, or with a manifest in which no row has a split, is divided
    all the same: "val" is about every fifth image, "train" the others. A checksum of the name decides, so the division is the
    same on every machine, and an image stays where it is when others are added. (Of two images or more both parts get at least
    one, whatever the checksums.) Images of one slide or movie may be parted: where that matters, sort them into the two
    subfolders, or write a manifest with the column group: then groups are divided, as images are without.
    """

    def __init__(self, root: str | Path, *, split: str | None = None, modality: str | None = None, limit: int | None = None,
                 labelled: bool = False, select: Mapping[str, int | str] | str | None = None, coding: str = "ids") -> None:
        """Lists the samples; pixels are read on access.

        Args:
          root: the folder.
          split: "train", "val", ...; None takes all.
          modality: takes samples whose modality contains this text.
          limit: takes the first so many.
          labelled: refuse images without a label file, here and not hours later when one is drawn.
          select: which channels, focal planes or time points of the image files to take, see `open_image`; or as text, such as
            "C=DAPI,Z=max".
          coding: what the values of label images mean, see `read_labels`.

        Raises:
          FileNotFoundError: no such folder, or a file of the manifest is missing.
          ValueError: nothing is left, files whose roles are ambiguous, labels without an image, a manifest that cannot be
            read, or images without labels where they must have some.
        """
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder (relative ones count from {Path.cwd()}); {LAYOUT}.")
        check_permission(root)
        if coding not in CODINGS:
            raise ValueError(f"{root}: coding {coding!r} is unknown; known are {', '.join(CODINGS)}.")
        manifest = root / "manifest.csv"
        entries = _from_manifest(manifest) if manifest.exists() else _from_folders(root, split or "")
        if split in ("train", "val") and not any(entry.split for entry in entries):
            entries = _held_out(entries)
        kept = [entry for entry in entries if split in (None, "", entry.split) and (modality or "") in entry.modality]
        if not kept:
            raise ValueError(f"{root}: {_nothing_left(entries, split or '', modality or '')}")
        super().__init__(kept, root=root, layout=LAYOUT, read=partial(_read, coding=coding), read_nuclei=_read_nuclei,
                         select=parse_select(select) if isinstance(select, str) else select, limit=limit)
        if labelled and (bare := [entry.image for entry in self._entries if entry.label is None]):
            raise ValueError(f"{root}: {len(bare)} of {len(self._entries)} images have no label file ({name_some(bare)}); "
                             f"expected {stem_of(bare[0])}_label.png, _labels.tif, _masks.tif or the like beside them. Move "
                             "them elsewhere, or list the others in a manifest.csv."
                             f"{rename_labels([entry.name for entry in entries])}")


def _read(entry: Entry, shape: tuple[int, int], *, coding: str) -> np.ndarray:
    assert entry.label is not None
    outlines = entry.label.is_dir() or entry.label.suffix.lower() in OUTLINES
    try:
        return read_labels(entry.label, shape=shape, coding="ids" if outlines else coding)
    except ValueError as error:
        if "set coding=" not in str(error):
            raise
        raise ValueError(f"{error} {CODING_OPTION}") from error


def _read_nuclei(entry: Entry, shape: tuple[int, int]) -> np.ndarray | None:
    """QuPath's cells may have one each."""
    assert entry.label is not None
    return read_qupath_nuclei(entry.label, shape) if entry.label.suffix.lower() in (".geojson", ".json") else None


def _held_out(entries: list[Entry]) -> list[Entry]:
    """The entries with the split "train" or "val" that their groups decide; a group of its own has the image's name."""
    held = held_out(dict.fromkeys(entry.group for entry in entries))
    return [replace(entry, split="val" if entry.group in held else "train") for entry in entries]


def _nothing_left(entries: Sequence[Entry], split: str, modality: str) -> str:
    """Which splits (and modalities, where one was asked for) there are instead."""
    wanted = [f"split {split!r}"] * bool(split) + [f"a modality that contains {modality!r}"] * bool(modality)
    present = sorted({(entry.split or "no split") + (f": {entry.modality}" if modality else "") for entry in entries})
    fill = " Fill the column split of a manifest.csv: train, val, test or unlabelled." if split else ""
    return f"none of its {len(entries)} images has {' and '.join(wanted)}; they have {'; '.join(present)}.{fill}"


# ---------------------------------------------------------------- manifests
def _from_manifest(manifest: Path) -> list[Entry]:
    entries: dict[str, Entry] = {}
    rows = read_table(manifest, columns=("image_file",))
    _refuse_other_label_columns(manifest, rows[0][1])
    for number, row in rows:
        where = f"{manifest}, line {number}"
        image = _listed_file(manifest.parent, row["image_file"], where)
        label = _listed_file(manifest.parent, row["label_file"], where) if row.get("label_file") else None
        name, split = row.get("stem") or stem_of(image), row.get("split", "")
        if split not in SPLITS:
            raise ValueError(f"{where}: split {split!r} is unknown; it must be {', '.join(filter(None, SPLITS))} or empty.")
        if name in entries:
            raise ValueError(f"{where}: {name!r} is the name of an earlier line too ({entries[name].image.name}); a name "
                             "stands for one image. Give the column stem different values.")
        entries[name] = Entry(image, name, label, split, row.get("modality") or "unknown", row.get("group") or name,
                              _micrometres(row.get("pixel_size", ""), where))
    return list(entries.values())


def _refuse_other_label_columns(manifest: Path, columns: Iterable[str]) -> None:
    """Nobody would miss the labels of a column that is passed over."""
    other = [column for column in columns if "label" in column.lower() or "mask" in column.lower()]
    if other and "label_file" not in columns:
        raise ValueError(f"{manifest}: has a column {other[0]!r}, but labels are named in the column label_file. Rename it; if "
                         "it names no labels, call it otherwise.")


def _listed_file(folder: Path, name: str, where: str) -> Path:
    """The file that a manifest names; it must lie in the manifest's folder."""
    if not name:
        raise ValueError(f"{where}: image_file is empty; name the image or remove the line.")
    if PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:      # both kinds of slash
        raise ValueError(f"{where}: {name} does not lie in {folder}; a manifest names files of its own folder only. Move the "
                         "file there, and write its path relative to the manifest.")
    if not (folder / name).exists():
        raise FileNotFoundError(f"{where}: {name} is missing; complete the folder or remove the line.")
    return folder / name


def _micrometres(text: str, where: str) -> float | None:
    try:
        size = float(text) if text else None
    except ValueError:
        size = math.nan
    if size is not None and not 0 < size < math.inf:
        raise ValueError(f"{where}: pixel_size {text!r} is no size; it must be micrometres per pixel, such as 0.65, or empty.")
    return size


# ---------------------------------------------------------------- folders without a manifest
def _from_folders(root: Path, split: str) -> list[Entry]:
    if (root / split).is_dir():
        return _from_names(root / split, split)
    if split in ("train", "val") and not any((root / part).is_dir() for part in ("train", "val")):
        return _from_names(root, "")
    raise ValueError(f"{root}: has neither manifest.csv nor a subfolder {split!r}, so it has no split {split!r}. Leave split "
                     f"out, or sort the files into subfolders train and val.{rename_splits(root)}")


def _from_names(folder: Path, split: str) -> list[Entry]:
    images = folder / "images" if (folder / "images").is_dir() else folder
    labels = next((folder / name for name in LABEL_FOLDERS if (folder / name).is_dir()), images)
    files = readable_files(images)
    taken = annotation_stems(map(stem_of, files)) if labels == images else set()
    pictures = [file for file in files if stem_of(file) not in taken]
    if not pictures and (below := _image_folders(folder)):
        raise ValueError(f"{folder.resolve()}: holds no image itself, but its subfolders do: {name_folders(below, folder)}. Name "
                         "one of them, move the images up, or list them in a manifest.csv (column image_file)."
                         f"{rename_splits(folder)}")
    if not pictures:
        raise ValueError(f"{folder.resolve()}: holds no image; name your folder with --config.data.root=DIR. Files must end in "
                         f"{', '.join(SUFFIXES)}.")
    stems = _by_stem(pictures, folder)
    if labels == images:
        found = _owned([*(file for file in files if stem_of(file) in taken), *_outlines_beside(images)], stems, folder)
        _refuse_lone_labels([file for stem, file in stems.items() if stem not in found], folder)
    else:
        found = _owned(_contents(labels), stems, labels)
    bare = [stem for stem in stems if stem not in found]
    _refuse_unknown_labels(bare, labels, LABEL_ENDINGS if labels == images else ("", *LABEL_ENDINGS))
    return [Entry(file, stem, found.get(stem), split, group=stem) for stem, file in stems.items()]


def _by_stem(pictures: Iterable[Path], folder: Path) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for file in pictures:
        if (other := stems.setdefault(stem_of(file), file)) is not file:
            raise ValueError(_ambiguous(folder, [other, file], stem_of(file)))
    return stems


def _contents(folder: Path) -> list[Path]:
    """All that can be a label in a folder of labels: files, and subfolders with one mask per cell."""
    others = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__"))
                    and not path.name.lower().endswith(SUFFIXES) and (path.is_dir() or path.suffix.lower() in OUTLINES))
    return [*readable_files(folder), *others]


def _outlines_beside(folder: Path) -> list[Path]:
    """What lies among images and is a label by its name or ending."""
    return [path for path in _contents(folder) if not path.name.lower().endswith(SUFFIXES)
            and (_label_stem(path).endswith(LABEL_ENDINGS) or (path.is_file() and path.suffix.lower() not in UNSURE))]


def _label_stem(path: Path) -> str:
    return path.stem if path.suffix.lower() in OUTLINES else stem_of(path)


def _owned(labels: Iterable[Path], stems: Iterable[str], folder: Path) -> dict[str, Path]:
    """stem of an image -> its label; each label must have an image, and no image two labels."""
    # Of "x" and "x_cp" the longer owns "x_cp_masks".
    owners = {stem + ending: stem for stem in sorted(stems, key=len) for ending in ("", *LABEL_ENDINGS)}
    found: dict[str, list[Path]] = {}
    orphans = []
    for label in labels:
        owner = owners.get(_label_stem(label))
        if owner is None:
            orphans.append(label)
        else:
            found.setdefault(owner, []).append(label)
    if orphans:
        raise ValueError(f"{folder}: labels without an image: {name_some(orphans)}. The label of x.png is x_label.png or the "
                         "like; rename them, add the images, or write a manifest.csv.")
    return {stem: _only(candidates, stem, folder) for stem, candidates in found.items()}


def _only(candidates: Sequence[Path], stem: str, folder: Path) -> Path:
    # Cellpose keeps its session in x_seg.npy, beside the masks that it was asked to save.
    saved = [path for path in candidates if len(candidates) == 1 or not path.name.endswith("_seg.npy")]
    if len(saved) > 1:
        raise ValueError(_ambiguous(folder, saved, stem))
    return saved[0]


def _refuse_lone_labels(bare: Iterable[Path], folder: Path) -> None:
    if lone := [file for file in bare if stem_of(file).endswith(ANNOTATION_ENDINGS)]:
        raise ValueError(f"{folder}: {name_some(lone)} must be labels by their names, but there is no image of theirs. Add the "
                         "images; or, if these are images, rename them or write a manifest.csv.")


def _refuse_unknown_labels(bare: Iterable[str], folder: Path, endings: Sequence[str]) -> None:
    """Refuses files that are labels of unlabelled images by their names, and that cannot be read."""
    names = {stem + ending for stem in bare for ending in endings}
    if unknown := sorted(path for path in folder.iterdir() if path.stem in names and path.is_file() and not ending_of(path)
                         and path.suffix.lower() not in OUTLINES):
        raise ValueError(f"{folder}: {name_some(unknown)} must be labels by their names, but a label cannot end in "
                         f"{unknown[0].suffix!r}; known endings are {', '.join(LABEL_SUFFIXES)}. Convert them, for example to "
                         "TIFF, or rename them.")


def _ambiguous(folder: Path, rivals: Sequence[Path], stem: str) -> str:
    return (f"{folder}: {', '.join(file.name for file in rivals)} all answer to {stem!r}; keep one image and one label of each "
            "name, or write a manifest.csv with the columns image_file and label_file.")


# ---------------------------------------------------------------- what is not read, and may be meant
def unread_images(root: str | Path, splits: Collection[str]) -> dict[Path, list[Path]]:
    """The images of a folder without manifest that lie where nobody looks for them.

    Args:
      root: the folder.
      splits: those that are opened; "" reads the images of the folder itself.

    Returns:
      subfolder (or `root` itself) -> its images; nothing where there is a manifest, which says what counts.
    """
    root = Path(root)
    if not root.is_dir() or (root / "manifest.csv").exists():
        return {}
    homes = [root / split if (root / split).is_dir() else root for split in splits]     # (without such a folder it is divided)
    homes += [root / split for split in SPLITS if split and (root / split).is_dir()]    # (left out by choice, if at all)
    read = {home / "images" if (home / "images").is_dir() else home for home in homes}
    return {folder: images for folder, images in _image_folders(root).items() if folder not in read}


def _image_folders(folder: Path, *, depth: int = DEPTH) -> dict[Path, list[Path]]:
    """folder -> its images, of a folder and of those below it that are no folders of labels."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return {}
    files = readable_files(folder)
    taken = annotation_stems(map(stem_of, files))
    images = [file for file in files if stem_of(file) not in taken]
    found = {folder: images} if images else {}
    for path in sorted(folder.iterdir()) if depth else ():
        labels = path.name in LABEL_FOLDERS or path.name.endswith(LABEL_ENDINGS)
        if path.is_dir() and not (labels or ending_of(path) or path.name.startswith((".", "__"))):
            found |= _image_folders(path, depth=depth - 1)
    return found


def name_folders(found: Mapping[Path, Sequence[Path]], root: Path) -> str:
    """Folders below `root` and how many images each holds, for a message."""
    return name_some([f"{'the folder itself' if folder == root else folder.relative_to(root).as_posix()} ({len(images)} "
                      f"image{'s' * (len(images) != 1)})" for folder, images in found.items()])


def rename_splits(root: Path) -> str:
    """The sentence that says which subfolders seem to be splits under another name; "" if none does."""
    likely = [(path.name, LIKELY_SPLITS[path.name.lower()]) for path in sorted(root.iterdir())
              if path.is_dir() and path.name.lower() in LIKELY_SPLITS]
    renamed = [f"{name} to {split}" for name, split in likely if not (root / split).exists()]
    return f" If they are splits, rename {', '.join(renamed)}." if renamed else ""


def rename_labels(names: Collection[str]) -> str:
    """The sentence that says how to rename what seem to be labels, such as a_gt and b_gt beside a and b; "" if nothing does."""
    stems = set(names)
    pairs = [(name[:cut], name[cut:]) for name in names for cut in range(1, len(name) - 1) if name[cut] in "_-. "
             and name[:cut] in stems and not name[cut + 1:].isdigit()]
    ending, count = max(Counter(ending for _, ending in pairs).items(), key=lambda item: item[1], default=("", 0))
    if not count or 3 * count < len(names):
        return ""
    stem = next(stem for stem, other in pairs if other == ending)
    return f" If {stem}{ending} holds the labels of {stem}, rename it {stem}_label, and the others likewise."
