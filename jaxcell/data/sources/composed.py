"""New images of cells that were cut out of annotated ones, whose overlaps are known exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from jaxcell.data.augment.geometry import flip, in_place, middle, random_crop, warp
from jaxcell.data.augment.mixing import Canvas, background_of, find_room, nucleus_of, soft_edges, whole_cells
from jaxcell.data.compose import Cutout, compose
from jaxcell.data.sources.combined import Source
from jaxcell.geometry.labels import Window, cell_ids, replace_ids
from jaxcell.types import Sample

__all__ = ["CANVASES", "ComposedSource"]

CANVASES = ("empty", "real")
BORDER = 8          # a picture is composed with an edge of 1 / BORDER of its side that is cut off, cells with it
REACH = 3           # standard deviations around a cell that a soft edge needs


class ComposedSource:
    """Images composed of the cells of another source, with labels in layers (cells overlap) and nuclei.

    Sample i depends on (the source, seed, i, options) alone. Every cell is resized, turned, bent and mirrored by itself. What a
    cell is brighter or darker than its own image's background is added to the new picture.
    """

    def __init__(self, source: Source, count: int, *, size: int | tuple[int, int] = 512, seed: int | tuple[int, ...] = 0,
                 cells: tuple[int, int] = (10, 40), max_overlap: float = 0.2, sigma: float = 2.0, canvas: str = "empty",
                 planes: Sequence[int] = (), zoom: tuple[float, float] = (0.8, 1.25), amplitude: float = 4.0,
                 donors: int = 8, halo: int = 0) -> None:
        """Nothing is read before a sample is asked for.

        Args:
          source: annotated images of one modality, where intensities add up: phase contrast, fluorescence.
          count: number of samples.
          size: of the images: one side, or (H, W).
          seed: of everything random; one number, or several: sources of seeds of one length share no image unless all are equal.
          cells: fewest and most that are tried in an image; those that find no room are left out.
          max_overlap, sigma, halo: see `compose`; a halo fades towards the other cells of its image.
          canvas: "empty": the background's level and its noise; "real": an image of the source with its own cells (around a
            smaller one: its background's level and noise).
          planes: of the source's images to take; () for all.
          zoom: smallest and largest factor of a cell's size.
          amplitude: largest displacement of the elastic deformation, pixels; 0 for none.
          donors: images of the source that the cells of one new image come from (each is read and held). 1 where images differ in
            exposure: cells that are darker than their own background by more than another image's background vanish in black.

        Raises:
          ValueError: an impossible option.
        """
        if canvas not in CANVASES:
            raise ValueError(f"ComposedSource: canvas={canvas!r} is unknown; it is one of {', '.join(CANVASES)}.")
        if not 0 < cells[0] <= cells[1]:
            raise ValueError(f"ComposedSource: cells={cells} is impossible; it is (fewest, most), from 1.")
        if not 0 <= max_overlap <= 1 or sigma < 0 or not 0 < zoom[0] <= zoom[1]:
            raise ValueError(f"ComposedSource: max_overlap={max_overlap}, sigma={sigma}, zoom={zoom}; an overlap is a share, a "
                             "deviation not below 0, a zoom (smallest, largest) above 0.")
        if zoom[0] < 0.5 or not 0 <= amplitude <= 8:
            raise ValueError(f"ComposedSource: zoom={zoom}, amplitude={amplitude}; cells are resized by 0.5 or more and bent "
                             "by 0 to 8 pixels. For smaller cells, scale the annotated images first.")
        if count < 0 or min(size if isinstance(size, tuple) else (size,)) < 1:
            raise ValueError(f"ComposedSource: count={count}, size={size}; a number of images, not below 0, of 1 pixel or more.")
        if halo < 0:
            raise ValueError(f"ComposedSource: halo={halo}; it is a number of pixels, 0 or more.")
        if donors < 1:
            raise ValueError(f"ComposedSource: donors={donors} is impossible; an image needs cells of at least 1.")
        self._seed = (seed,) if isinstance(seed, int) else tuple(seed)
        self._source, self._canvas, self._cells = source, canvas, cells
        self._shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self._sides = (self._shape[0] + 2 * (self._shape[0] // BORDER), self._shape[1] + 2 * (self._shape[1] // BORDER))
        self._planes, self._max_overlap, self._sigma, self._halo = tuple(planes), max_overlap, sigma, halo
        self._zoom, self._amplitude, self._donors = zoom, amplitude, donors
        self._change = in_place(partial(warp, rotation=180.0, zoom=zoom, amplitude=amplitude, spacing=32.0, centre=middle))
        self.names = [f"composed_{'_'.join(map(str, self._seed))}_{i:05d}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name, index = self.names[index], index % len(self)
        rng = np.random.default_rng((*self._seed, index))
        chosen = rng.choice(len(self._source), min(self._donors, len(self._source)), replace=False)
        donors = [self._donor(int(i)) for i in chosen]
        canvas = _real(donors[0], rng, self._sides) if self._canvas == "real" else _empty(donors[0], rng, self._sides)
        cutouts = self._cutouts([donor for donor in donors if donor.modality == donors[0].modality], rng)
        compose(canvas, _placed(canvas, cutouts, self._max_overlap, rng), max_overlap=self._max_overlap, sigma=self._sigma,
                halo=self._halo)
        inner = tuple(slice((side - kept) // 2, (side - kept) // 2 + kept)
                      for side, kept in zip(self._sides, self._shape, strict=True))
        labels = np.stack(canvas.layers, axis=-1)[inner]
        return Sample(_stored(canvas.image[inner], self._source[int(chosen[0])].image.dtype), _used_layers(labels),
                      nuclei=None if canvas.nuclei is None else canvas.nuclei[inner], name=name, group=name,
                      pixel_size=donors[0].pixel_size, modality=donors[0].modality)

    def _donor(self, index: int) -> Sample:
        sample = self._source[index]
        if sample.labels is None:
            raise ValueError(f"ComposedSource: {sample.name} has no annotation to cut cells out of; leave it out.")
        planes = sample.image.shape[2]
        if not all(0 <= plane < planes for plane in self._planes):
            raise ValueError(f"ComposedSource: planes={self._planes}, but {sample.name} has {planes}: 0 to {planes - 1}.")
        image = sample.image[..., list(self._planes)] if self._planes else sample.image
        return replace(sample, image=image.astype(np.float32))

    def _cutouts(self, donors: Sequence[Sample], rng: np.random.Generator) -> Iterator[Cutout]:
        """As many cells as are tried; endless would be the same cells again."""
        cells = [(donor, cell, level) for donor in donors for level in [background_of(donor)]
                 for cell in whole_cells(_labels(donor))]
        count = int(rng.integers(self._cells[0], self._cells[1] + 1))
        margin = math.ceil(REACH * self._sigma) + self._halo
        for index in rng.integers(len(cells), size=count if cells else 0).tolist():
            donor, cell, level = cells[index]
            cut = _around(donor, cell, level, margin=margin, zoom=self._zoom, amplitude=self._amplitude, halo=self._halo)
            cut = self._change(flip(cut, rng), rng)
            if _labels(cut).any():
                yield _trimmed(cut, margin)


def _labels(sample: Sample) -> np.ndarray:
    assert sample.labels is not None
    return sample.labels


def _around(donor: Sample, cell: tuple[int, int, Window], level: np.ndarray, *, margin: int,
            zoom: tuple[float, float], amplitude: float, halo: int) -> Sample:
    """The cell (label 1, nucleus 1 or -1) in a square that holds it however it is changed; 0 outside of the donor.

    From the square's middle no pixel of the cell is farther than the corner of its box (and half a pixel, where their middles
    differ), once displaced; the margin is counted in pixels of the result, which a small zoom fetches from afar. With a halo
    what surrounds the cell fades towards other cells.
    """
    number, layer, window = cell
    sides = [s.stop - s.start for s in window]
    radius = math.hypot(*(length / 2 + 0.5 + amplitude for length in sides))
    side = 2 * math.ceil(radius * max(zoom[1], 1.0) + margin / min(zoom[0], 1.0))
    starts = [s.start - (side - length) // 2 for s, length in zip(window, sides, strict=True)]
    inside = tuple(slice(max(start, 0), min(start + side, whole))
                   for start, whole in zip(starts, donor.image.shape[:2], strict=True))
    padding = [(part.start - start, start + side - part.stop) for part, start in zip(inside, starts, strict=True)]
    mask = _labels(donor)[..., layer][inside] == number
    nuclei = None if donor.nuclei is None else np.pad(nucleus_of(donor.nuclei[inside], mask, number), padding)
    light = donor.image[inside] - level.astype(np.float32)
    if halo:        # fades towards other cells, lest half of a gap between two end in an edge
        others = (_labels(donor)[inside] != 0).any(axis=-1) & ~mask
        light *= np.where(mask, 1, 1 - soft_edges(others, halo / 2))[..., None]
    return Sample(np.pad(light, [*padding, (0, 0)]),
                  np.pad(mask, padding)[..., None].astype(np.int32), nuclei=nuclei, name=donor.name)


def _trimmed(cut: Sample, margin: int) -> Cutout:
    """The cell's box and `margin` pixels around it, as far as there are."""
    mask = _labels(cut)[..., 0] > 0
    spans = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    box = tuple(slice(max(int(span[0]) - margin, 0), int(span[-1]) + 1 + margin) for span in spans)
    return Cutout(cut.image[box], mask[box], None if cut.nuclei is None else cut.nuclei[box])


def _placed(canvas: Canvas, cutouts: Iterable[Cutout], max_overlap: float, rng: np.random.Generator
            ) -> Iterator[tuple[Cutout, tuple[int, int]]]:
    """Each cutout at a random place that has room for it, as the canvas is when it is asked for; others are left out."""
    for cutout in cutouts:
        taken = np.any([layer != 0 for layer in canvas.layers], axis=0)
        corner = find_room(cutout.mask, taken, max_overlap, rng)
        if corner is not None:
            yield cutout, corner


def _empty(donor: Sample, rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """The level of the donor's background, and noise as between its neighbouring pixels."""
    steps = np.diff(donor.image, axis=0)[(_labels(donor)[1:] == 0).all(axis=-1)]
    noise = np.median(np.abs(steps), axis=0) / 0.954 if len(steps) else 0.0     # of a Gaussian: 0.6745 * sqrt(2)
    image = rng.normal(background_of(donor), noise, (*shape, donor.image.shape[2])).astype(np.float32)
    return Canvas(image, [np.zeros(shape, np.int32)], None if donor.nuclei is None else np.zeros(shape, np.int32))


def _real(donor: Sample, rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """A part of the donor with its cells; what it lacks of the shape is as in `_empty`, around it."""
    canvas, sample = _empty(donor, rng, shape), random_crop(donor, rng, size=max(shape), pad=False)
    sides = [min(side, whole) for side, whole in zip(sample.image.shape[:2], shape, strict=True)]
    part = tuple(slice(side) for side in sides)
    place = tuple(slice((whole - side) // 2, (whole - side) // 2 + side) for side, whole in zip(sides, shape, strict=True))
    labels = _labels(sample)[part]
    ids, numbers = _renumbered(labels)
    canvas.image[place] = sample.image[part]
    canvas.layers = [np.zeros(shape, np.int32) for _ in range(labels.shape[2])]
    for layer, plane in zip(canvas.layers, np.moveaxis(labels, -1, 0), strict=True):
        layer[place] = replace_ids(plane, ids, numbers)
    if canvas.nuclei is not None and sample.nuclei is not None:
        canvas.nuclei[place] = replace_ids(sample.nuclei[part], ids, numbers)
    return canvas


def _renumbered(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids, 1 to n): compose continues behind the largest, which must not leave int32."""
    ids = cell_ids(labels)
    return ids, np.arange(1, len(ids) + 1, dtype=np.int32)


def _used_layers(labels: np.ndarray) -> np.ndarray:
    used = np.flatnonzero(labels.any(axis=(0, 1)))
    return labels[..., used if len(used) else [0]]


def _stored(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounded and clipped where the source stores integers."""
    if not np.issubdtype(dtype, np.integer):
        return image
    limits = np.iinfo(dtype)
    return np.clip(np.rint(image), limits.min, limits.max).astype(dtype)
