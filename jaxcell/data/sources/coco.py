"""Images annotated in a COCO instance file."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from jaxcell.data.images import read_image
from jaxcell.data.labels import pack_masks
from jaxcell.types import Sample

__all__ = ["CocoSource"]


class CocoSource:
    """The images that a COCO file lists, with its polygons or run lengths as cells; cell k is the image's k-th annotation.

    Cells that overlap lie in different label layers; crowd regions are "ignore" where no cell lies. A listed image without
    annotations has no cells.
    """

    def __init__(self, annotations: str | Path, image_dir: str | Path, *, categories: Sequence[str] | None = None,
                 modality: str = "unknown", limit: int | None = None) -> None:
        """Reads the annotation file; pixels are read on access.

        Args:
          annotations: the JSON file.
          image_dir: folder that its file names start from.
          categories: names of the categories that are cells; None takes all.
          modality: of all images.
          limit: takes the first so many images.

        Raises:
          FileNotFoundError: no such file.
          ValueError: the file is not COCO, or lacks a category.
        """
        path = Path(annotations)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such folder or COCO file; check the path.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}. Check that the file is whole.") from error
        if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
            raise ValueError(f"{path}: is not a COCO instance file; it needs the lists 'images' and 'annotations'.")
        wanted = _category_ids(content, categories, path)
        self._annotations: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            if wanted is None or annotation["category_id"] in wanted:
                self._annotations[annotation["image_id"]].append(annotation)
        self._images = content["images"][:limit]
        self._image_dir, self._modality = Path(image_dir), modality
        self.names = [image["file_name"] for image in self._images]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        name, key = self.names[index], self._images[index]["id"]
        image = read_image(self._image_dir / name)
        shape = image.shape[0], image.shape[1]
        annotations = self._annotations.get(key, [])
        labels = pack_masks((_mask(a, shape, name) for a in annotations if not a.get("iscrowd")), shape)
        for crowd in (a for a in annotations if a.get("iscrowd")):
            labels[_mask(crowd, shape, name) & (labels == 0).all(axis=2), 0] = -1
        return Sample(image, labels, name=name, modality=self._modality, group=name)


def _category_ids(content: Mapping[str, Any], categories: Sequence[str] | None, path: Path) -> set[int] | None:
    if categories is None:
        return None
    known = {c["name"]: c["id"] for c in content.get("categories", [])}
    if unknown := set(categories) - known.keys():
        raise ValueError(f"{path}: has no category {', '.join(sorted(unknown))}; it has {', '.join(sorted(known)) or 'none'}.")
    return {known[c] for c in categories}


def _mask(annotation: Mapping[str, Any], shape: tuple[int, int], name: str) -> np.ndarray:
    """[H, W] bool of one annotation."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        # pycocotools takes 4 numbers for a box; fewer than 3 points enclose nothing.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return np.zeros(shape, bool)
        code = coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))
    elif isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != shape:
            raise ValueError(f"{name}: annotation {annotation.get('id')} is for (H, W) = {tuple(segmentation['size'])}, but "
                             f"the image has {shape}. Check that the annotations belong to these images.")
        runs = isinstance(segmentation["counts"], list)
        code = coco_mask.frPyObjects(segmentation, *shape) if runs else segmentation
    else:
        raise ValueError(f"{name}: annotation {annotation.get('id')} has no segmentation, at most a box; polygons or run lengths "
                         "are needed. Remove it from the file, or add its outline.")
    return coco_mask.decode(code).astype(bool)
