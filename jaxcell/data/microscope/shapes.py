"""Outlines of cells, and where cells lie. Everything here is geometry; how it looks is a matter of `modalities.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np

__all__ = ["SHAPES", "Cell", "fill", "nucleus_labels", "place_cells"]

SMALLEST_AREA = 25          # px; less of a cell at the border or beside others is not drawn
LARGEST_OVERLAP = 0.3       # share of the new cell
SMALLEST_PIECE = 0.5        # share of the new cell; less of it beside others is no cell but a torn-off process
SUBPIXEL_BITS = 4           # of the corners of polygons

# Constants of the drawings below; a scene has up to hundreds of cells, so what can be computed once is.
_TURN = np.linspace(0, 2 * np.pi, 48, endpoint=False)
_CIRCLE = np.stack([np.sin(_TURN), np.cos(_TURN)], axis=1)
_CAP = np.linspace(-np.pi / 2, np.pi / 2, 9)[1:-1]
_ALONG = np.linspace(-1, 1, 15)
_BEND = np.linspace(0, 1, 24, endpoint=False)[:, None]
_BLUNT = np.hanning(21)[1:-1] / 10
_BUMPS, _RUFFLES = np.arange(2, 5)[:, None], np.asarray([7, 11, 17, 25])[:, None]
_TAPER = np.linspace(1, 0.35, 14)


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell as far as it lies in the image.

    Attributes:
      box: (y0, x0, y1, x1), half-open, inside the image; the frame of the arrays.
      mask: [h, w] bool, what is labelled: the whole cell, also under others, unless it was pressed flat against them.
      delay: [h, w] float32, radians by which the cell's body delays light that passes; 0 outside.
      nucleus: [h, w] float32, 0 outside the nucleus, rising to 1 at its middle.
      outline: [P, 2] corners (y, x) of the closed polygons whose union is the cell, before others and the image's border cut it.
      ends: where in `outline` each polygon ends.
      centre: (y, x) of the drawing.
      radius: of the disc of the same area, roughly, pixels.
      angle: of its long axis, radians.
      pressed: whether others cut it.
    """

    box: tuple[int, int, int, int]
    mask: np.ndarray
    delay: np.ndarray
    nucleus: np.ndarray
    outline: np.ndarray
    ends: tuple[int, ...]
    centre: tuple[float, float]
    radius: float
    angle: float
    pressed: bool

    @property
    def window(self) -> tuple[slice, slice]:
        """The box as an index into the image."""
        return slice(self.box[0], self.box[2]), slice(self.box[1], self.box[3])


@dataclass(frozen=True, eq=False)
class _Body:
    """A cell about the origin, before it has a place."""

    outline: np.ndarray
    ends: tuple[int, ...]
    radius: float
    angle: float
    nucleus: tuple[float, float]                        # half axes, along the angle and across, as shares of the radius
    nucleus_offset: tuple[float, float] = (0.0, 0.0)    # from the middle, pixels
    slope: float = 6.0                                  # most rise of thickness per pixel from the outline
    flatness: float = 0.0                               # 0: a dome; 1: a thin sheet
    tips: np.ndarray | None = None                      # [K, 2] where a spread cell holds on to the ground


@dataclass(frozen=True)
class _Habit:
    """What the cells of one image have in common."""

    aspect: float
    angle: float
    order: float            # 0: every angle; 1: all the same
    bumps: float            # of round outlines, as a share of the radius
    sag: float              # of the edges of spread cells: below 1 inwards
    nucleus: float          # of spread cells, its half axis as a share of the radius
    index: float            # radians of delay per pixel of thickness


# ---------------------------------------------------------------- one cell, drawn about the origin
def _round(rng: np.random.Generator, radius: float, angle: float, habit: _Habit) -> _Body:
    """An ellipse with a few soft bumps."""
    bumps = np.cos(_BUMPS * _TURN + rng.uniform(0, 2 * np.pi, (3, 1))) * rng.uniform(0, habit.bumps, (3, 1)) / _BUMPS
    aspect = math.sqrt(rng.uniform(0.6 + 0.4 * habit.aspect, habit.aspect))
    outline = _CIRCLE * (1 + bumps.sum(axis=0))[:, None] * (radius / aspect, radius * aspect)
    size, offset = rng.uniform(0.4, 0.65), radius * rng.uniform(-0.2, 0.2, 2)
    return _Body(_turned(outline, angle), (len(outline),), radius, angle, (size * aspect, size / aspect), tuple(offset.tolist()))


def _elongated(rng: np.random.Generator, radius: float, angle: float, habit: _Habit) -> _Body:
    """A rod with round ends, a little bent, now and then about to divide."""
    aspect = max(1.3, habit.aspect * rng.uniform(0.7, 1.3))
    width = math.sqrt(np.pi / (4 * (aspect - 1) + np.pi))               # half of it, as a share of the radius
    half, length = radius * width, radius * width * (aspect - 1)
    pinch = 1 - rng.uniform(0.25, 0.5) * (rng.random() < 0.2) * np.exp(-((_ALONG * length / half) ** 2) * 4)
    y = half * np.concatenate([-pinch, np.sin(_CAP), pinch[::-1], -np.sin(_CAP)])
    x = np.concatenate([_ALONG * length, length + half * np.cos(_CAP), -_ALONG * length, -length - half * np.cos(_CAP)])
    y += rng.normal(0, 0.12) * (x**2 / (length + half) - length / 3)
    outline = _turned(np.stack([y, x], axis=1), angle)
    return _Body(outline, (len(outline),), radius, angle, (0.55 * aspect * width, 0.6 * width))


def _irregular(rng: np.random.Generator, radius: float, angle: float, habit: _Habit) -> _Body:
    """A spread cell: corners pulled out, edges sagging between them; one in twelve has rounded up."""
    if rng.random() < 1 / 12:
        return _round(rng, max(0.3 * radius, 4.0), angle, replace(habit, aspect=1.15, bumps=0.05))
    count = int(rng.integers(3, 7))
    turns = 2 * np.pi * (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count
    corners = np.stack([np.sin(turns), np.cos(turns)], axis=1) * rng.uniform(0.7, 1.75, (count, 1))
    corners *= (1 / math.sqrt(habit.aspect), math.sqrt(habit.aspect))
    outline = _sagging(corners, habit.sag * rng.uniform(0.8, 1.15, (count, 1)))
    outline *= 1 + _ruffles(rng, len(outline))
    outline = _turned(outline * (radius * math.sqrt(np.pi / cv2.contourArea(outline.astype(np.float32)))), angle)
    far = np.argsort((outline**2).sum(axis=1))[-int(rng.integers(2, 16)):]
    tips = 0.95 * outline[far] + rng.normal(0, 0.5, (len(far), 2))
    size, flatness = habit.nucleus * rng.uniform(0.85, 1.15), rng.uniform(0.3, 0.95)
    return _Body(outline, (len(outline),), radius, angle, (1.2 * size, size), slope=0.5, flatness=flatness, tips=tips)


def _sagging(corners: np.ndarray, sag: np.ndarray) -> np.ndarray:
    """[24 n, 2] points along arcs that join n corners [n, 2], which are blunted; `sag` [n, 1] below 1 bends the arcs inwards."""
    following = np.concatenate([corners[1:], corners[:1]])
    control = sag * (corners + following) / 2
    arcs = (1 - _BEND) ** 2 * corners[:, None] + 2 * _BEND * (1 - _BEND) * control[:, None] + _BEND**2 * following[:, None]
    line = arcs.reshape(-1, 2)
    around = np.concatenate([line[-9:], line, line[:9]])
    return np.stack([np.convolve(around[:, 0], _BLUNT, mode="valid"), np.convolve(around[:, 1], _BLUNT, mode="valid")], axis=1)


def _ruffles(rng: np.random.Generator, count: int) -> np.ndarray:
    """[count, 1] small waves of an edge, here and there."""
    t = np.arange(count) * (2 * np.pi / count)
    fine = (np.cos(_RUFFLES * t + rng.uniform(0, 2 * np.pi, (4, 1))) / _RUFFLES**0.7).sum(axis=0)
    return (rng.uniform(0.015, 0.125) * fine * (1 + np.cos(t + rng.uniform(0, 2 * np.pi))))[:, None]


def _neurites(rng: np.random.Generator, radius: float, angle: float, habit: _Habit) -> _Body:
    """A soma with thin processes that wind and branch twice."""
    soma = _round(rng, 0.6 * radius, angle, habit)
    parts, ends, count = [soma.outline], list(soma.ends), int(rng.integers(2, 6))
    starts, headings = np.zeros((count, 2)), angle + 2 * np.pi * (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count
    lengths, widths = radius * rng.uniform(1.6, 4.5, count), radius * rng.uniform(0.13, 0.25, count)
    for branching in (0.8, 0.5, 0.0):
        lines, directions = _wander(rng, starts, headings, lengths)
        parts.append(_ribbons(lines, directions, np.maximum(widths[:, None] * _TAPER, 1.3)))
        ends += [ends[-1] + 2 * len(_TAPER) * (k + 1) for k in range(count)]
        parents = np.repeat(np.arange(count), rng.poisson(branching, count))
        count, at = len(parents), rng.integers(4, len(_TAPER) - 1, len(parents))
        if not count:
            break
        starts, widths = lines[parents, at], widths[parents] * _TAPER[at]
        headings = directions[parents, at] + (2 * rng.integers(0, 2, count) - 1) * rng.uniform(0.5, 1.1, count)
        lengths = lengths[parents] * rng.uniform(0.25, 0.6, count)
    return _Body(np.concatenate(parts), tuple(ends), radius, angle, (0.33, 0.33))


def _wander(rng: np.random.Generator, starts: np.ndarray, headings: np.ndarray, lengths: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray]:
    """([K, P, 2] points, [K, P] headings) of K winding paths from `starts` [K, 2]."""
    steps = lengths[:, None] / (len(_TAPER) - 1)
    turns = rng.normal(0, 0.11, (len(lengths), len(_TAPER))) * np.sqrt(steps)
    directions = headings[:, None] + np.cumsum(turns, axis=1)
    moves = np.stack([np.sin(directions), np.cos(directions)], axis=2) * steps[..., None]
    moves[:, 0] = starts
    return np.cumsum(moves, axis=1), directions


def _ribbons(lines: np.ndarray, directions: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """[2 K P, 2] corners of the polygons about K paths, one after the other."""
    side = np.stack([np.cos(directions), -np.sin(directions)], axis=2) * (widths[..., None] / 2)
    return np.concatenate([lines + side, (lines - side)[:, ::-1]], axis=1).reshape(-1, 2)


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    sine, cosine = math.sin(angle), math.cos(angle)
    return points @ np.asarray([[cosine, -sine], [sine, cosine]])


@dataclass(frozen=True)
class _Form:
    """How the cells of a shape are drawn, and the ranges of what those of one image have in common."""

    draw: Callable[[np.random.Generator, float, float, _Habit], _Body]
    aspect: tuple[float, float]
    index: tuple[float, float]          # a pixel of a spread cell is more micrometres than one of a bacterium
    order: tuple[float, float]
    box_iou: float                      # boxes that share more are refused: suppression of boxes could not tell them apart


SHAPES: Mapping[str, _Form] = {
    "round": _Form(_round, aspect=(1.1, 2.2), index=(0.07, 0.17), order=(0.0, 0.3), box_iou=0.3),
    "elongated": _Form(_elongated, aspect=(1.8, 5.5), index=(0.06, 0.15), order=(0.0, 0.9), box_iou=0.6),
    "irregular": _Form(_irregular, aspect=(1.0, 3.2), index=(0.18, 0.35), order=(0.0, 0.8), box_iou=0.6),
    "neurites": _Form(_neurites, aspect=(1.0, 1.5), index=(0.08, 0.2), order=(0.0, 0.0), box_iou=0.6),
}
"""shape -> its form."""


# ---------------------------------------------------------------- where cells are
def place_cells(rng: np.random.Generator, shape: tuple[int, int], *, form: str, radius: float, coverage: float, clustering: float,
                overlap: float, bare: bool = False) -> list[Cell]:
    """Fills an image with cells, later ones over or beside earlier ones.

    Args:
      rng: everything random.
      shape: (H, W).
      form: a key of `SHAPES`.
      radius: mean radius of the cells, pixels; they spread by a fifth of it.
      coverage: share of the image they cover, as far as they find room.
      clustering: share of cells placed against another one.
      overlap: share of the meetings of two cells in which they overlap; else the later one is pressed flat.
      bare: the cells are nuclei themselves.

    Returns:
      The cells, lowest first; each in one piece of at least 25 pixels.
    """
    kind = SHAPES[form]
    habit = _habit(rng, kind)
    taken = np.zeros(shape, np.uint8)
    cells: list[Cell] = []
    boxes = np.zeros((0, 4), np.int32)
    for _ in range(max(1, round(coverage * shape[0] * shape[1] / (np.pi * radius**2)))):
        neighbour = cells[int(rng.integers(len(cells)))] if cells and rng.random() < clustering else None
        size = radius * min(max(rng.lognormal(-0.01, 0.18), 0.65), 1.45)
        body = kind.draw(rng, size, _angle(rng, habit, neighbour), habit)
        centre = _beside(rng, body, neighbour) if neighbour else rng.uniform(0, 1, 2) * shape
        cell = _settle(body, centre, taken, may_overlap=rng.random() < overlap, bare=bare,
                       index=habit.index * rng.uniform(0.85, 1.15))
        if cell is None or (_box_iou(cell.box, boxes) > kind.box_iou).any():
            continue
        taken[cell.window] |= cell.mask
        cells.append(cell)
        boxes = np.concatenate([boxes, [cell.box]])
    return cells


def nucleus_labels(cells: list[Cell], shape: tuple[int, int]) -> np.ndarray:
    """[H, W] int32: cell i's nucleus is i + 1; where nuclei overlap, that of the later (upper) cell is seen."""
    labels = np.zeros(shape, np.int32)
    for number, cell in enumerate(cells, start=1):
        labels[cell.window][cell.nucleus > 0] = number
    return labels


def fill(outline: np.ndarray, ends: tuple[int, ...], shape: tuple[int, int], *, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The pixels inside any of several polygons.

    Args:
      outline: [P, 2] their corners (y, x), one polygon after the other.
      ends: where in `outline` each ends.
      shape: (H, W) of the result.
      origin: pixel (y, x) that becomes (0, 0).

    Returns:
      [H, W] uint8, 1 inside.
    """
    filled = np.zeros(shape, np.uint8)
    corners = np.rint((outline - origin)[:, ::-1] * 2**SUBPIXEL_BITS).astype(np.int32)
    for start, end in zip((0, *ends), ends, strict=False):        # (one call for all would leave out what two of them share)
        cv2.fillPoly(filled, [corners[start:end]], 1, shift=SUBPIXEL_BITS)
    return filled


def _habit(rng: np.random.Generator, kind: _Form) -> _Habit:
    aspect = rng.uniform(*kind.aspect)
    return _Habit(aspect, angle=rng.uniform(0, np.pi), order=rng.uniform(*kind.order), bumps=rng.uniform(0.06, 0.22),
                  sag=rng.uniform(0.2, 1.3 if aspect < 2 else 0.8), nucleus=rng.uniform(0.15, 0.36),
                  index=rng.uniform(*kind.index))


def _angle(rng: np.random.Generator, habit: _Habit, neighbour: Cell | None) -> float:
    """Cells that touch tend to lie alike, and so do all where the image has an order."""
    if neighbour and rng.random() < 0.5:
        return neighbour.angle + rng.uniform(-0.25, 0.25)
    return habit.angle + (1 - habit.order) * rng.uniform(-np.pi / 2, np.pi / 2)


def _beside(rng: np.random.Generator, body: _Body, neighbour: Cell) -> np.ndarray:
    """A centre at which the body (of neurites, the soma) about touches its neighbour."""
    turn = rng.uniform(0, 2 * np.pi)
    direction = np.asarray([math.sin(turn), math.cos(turn)])
    reach = ((neighbour.outline[:neighbour.ends[0]] - neighbour.centre) @ direction).max()
    reach -= (body.outline[:body.ends[0]] @ direction).min()
    return neighbour.centre + direction * reach * rng.uniform(0.75, 1.03)


def _settle(body: _Body, centre: np.ndarray, taken: np.ndarray, *, may_overlap: bool, bare: bool, index: float) -> Cell | None:
    """The body at its place as far as there is room, or None. Depth is measured before the image's border cuts the cell."""
    outline = body.outline + centre
    y0, x0 = (np.floor(outline.min(axis=0)).astype(int) - 1).tolist()
    y1, x1 = (np.ceil(outline.max(axis=0)).astype(int) + 2).tolist()
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, taken.shape[0]), min(x1, taken.shape[1])
    if bottom - top < 3 or right - left < 3:
        return None
    filled = fill(outline, body.ends, (y1 - y0, x1 - x0), origin=(y0, x0))
    seen = filled[top - y0:bottom - y0, left - x0:right - x0]          # a view
    under = seen & taken[top:bottom, left:right]
    shared, area = int(np.count_nonzero(under)), int(np.count_nonzero(seen))
    if shared > LARGEST_OVERLAP * area:
        return None
    if not may_overlap:
        seen -= under
    y, x, height, width = _keep_largest_piece(seen)
    part = slice(y + top - y0, y + top - y0 + height), slice(x + left - x0, x + left - x0 + width)
    if np.count_nonzero(filled[part]) < max(SMALLEST_AREA, SMALLEST_PIECE * area):
        return None
    distance = cv2.distanceTransform(filled, cv2.DIST_L2, 3)
    delay, nucleus = index * _thickness(body, distance, centre - (y0, x0)), _nucleus(body, distance, bare=bare)
    mask = filled[part].astype(bool)
    return Cell((y + top, x + left, y + top + height, x + left + width), mask, delay[part] * mask, nucleus[part] * mask, outline,
                body.ends, (float(centre[0]), float(centre[1])), body.radius, body.angle, shared > 0 and not may_overlap)


def _keep_largest_piece(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Clears all but the largest 4-connected piece; gives its y, x, height, width."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count == 1:
        return 0, 0, 1, 1
    best = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    if count > 2:
        mask &= pieces == best
    x, y, width, height, _ = stats[best].tolist()
    return y, x, height, width


def _thickness(body: _Body, distance: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Pixels along the light's way, from the distance to the outline; smoothed, because ridges would show in DIC."""
    height, spread = float(distance.max()), body.tips is not None
    span = 2 * round((0.9 if spread else 0.3) * height) + 1
    distance = distance - 0.5                         # (of the middle of a pixel from the outline)
    distance = np.maximum(cv2.stackBlur(distance, (span, span)) if span > 1 else distance, 0)
    dome = np.minimum(2 * np.sqrt(distance * np.maximum(2 * height - distance, 0)), body.slope * distance)
    if body.tips is None:
        return dome
    knobs = np.zeros_like(distance)
    for y, x in np.rint((body.tips + middle) * 16).astype(int).tolist():
        cv2.circle(knobs, (x, y), round(0.8 * body.radius), 0.025 * body.radius, -1, shift=4)
    sheet = 0.018 * body.radius * (1 - np.exp(-distance / 2.5))
    return (1 - body.flatness) * dome + sheet + cv2.GaussianBlur(knobs, (0, 0), 1.2)


def _nucleus(body: _Body, distance: np.ndarray, *, bare: bool) -> np.ndarray:
    """The nucleus' relative thickness over the cell's frame: an ellipse about the thickest place that stays within the cell."""
    deepest = float(distance.max())
    if bare:
        shell = distance / deepest
        return np.sqrt(shell * (2 - shell))
    y, x = divmod(int(distance.argmax()), distance.shape[1])
    beside = round(y + body.nucleus_offset[0]), round(x + body.nucleus_offset[1])
    if all(0 <= at < side for at, side in zip(beside, distance.shape, strict=True)) and distance[beside] > 0.6 * deepest:
        y, x = beside
    along = max(body.nucleus[0] * body.radius, 1.0)
    across = max(min(body.nucleus[1] * body.radius, 0.85 * float(distance[y, x])), 1.0)
    half = int(max(along, across)) + 1
    top, left = max(y - half, 0), max(x - half, 0)
    bottom, right = min(y + half + 1, distance.shape[0]), min(x + half + 1, distance.shape[1])
    rows, columns = np.arange(top - y, bottom - y)[:, None], np.arange(left - x, right - x)
    sine, cosine = math.sin(body.angle), math.cos(body.angle)
    square = ((columns * cosine + rows * sine) / along) ** 2 + ((rows * cosine - columns * sine) / across) ** 2
    nucleus = np.zeros_like(distance)
    nucleus[top:bottom, left:right] = np.sqrt(np.maximum(1 - square, 0))
    return nucleus


def _box_iou(box: tuple[int, int, int, int], boxes: np.ndarray) -> np.ndarray:
    """[n] IoU of a box with n others."""
    sides = np.maximum(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0)
    spans = boxes[:, 2:] - boxes[:, :2]
    shared = sides[:, 0] * sides[:, 1]
    return shared / (spans[:, 0] * spans[:, 1] + (box[2] - box[0]) * (box[3] - box[1]) - shared)
