"""The images of a source cut into overlapping patches of several sizes, all shown at one size, as MorphoSeg's data are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jaxcell.data.augment.geometry import scale_image, scale_labels
from jaxcell.data.sources.combined import Source
from jaxcell.data.sources.paired import held_out
from jaxcell.types import Sample

__all__ = ["CUTTINGS", "DIVISIONS", "SIZES", "Cutting", "Patch", "PatchSource", "patch_grid"]

SIZES = (224, 448, 1000, 1500, 2000)


@dataclass(frozen=True)
class Patch:
    """Where a patch comes from.

    Attributes:
      index: of the image in its source.
      size: side, pixels; 0 is the undivided image.
      top: first row.
      left: first column.
    """

    index: int
    size: int
    top: int
    left: int


# ---------------------------------------------------------------- how images are cut
@dataclass(frozen=True)
class Cutting:
    """One way to cut.

    Attributes:
      starts: (side of the image, size of a patch, step) -> where patches begin along an axis; nothing if it is too short.
      whole: ((H, W) of an image, side at which patches are shown) -> (h, w) at which the undivided image is shown.
      image: ([H, W, C] as stored, (h, w)) -> [h, w, C] of the same type.
      labels: ([H, W, D] int32, (h, w)) -> [h, w, D] int32.
    """

    starts: Callable[[int, int, int], list[int]]
    whole: Callable[[tuple[int, int], int], tuple[int, int]]
    image: Callable[[np.ndarray, tuple[int, int]], np.ndarray]
    labels: Callable[[np.ndarray, tuple[int, int]], np.ndarray]


def _covering(side: int, size: int, step: int) -> list[int]:
    """The last patch ends with the image."""
    return [min(start, side - size) for start in range(0, side - size + step, step)] if size <= side else []


def _released(side: int, size: int, step: int) -> list[int]:
    return list(range(0, side - size + 1, step)) if size < side else []


def _shorter_side(shape: tuple[int, int], output: int) -> tuple[int, int]:
    return round(shape[0] * output / min(shape)), round(shape[1] * output / min(shape))


def _as_stored(shape: tuple[int, int], output: int) -> tuple[int, int]:
    return shape


def _bicubic_image(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.stack([_bicubic(channel, shape) for channel in np.moveaxis(image, -1, 0)], axis=-1)


def _bicubic_mask(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """One mask of all cells, [h, w, 1], as far as the filter's tails reach; "ignore" is background."""
    mask = np.where((labels > 0).any(axis=-1), 255, 0).astype(np.uint8)
    return (_bicubic(mask, shape) > 0)[..., None].astype(np.int32)


def _bicubic(channel: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """By Pillow, which interpolates 8-bit integers and floats."""
    source = channel if channel.dtype == np.uint8 else channel.astype(np.float32)
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(source)).resize(shape[::-1], Image.Resampling.BICUBIC))
    if channel.dtype == np.uint8 or channel.dtype.kind not in "iu":
        return resized.astype(channel.dtype)
    bounds = np.iinfo(channel.dtype)
    return np.rint(resized).clip(bounds.min, bounds.max).astype(channel.dtype)


CUTTINGS: Mapping[str, Cutting] = {
    "covering": Cutting(_covering, _shorter_side, scale_image, scale_labels),
    "released": Cutting(_released, _as_stored, _bicubic_image, _bicubic_mask),
}
"""name -> way to cut. "covering": sizes up to the shorter side; the last patch of an axis ends with the image; areas are
averaged; cells keep their ids; an undivided image keeps its proportions. "released", as RanchoGoose/MorphoSeg@a2ab9fe,
data_pre.py: sizes below the shorter side; nothing is aligned to the far edges, so a margin stays uncovered; labels are one mask,
which Pillow's bicubic filter makes about a pixel fatter; undivided images stay as stored (its training makes them square)."""


def patch_grid(shape: tuple[int, int], *, sizes: Sequence[int] = SIZES, overlap: float = 0.35, cutting: str = "covering"
               ) -> np.ndarray:
    """Where the patches of an image lie.

    Args:
      shape: (H, W) of the image, pixels.
      sizes: sides of the patches, pixels; those that do not fit into the image are left out.
      overlap: share of a patch that the next one covers too, in [0, 1).
      cutting: an entry of `CUTTINGS`.

    Returns:
      [n, 3] int32, (size, top, left), in the order of sizes, rows, columns.

    Raises:
      ValueError: sizes or overlap out of range, or another word as `cutting`.

    Source: MorphoSeg, section 4.2; RanchoGoose/MorphoSeg@a2ab9fe, data_pre.py divide_images_and_masks ("released").
    """
    if cutting not in CUTTINGS:
        raise ValueError(f"cutting={cutting!r} is unknown; known are {', '.join(CUTTINGS)}.")
    if not 0 <= overlap < 1 or min(sizes, default=0) < 1:
        raise ValueError(f"patches of {tuple(sizes)} pixels with overlap {overlap}; sizes must be 1 or more and the overlap a "
                         "share in [0, 1). Use for example (224, 448) and 0.35.")
    places = []
    for size in sizes:
        step = max(1, int(size * (1 - overlap)))
        rows, columns = (CUTTINGS[cutting].starts(side, size, step) for side in shape)
        places += [(size, top, left) for top in rows for left in columns]
    return np.asarray(places, np.int32).reshape(-1, 3)


# ---------------------------------------------------------------- who may train on which
def _by_group(patches: Sequence[Patch], names: Sequence[str], groups: Sequence[str]) -> list[bool]:
    held = held_out({groups[patch.index] for patch in patches})
    return [groups[patch.index] in held for patch in patches]


def _by_image(patches: Sequence[Patch], names: Sequence[str], groups: Sequence[str]) -> list[bool]:
    held = held_out({names[patch.index] for patch in patches})
    return [names[patch.index] in held for patch in patches]


def _leaking(patches: Sequence[Patch], names: Sequence[str], groups: Sequence[str]) -> list[bool]:
    """A fifth of the undivided images and a fifth of the others."""
    held, whole = np.zeros(len(patches), bool), np.asarray([not patch.size for patch in patches])
    for kind in (np.flatnonzero(whole), np.flatnonzero(~whole)):
        held[np.random.default_rng(0).permutation(kind)[:round(0.2 * len(kind))]] = True
    return held.tolist()


DIVISIONS: Mapping[str, Callable[[Sequence[Patch], Sequence[str], Sequence[str]], list[bool]]] = {
    "group": _by_group, "image": _by_image, "leaking": _leaking}
"""name -> (patches, names of the images, groups of the images) -> which patches are for validation, about a fifth. "group" and
"image" part whole groups and images; "leaking" (released) draws from all patches, so that pieces of one picture, overlapping ones
too, are on both sides: scores on such a validation set say little about new images."""


class PatchSource:
    """The patches of another source's images, and the undivided images.

    All images are read once, when the source is opened, to see where there are cells; each access then reads one image, so hold
    the images in memory or on disk (`open_source` does).
    """

    def __init__(self, source: Source, *, sizes: Sequence[int] = SIZES, overlap: float = 0.35, output: int = 224,
                 cutting: str = "covering", undivided: bool = True, empty: bool = False, part: str = "", division: str = "group"
                 ) -> None:
        """Plans the patches.

        Args:
          source: of images, each of any size.
          sizes: see `patch_grid`.
          overlap: see there.
          output: side at which every patch is shown, pixels; see `CUTTINGS` for the undivided images.
          cutting: an entry of `CUTTINGS`.
          undivided: take the whole images too.
          empty: keep patches without a cell; without annotation all are kept.
          part: "train" or "val" for sources that have no splits themselves; "" takes all patches.
          division: an entry of `DIVISIONS`, what makes the parts.

        Raises:
          ValueError: a word is unknown, sizes do not fit, or nothing is left.
        """
        if part not in ("", "train", "val") or division not in DIVISIONS:
            raise ValueError(f"patches: part={part!r}, division={division!r}; part is train, val or empty, and division one of "
                             f"{', '.join(DIVISIONS)}.")
        if output < 1:
            raise ValueError(f"patches: output={output}; it must be at least 1 pixel, for example 224.")
        patch_grid((1, 1), sizes=sizes, overlap=overlap, cutting=cutting)      # refuses what does not fit before anything is read
        self._source, self._cutting, self._output = source, CUTTINGS[cutting], output

        def plan(index: int) -> tuple[str, list[Patch]]:
            sample = source[index]
            grid = patch_grid((sample.image.shape[0], sample.image.shape[1]), sizes=sizes, overlap=overlap, cutting=cutting)
            patches = [Patch(index, *place) for place in grid.tolist()] + [Patch(index, 0, 0, 0)] * undivided
            return sample.group or sample.name, [patch for patch in patches if empty or self._has_cells(sample, patch)]

        with ThreadPoolExecutor(2) as pool:
            groups, planned = zip(*pool.map(plan, range(len(source))), strict=True) if len(source) else ((), ())
        patches = [patch for some in planned for patch in some]
        if part:
            held = DIVISIONS[division](patches, source.names, groups)
            patches = [patch for patch, for_validation in zip(patches, held, strict=True) if for_validation == (part == "val")]
        if not patches:
            raise ValueError(f"patches: none is left of {len(source)} images with sizes {tuple(sizes)}, part={part!r} by "
                             f"{division}, {'' if empty else 'none '}without cells. Use smaller sizes, or another division.")
        self.patches = patches
        self.names = [_name(source.names[patch.index], patch) for patch in patches]

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> Sample:
        patch = self.patches[index]
        sample = self._source[patch.index]
        shape, window = self._place(sample, patch)
        image = sample.image[window]
        height = image.shape[0]
        if image.shape[:2] != shape:
            image = self._cutting.image(image, shape)
        labels = None if sample.labels is None else self._cutting.labels(sample.labels[window], shape)
        nuclei = None if sample.nuclei is None else self._cutting.labels(sample.nuclei[window][..., None], shape)[..., 0]
        size = None if sample.pixel_size is None else sample.pixel_size * height / shape[0]
        return Sample(image, labels, nuclei, size, self.names[index], sample.modality, sample.group or sample.name)

    def _place(self, sample: Sample, patch: Patch) -> tuple[tuple[int, int], tuple[slice, slice]]:
        """(h, w) at which a patch is shown, and what is cut out for it."""
        if not patch.size:
            return self._cutting.whole((sample.image.shape[0], sample.image.shape[1]), self._output), (slice(None), slice(None))
        window = slice(patch.top, patch.top + patch.size), slice(patch.left, patch.left + patch.size)
        return (self._output, self._output), window

    def _has_cells(self, sample: Sample, patch: Patch) -> bool:
        """Of what is shown: a few pixels may vanish when a large patch shrinks."""
        if sample.labels is None:
            return True
        shape, window = self._place(sample, patch)
        cut = sample.labels[window]
        return bool((cut > 0).any() and (self._cutting.labels(cut, shape) > 0).any())


def _name(image: str, patch: Patch) -> str:
    return f"{image}_ps{patch.size}_{patch.top}_{patch.left}" if patch.size else image
