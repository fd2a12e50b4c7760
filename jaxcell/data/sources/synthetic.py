"""Cells drawn by code: for demos and tests that must run anywhere, and for trying ideas in minutes."""

from __future__ import annotations

import numpy as np

from jaxcell.data.microscope.modalities import RENDERERS, STAINS, WITH_MICROSCOPE, stained
from jaxcell.data.microscope.optics import digitise
from jaxcell.data.microscope.shapes import SHAPES, Cell, nucleus_labels, place_cells
from jaxcell.geometry.labels import to_layers
from jaxcell.types import Instances, Sample

__all__ = ["SyntheticSource"]

MODALITIES = {
    "fluorescence": "fluorescence",
    "stained": "brightfield stained tissue",
    "brightfield": "brightfield",
    "phase": "phase contrast",
    "dic": "DIC",
    "pair": "phase contrast and brightfield",
}
"""kind -> what a sample says of itself."""

MIXED = ("fluorescence", "stained", "brightfield", "phase", "dic")
# Where the dye is that of nuclei, what is seen and labelled is the nucleus itself.
BARE = {("fluorescence", "round"), ("stained", "round"), ("stained", "elongated")}


class SyntheticSource:
    """Cells under a microscope: touching, overlapping, out of focus, under uneven light, with noise and debris.

    Sample i depends on (seed, i, options) alone. Another seed gives unseen images like them.

    A cell's label is its whole outline, also under others (label layers), unless it was pressed flat against a neighbour; a
    cell is one piece of at least 25 pixels. `Sample.nuclei` holds the part of each cell that is its nucleus, under the cell's
    id; where two nuclei overlap the upper one is kept. Nuclear dyes ("fluorescence" of round, "stained" of round and elongated
    cells) show nuclei alone: there cell and nucleus are the same.
    """

    def __init__(self, count: int, *, size: int | tuple[int, int] = 256, seed: int = 0, modality: str = "fluorescence",
                 shape: str = "round", radius: tuple[float, float] = (6.0, 14.0), coverage: tuple[float, float] = (0.05, 0.35),
                 clustering: float = 0.4, overlap: float = 0.15, stain: str = "mixed", bits: int = 8,
                 microscope: int | None = None) -> None:
        """Sets the scene; an image is drawn on access.

        Args:
          count: number of samples.
          size: of the images: one side, or (H, W); at least 16 pixels.
          seed: of everything random.
          modality: "fluorescence" (one plane), "stained" (tissue, RGB), "brightfield" (unstained; two planes, before and behind
            the focus), "phase" (one plane), "dic" (one plane), "pair" (three planes of the same cells: phase contrast and the two
            of brightfield) or "mixed" (all but pairs in turn, of brightfield the first plane, so that one network takes all).
          shape: "round", "elongated" (rods), "irregular" (spread, with corners), "neurites" (with thin branching processes) or
            "mixed" (an image of each in turn).
          radius: range of the mean radius (of the disc of the same area) of an image's cells, pixels; from 3 to the image's
            shorter side.
          coverage: range of the share of the image that cells cover, as far as they find room; within [0, 1].
          clustering: share of cells placed against another one, [0, 1].
          overlap: share of the meetings of two cells in which they overlap; else the later one is pressed flat, [0, 1].
          stain: of modality "stained": "violet", "white", "pink", "grey" or "mixed" (drawn for each image).
          bits: 8 (uint8), or 16 (uint16 of a 12-bit camera, 0 to 4095).
          microscope: seed of lens, focus, lamp and exposure, which all images then share, also those of other seeds; for
            brightfield, phase, dic and pairs. None: every image has its own.

        Raises:
          ValueError: an unknown name, or a number out of its range.
        """
        _check_name("modality", modality, (*MODALITIES, "mixed"))
        _check_name("shape", shape, (*SHAPES, "mixed"))
        _check_name("stain", stain, (*STAINS, "mixed"))
        sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        _check(f"count={count}", count >= 1, "at least one sample is needed")
        _check(f"size={size}", min(sides) >= 16, "an image has at least 16 pixels a side")
        _check(f"seed={seed}", seed >= 0, "seeds are 0 or above")
        _check(f"radius={radius}", 3 <= radius[0] <= radius[1] <= min(sides),
               "it is (smallest, largest) in pixels, from 3 (less is not drawn) to the image's shorter side")
        _check(f"coverage={coverage}", 0 <= coverage[0] <= coverage[1] <= 1, "it is (least, most), shares of the image in [0, 1]")
        _check(f"clustering={clustering}", 0 <= clustering <= 1, "it is a share of the cells in [0, 1]")
        _check(f"overlap={overlap}", 0 <= overlap <= 1, "it is a share of the meetings of two cells in [0, 1]")
        _check(f"bits={bits}", bits in (8, 16), "images have 8 or 16 bits")
        _check(f"microscope={microscope}", microscope is None or microscope >= 0 and modality in WITH_MICROSCOPE,
               f"it is a seed, 0 or above, for modality {', '.join(WITH_MICROSCOPE)}; here modality={modality}")
        self._shape, self._seed, self._bits, self._microscope = sides, seed, bits, microscope
        self._kinds: tuple[str, ...] = MIXED if modality == "mixed" else (modality,)
        self._forms = tuple(SHAPES) if shape == "mixed" else (shape,)
        self._stains = tuple(STAINS) if stain == "mixed" else (stain,)
        self._radius, self._coverage, self._clustering, self._overlap = radius, coverage, clustering, overlap
        self.names = [f"synthetic_{seed}_{i:05d}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name, index = self.names[index], index % len(self)
        kind = self._kinds[index % len(self._kinds)]
        form = self._forms[index // len(self._kinds) % len(self._forms)]
        rng = np.random.default_rng((self._seed, index))
        cells = place_cells(rng, self._shape, form=form, radius=rng.uniform(*self._radius), coverage=rng.uniform(*self._coverage),
                            clustering=self._clustering, overlap=self._overlap, bare=(kind, form) in BARE)
        image = self._render(rng, kind, cells)
        boxes = np.asarray([cell.box for cell in cells], np.int32).reshape(-1, 4)
        labels = to_layers(Instances(self._shape, boxes, [cell.mask for cell in cells], np.ones(len(cells), np.float32)))
        return Sample(digitise(image, self._bits), labels, nuclei=nucleus_labels(cells, self._shape), name=name,
                      modality=MODALITIES[kind], group=name)

    def _render(self, rng: np.random.Generator, kind: str, cells: list[Cell]) -> np.ndarray:
        if kind == "stained":
            return stained(rng, self._shape, cells, stain=self._stains[int(rng.integers(len(self._stains)))])
        options = {} if self._microscope is None else {"microscope": self._microscope}
        image = RENDERERS[kind](rng, self._shape, cells, **options)
        return image[..., :1] if self._kinds == MIXED else image


def _check_name(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"SyntheticSource: {option}={value!r} is unknown; it is one of {', '.join(known)}.")


def _check(what: str, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"SyntheticSource: {what} is impossible; {rule}.")
