"""The bacteria and worms that Omnipose was trained on."""

from __future__ import annotations

from pathlib import Path

from jaxcell.data.images import readable_files
from jaxcell.data.sources.paired import Entry, PairedSource, check_pairs, keyed, split_folders

__all__ = ["OmniposeSource"]

LAYOUT = ("Omnipose's data look like bact_phase/train_sorted/SPECIES/x.tif with x_masks.tif (flows in x_flows.tif are not read), "
          "the same in test_sorted/ and in bact_fluor/, and worm/train/x.png with x_masks.png")
MODALITIES = {"bact_phase": "phase contrast", "bact_fluor": "fluorescence", "worm": "brightfield", "worm_high_res": "brightfield"}
PARTS = {"train": ("train_sorted", "train"), "test": ("test_sorted", "test")}
ANNOTATIONS = ("_masks", "_flows")


class OmniposeSource(PairedSource):
    """Bacteria of many shapes in phase contrast and fluorescence, worms in brightfield.

    The modality also names the species or strain, the folder of the images. Such a folder, which may hold frames of one
    movie, is one group in each split.

    Source: https://osf.io/xmury (the folder "datasets"); Cutler et al., Nature Methods 19, 2022.
    """

    def __init__(self, root: str | Path, *, split: str | None = None, collection: str | None = None, limit: int | None = None
                 ) -> None:
        """Lists the images.

        Args:
          root: the folder that holds `bact_phase` and the like.
          split: "train" or "test"; None takes all that are there.
          collection: "bact_phase", "bact_fluor", "worm" or "worm_high_res"; None takes all that are there.
          limit: takes the first so many.

        Raises:
          FileNotFoundError: no such folder, or an image without masks.
          ValueError: an unknown split or collection, or masks without an image.
        """
        root = Path(root)
        if collection is not None and collection not in MODALITIES:
            raise ValueError(f"{root}: has no collection {collection!r}; this data set has {', '.join(MODALITIES)}. Leave it "
                             "out for all.")
        parts = {part: [f"{name}/{folder}" for name in ([collection] if collection else MODALITIES) for folder in folders]
                 for part, folders in PARTS.items()}
        entries: list[Entry] = []
        for part, folders in split_folders(root, split, parts, layout=LAYOUT).items():
            for folder in folders:
                for home in [folder, *sorted(sub for sub in folder.iterdir() if sub.is_dir())]:
                    entries += _entries(home, part, folder.relative_to(root).parts[0], "" if home == folder else home.name)
        super().__init__(entries, root=root, layout=LAYOUT, limit=limit)


def _entries(folder: Path, split: str, collection: str, species: str) -> list[Entry]:
    files = keyed(readable_files(folder))
    images = {stem: file for stem, file in files.items() if not stem.endswith(ANNOTATIONS)}
    labels = {stem.removesuffix("_masks"): file for stem, file in files.items() if stem.endswith("_masks")}
    check_pairs(images, labels, layout=LAYOUT)
    place = "_".join(filter(None, (collection, split, species)))
    modality = MODALITIES[collection] + (f" ({species})" if species else "")
    return [Entry(image, f"{place}_{stem}", labels[stem], split, modality, place if species else "")
            for stem, image in images.items()]
