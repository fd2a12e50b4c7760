"""Label images, and maps of numbers, as TIFF files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

__all__ = ["write_float_tiff", "write_label_tiff"]

MOST = np.iinfo(np.uint32).max


def write_label_tiff(path: str | Path, labels: np.ndarray, *, pixel_size: float | None = None) -> None:
    """Writes a label image as a compressed 32-bit TIFF (16 bits overflow above 65,535 cells).

    Args:
      path: the file, replaced if it exists.
      labels: [H, W] integers, 0 background, k > 0 cell k, at most 4,294,967,295.
      pixel_size: micrometres per pixel, kept as the file's resolution.

    Raises:
      ValueError: not a two-dimensional integer array, or a label that 32 bits without sign cannot hold.
    """
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise ValueError(f"labels are {labels.dtype} of shape {labels.shape}; a label image is [H, W] of integers. "
                         "Write label layers one by one.")
    if labels.size and (labels.min() < 0 or labels.max() > MOST):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; the file holds 0 to {MOST}. "
                         "Set ignored pixels (-1) to 0 and renumber.")
    _write(path, labels.astype(np.uint32), pixel_size, predictor=2)


def write_float_tiff(path: str | Path, values: np.ndarray, *, pixel_size: float | None = None) -> None:
    """Writes a map of numbers, such as an uncertainty, as a compressed 32-bit float TIFF.

    Args:
      path: the file, replaced if it exists.
      values: [H, W] floats.
      pixel_size: micrometres per pixel, kept as the file's resolution.

    Raises:
      ValueError: not a two-dimensional array of floats.
    """
    if values.ndim != 2 or values.dtype.kind != "f":
        raise ValueError(f"values are {values.dtype} of shape {values.shape}; a map is [H, W] of floats. Write channels one by "
                         "one.")
    _write(path, values.astype(np.float32), pixel_size, predictor=1)     # (ImageJ cannot read the predictor of floats)


def _write(path: str | Path, image: np.ndarray, pixel_size: float | None, *, predictor: int) -> None:
    resolution = None if pixel_size is None else (1e4 / pixel_size, 1e4 / pixel_size)     # pixels per centimetre
    tifffile.imwrite(path, image, compression="zlib", predictor=predictor, photometric="minisblack", resolution=resolution,
                     resolutionunit=None if resolution is None else "CENTIMETER")
