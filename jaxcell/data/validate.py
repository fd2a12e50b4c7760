"""What every decoded sample must hold before anything is computed from it."""

from __future__ import annotations

import numpy as np

from jaxcell.types import Sample

__all__ = ["validate"]


def validate(sample: Sample) -> None:
    """Refuses a sample that would train or score to nonsense. (That shapes and label types fit is `Sample`'s own rule.)

    Args:
      sample: as decoded, before normalisation.

    Raises:
      ValueError: no pixels; values that are neither numbers nor yes and no; values that are not finite; or labels that are
        "ignore" everywhere.
    """
    image, name = sample.image, sample.name
    if not image.size:
        raise ValueError(f"{name}: the image has shape (H, W, C) = {image.shape}; it must have pixels. Remove it, or export it "
                         "again.")
    if image.dtype.kind not in "buif":
        raise ValueError(f"{name}: the image's values are {image.dtype}; they must be real numbers. Convert it first, complex "
                         "numbers for example with numpy.abs.")
    _refuse_non_finite(image, name)
    if sample.labels is not None and sample.labels.max() < 0:
        raise ValueError(f"{name}: its labels are -1 (ignore) everywhere; background is 0 and cells are 1, 2, ... Check how the "
                         "labels were written, or remove the image.")


def _refuse_non_finite(image: np.ndarray, name: str) -> None:
    """Names how many values are NaN or infinite, and where the first is."""
    if image.dtype.kind != "f" or (finite := np.isfinite(image)).all():
        return
    y, x, channel = np.unravel_index(int(finite.argmin()), image.shape)
    raise ValueError(f"{name}: {np.count_nonzero(~finite)} of {image.size} values are NaN or infinite, the first ("
                     f"{image[y, x, channel]}) at (y, x) = ({y}, {x}) of plane {channel}; every value must be finite. Replace "
                     "them in the file, for example with numpy.nan_to_num.")
