"""Cells from ImageJ's selections: a `.roi` file, or the `.zip` that the ROI Manager saves."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from jaxcell.data.annotations.crops import EMPTY, Crop, pack_crops
from jaxcell.data.annotations.polygons import LARGEST, fill_rings, ring

__all__ = ["read_imagej"]

MOST_BYTES = 2**26      # of one selection: 65,535 points take less than a megabyte, a composite a few
MOST_TOTAL = 2**29      # of all selections of an archive, unpacked
CURVE_STEPS = 16        # lines that stand for one Bezier curve of a composite selection
POINTS: Mapping[int, int] = {0: 1, 1: 1, 2: 2, 3: 3, 4: 0}
"""Segment of a composite's path (move, line, quadratic, cubic, close) -> points that follow it."""


def read_imagej(path: str | Path, shape: tuple[int, int]) -> np.ndarray:
    """The cells of an ImageJ selection, or of an archive of them.

    Coordinates count pixel edges, as ImageJ's own do for areas, and a pixel belongs to a cell if its centre lies inside.
    Polygons, freehand and traced outlines, ellipses, rectangles (also rotated), ovals and composites (several parts, holes) are
    cells; lines, points, angles, text and pictures are refused. Parts outside the image are cut off.

    Args:
      path: a `.roi` or `.zip` file; of an archive all entries that end in `.roi` count, in their order.
      shape: (H, W) of the image.

    Returns:
      [H, W, D] int32 label layers; cell k is the k-th selection.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged or oversized file, a selection that is no area or leaves no pixel in the image, or selections of
        several slices.

    Source: ImageJ 1.53, ij/io/RoiDecoder.java and ij/gui/ShapeRoi.java (the format), ij/gui/OvalRoi.java (ovals).
    Departs: curves of a composite are drawn as `CURVE_STEPS` lines each; Java's are within 0.1 pixel.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of ImageJ selections; check the path.")
    selections = [(name, _decoded(data, name)) for name, data in _contents(path)]
    places = {place for _, roi in selections if any(place := (roi.position, roi.z_position, roi.t_position))}
    if len(places) > 1:
        raise ValueError(f"{path}: its selections lie on {len(places)} slices or frames, but an image here is one plane. Save "
                         "those of each slice by themselves, or take their positions away (ROI Manager, More).")
    crops = [_crop(roi, name, shape) for name, roi in selections]
    try:
        return pack_crops(crops, shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _contents(path: Path) -> list[tuple[str, bytes]]:
    """(name for messages, content) of every selection."""
    if path.suffix.lower() == ".roi":
        with path.open("rb") as file:
            return [(str(path), file.read(MOST_BYTES))]
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [e for e in archive.infolist() if e.filename.lower().endswith(".roi") and "__MACOSX" not in e.filename]
            if (total := sum(e.file_size for e in entries)) > MOST_TOTAL or any(e.file_size > MOST_BYTES for e in entries):
                raise ValueError(f"it unpacks to {total} bytes, far more than selections take")
            # A size in the directory may lie, so each is read up to it and no further.
            contents = [(f"{path}: {e.filename}", archive.open(e).read(e.file_size)) for e in entries]
    except Exception as error:      # damage, encryption and unknown packing have an error of their own each
        raise ValueError(f"{path}: cannot be read as an archive of ImageJ selections: {str(error)[:99]}. Save it anew with "
                         "the ROI Manager.") from error
    if not contents:
        raise ValueError(f"{path}: holds no ImageJ selection (no .roi). If it is an archive of something else, unpack it; an "
                         "image without cells needs an empty label image.")
    return contents


def _decoded(data: bytes, name: str) -> ImagejRoi:
    try:
        return ImagejRoi.frombytes(data)
    except Exception as error:      # roifile checks little: damage shows as errors of struct, numpy and unicode
        raise ValueError(f"{name}: cannot be read as an ImageJ selection: {error}. Save it anew with ImageJ.") from error


def _crop(roi: ImagejRoi, name: str, shape: tuple[int, int]) -> Crop:
    try:
        crop = _oval(roi, shape) if roi.roitype == ROI_TYPE.OVAL else fill_rings(_rings(roi), shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}. Delete it in ImageJ, or save it anew as an area.") from error
    if not crop[1].size:
        raise ValueError(f"{name} covers no pixel of the image of {shape[0]} x {shape[1]}: it lies outside, or is thinner than a "
                         "pixel. Check that the file belongs to this image, or delete the selection.")
    return crop


def _rings(roi: ImagejRoi) -> list[np.ndarray]:
    """The closed outlines of an area, [P, 2] (y, x) each."""
    if roi.subtype not in (ROI_SUBTYPE.UNDEFINED, ROI_SUBTYPE.ELLIPSE, ROI_SUBTYPE.ROTATED_RECT):
        raise ValueError(f"it is of the kind {roi.subtype.name.lower()}, which is no area")
    if roi.roitype in (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED):
        if roi.options & ROI_OPTIONS.SPLINE_FIT:
            raise ValueError("it is a fitted spline, of which the file keeps only the knots (Edit > Selection > Interpolate "
                             "makes it an outline)")
        return [ring(roi.coordinates())]
    if roi.roitype != ROI_TYPE.RECT:
        raise ValueError(f"it is of the kind {roi.roitype.name.lower()}, which is no area")
    if roi.composite:
        return _composite(roi)
    if roi.rounded_rect_arc_size:
        raise ValueError("it is a rectangle with round corners, which cannot be read here")
    x, y, width, height = _bounds(roi)
    return [ring([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])]


def _bounds(roi: ImagejRoi) -> tuple[float, float, float, float]:
    """(x, y, width, height) of a rectangle or oval."""
    if roi.subpixelrect:
        return roi.xd, roi.yd, roi.widthd, roi.heightd
    return roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top


def _oval(roi: ImagejRoi, shape: tuple[int, int]) -> Crop:
    x, y, width, height = _bounds(roi)
    if not (abs(x) < LARGEST and abs(y) < LARGEST and 0 < width < LARGEST and 0 < height < LARGEST):
        raise ValueError(f"it is an oval at ({x}, {y}) of {width} x {height} pixels, which is no place in an image")
    y0, x0 = max(int(y), 0), max(int(x), 0)
    y1, x1 = min(int(np.ceil(y + height)), shape[0]), min(int(np.ceil(x + width)), shape[1])
    if y0 >= y1 or x0 >= x1:
        return EMPTY
    rows = (np.arange(y0, y1) + 0.5 - y - height / 2) / (height / 2)
    columns = (np.arange(x0, x1) + 0.5 - x - width / 2) / (width / 2)
    mask = rows[:, None] ** 2 + columns ** 2 <= 1
    return ((y0, x0, y1, x1), mask) if mask.any() else EMPTY


def _composite(roi: ImagejRoi) -> list[np.ndarray]:
    """The outlines of a path of moves, lines, curves and closings."""
    path = np.zeros(0) if roi.multi_coordinates is None else roi.multi_coordinates.astype(np.float64)
    outlines: list[list[np.ndarray]] = []
    place = 0
    while place < len(path):
        kind = path[place]
        if kind not in POINTS or place + 1 + 2 * POINTS[kind] > len(path) or (kind > 0 and not outlines):
            raise ValueError("its path is damaged")
        points = path[place + 1:place + 1 + 2 * POINTS[kind]].reshape(-1, 2)
        place += 1 + 2 * POINTS[kind]
        if kind == 0:
            outlines.append([points])
        elif kind == 1:
            outlines[-1].append(points)
        elif kind != 4:
            outlines[-1].append(_curve(outlines[-1][-1][-1:], points))
    return [ring(np.concatenate(points)) for points in outlines]


def _curve(start: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Points on a Bezier curve, without its start."""
    points = np.concatenate([start, controls])
    t = np.linspace(0, 1, CURVE_STEPS + 1)[1:, None]
    while len(points) > 1:      # de Casteljau: mix neighbours until one point a value of t is left
        points = np.stack([(1 - t) * a + t * b for a, b in zip(points[:-1], points[1:], strict=True)])
    return points[0]
