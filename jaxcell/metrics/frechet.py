"""Fréchet distance of two sets of images: how far apart what a feature extractor sees in them is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["FeatureStatistics", "feature_statistics", "frechet_distance"]


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean [D] and covariance [D, D] of `count` feature vectors, float64."""

    count: int
    mean: np.ndarray
    covariance: np.ndarray


def feature_statistics(features: Iterable[np.ndarray]) -> FeatureStatistics:
    """Mean and covariance (divided by n - 1) of feature vectors that arrive in parts.

    Args:
      features: parts [n, D] of any size.

    Raises:
      ValueError: fewer than 2 vectors, or one that is not finite.
    """
    count, total, products = 0, 0.0, 0.0
    first: np.ndarray | None = None
    for part in features:
        values = np.asarray(part, np.float64)
        first = values[0] if first is None else first
        values = values - first         # near the origin the products lose no digits
        count, total, products = count + len(values), total + values.sum(0), products + values.T @ values
    if count < 2 or first is None or not np.all(np.isfinite(products)):
        raise ValueError(f"feature_statistics: {count} vectors, or not all finite; a covariance needs 2 finite ones at least. "
                         "Give more images.")
    mean = total / count
    return FeatureStatistics(count, first + mean, (products - count * np.outer(mean, mean)) / (count - 1))


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), at least 0.

    The root's trace is the sum of the singular values of S1^(1/2) S2^(1/2): no complex numbers arise, whatever the ranks.

    Source: Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", NeurIPS 2017.
    """
    roots = [_root(statistics.covariance) for statistics in (first, second)]
    trace = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    difference = first.mean - second.mean
    value = difference @ difference + np.trace(first.covariance) + np.trace(second.covariance) - 2 * trace
    return max(float(value), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Of a symmetric matrix without negative eigenvalues (those that rounding made are 0)."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
