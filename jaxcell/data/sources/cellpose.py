"""The cell images that Cellpose was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxcell.data.images import readable_files
from jaxcell.data.labels import read_labels
from jaxcell.data.sources.paired import Entry, PairedSource, check_pairs, keyed, split_folders

__all__ = ["CellposeSource"]

LAYOUT = "Cellpose's data look like train/000_img.png with train/000_masks.png, and the same in test/ and train_cyto2/"
FOLDERS = {"train": ("train",), "test": ("test",), "train_cyto2": ("train_cyto2",)}
NOTHING = 65535     # what some masks of cyto2 have as background


class CellposeSource(PairedSource):
    """Cells of many kinds, and other things that look alike, as RGB: the cells in green, their nuclei (if seen) in red.

    Names are those of the files with their split, such as "train_000": both splits count from 000.

    Source: https://www.cellpose.org/dataset; Stringer et al., Nature Methods 18, 2021. That some masks of cyto2 hold 65535 in
      the background is known from people who used them; here it becomes 0.
    """

    def __init__(self, root: str | Path, *, split: str | None = None, limit: int | None = None) -> None:
        """Lists the images.

        Args:
          root: the folder that holds `train` and `test`.
          split: "train", "test" or "train_cyto2" (the images that users sent in); None takes all that are there.
          limit: takes the first so many.

        Raises:
          FileNotFoundError: no such folder, or an image without masks.
          ValueError: an unknown split, or masks without an image.
        """
        root = Path(root)
        entries: list[Entry] = []
        for part, folders in split_folders(root, split, FOLDERS, layout=LAYOUT).items():
            files = readable_files(folders[0])
            images, labels = ({stem.removesuffix(ending): file for stem, file in keyed(files).items() if stem.endswith(ending)}
                              for ending in ("_img", "_masks"))
            check_pairs(images, labels, layout=LAYOUT)
            entries += [Entry(image, f"{part}_{stem}", labels[stem], part, "fluorescence and others")
                        for stem, image in images.items()]
        super().__init__(entries, root=root, layout=LAYOUT, read=_read, limit=limit)


def _read(entry: Entry, shape: tuple[int, int]) -> np.ndarray:
    assert entry.label is not None
    labels = read_labels(entry.label, shape=shape)
    return np.where(labels == NOTHING, 0, labels)
