"""Bootstrap intervals: against the normal approximation, exact constants, undefined values."""

import numpy as np
import pytest

from jaxcell.metrics.bootstrap import bootstrap_interval


def test_mean_of_many_values_has_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(values, lambda x: x.mean(1), resamples=4000, confidence=0.95)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02) and high == pytest.approx(values.mean() + half, abs=0.02)


def test_pooled_ratio_and_repeatability():
    counts = np.asarray([[1, 2], [10, 20], [3, 6]])     # the same ratio everywhere: no spread
    low, high = bootstrap_interval(counts, lambda x: x[..., 0].sum(1) / x[..., 1].sum(1))
    assert low == high == 0.5
    draws = [bootstrap_interval(np.arange(9.0), lambda x: np.median(x, 1), seed=seed) for seed in (1, 1)]
    assert draws[0] == draws[1]


def test_large_inputs_are_drawn_in_blocks_with_the_same_result(monkeypatch):
    values = np.random.default_rng(0).random((50, 3))
    whole = bootstrap_interval(values, lambda x: x.mean(1))
    monkeypatch.setattr("jaxcell.metrics.bootstrap._BLOCK", 1000)
    np.testing.assert_array_equal(bootstrap_interval(values, lambda x: x.mean(1)), whole)


def test_undefined():
    low, high = bootstrap_interval(np.asarray([[1.0, np.nan], [2.0, np.nan]]), lambda x: x.mean(1))
    assert 1 <= low[0] <= high[0] <= 2 and np.isnan(low[1]) and np.isnan(high[1])
    with pytest.raises(ValueError, match="at least one image"):
        bootstrap_interval(np.zeros(0), lambda x: x.mean(1))
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval(np.zeros(3), lambda x: x.mean(1), confidence=95)
