"""BBBC039: nuclei of U2OS cells in a chemical screen."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from jaxcell.data.images import read_label_array, readable_files, stem_of
from jaxcell.data.sources.paired import Entry, PairedSource, check_pairs, keyed, name_some, need_folder

__all__ = ["Bbbc039Source"]

LAYOUT = ("BBBC039 looks like images/NAME.tif, masks/NAME.png and metadata/training.txt, validation.txt, test.txt, which list "
          "mask file names")
LISTS = {"train": "training.txt", "val": "validation.txt", "test": "test.txt"}
WELL = re.compile(r"_([A-P]\d{2})_s\d+_")


class Bbbc039Source(PairedSource):
    """Hoechst-stained nuclei, 520x696 pixels of 16 bits; images of one well share a group.

    In a mask's first channel touching nuclei have different small numbers, and numbers are used again elsewhere: each
    8-connected region of one number is a nucleus.

    Source: https://bbbc.broadinstitute.org/BBBC039, whose page links the code that decodes the masks; Caicedo et al.,
      Cytometry A 95, 2019.
    """

    def __init__(self, root: str | Path, *, split: str | None = None, limit: int | None = None) -> None:
        """Lists the images.

        Args:
          root: the folder that holds `images`, `masks` and `metadata`.
          split: "train", "val" or "test" of the data set's own lists; None takes all images, listed or not.
          limit: takes the first so many.

        Raises:
          FileNotFoundError: no such folder, or a file of a list is missing.
          ValueError: an unknown split, or masks without images.
        """
        root = Path(root)
        if split is not None and split not in LISTS:
            raise ValueError(f"{root}: has no split {split!r}; this data set has {', '.join(LISTS)}. Leave split out for all.")
        images, labels = (keyed(readable_files(need_folder(root / name, layout=LAYOUT))) for name in ("images", "masks"))
        check_pairs(images, labels, layout=LAYOUT)
        entries = {stem: Entry(image, stem, labels[stem], "", "fluorescence", _well(stem)) for stem, image in images.items()}
        super().__init__(_listed(root, entries, split), root=root, layout=LAYOUT, read=_read, limit=limit)


def _well(stem: str) -> str:
    found = WELL.search(stem)
    return found[1] if found else ""


def _listed(root: Path, entries: dict[str, Entry], split: str | None) -> list[Entry]:
    """The entries of a split in the order of its list; of all splits, in the order of their names."""
    folder = root / "metadata"
    if split is not None and not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, so the split {split!r} is not known; {LAYOUT}.")
    split_of: dict[str, str] = {}
    for part, name in LISTS.items():
        path = folder / name
        if split == part or (split is None and path.exists()):
            stems = [stem_of(line) for line in _lines(path)]
            if missing := [stem for stem in stems if stem not in entries]:
                raise FileNotFoundError(f"{path}: {len(missing)} of its {len(stems)} images are missing: {name_some(missing)}; "
                                        f"{LAYOUT}.")
            split_of |= dict.fromkeys(stems, part)
    return [replace(entries[stem], split=split_of.get(stem, "")) for stem in (split_of if split else entries)]


def _lines(path: Path) -> list[str]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; {LAYOUT}.")
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no list of file names: {error}. Get the file anew.") from error


def _read(entry: Entry, shape: tuple[int, int]) -> np.ndarray:
    assert entry.label is not None
    colours = read_label_array(entry.label)[..., 0]
    labels = np.zeros(colours.shape, np.int32)
    for value in np.unique(colours[colours > 0]):
        pieces = cv2.connectedComponents((colours == value).view(np.uint8), connectivity=8, ltype=cv2.CV_32S)[1]
        labels += np.where(pieces > 0, pieces + labels.max(), 0)
    return labels[..., None]
