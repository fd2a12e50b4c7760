"""Boxes: overlaps counted by hand, on numpy and jax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.geometry.boxes import box_area, boxes_from_contours, paired_giou, paired_iou, pairwise_iou, valid_boxes

A = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 1, 1]], np.float32)
B = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [3, 0, 5, 2], [0, 2, 2, 4], [1, 1, 1, 1]], np.float32)


@pytest.mark.parametrize("xp", [np, jnp])
def test_overlaps_by_hand(xp):
    a, b = xp.asarray(A), xp.asarray(B)
    np.testing.assert_allclose(paired_iou(a, b), (1 / 7, 1, 0, 0, 0), atol=1e-6)
    np.testing.assert_allclose(paired_giou(a, b), (1 / 7 - 2 / 9, 1, -2 / 10, 0, 0), atol=1e-6)
    np.testing.assert_allclose(pairwise_iou(a, b), [[paired_iou(x, y) for y in b] for x in a], atol=1e-6)
    np.testing.assert_array_equal(box_area(b), (4, 4, 4, 4, 0))
    np.testing.assert_array_equal(valid_boxes(xp.asarray([[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 0, 0.9, 1]]), min_size=1.0),
                                  (True, False, False))


@pytest.mark.parametrize("xp", [np, jnp])
def test_boxes_are_the_extremes_of_contours(xp):
    contours = xp.asarray([[[3.0, 5.0], [1.0, 9.0], [2.0, 4.0]]])
    np.testing.assert_array_equal(boxes_from_contours(contours), [(1, 4, 3, 9)])


def test_a_side_has_the_gradient_of_one_point():
    """Also where several are as far out: shared among them (as `min` does) it would rest on finding them again."""
    contours = jnp.asarray([[1.0, 5.0], [1.0, 9.0], [2.0, 9.0]])
    sides = jax.jacobian(boxes_from_contours)(contours)
    np.testing.assert_array_equal(jnp.abs(sides).sum(axis=(1, 2)), (1, 1, 1, 1))
    np.testing.assert_array_equal(sides.max(axis=(1, 2)), (1, 1, 1, 1))


def test_overlaps_do_not_depend_on_side_order_or_place():
    rng = np.random.default_rng(0)
    low, size = rng.uniform(0, 20, (2, 50, 2)), rng.uniform(1, 15, (2, 50, 2))
    a, b = (np.concatenate([low[i], low[i] + size[i]], axis=1) for i in range(2))
    flip = [1, 0, 3, 2]
    for overlap in (paired_iou, paired_giou):
        np.testing.assert_allclose(overlap(a, b), overlap(b, a))
        np.testing.assert_allclose(overlap(a, b), overlap(a[:, flip], b[:, flip]))
        np.testing.assert_allclose(overlap(a, b), overlap(-a[:, [2, 3, 0, 1]], -b[:, [2, 3, 0, 1]]))
        np.testing.assert_allclose(overlap(a, b), overlap(a + 100, b + 100), atol=1e-12)
    assert (paired_giou(a, b) <= paired_iou(a, b)).all()


@pytest.mark.parametrize("overlap", [paired_iou, paired_giou])
def test_empty_boxes_have_a_finite_gradient(overlap):
    for argument in (0, 1):
        gradient = jax.grad(lambda *boxes: overlap(*boxes).sum(), argnums=argument)(jnp.asarray(A), jnp.asarray(B))
        assert np.isfinite(gradient).all()
