"""Cells drawn by code: for demos and tests that must run anywhere, and for trying ideas in minutes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from jaxcell.geometry.labels import to_layers
from jaxcell.types import Instances, Sample

__all__ = ["SyntheticSource"]

OUTLINE_POINTS = 48
SMALLEST_AREA = 25          # px; less of a cell at the border or under others is not drawn
LARGEST_OVERLAP = 0.3       # share of the new cell
LARGEST_BOX_IOU = 0.3       # boxes that share more cannot be told apart by suppression of boxes, whatever the network


@dataclass(frozen=True)
class _Cell:
    box: tuple[int, int, int, int]
    mask: np.ndarray            # [h, w] bool, what is labelled
    depth: np.ndarray           # [h, w] float32, 0 at the outline, 1 half a radius inside
    centre: tuple[float, float]
    radius: float

    @property
    def window(self) -> tuple[slice, slice]:
        return slice(self.box[0], self.box[2]), slice(self.box[1], self.box[3])


class SyntheticSource:
    """Round, elongated and touching cells, some overlapping, under uneven light with blur, noise and debris.

    Sample i depends on (seed, i, options) alone. Another seed gives unseen images of the same kind.
    """

    def __init__(self, count: int, *, size: int | tuple[int, int] = 256, seed: int = 0, kind: str = "fluorescence",
                 radius: tuple[float, float] = (6.0, 14.0), coverage: tuple[float, float] = (0.05, 0.35), clustering: float = 0.4,
                 overlap: float = 0.15) -> None:
        """Sets the scene; an image is drawn on access.

        Args:
          count: number of samples.
          size: of the images: one side, or (H, W).
          seed: of everything random.
          kind: "fluorescence" (8-bit grey), "brightfield" (stained, 8-bit RGB), "phase" (8-bit grey) or "mixed" (in turn).
          radius: range of the mean radius of an image's cells, pixels.
          coverage: range of the share of the image that cells cover, as far as they find room.
          clustering: share of cells placed against another one.
          overlap: share of the meetings of two cells in which they overlap; else the later one is pressed flat.

        Raises:
          ValueError: unknown kind.
        """
        if kind not in (*RENDERERS, "mixed"):
            raise ValueError(f"SyntheticSource: kind={kind!r} is unknown; it is one of {', '.join((*RENDERERS, 'mixed'))}.")
        self._shape = (size, size) if isinstance(size, int) else (size[0], size[1])
        self._seed, self._kinds = seed, tuple(RENDERERS) if kind == "mixed" else (kind,)
        self._radius, self._coverage, self._clustering, self._overlap = radius, coverage, clustering, overlap
        self.names = [f"synthetic_{seed}_{i:05d}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name, kind = self.names[index], self._kinds[index % len(self._kinds)]
        rng = np.random.default_rng((self._seed, index % len(self)))
        cells = _place_cells(rng, self._shape, radius=rng.uniform(*self._radius), coverage=rng.uniform(*self._coverage),
                             clustering=self._clustering, overlap=self._overlap)
        boxes = np.asarray([cell.box for cell in cells], np.int32).reshape(-1, 4)
        labels = to_layers(Instances(self._shape, boxes, [cell.mask for cell in cells], np.ones(len(cells), np.float32)))
        image = RENDERERS[kind](rng, self._shape, cells)
        return Sample(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), labels, name=name, modality=kind, group=name)


# ---------------------------------------------------------------- where cells are
def _place_cells(rng: np.random.Generator, shape: tuple[int, int], *, radius: float, coverage: float, clustering: float,
                 overlap: float) -> list[_Cell]:
    elongation = rng.uniform(1.0, 2.2)
    taken = np.zeros(shape, bool)
    cells: list[_Cell] = []
    for _ in range(max(1, round(coverage * shape[0] * shape[1] / (np.pi * radius**2)))):
        r = radius * rng.uniform(0.8, 1.25)
        if cells and rng.random() < clustering:
            neighbour, direction = cells[rng.integers(len(cells))], rng.uniform(0, 2 * np.pi)
            reach = (r + neighbour.radius) * rng.uniform(0.75, 1.1)
            centre = neighbour.centre[0] + reach * np.sin(direction), neighbour.centre[1] + reach * np.cos(direction)
        else:
            centre = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        outline = _outline(rng, centre, r, rng.uniform(1.0, elongation))
        cell = _cut_out(outline, taken, centre, r, may_overlap=rng.random() < overlap)
        if cell is None or any(_box_iou(cell.box, other.box) > LARGEST_BOX_IOU for other in cells):
            continue
        taken[cell.window] |= cell.mask
        cells.append(cell)
    return cells


def _outline(rng: np.random.Generator, centre: tuple[float, float], radius: float, aspect: float) -> np.ndarray:
    """[T, 2] points (y, x) of a smooth closed curve: an ellipse with a few soft bumps."""
    t = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    bumps = sum(rng.uniform(0, 0.12 / k) * np.cos(k * t + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
    y, x = radius * (1 + bumps) * np.sin(t) / np.sqrt(aspect), radius * (1 + bumps) * np.cos(t) * np.sqrt(aspect)
    turn = rng.uniform(0, np.pi)
    return np.stack([y * np.cos(turn) + x * np.sin(turn) + centre[0], x * np.cos(turn) - y * np.sin(turn) + centre[1]], axis=1)


def _cut_out(outline: np.ndarray, taken: np.ndarray, centre: tuple[float, float], radius: float, *, may_overlap: bool
             ) -> _Cell | None:
    """The cell inside `outline` as far as there is room, or None."""
    top_left = np.maximum(np.floor(outline.min(axis=0)).astype(int), 0)
    bottom_right = np.minimum(np.ceil(outline.max(axis=0)).astype(int) + 1, taken.shape)
    if (bottom_right - top_left < 3).any():
        return None
    filled = np.zeros(bottom_right - top_left, np.uint8)
    cv2.fillPoly(filled, [np.rint(outline - top_left)[:, ::-1].astype(np.int32)], 1)
    under = filled.astype(bool) & taken[top_left[0]:bottom_right[0], top_left[1]:bottom_right[1]]
    if under.sum() > LARGEST_OVERLAP * filled.sum():
        return None
    if under.any() and not may_overlap:
        filled = _largest_piece(np.where(under, 0, filled).astype(np.uint8))
    if filled.sum() < SMALLEST_AREA:
        return None
    rows, columns = np.flatnonzero(filled.any(axis=1)), np.flatnonzero(filled.any(axis=0))
    filled = filled[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    y, x = top_left[0] + rows[0], top_left[1] + columns[0]
    distance = cv2.distanceTransform(np.pad(filled, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    return _Cell((int(y), int(x), int(y + filled.shape[0]), int(x + filled.shape[1])), filled.astype(bool),
                 np.minimum(distance / (0.5 * radius), 1), centre, radius)


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    count, pieces, areas, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    return (pieces == 1 + np.argmax(areas[1:, cv2.CC_STAT_AREA])).astype(np.uint8) if count > 1 else mask


def _box_iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    return height * width / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width)


# ---------------------------------------------------------------- what they look like: [H, W, C] float32, about [0, 1]
def _fluorescence(rng: np.random.Generator, shape: tuple[int, int], cells: list[_Cell]) -> np.ndarray:
    light: np.ndarray = np.zeros(shape, np.float32)
    texture = _clouds(rng, shape, 2.0)
    brightness = rng.uniform(0.35, 0.8)
    for cell in cells:
        glow = brightness * rng.uniform(0.6, 1.3)
        light[cell.window] += glow * cell.mask * (0.55 + 0.45 * cell.depth) * (1 + 0.25 * texture[cell.window])
    light += _specks(rng, shape, count=rng.poisson(light.size / 8000), strength=brightness)
    haze = rng.uniform(0, 0.15) * cv2.GaussianBlur(light, (0, 0), 12)
    light = cv2.GaussianBlur(light, (0, 0), rng.uniform(0.6, 1.5)) + haze + rng.uniform(0.02, 0.12)
    light = light * (1 + rng.uniform(0, 0.35) * _clouds(rng, shape, max(shape) / 3))
    return _noisy(rng, light, shot=rng.uniform(0.01, 0.06), read=rng.uniform(0.004, 0.02))[..., None]


def _brightfield(rng: np.random.Generator, shape: tuple[int, int], cells: list[_Cell]) -> np.ndarray:
    dye, texture = 0.08 * np.abs(_clouds(rng, shape, 6.0)), _clouds(rng, shape, 1.5)
    strength = rng.uniform(0.35, 0.8)
    for cell in cells:
        rim = np.exp(-6 * cell.depth)
        dose = strength * rng.uniform(0.7, 1.3) * (0.5 + 0.5 * rim)
        dye[cell.window] += dose * cell.mask * (1 + 0.3 * texture[cell.window])
    dye += _specks(rng, shape, count=rng.poisson(dye.size / 8000), strength=strength)
    dye = cv2.GaussianBlur(dye, (0, 0), rng.uniform(0.6, 1.2))
    stain = np.asarray([0.9, 1.4, 0.5]) * rng.uniform(0.7, 1.3, 3)      # absorbs green most: purple
    lamp = rng.uniform(0.8, 0.95) * (1 + 0.12 * _clouds(rng, shape, max(shape) / 3))
    return _noisy(rng, lamp[..., None] * np.exp(-dye[..., None] * stain), shot=rng.uniform(0.01, 0.03), read=0.005)


def _phase(rng: np.random.Generator, shape: tuple[int, int], cells: list[_Cell]) -> np.ndarray:
    body, texture = np.zeros(shape, np.float32), _clouds(rng, shape, 1.5)
    covered = np.zeros(shape, np.float32)
    contrast = rng.uniform(0.7, 1.2)
    for cell in cells:
        rim, thickness = np.exp(-5 * cell.depth), rng.uniform(0.8, 1.2)
        body[cell.window] += cell.mask * thickness * (-0.12 - 0.25 * rim + 0.10 * texture[cell.window] * cell.depth)
        covered[cell.window] = np.maximum(covered[cell.window], cell.mask)
    halo = np.maximum(cv2.GaussianBlur(covered, (0, 0), rng.uniform(2.0, 4.0)) - covered, 0)
    image = 0.5 + contrast * (body + 0.55 * halo - 0.5 * _specks(rng, shape, count=rng.poisson(body.size / 8000), strength=0.4))
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.0)) * (1 + 0.15 * _clouds(rng, shape, max(shape) / 3))
    return _noisy(rng, image, shot=rng.uniform(0.005, 0.03), read=0.005)[..., None]


RENDERERS: Mapping[str, Callable[[np.random.Generator, tuple[int, int], list[_Cell]], np.ndarray]] = {
    "fluorescence": _fluorescence,
    "brightfield": _brightfield,
    "phase": _phase,
}


def _clouds(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """[H, W] smooth random field, about -1 to 1, with structures of `scale` pixels."""
    coarse = [int(np.ceil(side / scale)) + 2 for side in shape]
    return cv2.resize(rng.uniform(-1, 1, coarse).astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)


def _specks(rng: np.random.Generator, shape: tuple[int, int], *, count: int, strength: float) -> np.ndarray:
    """[H, W] debris too small to be cells."""
    dirt = np.zeros(shape, np.float32)
    for y, x, r in rng.integers(0, (*shape, 3), (count, 3)).tolist():
        cv2.circle(dirt, (x, y), r, strength * rng.uniform(0.4, 1.2), -1)
    return dirt


def _noisy(rng: np.random.Generator, image: np.ndarray, *, shot: float, read: float) -> np.ndarray:
    """Photon noise grows with the root of the light; `shot` is its deviation at 1, `read` that of the camera."""
    deviation = np.sqrt(shot**2 * np.maximum(image, 0) + read**2)
    return image + deviation * rng.standard_normal(image.shape, dtype=np.float32)
