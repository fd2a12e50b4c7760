"""How far a score would move with other images of the same kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["bootstrap_interval"]

_BLOCK = 1 << 23   # numbers resampled at once: 64 MiB of float64


def bootstrap_interval(rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, confidence: float = 0.95,
                       resamples: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of a statistic over images.

    Args:
      rows: [N, ...], what is known of each image: its score, or its counts for a pooled ratio.
      statistic: [R, N, ...] -> [R, ...], the statistic of each of R resampled sets; NaN where it is undefined.
      confidence: in (0, 1).
      resamples: number of sets drawn, with replacement.
      seed: of the draw.

    Returns:
      Lower and upper bound, each of the statistic's shape; NaN where no resample defines the statistic.

    Raises:
      ValueError: no rows, or confidence outside (0, 1).

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    if not len(rows):
        raise ValueError("bootstrap_interval: rows is empty; an interval over images needs at least one image.")
    if not 0 < confidence < 1:
        raise ValueError(f"bootstrap_interval: confidence is {confidence}; it must be in (0, 1), for example 0.95.")
    index = np.random.default_rng(seed).integers(len(rows), size=(resamples, len(rows)))
    blocks = np.array_split(index, max(1, min(resamples, resamples * rows.size // _BLOCK)))
    values = np.concatenate([statistic(rows[block]) for block in blocks])
    defined = np.isfinite(values).any(0)
    bounds = np.full((2, *values.shape[1:]), np.nan)
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    bounds[:, defined] = np.nanpercentile(values[:, defined], tails, axis=0)
    return bounds[0], bounds[1]
