"""Cells from QuPath's GeoJSON exports (version 0.2 and later), and from other GeoJSON in pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcell.data.annotations.crops import Crop, pack_crops, union
from jaxcell.data.annotations.json_file import read_json
from jaxcell.data.annotations.polygons import fill_rings, ring

__all__ = ["NUCLEI_KNOWN", "read_qupath", "read_qupath_nuclei"]

NUCLEI_KNOWN = "jaxcell:nucleiKnown"
"""Member of a collection whose cells without a nucleus are known to have none. QuPath, which ignores it, writes no such thing."""

KINDS = ("cell", "detection", "annotation")
"""What a cell may be called, best first."""
OTHERS = ("tile", "tmaCore", "tma_core", "root")
LEGACY = {"PathCellObject": "cell", "PathDetectionObject": "detection", "PathAnnotationObject": "annotation",
          "PathTileObject": "tile", "TMACoreObject": "tmaCore", "PathRootObject": "root"}
"""What QuPath 0.2 wrote as the "id" of a feature -> the objectType of later versions."""

Feature = Mapping[str, Any]


def read_qupath(path: str | Path, shape: tuple[int, int]) -> np.ndarray:
    """The cells of a GeoJSON file: a FeatureCollection, a list of features, or one feature.

    Coordinates are (x, y) in pixels of the full image and count pixel edges: [0, 0] to [1, 1] is the first pixel. A pixel belongs
    to a cell if its centre lies inside (see `fill_rings`). Parts outside the image are cut off.

    A file may hold objects of several kinds. If there are cells, these count; else detections; else annotations (outlines drawn
    by hand, features without a kind): what encloses cells is no cell. Tiles and cores of tissue microarrays never count. An
    object of QuPath's class "Ignore*" becomes -1 where no cell lies; one of "Region*" is left out.

    Args:
      path: the file.
      shape: (H, W) of the image.

    Returns:
      [H, W, D] int32 label layers; cell k is the k-th object that counts.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not GeoJSON, an object that is no area or leaves no pixel in the image, or objects of several planes.
    """
    cells, ignored = _objects(Path(path))
    crops, regions = ([_crop(feature.get("geometry"), name, shape) for name, feature in part] for part in (cells, ignored))
    try:
        return pack_crops(crops, shape, ignore=regions)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_qupath_nuclei(path: str | Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The nuclei of the cells that `read_qupath` finds, as QuPath's cell detection draws them.

    Args:
      path: the file.
      shape: (H, W) of the image.

    Returns:
      [H, W] int32, a nucleus has the number of its cell (where nuclei overlap, the later one's); None if no cell has a nucleus
      and the file does not say that this is known (`NUCLEI_KNOWN`).

    Raises:
      FileNotFoundError, ValueError: as for `read_qupath`.
    """
    cells, _ = _objects(Path(path))
    content = read_json(path)
    known = isinstance(content, Mapping) and content.get(NUCLEI_KNOWN) is True
    if not known and not any(_nucleus(feature) for _, feature in cells):
        return None
    nuclei = np.zeros(shape, np.int32)
    for number, (name, feature) in enumerate(cells, start=1):
        if geometry := _nucleus(feature):
            (y0, x0, y1, x1), mask = _crop(geometry, f"{name}, its nucleus", shape)
            nuclei[y0:y1, x0:x1][mask] = number
    return nuclei


def _objects(path: Path) -> tuple[list[tuple[str, Feature]], list[tuple[str, Feature]]]:
    """(name for messages, feature) of the cells, and of the regions to ignore."""
    features = [(f"{path}: object {number}{_identity(f)}", f) for number, f in enumerate(_features(path), start=1)]
    if len(planes := {_plane(feature) for _, feature in features} - {""}) > 1:
        raise ValueError(f"{path}: objects lie on several planes ({'; '.join(sorted(planes))}), but an image here is one plane. "
                         "Export one file for each.")
    named = [(_kind(name, feature), _class(feature), name, feature) for name, feature in features]
    ignored = [(name, f) for _, label, name, f in named if label.startswith("Ignore*")]
    rest = [(kind, name, f) for kind, label, name, f in named if not label.startswith(("Ignore*", "Region*"))]
    kind = next((k for k in KINDS if any(k == other for other, _, _ in rest)), None)
    if kind is None and rest:
        raise ValueError(f"{path}: holds only objects of the kinds {', '.join(sorted({k for k, _, _ in rest}))}, which are no "
                         "cells. Export cells, detections or annotations.")
    return [(name, f) for other, name, f in rest if other == kind], ignored


def _features(path: Path) -> Iterator[Feature]:
    """All features, each before those that it encloses."""
    content = read_json(path)
    if isinstance(content, Mapping) and content.get("type") == "FeatureCollection":
        content = content.get("features")
    elif isinstance(content, Mapping) and content.get("type") == "Feature":
        content = [content]
    if not isinstance(content, list):
        raise ValueError(f"{path}: is no GeoJSON; it must be a FeatureCollection, a list of features or a feature. (A COCO file "
                         "belongs to images of its own: name it as a source of kind 'coco'.)")
    waiting = content[::-1]
    while waiting:
        feature = waiting.pop()
        if not isinstance(feature, Mapping) or feature.get("type") != "Feature":
            raise ValueError(f"{path}: holds a {type(feature).__name__} that is no GeoJSON feature. Export it anew from QuPath.")
        yield feature
        children = _properties(feature).get("childObjects")
        waiting.extend(children[::-1] if isinstance(children, list) else [])


def _properties(feature: Feature) -> Mapping[str, Any]:
    properties = feature.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _identity(feature: Feature) -> str:
    name = _properties(feature).get("name") or feature.get("id")
    return f" ({name!r})" if isinstance(name, str) and name not in LEGACY else ""


def _kind(name: str, feature: Feature) -> str:
    properties = _properties(feature)
    kind = properties.get("objectType") or properties.get("object_type") or LEGACY.get(str(feature.get("id")), "annotation")
    if kind not in KINDS + OTHERS:
        raise ValueError(f"{name} is of the kind {kind!r}; known are {', '.join(KINDS + OTHERS)}.")
    return str(kind)


def _class(feature: Feature) -> str:
    entry = _properties(feature).get("classification")
    names = (entry.get("name") or entry.get("names")) if isinstance(entry, Mapping) else entry
    return str(names[0] if isinstance(names, list) and names else names)


def _plane(feature: Feature) -> str:
    geometry = feature.get("geometry")
    plane = geometry.get("plane") if isinstance(geometry, Mapping) else None
    return f"z = {plane.get('z', 0)}, t = {plane.get('t', 0)}" if isinstance(plane, Mapping) else ""


def _nucleus(feature: Feature) -> Any:
    return feature.get("nucleusGeometry") or _properties(feature).get("nucleusGeometry")


def _crop(geometry: Any, name: str, shape: tuple[int, int]) -> Crop:
    try:
        parts = [fill_rings([ring(points) for points in polygon], shape) for polygon in _polygons(geometry)]
    except ValueError as error:
        raise ValueError(f"{name}: {error}. Mend or delete it in QuPath.") from error
    parts = [part for part in parts if part[1].size]
    if not parts:
        raise ValueError(f"{name} covers no pixel of the image of {shape[0]} x {shape[1]}: it lies outside, or is thinner than a "
                         "pixel. Check that the file belongs to this image, or delete the object.")
    return union(parts)


def _polygons(geometry: Any) -> list[Any]:
    """The polygons of a geometry, each a list of rings."""
    if not isinstance(geometry, Mapping):
        raise ValueError("it has no geometry, but needs a Polygon or MultiPolygon")
    kind = geometry.get("type")
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"it is a {str(kind)[:20]!r}, but a cell must be a Polygon or MultiPolygon")
    polygons = geometry.get("coordinates") if kind == "MultiPolygon" else [geometry.get("coordinates")]
    if not isinstance(polygons, list) or not all(isinstance(rings, list) and rings for rings in polygons):
        raise ValueError("its coordinates are no list of rings")
    return polygons
