"""What is measured of one sample before anybody trains on it: pixels, cells, and how well the two fit together.

The facts of a sample are a few hundred numbers and a thumbnail; `data/check.py` draws its conclusions from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from jaxcell.geometry.labels import cell_ids, windows
from jaxcell.types import Sample

__all__ = ["ORIENTATIONS", "PERCENTILES", "THUMBNAIL", "CellFacts", "ImageFacts", "SampleFacts", "cell_facts",
           "fit_of_outlines", "image_facts", "orientations", "sample_facts", "thumbnail"]

PERCENTILES = (0.0, 1.0, 50.0, 99.0, 100.0)
MOST_VALUES = 1 << 18       # percentiles come from a regular part of an image, about so large
ORIENTATIONS = ("as it is", "mirrored left to right", "mirrored top to bottom", "turned by 180 degrees",
                "with x and y swapped", "turned by 90 degrees clockwise", "turned by 90 degrees counter-clockwise",
                "with x and y swapped, then turned by 180 degrees")
THUMBNAIL = 32              # px: enough that two fields of one slide differ, too few for noise and JPEG to matter
DETAIL = 3.0                # px of the thumbnail: uneven light is coarser, and would make all images of a microscope alike
WINDOW = 2048               # px: the middle of a larger image says whether its labels fit
LEAST_OUTLINE = 100         # px: the mean of fewer ranks is chance


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """Of the pixels as stored.

    Attributes:
      shape: (H, W, C).
      dtype: as numpy writes it.
      percentiles: of all planes together, at `PERCENTILES`.
      saturated: share of the values at the largest that the type can hold; 0 for floats.
      used_bits: the bits that are 1 in some value, as a number; 0 for floats and where values are negative.
      flat_planes: planes of one value, if not all are.
      digest: of shape, type and pixels.
      thumbnail: see `thumbnail`.
    """

    shape: tuple[int, int, int]
    dtype: str
    percentiles: tuple[float, ...]
    saturated: float
    used_bits: int
    flat_planes: tuple[int, ...]
    digest: bytes
    thumbnail: np.ndarray

    @property
    def constant(self) -> bool:
        """Whether all values are one."""
        return self.percentiles[0] == self.percentiles[-1]


@dataclass(frozen=True, eq=False)
class CellFacts:
    """Of the label layers; arrays have one entry per cell, by layer and id.

    Attributes:
      areas: [M] int64, pixels.
      extents: [M] int64, the longer side of the cell's box, pixels.
      pieces: [M] int64, 8-connected pieces.
      holes: [M] int64.
      at_border: [M] bool, touches the edge of the image.
      hidden: [M] bool, all of its pixels lie in other cells too.
      largest_id: 0 without cells.
      layers: D.
      shared: pixels of more than one cell.
      ignored: share of the pixels that are -1 in some layer and a cell in none.
      partly_ignored: how many of them are 0 in another layer.
      digest: of the layers.
      fit: see `fit_of_outlines`; None where it says nothing.
      turned: fit of the labels in each of the 7 other `orientations`, if `fit` is low; empty otherwise.
      strange_nuclei: nuclei whose id is no cell's.
    """

    areas: np.ndarray
    extents: np.ndarray
    pieces: np.ndarray
    holes: np.ndarray
    at_border: np.ndarray
    hidden: np.ndarray
    largest_id: int
    layers: int
    shared: int
    ignored: float
    partly_ignored: int
    digest: bytes
    fit: float | None
    turned: tuple[float, ...]
    strange_nuclei: int

    def __len__(self) -> int:
        return len(self.areas)


@dataclass(frozen=True, eq=False)
class SampleFacts:
    """Of one sample; `cells` is None without annotation, `normalized` (percentiles 1 and 99.9 after normalisation) and `refusal`
    (why it could not be normalised) are set where a normaliser was given."""

    name: str
    modality: str
    group: str
    pixel_size: float | None
    image: ImageFacts
    cells: CellFacts | None
    normalized: tuple[float, float] | None = None
    refusal: str = ""


def sample_facts(sample: Sample, *, low_fit: float, normalizer: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]] | None
                 = None) -> SampleFacts:
    """Measures one sample.

    Args:
      sample: as a source gives it.
      low_fit: see `cell_facts`.
      normalizer: whole image -> (region -> values in [0, 1]); its ValueError is noted, not raised.
    """
    normalized, refusal = None, ""
    if normalizer is not None:
        try:
            low, high = np.percentile(normalizer(sample.image)(_thinned(sample.image)), [1, 99.9]).tolist()
            normalized = low, high
        except ValueError as error:
            refusal = str(error)
    return SampleFacts(sample.name, sample.modality, sample.group, sample.pixel_size, image_facts(sample.image),
                       None if sample.labels is None else cell_facts(sample.image, sample.labels, sample.nuclei, low_fit=low_fit),
                       normalized, refusal)


# ---------------------------------------------------------------- pixels
def image_facts(image: np.ndarray) -> ImageFacts:
    """The facts of an image [H, W, C] of any number type; every value is finite."""
    whole = image.dtype.kind in "iu"
    planes = [image[..., k] for k in range(image.shape[2])]
    flat = tuple(k for k, plane in enumerate(planes) if (plane == plane[0, 0]).all())
    percentiles = np.percentile(_thinned(image).astype(np.float64), PERCENTILES)
    percentiles[[0, -1]] = image.min(), image.max()
    saturated = np.count_nonzero(image == np.iinfo(image.dtype).max) / image.size if whole else 0.0
    return ImageFacts(
        shape=(image.shape[0], image.shape[1], image.shape[2]), dtype=str(image.dtype), percentiles=tuple(percentiles.tolist()),
        saturated=saturated, used_bits=max(0, int(np.bitwise_or.reduce(image, axis=None))) if whole else 0,
        flat_planes=flat if len(flat) < len(planes) else (), digest=_digest(image), thumbnail=thumbnail(image))


def thumbnail(image: np.ndarray) -> np.ndarray:
    """What an image looks like, whatever its brightness, contrast, depth and size: two are as alike as their product is large.

    The mean of the planes is brought to 32 x 32 pixels, what is coarser than about 10 of them is taken out (uneven light), and
    the rest scaled to length 1. Copies that were cut are not recognised.

    Args:
      image: [H, W, C] of any type.

    Returns:
      [32, 32] float16; zeros of an image without detail.
    """
    step = max(1, min(image.shape[:2]) // (16 * THUMBNAIL))
    grey = image[::step, ::step].astype(np.float32).mean(axis=2)
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    detail = small - cv2.GaussianBlur(small, (0, 0), DETAIL, borderType=cv2.BORDER_REFLECT)
    detail -= detail.mean()
    length = float(np.linalg.norm(detail))
    # Rounding alone leaves something of an even image.
    even = length <= 1e-5 * max(1.0, float(np.abs(small).max()))
    return (np.zeros_like(detail) if even else detail / length).astype(np.float16)


def orientations(plane: np.ndarray) -> Iterator[np.ndarray]:
    """The 8 ways to turn and mirror the first two axes of an array, in the order of `ORIENTATIONS`."""
    for mirrored in (plane, plane.swapaxes(0, 1)):
        for rows in (1, -1):
            yield from (mirrored[::rows, ::columns] for columns in (1, -1))


def _thinned(image: np.ndarray) -> np.ndarray:
    step = max(1, int(np.sqrt(image.size / MOST_VALUES)))
    return image[::step, ::step]


def _digest(array: np.ndarray) -> bytes:
    content = hashlib.blake2b(f"{array.shape}{array.dtype}".encode(), digest_size=16)
    content.update(np.ascontiguousarray(array).data)
    return content.digest()


# ---------------------------------------------------------------- cells
def cell_facts(image: np.ndarray, labels: np.ndarray, nuclei: np.ndarray | None = None, *, low_fit: float) -> CellFacts:
    """The facts of the cells of an image.

    Args:
      image: [H, W, C] of any type.
      labels: [H, W, D] int32.
      nuclei: [H, W] int32 with the ids of the cells, or None.
      low_fit: of labels that fit less than this the other orientations are tried.
    """
    count = np.count_nonzero(labels > 0, axis=2)
    shared = count > 1
    rows = [row for layer in range(labels.shape[2]) for row in _measured(labels[..., layer], shared)]
    table = np.asarray(rows, np.int64).reshape(-1, 6)
    fit = fit_of_outlines(image, labels)
    ignored = (labels < 0).any(axis=2) & (count == 0)
    return CellFacts(
        areas=table[:, 0], extents=table[:, 1], pieces=table[:, 2], holes=table[:, 3], at_border=table[:, 4] > 0,
        hidden=table[:, 5] > 0, largest_id=int(labels.max(initial=0)), layers=labels.shape[2],
        shared=int(np.count_nonzero(shared)),
        ignored=float(np.count_nonzero(ignored) / shared.size),
        partly_ignored=int(np.count_nonzero(ignored & (labels == 0).any(axis=2))), digest=_digest(labels),
        fit=fit, turned=_fits_turned(image, labels) if fit is not None and fit < low_fit else (),
        strange_nuclei=0 if nuclei is None else len(np.setdiff1d(cell_ids(nuclei), cell_ids(labels))))


def _measured(plane: np.ndarray, shared: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Area, extent, pieces, holes, at the border, hidden: for every cell of one layer [H, W]."""
    height, width = plane.shape
    overlaps = bool(shared.any())
    for number, (y, x) in windows(plane):
        mask = plane[y, x] == number
        lines, tree = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        pieces = int(np.count_nonzero(tree[0, :, 3] < 0))
        at_border = y.start == 0 or x.start == 0 or y.stop == height or x.stop == width
        yield (int(np.count_nonzero(mask)), max(mask.shape), pieces, len(lines) - pieces, at_border,
               overlaps and bool(shared[y, x][mask].all()))


def fit_of_outlines(image: np.ndarray, labels: np.ndarray) -> float | None:
    """How much steeper the image is along the cells' outlines than elsewhere: the mean rank of the gradient there.

    Args:
      image: [H, W, C] of any type; of a large one the middle is looked at.
      labels: [H, W, D] int32.

    Returns:
      In [0, 1]; about 0.5 if image and labels have nothing to do with each other. None where outlines are too short to say,
      or the image is even.
    """
    place = tuple(slice(max(0, (side - WINDOW) // 2), max(0, (side - WINDOW) // 2) + WINDOW) for side in image.shape[:2])
    border = _borders(labels[place])
    if np.count_nonzero(border) < LEAST_OUTLINE:
        return None
    ranks = _steepness(image[place])
    return None if ranks is None else float(ranks[border].mean())


def _fits_turned(image: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
    turned = [*orientations(labels)][1:]
    fits = [fit_of_outlines(image, other) if other.shape == labels.shape else None for other in turned]
    return tuple(fit or 0.0 for fit in fits)


def _borders(labels: np.ndarray) -> np.ndarray:
    """[H, W] bool: pixels with another value right, left, above or below, in any layer."""
    across, down = ((np.diff(labels, axis=axis) != 0).any(axis=2) for axis in (1, 0))
    border = np.zeros(labels.shape[:2], bool)
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    return border


def _steepness(image: np.ndarray) -> np.ndarray | None:
    """[H, W] float64: share of the pixels with a smaller gradient; None of an even image."""
    grey = image.astype(np.float32).mean(axis=2)
    grey = cv2.GaussianBlur(grey, (0, 0), 1.0)
    slope = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    top = float(np.percentile(_thinned(slope[..., None]), 99))
    if top <= 0:
        return None
    level = np.minimum(slope * (4095 / top), 4095).astype(np.int32)
    counts = np.bincount(level.ravel(), minlength=4096)
    return ((np.cumsum(counts) - counts / 2) / level.size)[level]
