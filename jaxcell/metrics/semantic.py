"""How well one class of pixels is found, among all pixels: counts that add up, ratios taken once."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from jaxcell.metrics.matching import divide

__all__ = ["ClassCounts", "class_counts"]


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Pixels of one class. `a + b` are the counts of both images together; a ratio of nothing is NaN.

    Attributes:
      tp, fp, fn, tn: [...] int64, pixels rightly and wrongly given to the class, missed, and rightly left out.
    """

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    def __add__(self, other: ClassCounts) -> ClassCounts:
        return ClassCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def accuracy(self) -> np.ndarray:
        """(TP + TN) / all. It is near 1 for a rare class, whatever is found."""
        return divide(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    @property
    def precision(self) -> np.ndarray:
        """TP / (TP + FP)."""
        return divide(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> np.ndarray:
        """TP / (TP + FN)."""
        return divide(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> np.ndarray:
        """2 TP / (2 TP + FP + FN)."""
        return divide(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> np.ndarray:
        """TP / (TP + FP + FN)."""
        return divide(self.tp, self.tp + self.fp + self.fn)

    def scores(self) -> dict[str, float]:
        """The five ratios by name, as the thesis' Tables 5.1 to 5.3 have them."""
        return {"accuracy": float(self.accuracy), "precision": float(self.precision), "recall": float(self.recall),
                "F1": float(self.f1), "IoU": float(self.iou)}


def class_counts(truth: np.ndarray, prediction: np.ndarray, counted: np.ndarray) -> ClassCounts:
    """Counts of one class in one image.

    Args:
      truth: [H, W] bool.
      prediction: [H, W] bool.
      counted: [H, W] bool, False where the annotation does not say what is there.

    Raises:
      ValueError: sizes differ.
    """
    if not truth.shape == prediction.shape == counted.shape:
        raise ValueError(f"class_counts: truth is {truth.shape}, prediction {prediction.shape}, counted {counted.shape}; all "
                         "must be of one size.")
    sides = (truth & prediction, ~truth & prediction, truth & ~prediction, ~truth & ~prediction)
    return ClassCounts(*(np.asarray(np.count_nonzero(side & counted), np.int64) for side in sides))
