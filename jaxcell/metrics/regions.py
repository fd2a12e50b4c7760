"""How well the foregrounds of whole images agree: distances of their outlines, and images that pass. Cells play no part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import cv2
import numpy as np

from jaxcell.metrics.matching import divide

__all__ = ["IOU_THRESHOLDS", "ReleasedScores", "RegionCounts", "hausdorff95", "morphoseg_scores", "region_counts", "surface",
           "surface_distances"]

IOU_THRESHOLDS = (0.5, 0.75, 0.9)


# ---------------------------------------------------------------- outlines
def surface(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask that have background, or the end of the image, above, below, left or right; [H, W] bool -> the same.

    Source: medpy 0.5.2, metric.binary (a mask less its erosion by a cross).
    """
    padded = np.pad(mask, 1)
    return mask & ~(padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])


def surface_distances(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """From every pixel of either outline the distance to the other outline.

    Args:
      truth: [H, W] bool, not empty.
      prediction: the same.

    Returns:
      [n] float32, pixels: those of the prediction's outline, then those of the truth's.
    """
    either = truth | prediction
    rows, columns = (np.flatnonzero(either.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    a, b = surface(truth[box]), surface(prediction[box])
    return np.concatenate([_distance(a)[b], _distance(b)[a]])


def _distance(outline: np.ndarray) -> np.ndarray:
    """Of every pixel to the nearest one of the outline."""
    return cv2.distanceTransform((~outline).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def hausdorff95(truth: np.ndarray, prediction: np.ndarray) -> float:
    """95 % of the pixels of both outlines lie at most so far from the other outline.

    Args:
      truth: [H, W] bool.
      prediction: the same.

    Returns:
      Pixels, the percentile interpolated linearly. NaN if both are empty; the image's diagonal if one is.

    Source: MorphoSeg, equation 20 (the distances of both directions are pooled); medpy 0.5.2, metric.binary.hd95.
    Departs: where one mask is empty medpy fails; the diagonal, which no distance exceeds, keeps such an image in the mean.
    """
    found = bool(truth.any()), bool(prediction.any())
    if not any(found):
        return math.nan
    return float(np.percentile(surface_distances(truth, prediction), 95)) if all(found) else math.hypot(*truth.shape)


# ---------------------------------------------------------------- the released script's numbers
@dataclass(frozen=True, eq=False)
class ReleasedScores:
    """What MorphoSeg's test script says of one image.

    Attributes:
      dsc: Dice; 1 if only the prediction has foreground, 0 if the prediction has none, whatever the truth has.
      hd95: pixels; 0 in both of these cases.
      iou: with 1e-6 added to both areas: 1 if both are empty.
      passed: [T] bool, whether the IoU reaches each threshold.
    """

    dsc: float
    hd95: float
    iou: float
    passed: np.ndarray

    @property
    def ap(self) -> float:
        """The mean of `passed`, which the script calls average precision."""
        return float(self.passed.mean())


def morphoseg_scores(truth: np.ndarray, prediction: np.ndarray, *, thresholds: Sequence[float] = IOU_THRESHOLDS
                     ) -> ReleasedScores:
    """The scores of the released test script, empty masks as there: they draw the means of DSC and HD95 the wrong way.

    Args:
      truth: [H, W] bool.
      prediction: the same.
      thresholds: T values of IoU.

    Source: RanchoGoose/MorphoSeg@a2ab9fe, utils.py calculate_metric_percase, calculate_iou_ap_per_class.
    """
    both, either = np.count_nonzero(truth & prediction), np.count_nonzero(truth | prediction)
    iou = (both + 1e-6) / (either + 1e-6)
    passed = np.asarray([iou >= threshold for threshold in thresholds])
    if not (truth.any() and prediction.any()):
        return ReleasedScores(float(prediction.any()), 0.0, iou, passed)
    return ReleasedScores(2 * both / (both + either), hausdorff95(truth, prediction), iou, passed)


# ---------------------------------------------------------------- of many images
@dataclass(frozen=True, eq=False)
class RegionCounts:
    """Sums over images; `a + b` are those of both sets. T thresholds of IoU.

    Attributes:
      images: [...] number of images.
      defined: [...] those with foreground in truth or prediction.
      distance: [...] pixels, sum of `hausdorff95` over them.
      passed: [..., T] those whose foreground IoU reaches each threshold.
      released_dsc: [...] sum of `morphoseg_scores` over all images, like the two that follow.
      released_hd95: [...] pixels.
      released_passed: [..., T].
    """

    images: np.ndarray
    defined: np.ndarray
    distance: np.ndarray
    passed: np.ndarray
    released_dsc: np.ndarray
    released_hd95: np.ndarray
    released_passed: np.ndarray

    def __add__(self, other: RegionCounts) -> RegionCounts:
        return RegionCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def row(self) -> np.ndarray:
        """[..., 5 + 2 T], the sums side by side."""
        single = (self.images, self.defined, self.distance, self.released_dsc, self.released_hd95)
        return np.concatenate([np.stack(single, axis=-1), self.passed, self.released_passed], axis=-1)

    @staticmethod
    def of_rows(rows: np.ndarray) -> RegionCounts:
        """The inverse of `row`."""
        images, defined, distance, dsc, hd95 = (rows[..., i] for i in range(5))
        passed, released = np.split(rows[..., 5:], 2, axis=-1)
        return RegionCounts(images, defined, distance, passed, dsc, hd95, released)

    @property
    def hd95(self) -> np.ndarray:
        """Mean `hausdorff95` of the images in which it is defined, pixels."""
        return divide(self.distance, self.defined)

    @property
    def fractions(self) -> np.ndarray:
        """[..., T], of the images with foreground on either side those whose IoU reaches each threshold."""
        return divide(self.passed, self.defined[..., None])

    @property
    def released_fractions(self) -> np.ndarray:
        """[..., T], MorphoSeg's IoU-0.5, IoU-0.75 and IoU-0.9."""
        return divide(self.released_passed, self.images[..., None])


def region_counts(truth: np.ndarray, prediction: np.ndarray, *, thresholds: Sequence[float] = IOU_THRESHOLDS) -> RegionCounts:
    """The sums of one image.

    Args:
      truth: foreground, [H, W] bool.
      prediction: the same.
      thresholds: T values of IoU.

    Raises:
      ValueError: the two belong to images of different sizes.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"region_counts: truth covers {truth.shape} pixels, prediction {prediction.shape}; both must belong to "
                         "the same image. Check the pairing of files, and whether one of them was resized or cropped.")
    released = morphoseg_scores(truth, prediction, thresholds=thresholds)
    distance = released.hd95 if truth.any() and prediction.any() else hausdorff95(truth, prediction)
    defined = not math.isnan(distance)
    passed = released.passed & defined      # (the 1e-6 of the released IoU moves no IoU of pixels over a threshold)
    sums = 1, defined, distance if defined else 0.0, passed, released.dsc, released.hd95, released.passed
    return RegionCounts(*(np.asarray(value, np.float64) for value in sums))
