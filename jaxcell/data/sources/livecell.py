"""LIVECell: eight cell types in phase contrast, grown from sparse to confluent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from skimage.transform import resize

from jaxcell.data.annotations.crops import pack_crops
from jaxcell.data.annotations.json_file import read_json
from jaxcell.data.annotations.runs import crop_of_runs
from jaxcell.data.images import readable_files
from jaxcell.data.sources import coco
from jaxcell.data.sources.paired import Entry, PairedSource, name_some, need_folder
from jaxcell.types import Sample

__all__ = ["EVERY", "LiveCellSource", "every_nth", "resize_sample"]

Item = TypeVar("Item")

LAYOUT = ("LIVECell looks like images/livecell_train_val_images/*.tif (or .../CELLTYPE/*.tif), images/livecell_test_images/ and "
          "annotations/LIVECell/livecell_coco_train.json, _val.json, _test.json")
IMAGES = {"train": "livecell_train_val_images", "val": "livecell_train_val_images", "test": "livecell_test_images"}
CELL_TYPES = ("A172", "BT474", "BV2", "Huh7", "MCF7", "SHSY5Y", "SkBr3", "SKOV3")
EVERY = {2: 50, 4: 25, 5: 20, 25: 4, 50: 2, 100: 1}
"""Percent of the images -> every how manyth is taken."""


class LiveCellSource(PairedSource):
    """Phase contrast, 520x704 pixels of 8 bits; overlapping annotations stay whole.

    Names are the file names of the annotation files. The modality also names the cell type; images of one well share a group,
    whatever their position, time and crop. Annotations that leave no pixel are left out. Some images were annotated twice and
    are listed under two ids (65 in train): the first counts. The authors' train and val share wells, and a few images.

    Source: https://sartorius-research.github.io/LIVECell; Edlund et al., Nature Methods 18, 2021. Subsets of every n-th image:
      its section on the size of the data set.
    """

    def __init__(self, root: str | Path, *, split: str | None = None, cell_type: str | None = None, percent: int = 100,
                 limit: int | None = None, size: Sequence[int] | None = None) -> None:
        """Reads the annotation files and finds their images; that of the whole training set takes a minute and 6 GB.

        Args:
          root: the folder that holds `images` and `annotations` (where the annotation files may also lie in the root).
          split: "train", "val" or "test"; None takes those whose annotation file is there.
          cell_type: one of A172, BT474, BV2, Huh7, MCF7, SHSY5Y, SkBr3, SKOV3; None takes all. Where the file of all types is
            missing, `annotations/LIVECell_single_cells/TYPE/SPLIT.json` serves.
          percent: 2, 4, 5, 25, 50 or 100: every 50th, 25th, 20th, 4th, 2nd or each image of the split and type, from the first.
          limit: takes the first so many.
          size: (H, W) to which images and labels are resized, such as (512, 512), which changes the cells' shapes; None keeps
            them.

        Raises:
          FileNotFoundError: no such folder, no annotation file, or an image is missing.
          ValueError: an unknown split, cell type or percentage, or an annotation file that is damaged.
        """
        root = need_folder(Path(root), layout=LAYOUT)
        root = root / "LIVECell_dataset_2021" if (root / "LIVECell_dataset_2021").is_dir() else root
        for what, value, known in (("split", split, (*IMAGES, None)), ("cell_type", cell_type, (*CELL_TYPES, None)),
                                   ("percent", percent, tuple(EVERY))):
            if value not in known:
                raise ValueError(f"{root}: {what}={value!r} is not one of {', '.join(str(k) for k in known if k is not None)}.")
        entries: list[Entry] = []
        drawn: dict[str, coco._Image] = {}
        for part in [split] if split else IMAGES:
            table = _annotation_file(root, part, cell_type, needed=split is not None)
            if table is None or len(entries) == limit:
                continue
            files = _image_files(root, part)
            listed = _listed(table, cell_type)
            taken = [name for name in every_nth(list(listed), EVERY[percent]) if name not in drawn]
            taken = taken[:None if limit is None else limit - len(entries)]
            if missing := [name for name in taken if name not in files]:
                raise FileNotFoundError(f"{root / 'images'}: {len(missing)} of {len(taken)} images that {table.name} lists are "
                                        f"missing: {name_some(missing)}; {LAYOUT}.")
            drawn |= {name: coco._image(*listed[name], table)[0] for name in taken}
            entries += [Entry(files[name], name, table, part, f"phase contrast ({_type_of(name)})", _well_of(name))
                        for name in taken]
        super().__init__(entries, root=root, layout=LAYOUT, read=partial(_read, drawn=drawn), limit=limit)
        self._size = None if size is None else (int(size[0]), int(size[1]))

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return sample if self._size is None else resize_sample(sample, self._size)


def every_nth(items: Sequence[Item], n: int) -> Sequence[Item]:
    """Every n-th of a list, from the first: ceil(len / n) of them.

    Source: the paper, section 4.2, which leaves open where to start.
    """
    return items[::n]


def resize_sample(sample: Sample, size: tuple[int, int]) -> Sample:
    """The sample on another grid: what a network that takes squares only was trained on.

    Args:
      sample: image [H, W, C], labels [H, W, D] or None.
      size: (h, w).

    Returns:
      The sample with its image interpolated (bilinear after a Gaussian against aliasing; float32 in the old unit) and its labels
      those of the nearest pixel; a cell can vanish. A pixel has no single size any more where the aspect ratio changes.

    Source: the paper, section 4.3 (scikit-image; its options are not said).
    """
    height, width = sample.image.shape[:2]
    image = resize(sample.image, size, order=1, anti_aliasing=True, preserve_range=True).astype(np.float32)
    nearest = partial(resize, output_shape=size, order=0, anti_aliasing=False, preserve_range=True)
    labels, nuclei = (None if part is None else nearest(part).astype(np.int32) for part in (sample.labels, sample.nuclei))
    even = height * size[1] == width * size[0]
    pixel_size = sample.pixel_size * height / size[0] if sample.pixel_size is not None and even else None
    return dataclasses.replace(sample, image=image, labels=labels, nuclei=nuclei, pixel_size=pixel_size)


def _annotation_file(root: Path, split: str, cell_type: str | None, *, needed: bool) -> Path | None:
    """The file of all cell types, or else that of the one asked for."""
    places = [f"annotations/LIVECell/livecell_coco_{split}.json", f"annotations/livecell_coco_{split}.json",
              f"livecell_coco_{split}.json"]
    if cell_type:       # the second is its name in Kaggle's copy
        places += [f"annotations/LIVECell_single_cells/{cell_type.lower()}/{name}.json"
                   for name in (split, f"livecell_{cell_type.lower()}_{split}")]
    found = next((root / place for place in places if (root / place).is_file()), None)
    if found is None and needed:
        raise FileNotFoundError(f"{root}: has no annotation file for {split}, such as {places[0]}; {LAYOUT}.")
    return found


def _image_files(root: Path, split: str) -> dict[str, Path]:
    """File name -> file; images lie together or in a folder for each cell type."""
    home = need_folder(root / "images" / IMAGES[split], layout=LAYOUT)
    folders = [home, *(sub for sub in home.iterdir() if sub.is_dir())]
    return {file.name: file for folder in folders for file in readable_files(folder)}


def _listed(table: Path, cell_type: str | None) -> dict[str, tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """File name -> (first entry of the image, its annotations), in the file's order."""
    content = read_json(table)
    content = content if isinstance(content, dict) else {}
    images, annotations = (_objects(content.get(key)) for key in ("images", "annotations"))
    keys = [image.get("id") for image in images] + [annotation.get("image_id") for annotation in annotations]
    if not images or not all(isinstance(image.get("file_name"), str) for image in images) or not all(
            isinstance(key, (int, str)) for key in keys):
        raise ValueError(f"{table}: is not an annotation file of LIVECell; it needs lists of images with an id and a file_name, "
                         "and of annotations with an image_id. Get it anew.")
    found: dict[str, tuple[Mapping[str, Any], list[Mapping[str, Any]]]] = {}
    for image in images:
        if cell_type in (None, _type_of(image["file_name"])):
            found.setdefault(image["file_name"], (image, []))
    owners: dict[int | str, list[Mapping[str, Any]]] = {image["id"]: [] for image in images}
    owners |= {image["id"]: belonging for image, belonging in found.values()}
    if len(owners) < len(images) or not owners.keys() >= {annotation["image_id"] for annotation in annotations}:
        raise ValueError(f"{table}: two images have one id, or an annotation belongs to no image. Get it anew.")
    for annotation in annotations:
        owners[annotation["image_id"]].append(annotation)
    return found


def _objects(entries: Any) -> list[Mapping[str, Any]]:
    """A list of objects; in the files of single cell types it is a dictionary of them. Empty where it is neither."""
    entries = [*entries.values()] if isinstance(entries, dict) else entries
    return entries if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries) else []


def _type_of(name: str) -> str:
    return name.split("_")[0]


def _well_of(name: str) -> str:
    """Of "A172_Phase_C7_1_02d16h00m_2.tif" all but position, time and crop."""
    return "_".join(name.split("_")[:3])


def _read(entry: Entry, shape: tuple[int, int], *, drawn: Mapping[str, coco._Image]) -> np.ndarray:
    image = drawn[entry.name]
    if image.shape not in (None, shape):
        raise ValueError(f"{entry.image}: (H, W) = {shape}, but {entry.label} says {image.shape}. Check that the annotations "
                         "belong to these images.")
    ends, runs = np.cumsum(image.lengths), image.runs.astype(np.int64)
    crops = [crop_of_runs(runs[a:b], shape[0]) for a, b in zip(ends - image.lengths, ends, strict=True)]
    crowd = image.crowd.tolist()
    return pack_crops([crop for crop, ignored in zip(crops, crowd, strict=True) if not ignored], shape,
                      ignore=[crop for crop, ignored in zip(crops, crowd, strict=True) if ignored])
