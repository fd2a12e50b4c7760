"""The NeurIPS 2022 challenge of cell segmentation in multi-modality microscopy."""

from __future__ import annotations

from pathlib import Path

from jaxcell.data.images import readable_files, stem_of
from jaxcell.data.sources.paired import Entry, PairedSource, check_pairs, keyed, need_folder, split_folders

__all__ = ["Neurips2022Source"]

LAYOUT = ("the challenge's data look like Training-labeled/images/cell_00001.png with Training-labeled/labels/"
          "cell_00001_label.tiff, the same in Tuning/ and Testing/Public/, and images without labels in release-part1/ "
          "(train-unlabeled-part1.zip) and train-unlabeled-part2/ (whole slides)")
LABELLED = {"train": ("Training-labeled", "Train_Labeled"), "val": ("Tuning", "TuningSet"),
            "test": ("Testing/Public", "Testing")}
UNLABELLED = ("release-part1", "train-unlabeled-part1", "Train_Unlabeled", "Train-Unlabeled")
WHOLE_SLIDES = ("train-unlabeled-part2",)


class Neurips2022Source(PairedSource):
    """Cells in brightfield, fluorescence, phase contrast and DIC, as PNG, BMP, JPEG and TIFF of many kinds.

    Names are those of the files with their split, such as "train_cell_00001": every split counts from 1. The layout tells
    neither the modality of an image nor which belong together.

    Source: https://neurips22-cellseg.grand-challenge.org and https://zenodo.org/records/10719375; Ma et al., Nature Methods
      21, 2024.
    """

    def __init__(self, root: str | Path, *, split: str | None = None, labelled: bool = True, whole_slides: bool = False,
                 limit: int | None = None) -> None:
        """Lists the images.

        Args:
          root: the folder that holds `Training-labeled`.
          split: "train", "val" (Tuning) or "test" (Testing/Public); None takes all that are there. The tuning images of
            the challenge itself came without labels: then they have no annotation.
          labelled: False takes the unlabelled training images, as split "unlabelled".
          whole_slides: takes the unlabelled whole slides as well.
          limit: takes the first so many.

        Raises:
          FileNotFoundError: no such folder, or an image without label.
          ValueError: an unknown split, a split of unlabelled images, or labels without an image.
        """
        root = Path(root)
        folders = LABELLED if labelled else {"unlabelled": UNLABELLED + (WHOLE_SLIDES if whole_slides else ())}
        if not labelled and split == "train":
            split = None        # they are training images
        entries: list[Entry] = []
        for part, found in split_folders(root, split, folders, layout=LAYOUT).items():
            for folder in found[:1] if labelled else found:
                entries += _labelled(folder, part) if labelled else _unlabelled(folder)
        super().__init__(entries, root=root, layout=LAYOUT, limit=limit)


def _labelled(folder: Path, split: str) -> list[Entry]:
    home = folder / "images" if (folder / "images").is_dir() else folder
    images, labels = keyed(readable_files(home)), {}
    if (folder / "labels").is_dir() or split == "train":
        files = readable_files(need_folder(folder / "labels", layout=LAYOUT))
        labels = keyed(files, key=lambda file: stem_of(file).removesuffix("_label"))
        check_pairs(images, labels, layout=LAYOUT)
    return [_entry(image, labels.get(stem), split) for stem, image in images.items()]


def _unlabelled(folder: Path) -> list[Entry]:
    home = folder / "images" if (folder / "images").is_dir() else folder
    return [_entry(image, None, "unlabelled") for image in readable_files(home)]


def _entry(image: Path, label: Path | None, split: str) -> Entry:
    stem = stem_of(image)
    name = stem if split == "unlabelled" and stem.startswith("unlabeled") else f"{split}_{stem}"
    return Entry(image, name, label, split, "mixed modalities")
