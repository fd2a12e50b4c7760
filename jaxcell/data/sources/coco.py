"""Images annotated in a COCO instance file."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from jaxcell.data.annotations.crops import pack_crops
from jaxcell.data.annotations.json_file import read_json
from jaxcell.data.annotations.runs import (
    MOST_PIXELS,
    check_polygon,
    counts_of_texts,
    crop_of_runs,
    polygon_runs,
    runs_of_counts,
)
from jaxcell.data.images import read_image
from jaxcell.types import Sample

__all__ = ["CocoSource", "coco_files", "images_beside"]

DEGENERATE = ("refuse", "drop")
Annotation = Mapping[str, Any]


@dataclass(frozen=True)
class _Image:
    name: str
    shape: tuple[int, int] | None       # (H, W); None where the file does not say
    runs: np.ndarray                    # [R, 2] int32, of all annotations one after the other
    lengths: np.ndarray                 # [M], how many runs each annotation has
    crowd: np.ndarray                   # [M] bool


def coco_files(folder: Path) -> list[Path]:
    """The COCO files of a folder, if it has no manifest and all its JSON files are COCO's."""
    files = sorted(folder.glob("*.json")) if folder.is_dir() and not (folder / "manifest.csv").exists() else []
    return files if files and all(_is_coco(file) for file in files) else []


def _is_coco(file: Path) -> bool:
    try:
        content = read_json(file)
    except (ValueError, FileNotFoundError):
        return False
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def images_beside(file: Path) -> Path:
    """The folder where a COCO file's images are looked for unless it is named: `images` beside the file, else its own."""
    return file.parent / "images" if (file.parent / "images").is_dir() else file.parent


class CocoSource:
    """The images that a COCO file lists, with its polygons or run lengths as cells; cell k is the image's k-th annotation.

    Cells that overlap lie in different label layers; crowd regions are "ignore" where no cell lies and have no number. A listed
    image without annotations has no cells. Polygons cover the pixels that pycocotools gives them; what lies outside the image is
    cut off. An annotation that leaves no pixel (fewer than three points, thinner than a pixel, wholly outside) is degenerate.

    Attributes:
      names: file names as in the file.
      dropped: how many degenerate annotations were left out.
    """

    def __init__(self, annotations: str | Path, image_dir: str | Path, *, categories: Sequence[str] | None = None,
                 modality: str = "unknown", degenerate: str = "refuse", limit: int | None = None) -> None:
        """Reads and checks the annotation file; pixels are read on access.

        Args:
          annotations: the JSON file.
          image_dir: folder that its file names start from.
          categories: names of the categories that are cells; None takes all.
          modality: of all images.
          degenerate: "refuse" annotations that leave no pixel, or "drop" them, which `dropped` counts.
          limit: takes the first so many images.

        Raises:
          FileNotFoundError: no such file, or an image is missing.
          ValueError: the file is not COCO, lacks a category, contradicts itself, or has an annotation that is no mask.
        """
        path = Path(annotations)
        if degenerate not in DEGENERATE:
            raise ValueError(f"{path}: degenerate={degenerate!r} is unknown; known are {', '.join(DEGENERATE)}.")
        content = _content(path)
        listed = _listed(content["images"], path)
        groups = _grouped(content, listed, categories, path)
        taken = list(listed.items())[:limit]
        self._path, self._folder, self._modality = path, Path(image_dir), modality
        self.names = [entry["file_name"] for _, entry in taken]
        _check_files(self._folder, self.names, path)
        self._images, empty = [], []
        for key, entry in taken:
            image, lost = _image(entry, groups.get(key, []), path)
            self._images.append(image)
            empty += lost
        if empty and degenerate == "refuse":
            raise ValueError(f"{empty[0]} leaves no pixel in its image ({len(empty)} such annotation(s) in all): fewer than "
                             "three points, thinner than a pixel, or outside. Mend the file, or set degenerate=\"drop\".")
        self.dropped = len(empty)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        entry = self._images[index]
        image = read_image(self._folder / entry.name)
        shape = image.shape[0], image.shape[1]
        if entry.shape not in (None, shape):
            raise ValueError(f"{self._folder / entry.name}: (H, W) = {shape}, but {self._path} says {entry.shape}. Check that "
                             "the annotations belong to these images.")
        ends, runs = np.cumsum(entry.lengths), entry.runs.astype(np.int64)
        crops = [crop_of_runs(runs[a:b], shape[0]) for a, b in zip(ends - entry.lengths, ends, strict=True)]
        try:
            labels = pack_crops([crop for crop, crowd in zip(crops, entry.crowd, strict=True) if not crowd], shape,
                                ignore=[crop for crop, crowd in zip(crops, entry.crowd, strict=True) if crowd])
        except ValueError as error:
            raise ValueError(f"{self._path}: {entry.name}: {error}") from error
        return Sample(image, labels, name=entry.name, modality=self._modality, group=entry.name)


# ---------------------------------------------------------------- the file's lists
def _content(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise ValueError(f"{path}: is not a COCO instance file; it needs the lists 'images' and 'annotations'.")
    for key in {"images", "annotations", "categories"} & content.keys():
        if not isinstance(content[key], list) or not all(isinstance(entry, dict) for entry in content[key]):
            raise ValueError(f"{path}: is not a COCO instance file; its {key!r} must be a list of objects.")
    if not content["images"]:
        raise ValueError(f"{path}: lists no image. Check that it is the file you mean.")
    return content


def _listed(images: Sequence[Mapping[str, Any]], path: Path) -> dict[Any, Mapping[str, Any]]:
    """Image id -> its entry."""
    listed: dict[Any, Mapping[str, Any]] = {}
    names = set()
    for number, entry in enumerate(images, start=1):
        key, name = entry.get("id"), entry.get("file_name")
        if not isinstance(key, (int, str)) or not isinstance(name, str) or not name:
            raise ValueError(f"{path}: image {number} of its list needs an 'id' and a 'file_name', but has {key!r} and {name!r}.")
        if PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:     # both kinds of slash
            raise ValueError(f"{path}: the file name {name!r} leaves the image folder. Write it relative to that folder.")
        if key in listed or name in names:
            raise ValueError(f"{path}: lists two images with the id {key!r} or the name {name!r}; ids and names tell images "
                             "apart. Remove one.")
        listed[key] = entry
        names.add(name)
    return listed


def _category_ids(content: Mapping[str, Any], path: Path) -> dict[Any, str]:
    """Category id -> name; empty if the file lists none."""
    known = {}
    for number, category in enumerate(content.get("categories", []), start=1):
        if not isinstance(category.get("id"), (int, str)) or category["id"] in known:
            raise ValueError(f"{path}: category {number} of its list has the id {category.get('id')!r}; each needs one of "
                             "its own. Number them anew.")
        known[category["id"]] = str(category.get("name"))
    return known


def _grouped(content: Mapping[str, Any], listed: Mapping[Any, Any], categories: Sequence[str] | None,
             path: Path) -> dict[Any, list[Annotation]]:
    """Image id -> its annotations of the wanted categories."""
    known = _category_ids(content, path)
    if unknown := set(categories or ()) - set(known.values()):
        raise ValueError(f"{path}: has no category {', '.join(sorted(unknown))}; it has "
                         f"{', '.join(sorted(set(known.values()))) or 'none'}.")
    groups: dict[Any, list[Annotation]] = {}
    for annotation in content["annotations"]:
        image, category = annotation.get("image_id"), annotation.get("category_id")
        if not isinstance(image, (int, str)) or image not in listed:
            raise ValueError(f"{path}: annotation {annotation.get('id')!r} belongs to image {image!r}, which is not in its "
                             "'images'. Add the image or remove the annotation.")
        if known and (not isinstance(category, (int, str)) or category not in known):
            raise ValueError(f"{path}: annotation {annotation.get('id')!r} has the category {category!r}, which is not in its "
                             "'categories'. Add the category or remove the annotation.")
        if categories is None or known[category] in categories:
            groups.setdefault(image, []).append(annotation)
    return groups


def _check_files(folder: Path, names: Sequence[str], path: Path) -> None:
    if missing := [name for name in names if not (folder / name).exists()]:
        listed = ", ".join(map(repr, missing[:3])) + ", ..." * (len(missing) > 3)
        raise FileNotFoundError(f"{folder}: {len(missing)} of {len(names)} images that {path} lists are missing ({listed}). "
                                "Check the image folder.")


# ---------------------------------------------------------------- one image's annotations
def _image(entry: Mapping[str, Any], annotations: Sequence[Annotation], path: Path) -> tuple[_Image, list[str]]:
    """The image with its annotations as runs, and the names of those that leave no pixel."""
    name = entry["file_name"]
    shape = _shape(entry, f"{path}: {name}", needed=bool(annotations))
    where = [f"{path}: {name}: annotation {annotation.get('id')!r}" for annotation in annotations]
    ids = [str(annotation["id"]) for annotation in annotations if "id" in annotation]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path}: {name}: two annotations have the id {max(ids, key=ids.count)}, so a cell may be there twice. "
                         "Remove one, or number them anew.")
    runs = _runs(annotations, shape, where) if shape else []
    crowd = np.asarray([bool(annotation.get("iscrowd")) for annotation in annotations], bool)
    lengths = np.asarray([len(r) for r in runs], np.int64)
    together = np.concatenate(runs).astype(np.int32) if runs else np.zeros((0, 2), np.int32)
    kept = lengths > 0
    return _Image(name, shape, together, lengths[kept], crowd[kept]), [where[i] for i in np.flatnonzero(~kept)]


def _shape(entry: Mapping[str, Any], where: str, *, needed: bool) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    if (height, width) == (None, None) and not needed:
        return None
    whole = [int(side) for side in (height, width) if isinstance(side, (int, float)) and 1 <= side < MOST_PIXELS]
    if whole != [height, width]:
        raise ValueError(f"{where}: has height {height!r} and width {width!r}, but annotations need the image's size in whole "
                         "pixels. Add it.")
    if whole[0] * whole[1] >= MOST_PIXELS:
        raise ValueError(f"{where}: {height} x {width} pixels are more than COCO's tools can count. Cut the image into parts.")
    return whole[0], whole[1]


def _runs(annotations: Sequence[Annotation], shape: tuple[int, int], where: Sequence[str]) -> list[np.ndarray]:
    """For every annotation [R, 2], where its runs start and stop."""
    runs = [np.zeros((0, 2), np.int64)] * len(annotations)
    outlined, polygons = [], []
    for number, annotation in enumerate(annotations):
        segmentation = annotation.get("segmentation")
        try:
            if isinstance(segmentation, dict):
                runs[number] = _stored_runs(segmentation, shape)
            elif found := _polygons(segmentation):
                outlined.append(number)
                polygons.append(found)
        except ValueError as error:
            raise ValueError(f"{where[number]} {error}") from error
    for number, drawn in zip(outlined, polygon_runs(polygons, shape), strict=True):
        runs[number] = drawn
    return runs


def _stored_runs(segmentation: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or tuple(size) != shape:
        raise ValueError(f"is for (H, W) = {tuple(size) if isinstance(size, list) else size}, but the image has {shape}. Check "
                         "that the annotations belong to these images.")
    if isinstance(counts, str):
        return runs_of_counts(counts_of_texts([counts.encode(errors="surrogatepass")])[0], shape)
    try:
        return runs_of_counts(np.frombuffer(array("q", counts or []), np.int64), shape)
    except (TypeError, OverflowError) as error:
        raise ValueError("has run lengths that are no list of whole numbers and no text. Export it anew.") from error


def _polygons(segmentation: Any) -> list[np.ndarray]:
    """The polygons of three points and more: others enclose nothing, and pycocotools takes four numbers for a box."""
    if not isinstance(segmentation, list):
        raise ValueError("has no segmentation, at most a box; polygons or run lengths are needed. Remove it from the file, or "
                         "add its outline.")
    polygons = []
    for part in segmentation:
        try:
            polygon = np.frombuffer(array("d", part), np.float64)
        except (TypeError, OverflowError) as error:
            raise ValueError("has a polygon that is no flat list x1, y1, x2, y2, ... of numbers. Export it anew.") from error
        if polygon.size % 2:
            raise ValueError(f"has a polygon of {polygon.size} numbers, but every point needs x and y. Export it anew.")
        if polygon.size:
            check_polygon(polygon)
        polygons += [polygon] if polygon.size >= 6 else []
    return polygons
