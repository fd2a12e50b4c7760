"""What needs other samples: mosaics, and cells copied from one picture into another.

A mix is (sample, draw, rng) -> sample; `draw(rng)` gives another normalised crop of the same pipeline. The sample's own cells
keep their ids, those that come from elsewhere get ids that it does not use.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from jaxcell.data.augment.arrays import cell_windows, on_arrays
from jaxcell.data.augment.geometry import flip, random_crop, rotate90
from jaxcell.geometry.intensity import value_range
from jaxcell.geometry.labels import cell_ids, replace_ids
from jaxcell.types import Sample

__all__ = ["OVERLAPS", "Canvas", "Draw", "Mix", "MixSteps", "apply_mix", "background_of", "copy_paste", "enter_cell",
           "find_room", "mosaic", "nucleus_of", "overlap_ratio", "paste", "soft_edges", "whole_cells"]

Draw = Callable[[np.random.Generator], Sample]
Mix = Callable[[Sample, Draw, np.random.Generator], Sample]
MixSteps = Sequence[tuple[float, Mix]]      # (probability, mix), in the order of application

PLACES = 10         # tries to find room for a cell


def apply_mix(sample: Sample, rng: np.random.Generator, steps: MixSteps, draw: Draw) -> Sample:
    """Applies each mix with its probability, in order.

    Args:
      sample: normalised crop.
      rng: of this sample.
      steps: of a policy.
      draw: rng -> another normalised crop.
    """
    for probability, step in steps:
        if rng.random() < probability:
            sample = step(sample, draw, rng)
    return sample


# ---------------------------------------------------------------- mosaic
def mosaic(sample: Sample, draw: Draw, rng: np.random.Generator, *, grid: tuple[int, int] = (2, 2), jitter: float = 0.25
           ) -> Sample:
    """Tiles of several samples in one picture of this sample's size.

    Args:
      sample: one tile is a part of it; without labels it is returned as it is.
      draw: gives the other tiles. One without labels becomes a tile to ignore (-1).
      rng: of this sample.
      grid: tiles along y and x; every tile is another sample.
      jitter: the lines between tiles move by up to this share of a tile, below 0.5.

    Returns:
      The mosaic, named after the sample; nuclei if the sample has them, to ignore (-1) in tiles that have none.
    """
    if sample.labels is None:
        return sample
    lines = [_lines(side, count, jitter, rng) for side, count in zip(sample.image.shape[:2], grid, strict=True)]
    places = [(slice(y0, y1), slice(x0, x1)) for y0, y1 in zip(lines[0], lines[0][1:], strict=False)
              for x0, x1 in zip(lines[1], lines[1][1:], strict=False)]
    own, taken = int(rng.integers(len(places))), _ids(sample)
    image, layers, nuclei = np.empty_like(sample.image), [np.zeros(sample.image.shape[:2], np.int32)], sample.nuclei
    nuclei = None if nuclei is None else np.zeros_like(nuclei)
    for index, place in enumerate(places):
        tile = _part(sample if index == own else draw(rng), rng, *(s.stop - s.start for s in place))
        if index != own:
            tile = _with_fresh_ids(tile, taken)
            taken = np.union1d(taken, _ids(tile))
        image[place] = tile.image
        for depth, layer in enumerate(np.moveaxis(_labels(tile), -1, 0)):
            if depth == len(layers):
                layers.append(np.zeros_like(layers[0]))
            layers[depth][place] = layer
        if nuclei is not None:
            nuclei[place] = -1 if tile.nuclei is None else tile.nuclei
    return dataclasses.replace(sample, image=image, labels=np.stack(layers, axis=-1), nuclei=nuclei)


def _lines(side: int, count: int, jitter: float, rng: np.random.Generator) -> list[int]:
    """Where tiles begin and end along one axis: rising, from 0 to `side`."""
    inner = (np.arange(1, count) + rng.uniform(-jitter, jitter, count - 1)) * side / count
    return [0, *np.rint(inner).astype(int).tolist(), side]


def _part(sample: Sample, rng: np.random.Generator, height: int, width: int) -> Sample:
    """[height, width] of the sample, any place equally likely; zeros where it is smaller."""
    sample = random_crop(sample, rng, size=max(height, width))
    return on_arrays(sample, lambda array: array[:height, :width])


def _labels(sample: Sample) -> np.ndarray:
    """[H, W, D]; all to ignore where the sample has none."""
    return np.full((*sample.image.shape[:2], 1), -1, np.int32) if sample.labels is None else sample.labels


def _ids(sample: Sample) -> np.ndarray:
    """[n] int32, of its cells and nuclei."""
    return np.unique(np.concatenate([cell_ids(a) for a in (_labels(sample), sample.nuclei) if a is not None]))


def _fresh_ids(count: int, taken: np.ndarray) -> np.ndarray:
    """[count] int32, the lowest ids that are not `taken`: those above the largest could leave int32."""
    return np.setdiff1d(np.arange(1, count + len(taken) + 1), taken)[:count].astype(np.int32)


def _with_fresh_ids(sample: Sample, taken: np.ndarray) -> Sample:
    ids = _ids(sample)
    fresh = _fresh_ids(len(ids), taken)
    labels, nuclei = (None if a is None else replace_ids(a, ids, fresh) for a in (sample.labels, sample.nuclei))
    return dataclasses.replace(sample, labels=labels, nuclei=nuclei)


# ---------------------------------------------------------------- copy and paste
def copy_paste(sample: Sample, draw: Draw, rng: np.random.Generator, *, count: tuple[int, int] = (1, 8),
               overlaps: str = "occlude", max_overlap: float = 0.2, sigma: float = 1.0) -> Sample:
    """Cells of another sample, turned and mirrored with it, at random places of this one.

    Args:
      sample: without labels it is returned as it is.
      draw: gives the other sample; only cells that do not touch its border are copied, and none if its modality is another.
      rng: of this sample.
      count: fewest and most cells; those that find no room after 10 tries are left out.
      overlaps: "occlude": the pasted cell covers what is below, whose cells lose these pixels. "add": cells are transparent, what
        the pasted one is brighter or darker than its background is added to the image, and both cells keep the pixels.
      max_overlap: largest share of a pasted cell that may lie on others (or on what is to ignore).
      sigma: standard deviation of the Gaussian that softens the pasted cell's edge, pixels; 0: a hard edge.

    Returns:
      Labels with the pasted cells, in further layers where cells overlap. Where the other sample does not know nuclei, those of
      the pasted cells are to ignore (-1).

    Raises:
      ValueError: for another value of `overlaps`.

    Source: sparse_seunet's thesis, section 4.4.1 ("add", with max_overlap 0.2); "occlude" is what its author released later
      (IAUNet@4630598, copy_paste.py).
    Departs: the thesis adds whole crops onto an empty picture; here a picture has a background already, which is subtracted.
    """
    if overlaps not in OVERLAPS:
        raise ValueError(f"copy_paste: overlaps={overlaps!r} is not a rule; use one of {', '.join(OVERLAPS)}.")
    donor = rotate90(flip(draw(rng), rng), rng)
    if sample.labels is None or donor.labels is None or sample.modality != donor.modality:
        return sample
    canvas = Canvas(sample.image.copy(), [layer.copy() for layer in np.moveaxis(sample.labels, -1, 0)],
                     None if sample.nuclei is None else sample.nuclei.copy())
    taken, cells, background = (sample.labels != 0).any(axis=-1), whole_cells(donor.labels), background_of(donor, padded=True)
    chosen = rng.permutation(len(cells))[:int(rng.integers(count[0], count[1] + 1))].tolist()
    for index, fresh in zip(chosen, _fresh_ids(len(chosen), _ids(sample)).tolist(), strict=True):
        number, layer, window = cells[index]
        mask = donor.labels[..., layer][window] == number
        corner = find_room(mask, taken, max_overlap, rng)
        if corner is None:
            continue
        target = tuple(slice(start, start + side) for start, side in zip(corner, mask.shape, strict=True))
        taken[target] |= mask
        paste(canvas.image, donor.image, mask, window, target, overlaps=overlaps, background=background, sigma=sigma)
        nucleus = None if donor.nuclei is None else nucleus_of(donor.nuclei[window], mask, number)
        enter_cell(canvas, mask, nucleus, target, fresh, covers=overlaps == "occlude")
    lows, highs = zip(*(value_range(one.image) for one in (sample, donor)), strict=True)
    image = np.clip(canvas.image, min(lows), max(highs))        # added up, cells may be brighter than white
    return dataclasses.replace(sample, image=image, labels=np.stack(canvas.layers, axis=-1), nuclei=canvas.nuclei)


@dataclasses.dataclass
class Canvas:
    """What cells are pasted into, in place: image [H, W, C] float32, label layers [H, W] and nuclei [H, W] or None."""

    image: np.ndarray
    layers: list[np.ndarray]
    nuclei: np.ndarray | None


def whole_cells(labels: np.ndarray) -> list[tuple[int, int, tuple[slice, slice]]]:
    """(id, layer, window) of the cells in labels [H, W, D] that do not touch the border."""
    height, width = labels.shape[:2]
    return [(number, layer, window) for layer in range(labels.shape[2]) for number, window in cell_windows(labels[..., layer])
            if window[0].start and window[1].start and window[0].stop < height and window[1].stop < width]


def overlap_ratio(mask: np.ndarray, taken: np.ndarray) -> float:
    """The share of a cell's pixels that are taken: |mask and taken| / |mask|, of two boolean arrays of one shape.

    Source: the thesis, section 4.4.1, names an overlap ratio and its interval 0 to 0.2; this is one reading of it.
    """
    return int(np.count_nonzero(mask & taken)) / max(int(np.count_nonzero(mask)), 1)


def find_room(mask: np.ndarray, taken: np.ndarray, max_overlap: float, rng: np.random.Generator) -> tuple[int, int] | None:
    """Upper left corner of a random place where at most `max_overlap` of the mask [h, w] is `taken` [H, W] already, or None."""
    free = [whole - side for whole, side in zip(taken.shape, mask.shape, strict=True)]
    if min(free) < 0:
        return None
    for _ in range(PLACES):
        y, x = (int(rng.integers(room + 1)) for room in free)
        if overlap_ratio(mask, taken[y:y + mask.shape[0], x:x + mask.shape[1]]) <= max_overlap:
            return y, x
    return None


def soft_edges(mask: np.ndarray, sigma: float) -> np.ndarray:
    """[h, w] bool -> float32 in [0, 1]: the mask smoothed by a Gaussian, cut off at 4 sigma; border pixels continue outside."""
    weight = mask.astype(np.float32)
    return cv2.GaussianBlur(weight, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE) if sigma else weight


def paste(image: np.ndarray, donor: np.ndarray, mask: np.ndarray, window: tuple[slice, ...], target: tuple[slice, ...], *,
          overlaps: str, background: np.ndarray | float = 0.0, sigma: float = 0.0) -> None:
    """Puts the cell at donor[window] into image[target], in place, with as much around it as the soft edge needs and both have.

    Args:
      image: [H, W, C] float32.
      donor: [h, w, C] float32.
      mask: the cell's pixels, of the shape of `window` and `target`.
      window, target: (rows, columns).
      overlaps: an entry of `OVERLAPS`.
      background: of the donor, which "add" takes off.
      sigma: see `soft_edges`.
    """
    margins = []
    for axis, (source, place) in enumerate(zip(window, target, strict=True)):
        before = min(math.ceil(4 * sigma), source.start, place.start)
        after = min(math.ceil(4 * sigma), donor.shape[axis] - source.stop, image.shape[axis] - place.stop)
        margins.append((before, after))
    above, below = (array[tuple(slice(s.start - before, s.stop + after) for s, (before, after) in zip(box, margins, strict=True))]
                    for array, box in ((donor, window), (image, target)))
    below[...] = OVERLAPS[overlaps](below, above, soft_edges(np.pad(mask, margins), sigma)[..., None], background)


def _cover(below: np.ndarray, above: np.ndarray, weight: np.ndarray, background: np.ndarray | float) -> np.ndarray:
    return below + weight * (above - below)


def _add(below: np.ndarray, above: np.ndarray, weight: np.ndarray, background: np.ndarray | float) -> np.ndarray:
    return below + weight * (above - background)


OVERLAPS: dict[str, Callable[..., np.ndarray]] = {"occlude": _cover, "add": _add}
"""What a pasted cell does to what is below it; see `copy_paste`."""


def background_of(sample: Sample, *, padded: bool = False) -> np.ndarray:
    """[C], the median of the pixels without cells (of every eighth row and column); 0 where cells are everywhere.

    Args:
      sample: with labels.
      padded: pixels that are 0 in all channels lie outside of the image and do not count.
    """
    image = sample.image[::8, ::8]
    free = (_labels(sample)[::8, ::8] == 0).all(axis=-1)
    pixels = image[free & (image != 0).any(axis=-1)] if padded else image[free]
    return np.median(pixels, axis=0) if len(pixels) else np.zeros(sample.image.shape[2], sample.image.dtype)


def nucleus_of(nuclei: np.ndarray, mask: np.ndarray, number: int) -> np.ndarray:
    """[h, w] int32 within the mask [h, w] of cell `number`: 1 its nucleus, -1 not known, else 0."""
    return np.where(mask, np.where(nuclei == number, 1, np.minimum(nuclei, 0)), 0).astype(np.int32)


def enter_cell(canvas: Canvas, mask: np.ndarray, nucleus: np.ndarray | None, target: tuple[slice, ...], number: int, *,
               covers: bool) -> None:
    """Enters a pasted cell into layers and nuclei, in place; a nucleus that is not known is to ignore (-1).

    Args:
      canvas: whose layers gain one where no layer has room.
      mask: [h, w] bool, the cell.
      nucleus: [h, w], 1 (or True) where its nucleus is, -1 where that is not known, else 0; None where nothing is known of it.
      target: (rows, columns) of the mask.
      number: the cell's id.
      covers: take the pixels away from the cells below.
    """
    if covers:
        for layer in canvas.layers:
            layer[target][mask] = 0
    room = next((layer for layer in canvas.layers if not layer[target][mask].any()), None)
    if room is None:
        room = np.zeros(canvas.image.shape[:2], np.int32)
        canvas.layers.append(room)
    room[target][mask] = number
    if canvas.nuclei is None:
        return
    if covers:
        canvas.nuclei[target][mask] = 0
    canvas.nuclei[target][mask if nucleus is None else nucleus < 0] = -1
    if nucleus is not None:
        canvas.nuclei[target][nucleus > 0] = number
