"""Elliptic Fourier series: shapes with known series, and the same numbers from numpy and jax."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.geometry.fourier import (
    absolute_locations,
    contours_from_fourier,
    fit_fourier,
    order_weights,
    scale_contours,
    scale_fourier,
    uniform_sampling,
)


def polygon(points: int, *, centre: tuple[float, float] = (30.0, 50.0), radii: tuple[float, float] = (8.0, 8.0)) -> np.ndarray:
    angle = 2 * np.pi * np.arange(points) / points
    return np.stack([centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], axis=1)


def test_a_circle_is_one_harmonic():
    fourier, location = fit_fourier(polygon(400), 5, closed=True)
    np.testing.assert_allclose(location, (30, 50), atol=1e-3)
    np.testing.assert_allclose(fourier[0], (8, 0, 0, 8), atol=2e-3)      # y = 8 cos, x = 8 sin
    np.testing.assert_allclose(fourier[1:], 0, atol=1e-3)


def test_the_released_fit_leaves_the_last_segment_out():
    square = np.array([[0, 0], [0, 4], [4, 4], [4, 0]])
    _, closed = fit_fourier(square, 3, closed=True)
    _, open_ = fit_fourier(square, 3, closed=False)
    np.testing.assert_allclose(closed, (2, 2), atol=1e-5)
    np.testing.assert_allclose(open_, (2, 8 / 3), atol=1e-5)    # mean of three sides: rows 0, 0..4, 4; columns 0..4, 4, 4..0


@pytest.mark.parametrize("closed", [False, True])
def test_fit_properties(closed):
    outline = np.random.default_rng(0).integers(0, 40, (30, 2))
    fourier, location = fit_fourier(outline, 9, closed=closed)
    np.testing.assert_array_equal(fit_fourier(outline, 4, closed=closed)[0], fourier[:4])
    moved, moved_location = fit_fourier(outline + [7, -3], 9, closed=closed)
    np.testing.assert_allclose(moved, fourier, atol=1e-5)
    np.testing.assert_allclose(moved_location, location + [7, -3], atol=1e-4)
    mirrored, mirrored_location = fit_fourier(outline[:, ::-1], 9, closed=closed)
    np.testing.assert_allclose(mirrored, fourier[:, [2, 3, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(mirrored_location, location[::-1], atol=1e-5)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("outline", [[[3, 5]], [[3, 5], [3, 5]]])
def test_a_single_pixel_is_its_location(outline, closed):
    fourier, location = fit_fourier(np.array(outline), 4, closed=closed)
    assert not fourier.any()
    np.testing.assert_array_equal(location, (3, 5))


def test_a_high_order_returns_the_outline():
    outline = polygon(600, radii=(12.0, 5.0))
    fourier, location = fit_fourier(outline, 20, closed=True)
    points = contours_from_fourier(fourier, location, uniform_sampling(600))
    distance = np.linalg.norm(points[:, None] - outline[None], axis=-1)
    assert distance.min(axis=1).max() < 0.1 and distance.min(axis=0).max() < 0.1


def test_fit_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"\(0, 2\)"):
        fit_fourier(np.zeros((0, 2)), 3, closed=True)
    with pytest.raises(ValueError, match="order is 0"):
        fit_fourier(np.zeros((4, 2)), 0, closed=True)


def test_sampling_by_hand():
    fourier = np.array([[1, 0, 0, 2]], np.float32)                        # y = 1 cos, x = 2 sin
    points = contours_from_fourier(fourier, np.array([10, 20], np.float32), np.array([0, 0.25, 0.5, 1], np.float32))
    np.testing.assert_allclose(points, [[11, 20], [10, 22], [9, 20], [11, 20]], atol=1e-5)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("shared", [True, False])
def test_contours_are_the_sum_of_their_harmonics(xp, shared):
    rng = np.random.default_rng(1)
    fourier = rng.normal(size=(2, 3, 6, 4)).astype(np.float32)
    locations = rng.uniform(0, 60, (2, 3, 2)).astype(np.float32)
    sampling = np.sort(rng.uniform(0, 1, (9,) if shared else (2, 3, 9))).astype(np.float32)
    result = contours_from_fourier(xp.asarray(fourier), xp.asarray(locations), xp.asarray(sampling))
    angle = 2 * np.pi * np.arange(1, 7) * np.broadcast_to(sampling, (2, 3, 9)).astype(np.float64)[..., None]    # [2, 3, 9, 6]
    c, s = np.cos(angle), np.sin(angle)
    y = (fourier[..., None, :, 0] * c + fourier[..., None, :, 1] * s).sum(-1)
    x = (fourier[..., None, :, 2] * c + fourier[..., None, :, 3] * s).sum(-1)
    np.testing.assert_allclose(result, np.stack([y, x], -1) + locations[..., None, :], atol=2e-5)
    assert np.asarray(result).dtype == np.float32 and isinstance(result, np.ndarray) == (xp is np)


@pytest.mark.parametrize("xp", [np, jnp])
def test_scaling_commutes_with_sampling(xp):
    rng = np.random.default_rng(2)
    fourier = xp.asarray(rng.normal(size=(5, 3, 4)), dtype=xp.float32)
    locations = xp.asarray(rng.normal(size=(5, 2)), dtype=xp.float32)
    scale, sampling = (4.0, 2.0), uniform_sampling(11)
    grid = contours_from_fourier(fourier, locations, sampling)
    image = contours_from_fourier(scale_fourier(fourier, scale), scale_contours(locations, scale), sampling)
    np.testing.assert_allclose(scale_contours(grid, scale), image, atol=1e-5)
    np.testing.assert_allclose(scale_contours(grid, scale)[..., 0], grid[..., 0] * 4, rtol=1e-6)


@pytest.mark.parametrize("xp", [np, jnp])
def test_absolute_locations_add_the_pixel_index(xp):
    offsets = xp.full((2, 3, 4, 2), 0.5, dtype=xp.float32)
    result = absolute_locations(offsets)
    assert result.shape == offsets.shape
    np.testing.assert_array_equal(result[1, 2, 3], (2.5, 3.5))
    np.testing.assert_array_equal(result[0, 0, 1], (0.5, 1.5))


def test_order_weights_fall_quadratically():
    np.testing.assert_allclose(order_weights(5), (5, 3.25, 2, 1.25, 1))
    np.testing.assert_allclose(order_weights(1), (5,))


def test_uniform_sampling_includes_both_ends():
    np.testing.assert_allclose(uniform_sampling(5), (0, 0.25, 0.5, 0.75, 1))
