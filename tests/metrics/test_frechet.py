"""The Fréchet distance of Gaussians whose distance is known, and of few or equal features."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from jaxcell.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance


def test_statistics_do_not_depend_on_the_parts():
    features = np.random.default_rng(0).normal(1e4, 1.0, (90, 5))
    whole, parts = feature_statistics([features]), feature_statistics(np.split(features, [1, 40, 41]))
    for statistics in (whole, parts):
        assert statistics.count == 90
        np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-12)
        np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), rtol=1e-9, atol=1e-9)


def test_of_diagonal_gaussians_by_hand():
    first = FeatureStatistics(9, np.asarray([1.0, 2.0]), np.diag([4.0, 9.0]))
    second = FeatureStatistics(9, np.asarray([4.0, 6.0]), np.diag([1.0, 16.0]))
    assert frechet_distance(first, second) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 4) ** 2)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [3, 60])
def test_against_the_definition(count):
    """Also where there are fewer images than features, and covariances have no inverse."""
    rng = np.random.default_rng(1)
    a, b = (feature_statistics([rng.normal(size=(count, 8)) @ rng.normal(size=(8, 8))]) for _ in range(2))
    root = linalg.sqrtm(a.covariance @ b.covariance + (1e-12 if count < 8 else 0) * np.eye(8))
    expected = (np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance) - 2 * np.trace(root).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


@pytest.mark.parametrize("features", [[], [np.ones((1, 3))], [np.full((4, 3), np.nan)]], ids=["none", "one", "nan"])
def test_too_little_is_refused(features):
    with pytest.raises(ValueError, match="2 finite ones at least"):
        feature_statistics(features)
