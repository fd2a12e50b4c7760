"""Pictures: cells over their image, truth beside prediction, contact sheets of data sets, training curves."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from jaxcell.metrics.matching import optimal_matching, overlap_table
from jaxcell.types import Instances

__all__ = ["Tile", "contact_sheet", "curves", "overlay", "save_png", "to_rgb"]

Colour = tuple[int, int, int]

# Told apart by all eyes, and visible on dark fluorescence as on stained tissue.
FOUND: Colour = (0, 205, 255)
MISSED: Colour = (255, 225, 0)
FALSE: Colour = (255, 60, 40)

_CHANNELS = ((0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1))
_PAPER: Colour = (24, 24, 28)
_INK: Colour = (235, 235, 235)
_GAP = 8
LONGEST = 4096       # px, of the longer side of a panel


# ---------------------------------------------------------------------------------------------------------------- images


def to_rgb(image: np.ndarray, *, low: float = 0.2, high: float = 99.8) -> np.ndarray:
    """Stretches contrast for the eye.

    Args:
      image: [H, W] or [H, W, C], any number type. One channel becomes grey; three are red, green and blue and keep their hues,
        and so are four of which the last is constant (opacity); any other number is stretched channel by channel and mixed from
        cyan, magenta, yellow, green, red, blue.
      low, high: percentiles that become black and white.

    Returns:
      [H, W, 3] uint8.

    Raises:
      ValueError: not [H, W] or [H, W, C].
    """
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"to_rgb: image has shape {image.shape}; it must be [H, W] or [H, W, C] and not empty.")
    pixels = (image[..., None] if image.ndim == 2 else image).astype(np.float32)
    np.nan_to_num(pixels, copy=False)
    if pixels.shape[2] == 4 and np.ptp(pixels[..., 3]) == 0:
        pixels = pixels[..., :3]
    channels = pixels.shape[2]
    step = max(1, int(np.sqrt(pixels.shape[0] * pixels.shape[1] / 1e6)))       # percentiles need no more than a million pixels
    axes = (0, 1, 2) if channels == 3 else (0, 1)
    black, white = np.percentile(pixels[::step, ::step], [low, high], axis=axes)
    pixels -= black         # in place: these are the largest arrays of a picture
    pixels /= np.maximum(white - black, 1e-6)
    np.clip(pixels, 0, 1, out=pixels)
    if channels not in (1, 3):
        colours = np.resize(np.asarray(_CHANNELS, np.float32), (channels, 3))
        pixels = pixels @ (colours / colours.sum(0))        # white where every channel is
    pixels *= 255
    picture = np.rint(pixels, out=pixels).astype(np.uint8)
    return np.repeat(picture, 3, axis=2) if channels == 1 else picture


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Writes a picture [H, W, 3] or [H, W], uint8; makes the folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


# --------------------------------------------------------------------------------------------------------- cells on images


def overlay(image: np.ndarray, instances: Instances, *, truth: Instances | None = None, threshold: float = 0.5,
            scale: int | None = None) -> np.ndarray:
    """Draws the outline of every cell over its image. Cells that overlap keep both outlines.

    Of an image with a side above 4096 pixels every second (third, ...) pixel is drawn, so that neither side of a panel exceeds
    that; contrast is measured on those pixels, and no whole copy of the image is made.

    Args:
      image: [H, W] or [H, W, C], any number type; see `to_rgb`.
      instances: predicted cells.
      truth: true cells. Without them every cell has a colour of its own. With them the picture has two panels, truth and
        prediction, and colours say which cells were found, missed and false.
      threshold: IoU from which a cell counts as found.
      scale: enlargement, a whole number; by default as much as brings the shorter side to 512 pixels or more, at most 6. Never
        more than keeps the longer side within 4096.

    Returns:
      [rows, columns, 3] uint8.

    Raises:
      ValueError: cells and image differ in size.
    """
    for name, cells in (("instances", instances), ("truth", truth)):
        if cells is not None and cells.shape != image.shape[:2]:
            raise ValueError(f"overlay: {name} cover {cells.shape} pixels, the image {image.shape[:2]}; they must belong "
                             "together. Check the pairing, and whether one of them was resized or cropped.")
    step = -(-max(image.shape[:2]) // LONGEST)
    image = image[::step, ::step]
    height, width = image.shape[:2]
    scale = min(scale or min(6, max(1, -(-512 // min(height, width)))), max(1, LONGEST // max(height, width)))
    canvas = cv2.resize(to_rgb(image), (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
    if truth is None:
        return _outlined(canvas, instances, _distinct(len(instances)), scale=scale, step=step)
    table = overlap_table(truth, instances)
    found = table.pairs[optimal_matching(table, threshold=threshold)]
    colours = [[other] * len(cells) for other, cells in ((MISSED, truth), (FALSE, instances))]
    for side, rows in zip(colours, found.T.tolist(), strict=True):
        for row in rows:
            side[row] = FOUND
    captions: list[list[tuple[str, Colour]]] = [
        [(f"truth: {len(truth)} cells", _INK), (f"{len(found)} found", FOUND), (f"{len(truth) - len(found)} missed", MISSED)],
        [(f"prediction: {len(instances)} cells", _INK), (f"{len(found)} found at IoU {threshold:g}", FOUND),
         (f"{len(instances) - len(found)} false", FALSE)]]
    panels = [_captioned(_outlined(canvas, cells, side, scale=scale, step=step), caption)
              for cells, side, caption in zip((truth, instances), colours, captions, strict=True)]
    return np.concatenate([panels[0], np.full((len(panels[0]), _GAP, 3), _PAPER, np.uint8), panels[1]], axis=1)


def _distinct(count: int) -> list[Colour]:
    """Bright colours, without the blues that drown in dark images; neighbours in the list lie far apart in hue."""
    hues = (0.78 + 0.82 * (np.arange(count) * 0.61803399 % 1)) % 1
    colours = [colorsys.hsv_to_rgb(hue, 0.75 if i % 2 else 0.95, 1.0) for i, hue in enumerate(hues.tolist())]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colours]


def _outlined(canvas: np.ndarray, cells: Instances, colours: Sequence[Colour], *, scale: int, step: int) -> np.ndarray:
    """A copy of `canvas` [H / step * scale, W / step * scale, 3] with the outline of each cell; scale or step is 1."""
    canvas = canvas.copy()
    thickness = 2 if scale > 1 else 1
    for (y0, x0, _, _), mask, colour in zip(cells.boxes.tolist(), cells.masks, colours, strict=True):
        padded = np.pad(np.asarray(mask, np.uint8) * 255, 1)
        size = (padded.shape[1] * scale, padded.shape[0] * scale)
        smooth = cv2.resize(padded, size, interpolation=cv2.INTER_LINEAR) > 127
        outlines, _ = cv2.findContours(smooth.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE,
                                       offset=((x0 - 1) * scale, (y0 - 1) * scale))
        cv2.polylines(canvas, [line // step for line in outlines], True, colour, thickness, cv2.LINE_AA)
    return canvas


def _captioned(picture: np.ndarray, words: Sequence[tuple[str, Colour]]) -> np.ndarray:
    """`picture` under a dark strip with coloured words; the letters shrink where the picture is narrow."""
    width, size = picture.shape[1], 18
    font = ImageFont.load_default(size)
    while size > 8 and sum(font.getlength(text) + size for text, _ in words) > width:
        size -= 1
        font = ImageFont.load_default(size)
    strip = Image.new("RGB", (width, 28), _PAPER)
    draw, x = ImageDraw.Draw(strip), size / 2
    for text, colour in words:
        draw.text((x, 14), text, fill=colour, font=font, anchor="lm")
        x += font.getlength(text) + size
    return np.concatenate([np.asarray(strip), picture])


# ---------------------------------------------------------------------------------------------------------- contact sheets


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture of a contact sheet.

    Attributes:
      image: [H, W] or [H, W, C], any number type; see `to_rgb`.
      cells: of the image, or None.
      lines: text below it, each cut off where it is longer than the tile is wide.
    """

    image: np.ndarray
    cells: Instances | None
    lines: Sequence[str]


def contact_sheet(tiles: Iterable[Tile], *, size: int = 256, columns: int | None = None, stretch: bool = True) -> np.ndarray:
    """A grid of images with the outlines of their cells and a few words below each.

    Of one tile at a time more than its picture is held, so that an iterator may read large images.

    Args:
      tiles: at least one. Cells that overlap keep both outlines.
      size: pixels of the longer side of an image in its tile, be it smaller or larger.
      columns: of the grid; by default about as many as make it one and a half times as wide as high.
      stretch: contrast, as `to_rgb` does. False shows grey or colour images in [0, 1] as they are.

    Returns:
      [rows, columns, 3] uint8.

    Raises:
      ValueError: no tiles.
    """
    pictures = [_tile(tile, size=size, stretch=stretch) for tile in tiles]
    if not pictures:
        raise ValueError("contact_sheet: no tiles; at least one image is needed.")
    columns = columns or min(len(pictures), max(1, round((1.5 * len(pictures)) ** 0.5)))
    rows = [pictures[start:start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(map(len, row)) + _GAP for row in rows]
    sheet = np.full((sum(heights) + _GAP, columns * (size + _GAP) + _GAP, 3), _PAPER, np.uint8)
    for row, bottom, height in zip(rows, np.cumsum(heights).tolist(), heights, strict=True):
        for column, picture in enumerate(row):
            y, x = _GAP + bottom - height, _GAP + column * (size + _GAP)
            sheet[y:y + len(picture), x:x + size] = picture
    return sheet


def _tile(tile: Tile, *, size: int, stretch: bool) -> np.ndarray:
    """The image, at most [size, size, 3] uint8, with its lines below."""
    height, width = tile.image.shape[:2]
    scale = size / max(height, width)
    rgb = to_rgb(tile.image) if stretch or (tile.image.ndim == 3 and tile.image.shape[2] not in (1, 3)) else _as_it_is(tile.image)
    shown = max(1, round(width * scale)), max(1, round(height * scale))
    drawn = cv2.resize(rgb, shown, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    if tile.cells is not None:
        _draw_outlines(drawn, tile.cells, scale)
    picture = np.full((shown[1] + 18 * len(tile.lines) + 4, size, 3), _PAPER, np.uint8)
    picture[:shown[1], :shown[0]] = drawn
    return _lettered(picture, tile.lines, top=shown[1] + 2)


def _as_it_is(image: np.ndarray) -> np.ndarray:
    planes = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).reshape(*image.shape[:2], -1)
    return np.repeat(planes, 3, axis=2) if planes.shape[2] == 1 else planes


def _draw_outlines(canvas: np.ndarray, cells: Instances, scale: float) -> None:
    """Lines through the outermost pixels of every cell, `scale` canvas pixels per image pixel; on `canvas` itself."""
    bits = 4        # OpenCV takes fractions of a pixel as integers
    for (y0, x0, _, _), mask, colour in zip(cells.boxes.tolist(), cells.masks, _distinct(len(cells)), strict=True):
        lines, _ = cv2.findContours(np.asarray(mask, np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x0, y0))
        scaled = [np.rint(((line + 0.5) * scale - 0.5) * (1 << bits)).astype(np.int32) for line in lines]
        cv2.polylines(canvas, scaled, True, colour, 1, cv2.LINE_AA, bits)


def _lettered(picture: np.ndarray, lines: Sequence[str], *, top: int) -> np.ndarray:
    font, width = ImageFont.load_default(12), picture.shape[1]
    page = Image.fromarray(picture)
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        text = line
        while len(text) > 3 and font.getlength(text) > width:
            text = text.removesuffix("...")[:-1] + "..."
        draw.text((0, top + 18 * number), text, fill=_INK, font=font)
    return np.asarray(page)


# ---------------------------------------------------------------------------------------------------------------- curves


def curves(metrics: str | Path, out: str | Path) -> None:
    """Draws every quantity of a run over the training step.

    Args:
      metrics: metrics.jsonl of a run, one JSON object a line with "step" and numbers. Null values are left out, and so is a
        line that does not parse (a run that was killed while it wrote). "val/x" shares a panel with "x".
      out: of the picture; the ending says the format.

    Raises:
      ValueError: no numbers in the file.
    """
    series = _read_series(Path(metrics))
    if not series:
        raise ValueError(f"{metrics} holds no numbers to draw; each line must be a JSON object with 'step' and values.")
    panels = list(dict.fromkeys(key.removeprefix("val/") for key in series))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * rows), dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(grid, panels, strict=False):
        _draw_panel(axes, {key: series[key] for key in (name, f"val/{name}") if key in series})
    for axes in grid[len(panels):]:
        axes.set_visible(False)
    figure.supxlabel("step", fontsize=9)
    figure.savefig(out)


def _read_series(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Key -> [(step, value)], in the order of the file."""
    series: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                series.setdefault(key, []).append((row["step"], value))
    return series


def _draw_panel(axes: Axes, series: dict[str, list[tuple[float, float]]]) -> None:
    """One quantity in training, in validation or in both; many points are drawn pale, under their running mean."""
    lowest, highest = np.inf, -np.inf
    for key, points in series.items():
        colour = "#d55e00" if key.startswith("val/") else "#0072b2"
        steps, values = np.asarray(points, np.float64).T
        lowest, highest = min(lowest, values.min()), max(highest, values.max())
        if len(values) > 40:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            axes.plot(steps, _smooth(values, len(values) // 20), color=colour, linewidth=1.6, label=key)
        else:
            axes.plot(steps, values, ".-", color=colour, linewidth=1, label=key)
    if lowest > 0 and highest > 20 * lowest:
        axes.set_yscale("log")
    elif highest - lowest <= 1e-3 * abs(highest):       # a constant: do not enlarge its rounding
        axes.set_ylim(*sorted((0.9 * lowest - 1e-12, 1.1 * highest + 1e-12)))
    axes.set_title(next(iter(series)), fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(fontsize=7, frameon=False)


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Running mean over about `width` points; narrower towards both ends, so that it stays centred."""
    index = np.arange(len(values))
    half = np.minimum(max(1, width // 2), np.minimum(index, index[::-1]))
    total = np.cumsum(np.concatenate([[0.0], values]))
    return (total[index + half + 1] - total[index - half]) / (2 * half + 1)
