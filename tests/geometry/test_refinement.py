"""Local refinement against a loop over points, and where its gradient goes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.geometry.refinement import bucket_weights, clip_contours, refine_contours


@pytest.mark.parametrize("xp", [np, jnp])
def test_bucket_weights_by_hand(xp):
    index, weight = bucket_weights(xp.asarray([0.0, 0.125, 0.2, 1.0], dtype=xp.float32), 4)     # at 0, 0.5, 0.8, 4 buckets
    np.testing.assert_array_equal(index, [[3, 3, 3, 3], [0, 0, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_allclose(weight, [[0.5, 0, 0, 0.5], [0.5, 1, 0.7, 0.5], [0, 0, 0.3, 0]], atol=1e-6)


@pytest.mark.parametrize("buckets", [1, 2, 3, 6])
def test_bucket_weights_sum_to_one_and_meet_at_the_seam(buckets):
    index, weight = bucket_weights(np.linspace(0, 1, 57, dtype=np.float32), buckets)
    np.testing.assert_allclose(weight.sum(axis=0), 1, atol=1e-6)
    assert index.min() >= 0 and index.max() < buckets
    share = np.zeros((57, buckets))
    for i, w in zip(index, weight, strict=True):
        np.add.at(share, (np.arange(57), i), w)
    np.testing.assert_allclose(share[0], share[-1], atol=1e-6)


def slow_refinement(contours, sampling, field, iterations):
    """One point at a time."""
    height, width, channels = field.shape
    results, points = [], contours.copy()
    for _ in range(iterations):
        for n, t in np.ndindex(points.shape[:2]):
            y = int(np.clip(np.round(points[n, t, 0]), 0, height - 1))
            x = int(np.clip(np.round(points[n, t, 1]), 0, width - 1))
            at = np.broadcast_to(sampling, points.shape[:2])[n, t] * (channels // 2)
            step = np.zeros(2)
            for k in range(-1, channels // 2 + 1):    # a bucket acts with its copies one turn before and after
                step += max(0, 1 - abs(k + 0.5 - at)) * field[y, x].reshape(-1, 2)[k % (channels // 2)]
            points[n, t] = (y, x) + step
        results.append(points.copy())
    return np.stack(results)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("buckets", [1, 2, 3, 6])
@pytest.mark.parametrize("shared", [True, False])
def test_refinement_equals_a_loop(xp, buckets, shared):
    rng = np.random.default_rng(buckets)
    contours = rng.uniform(-4, 24, (5, 7, 2)).astype(np.float32)
    sampling = np.sort(rng.uniform(0, 1, (7,) if shared else (5, 7))).astype(np.float32)
    field = rng.uniform(-3, 3, (17, 21, 2 * buckets)).astype(np.float32)
    result = refine_contours(xp.asarray(contours), xp.asarray(sampling), xp.asarray(field), iterations=3)
    assert isinstance(result, np.ndarray) == (xp is np)
    np.testing.assert_allclose(result, slow_refinement(contours, sampling, field, 3), atol=1e-5)


def test_halves_round_to_the_even_pixel_and_points_stay_inside():
    field = np.zeros((4, 6, 2), np.float32)
    points = np.array([[[0.5, 1.5], [-3, 9], [2.5, 2.5]]], np.float32)
    np.testing.assert_array_equal(refine_contours(points, np.zeros(3, np.float32), field, iterations=1)[0],
                                  [[[0, 2], [0, 5], [2, 2]]])


def test_only_the_last_displacement_has_a_gradient():
    field = jnp.zeros((8, 8, 2)).at[2, 2].set(jnp.array([3.0, 0.0]))          # leads from (2, 2) to (5, 2)
    points, sampling = jnp.full((1, 1, 2), 2.0), jnp.zeros(1)

    def total(points, field):
        return refine_contours(points, sampling, field, iterations=2)[-1].sum()

    by_points, by_field = jax.grad(total, argnums=(0, 1))(points, field)
    assert not by_points.any()
    np.testing.assert_array_equal(np.argwhere(by_field), [(5, 2, 0), (5, 2, 1)])


@pytest.mark.parametrize("xp", [np, jnp])
def test_clipping(xp):
    points = xp.asarray([[-1.0, 3.0], [2.0, 9.0], [7.0, -2.0]])
    np.testing.assert_array_equal(clip_contours(points, (5, 7)), [[0, 3], [2, 6], [4, 0]])


def test_no_iteration_is_an_error():
    with pytest.raises(ValueError, match="iterations is 0"):
        refine_contours(np.zeros((1, 1, 2)), np.zeros(1), np.zeros((4, 4, 2)), iterations=0)
