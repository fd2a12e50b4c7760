"""How well foreground pixels agree, whatever cell they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxcell.metrics.matching import as_instances, divide
from jaxcell.types import Instances

__all__ = ["PixelCounts", "foreground", "overlap_counts", "overlaps", "pixel_counts"]


@dataclass(frozen=True, eq=False)
class PixelCounts:
    """Foreground pixels. `a + b` are the counts of both images together; a ratio is NaN where both sides are empty.

    Attributes:
      intersection: [...] int64, pixels that are foreground in both.
      truth, prediction: [...] int64, foreground pixels of either side.
    """

    intersection: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(self.intersection + other.intersection, self.truth + other.truth, self.prediction + other.prediction)

    @property
    def dice(self) -> np.ndarray:
        """2 |A and B| / (|A| + |B|)."""
        return divide(2 * self.intersection, self.truth + self.prediction)

    @property
    def precision(self) -> np.ndarray:
        """|A and B| / |B|, B the prediction."""
        return divide(self.intersection, self.prediction)

    @property
    def recall(self) -> np.ndarray:
        """|A and B| / |A|, A the truth."""
        return divide(self.intersection, self.truth)

    @property
    def iou(self) -> np.ndarray:
        """|A and B| / |A or B|."""
        return divide(self.intersection, self.truth + self.prediction - self.intersection)


def foreground(cells: Instances | np.ndarray) -> np.ndarray:
    """[H, W] bool, true where any cell lies. Of label images, ids above 0 are cells."""
    cells = as_instances(cells)
    canvas = np.zeros(cells.shape, bool)
    for (y0, x0, y1, x1), mask in zip(cells.boxes.tolist(), cells.masks, strict=True):
        canvas[y0:y1, x0:x1] |= mask
    return canvas


def overlaps(cells: Instances | np.ndarray) -> np.ndarray:
    """[H, W] bool, true where two cells or more lie."""
    cells = as_instances(cells)
    once, again = np.zeros(cells.shape, bool), np.zeros(cells.shape, bool)
    for (y0, x0, y1, x1), mask in zip(cells.boxes.tolist(), cells.masks, strict=True):
        again[y0:y1, x0:x1] |= once[y0:y1, x0:x1] & mask
        once[y0:y1, x0:x1] |= mask
    return again


def overlap_counts(truth: Instances | np.ndarray, prediction: Instances | np.ndarray) -> PixelCounts:
    """`pixel_counts` of the pixels that lie in two cells or more; their F1 is `dice`."""
    return _counts(overlaps(truth), overlaps(prediction))


def pixel_counts(truth: Instances | np.ndarray, prediction: Instances | np.ndarray) -> PixelCounts:
    """Foreground counts of one image.

    Raises:
      ValueError: the two belong to images of different sizes.
    """
    return _counts(foreground(truth), foreground(prediction))


def _counts(a: np.ndarray, b: np.ndarray) -> PixelCounts:
    if a.shape != b.shape:
        raise ValueError(f"pixel_counts: truth covers {a.shape} pixels, prediction {b.shape}; both must belong to the same "
                         "image. Check the pairing of files, and whether one of them was resized or cropped.")
    return PixelCounts(*(np.asarray(np.count_nonzero(x), np.int64) for x in (a & b, a, b)))
