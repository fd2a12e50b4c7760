"""NT2: stem cells that become neurons, the data of MorphoSeg."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxcell.data.annotations.crops import Crop, pack_crops
from jaxcell.data.annotations.json_file import read_json
from jaxcell.data.annotations.polygons import fill_rings, ring
from jaxcell.data.images import readable_files, stem_of
from jaxcell.data.labels import read_labels
from jaxcell.data.sources.paired import Entry, PairedSource, check_pairs, keyed, split_folders

__all__ = ["Nt2Source"]

LAYOUT = ("the NT2 data look like training_dataset/NAME.tif with roi_jsons_combined/NAME_ROI.json (polygons), and "
          "test_dataset/NAME.tif; or, prepared by MorphoSeg's code, NAME.tif with NAME_mask.tif (0 and 255) beside it or in "
          "masks/")
FOLDERS = {"train": ("training_dataset", "train"), "test": ("test_dataset", "test")}
PATCH = re.compile(r"_ps\d+_\d+_\d+$")
PHONE = re.compile(r"^(PXL_\d{8})_")      # a photograph's name begins with its day


class Nt2Source(PairedSource):
    """Undifferentiated and differentiating NT2 cells in brightfield, mostly photographs of about 3000x4000 pixels.

    Polygons count where the folder `roi_jsons_combined` is there; they may overlap. Masks of the foreground are the other
    form: there each 8-connected region has a number of its own, though it may be several cells, which is enough for
    MorphoSeg, a semantic system. Cells that the annotators left out are background. Photographs of one day share a group,
    because they show the same dishes.

    Source: https://doi.org/10.15131/shef.data.25604421 and https://github.com/RanchoGoose/MorphoSeg (data_pre.py); Zhang et al.,
      Neurocomputing 2025.
    """

    def __init__(self, root: str | Path, *, split: str | None = None, patches: bool = False, limit: int | None = None) -> None:
        """Lists the images.

        Args:
          root: the folder that holds `training_dataset`, or images with their masks.
          split: "train" or "test" (published without annotation); None takes those that are there.
          patches: takes the patches that MorphoSeg's code cuts (`NAME_ps224_0_145.png`) and not the images.
          limit: takes the first so many.

        Raises:
          FileNotFoundError: no such folder, or an image without annotation.
          ValueError: an unknown split, or annotations without an image.
        """
        root = Path(root)
        flat = root.is_dir() and not any((root / name).is_dir() for names in FOLDERS.values() for name in names)
        found = {"": [root]} if flat and split is None else split_folders(root, split, FOLDERS, layout=LAYOUT)
        entries = [entry for part, folders in found.items() for entry in _entries(folders[0], root, part)]
        kept = [entry for entry in entries if bool(PATCH.search(stem_of(entry.image))) == patches]
        super().__init__(kept, root=root, layout=LAYOUT, read=_read, limit=limit)


def _entries(folder: Path, root: Path, split: str) -> list[Entry]:
    files = readable_files(folder)
    images = keyed((file for file in files if not stem_of(file).endswith("_mask")), key=_photograph)
    homes = {folder} if split == "test" else {folder, root}      # annotations beside both folders are of the training images
    labels = _polygons(homes) or _masks(homes)
    if split != "test" or labels:
        check_pairs(images, labels, layout=LAYOUT)
    return [Entry(image, name, labels.get(name), split, "brightfield", _day(name)) for name, image in images.items()]


def _polygons(homes: Iterable[Path]) -> dict[str, Path]:
    files = (file for home in homes for file in sorted((home / "roi_jsons_combined").glob("*_ROI.json")))
    return keyed(files, key=_photograph)


def _masks(homes: Iterable[Path]) -> dict[str, Path]:
    folders = (folder for home in homes for folder in (home, home / "masks") if folder.is_dir())
    files = (file for folder in folders for file in readable_files(folder) if stem_of(file).endswith("_mask"))
    return keyed(files, key=_photograph)


def _photograph(file: Path) -> str:
    """What the names of an image and its annotations share; cameras mark motion photographs by .MP, annotators did not."""
    return stem_of(file).removesuffix("_mask").removesuffix("_ROI.json").removesuffix(".MP")


def _day(name: str) -> str:
    found = PHONE.match(name)
    return found[1] if found else ""


def _read(entry: Entry, shape: tuple[int, int]) -> np.ndarray:
    assert entry.label is not None
    if entry.label.suffix == ".json":
        return pack_crops(_crops(entry.label, shape), shape)
    return read_labels(entry.label, shape=shape, coding="binary")


def _crops(path: Path, shape: tuple[int, int]) -> list[Crop]:
    """One cell for each entry of the list; its "points" are (x, y)."""
    cells = read_json(path)
    if not isinstance(cells, list) or not all(isinstance(cell, dict) and "points" in cell for cell in cells):
        raise ValueError(f"{path}: must be a list of cells with \"points\"; get the file anew.")
    try:
        return [fill_rings([ring(cell["points"])], shape) for cell in cells]
    except ValueError as error:
        raise ValueError(f"{path}: {error}; get the file anew.") from error
