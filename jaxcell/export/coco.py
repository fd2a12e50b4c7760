"""COCO files: cells as run-length masks, overlaps kept; written while predicting, read from any program."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pycocotools import mask as coco_mask

from jaxcell.data.annotations.json_file import read_json
from jaxcell.export.fields import cell_fields
from jaxcell.types import Instances

__all__ = ["CocoAdd", "coco_writer", "decode_rle", "encode_rle", "read_coco"]

CATEGORIES = [{"id": 1, "name": "cell", "supercategory": "cell"}]
STANDARD = {"id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd", "score", "cell_id"}

# What a field must be: a test, and the same in words.
_Rule = tuple[Callable[[Any], bool], str]
ID: _Rule = (lambda value: isinstance(value, (int, str)), "a whole number or a text")
TEXT: _Rule = (lambda value: isinstance(value, str), "a text")
SIDE: _Rule = (lambda value: isinstance(value, (int, float)) and value >= 1 and value % 1 == 0, "a whole number above 0")


class CocoAdd(Protocol):
    """Adds the cells of one image to a file."""

    def __call__(self, name: str, instances: Instances, ignore: np.ndarray | None = None) -> None:
        """See `coco_writer`."""


def encode_rle(mask: np.ndarray, box: Sequence[int], shape: tuple[int, int]) -> dict[str, Any]:
    """Run lengths of one cell, from its crop alone (never the whole image).

    Args:
      mask: [y1 - y0, x1 - x0] bool.
      box: (y0, x0, y1, x1), where the crop lies.
      shape: (H, W) of the image.

    Returns:
      COCO's compressed form: {"size": [H, W], "counts": str}; runs go down the columns.
    """
    edges = np.diff(np.pad(mask.astype(np.int8), ((1, 1), (0, 0))), axis=0).T      # one row per image column
    columns, starts = np.nonzero(edges > 0)
    stops = np.nonzero(edges < 0)[1]
    origin = (columns + int(box[1])) * shape[0] + int(box[0])
    bounds = np.stack([origin + starts, origin + stops], axis=1).ravel()
    # A run that ends with its column and one that starts the next are one run to COCO: drop the two equal bounds.
    joined = np.flatnonzero(bounds[1:] == bounds[:-1])
    bounds = np.delete(bounds, np.concatenate([joined, joined + 1]))
    counts = np.diff(np.concatenate([[0], bounds, [shape[0] * shape[1]]])).tolist()
    if counts[-1] == 0:
        counts.pop()
    size = [int(shape[0]), int(shape[1])]
    return {"size": size, "counts": coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"].decode()}


def decode_rle(rle: Mapping[str, Any]) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """The box and crop of a mask in run lengths, compressed (text) or not (a list).

    Returns:
      (y0, x0, y1, x1), tight and half-open, and [y1 - y0, x1 - x0] bool; a box of zeros and [0, 0] for an empty mask.

    Raises:
      ValueError: the runs do not add up to the size.
    """
    height, width = (int(side) for side in rle["size"])
    counts = np.asarray(_counts(rle["counts"]) if isinstance(rle["counts"], (str, bytes)) else rle["counts"], np.int64)
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"run lengths add up to {counts.sum()} pixels for an image of {height} x {width}; "
                         "the file is damaged or its size is (width, height).")
    bounds = np.cumsum(counts)[:len(counts) // 2 * 2].reshape(-1, 2)
    bounds = bounds[bounds[:, 0] < bounds[:, 1]]
    if not len(bounds):
        return (0, 0, 0, 0), np.zeros((0, 0), bool)
    x0, x1 = int(bounds[0, 0]) // height, (int(bounds[-1, 1]) - 1) // height + 1
    steps = np.zeros((x1 - x0) * height + 1, np.int8)
    np.add.at(steps, bounds[:, 0] - x0 * height, 1)
    np.add.at(steps, bounds[:, 1] - x0 * height, -1)
    mask = np.cumsum(steps[:-1], dtype=np.int8).reshape(x1 - x0, height).T.astype(bool)
    rows = np.flatnonzero(mask.any(axis=1))
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    return (y0, x0, y1, x1), np.ascontiguousarray(mask[y0:y1])


@contextmanager
def coco_writer(path: str | Path) -> Iterator[CocoAdd]:
    """Writes a COCO file image by image, so that memory does not grow with their number.

    The file appears under its name when the block ends, also by an error: it then holds the images added so far. It has "images"
    (id, file_name, height, width), "categories" and "annotations": segmentation as compressed run lengths, bbox (x, y, width,
    height), area, iscrowd 0, score, cell_id = the cell's number in its image, from 1, and the cell's further fields (see
    `cell_fields`) under their own names.

    Yields:
      add(file name, instances, ignore): `ignore` [H, W] bool becomes a crowd region (iscrowd 1), None is none.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    images: list[dict[str, Any]] = []
    count = 0
    with open(part, "w", encoding="utf-8") as file:
        def add(name: str, instances: Instances, ignore: np.ndarray | None = None) -> None:
            nonlocal count
            entries = _annotations(instances, image_id=len(images) + 1, first_id=count + 1)
            if ignore is not None and ignore.any():
                entries.append(_crowd(ignore, image_id=len(images) + 1, number=count + len(entries) + 1))
            text = ",\n".join(json.dumps(entry, allow_nan=False) for entry in entries)   # all or nothing of an image
            file.write((",\n" if count and entries else "") + text)
            images.append(_image(len(images) + 1, name, instances))
            count += len(entries)

        file.write(f'{{"categories": {json.dumps(CATEGORIES)},\n"annotations": [\n')
        try:
            yield add
        finally:
            file.write(f'\n],\n"images": {json.dumps(images)}}}\n')
            file.close()
            part.replace(path)


def read_coco(path: str | Path, *, names: Mapping[Any, str] | None = None) -> dict[str, Instances]:
    """Cells from anybody's COCO file: a full file, or the bare list of results that evaluation servers take.

    Segmentations may be run lengths (compressed or not) or polygons. Crowd regions are left out: they are no cells. Fields
    beyond the standard that are numbers, or lists of numbers, in every annotation of an image become extras.

    Args:
      path: JSON file.
      names: image id -> image name; for a result list, which holds ids only (take it from the truth's file). Without it
        the ids themselves are the names.

    Returns:
      image name (a full file's `file_name`, as written there) -> Instances; images without cells are there in a full file.
      Scores are 1 where the file has none.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not COCO, an entry that lacks a field, an image that the file does not describe, a box without a mask, or a
        damaged mask.
    """
    data = read_json(path)
    whole = isinstance(data, Mapping) and {"images", "annotations"} <= set(data)
    if not whole and not isinstance(data, list):
        raise ValueError(f"{path} is no COCO file: it must be an object with 'images' and 'annotations', or a list of results.")
    entries, described = (data["annotations"], data["images"]) if whole else (data, [])
    _check(described, {"id": ID, "file_name": TEXT, "height": SIDE, "width": SIDE}, what=f"{path}: image")
    _check(entries, {"image_id": ID}, what=f"{path}: annotation")
    title = {image["id"]: image["file_name"] for image in described} | dict(names or {})
    sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in described}
    groups: dict[Any, list[Mapping[str, Any]]] = {image["id"]: [] for image in described}
    for entry in entries:
        if whole and entry["image_id"] not in groups:
            raise ValueError(f"{path}: an annotation belongs to image {entry['image_id']!r}, which is not in its 'images'.")
        if not entry.get("iscrowd", 0):
            groups.setdefault(entry["image_id"], []).append(entry)
    result = {}
    for key, group in groups.items():
        name = title.get(key, str(key))
        if name in result:
            raise ValueError(f"{path}: two images are called {name!r}; rename one, names tell images apart.")
        result[name] = _instances(group, sizes.get(key), where=f"{path}: image {name!r}")
    return result


def _check(entries: Any, fields: Mapping[str, _Rule], *, what: str) -> None:
    """Refuses a list whose entries are no objects or have a field that is absent or breaks its rule."""
    if not isinstance(entries, list):
        raise ValueError(f"{what}s must be a list, not {type(entries).__name__}; the file is no COCO file.")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping):
            raise ValueError(f"{what} {number} of the list is {entry!r}, no object; the file is no COCO file.")
        for key, (right, rule) in fields.items():
            if not right(entry.get(key)):
                raise ValueError(f"{what} {number} of the list has {key!r} {entry.get(key)!r}; it must be {rule}. Add it, or "
                                 "check that the file is COCO.")


def _image(number: int, name: str, instances: Instances) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": int(instances.shape[0]), "width": int(instances.shape[1])}


def _annotations(instances: Instances, *, image_id: int, first_id: int) -> list[dict[str, Any]]:
    fields = {key: value for key, value in cell_fields(instances).items() if key not in STANDARD}
    entries = []
    for i, (box, mask) in enumerate(zip(instances.boxes.tolist(), instances.masks, strict=True)):
        y0, x0, y1, x1 = box
        entry = {"id": first_id + i, "image_id": image_id, "category_id": 1, "cell_id": i + 1, "iscrowd": 0,
                 "segmentation": encode_rle(mask, box, instances.shape), "area": int(mask.sum()),
                 "bbox": [x0, y0, x1 - x0, y1 - y0], "score": _plain(instances.scores[i])}
        entries.append(entry | {key: _plain(value[i]) for key, value in fields.items()})
    return entries


def _crowd(mask: np.ndarray, *, image_id: int, number: int) -> dict[str, Any]:
    """The annotation of a region [H, W] whose pixels count neither as cells nor as background."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 1,
            "segmentation": encode_rle(mask, (0, 0, height, width), (height, width)), "area": int(mask.sum()),
            "bbox": [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]}


def _plain(value: np.ndarray) -> Any:
    """A number or list for JSON; nine digits give a float32 back bit for bit."""
    if value.ndim:
        return [_plain(v) for v in value]
    return int(value) if value.dtype.kind in "iu" else float(f"{value:.9g}")


def _instances(group: Sequence[Mapping[str, Any]], shape: tuple[int, int] | None, *, where: str) -> Instances:
    boxes, masks, shapes = [], [], {shape} - {None}
    for entry in group:
        rle = _run_lengths(entry.get("segmentation"), shape, where=where)
        shapes.add((int(rle["size"][0]), int(rle["size"][1])))
        try:
            box, mask = decode_rle(rle)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        boxes.append(box)
        masks.append(mask)
    if len(shapes) != 1:
        raise ValueError(f"{where} has masks for images of {sorted(s for s in shapes if s)} (height, width); they must be one.")
    (size,) = shapes
    assert size is not None     # None was taken out above
    keys = [key for key in (group[0] if group else {}) if key not in STANDARD]
    extras = {key: values for key in keys if (values := _numbers([entry.get(key) for entry in group])) is not None}
    scores = np.asarray([entry.get("score", 1.0) for entry in group], np.float32)
    found = Instances(size, np.asarray(boxes, np.int32).reshape(-1, 4), masks, scores, extras)
    return found.select(np.asarray([mask.size > 0 for mask in masks], bool))


def _run_lengths(segmentation: Any, shape: tuple[int, int] | None, *, where: str) -> Mapping[str, Any]:
    if isinstance(segmentation, Mapping):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if not (isinstance(size, list) and len(size) == 2 and all(map(SIDE[0], size)) and isinstance(counts, (str, list))):
            raise ValueError(f"{where} has a mask of size {size!r} with {type(counts).__name__} as counts; it must have a 'size' "
                             "[height, width] and run lengths as 'counts'. Export it anew.")
        return segmentation
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"{where} has an annotation without a mask (segmentation {segmentation!r}); "
                         "boxes alone cannot be scored.")
    if shape is None:
        raise ValueError(f"{where} has polygons and no size; give a full COCO file with 'images', or run lengths.")
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, *shape))


def _numbers(values: Sequence[Any]) -> np.ndarray | None:
    """An array of the values if all are numbers, or lists of as many numbers."""
    flat = [v if isinstance(v, list) else [v] for v in values]
    if len({len(v) for v in flat}) != 1 or not all(type(x) in (int, float) for v in flat for x in v):
        return None
    whole = all(type(x) is int for v in flat for x in v)
    return np.asarray(values, np.int64 if whole else np.float32)


def _counts(text: str | bytes) -> list[int]:
    """COCO's compressed counts: 5 bits a character from 48 on, the sixth says that more follow; from the fourth number on
    the difference to the one two before is stored."""
    counts: list[int] = []
    value = shift = 0
    for character in text.encode() if isinstance(text, str) else text:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts
