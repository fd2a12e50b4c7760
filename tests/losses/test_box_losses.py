"""Losses of boxes by hand, their gradients, and empty boxes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxcell.losses.boxes import IOU_LOSSES, iou_loss, power_likelihood_loss

BOXES = jnp.array([[0.0, 0, 2, 2], [4, 1, 9, 8]])
TARGETS = jnp.array([[1.0, 1, 3, 3], [4, 1, 9, 8]])      # IoU 1/7 and 1, GIoU 1/7 - 2/9 and 1


@pytest.mark.parametrize(("kind", "expected"), [
    ("iou", (6 / 7, 0)), ("giou", (1 - 1 / 7 + 2 / 9, 0)),
    ("log-iou", (-np.log(1 / 7), 0)), ("log-giou", (-np.log((1 + 1 / 7 - 2 / 9) / 2), 0))])
def test_iou_losses_by_hand(kind, expected):
    np.testing.assert_allclose(iou_loss(BOXES, TARGETS, kind=kind), expected, atol=1e-6)


@pytest.mark.parametrize("kind", IOU_LOSSES)
def test_iou_losses_have_right_and_finite_gradients(kind):
    boxes = jnp.array([[0.3, 0.2, 4.1, 5.2], [2.2, 1.1, 9.5, 6.4]])
    targets = jnp.array([[1.3, 0.9, 5.5, 4.4], [1.5, 3.0, 8.1, 9.9]])
    check_grads(lambda b: iou_loss(b, targets, kind=kind), (boxes,), order=1, modes=["rev"], eps=1e-2, atol=1e-2, rtol=2e-2)
    empty = jnp.array([[3.0, 3, 3, 3], [0, 0, 0, 5], [50, 50, 50, 50]])
    for other in (jnp.ones((3, 4)) * jnp.array([2.0, 2, 6, 6]), empty):
        value, gradient = jax.value_and_grad(lambda b, other=other: iou_loss(b, other, kind=kind).sum())(empty)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_npll_by_hand():
    """First pair: every boundary is off by 1, width 3.5 at logit 0; second pair: exact boxes."""
    logits = jnp.zeros((2, 4))
    variance, constant = 3.5**2, 2 * np.log(2 * np.pi)
    expected = ((4 * (1 / (2 * variance) + np.log(variance) / 2) + constant) / 7, 4 * np.log(variance) / 2 + constant)
    np.testing.assert_allclose(power_likelihood_loss(logits, BOXES, TARGETS, factor=7.0), expected, rtol=1e-5)


def test_npll_pairs_each_boundary_with_its_own_width():
    boxes, targets = jnp.array([[0.0, 0, 10, 10]]), jnp.array([[3.0, 0, 10, 10]])          # only the top is off
    gradient = jax.grad(lambda u: power_likelihood_loss(u, boxes, targets).sum())(jnp.full((1, 4), -1.0))
    assert gradient[0, 0] < 0 and (gradient[0, 1:] > 0).all()        # more uncertainty there, less elsewhere


def test_npll_gradients():
    logits = jnp.array([[0.3, -1.0, 0.8, 0.1], [-0.4, 0.2, 0.9, -0.7]])
    boxes = jnp.array([[0.3, 0.2, 4.1, 5.2], [4.2, 1.1, 9.5, 8.4]])
    check_grads(lambda u: power_likelihood_loss(u, boxes, TARGETS), (logits,), order=1, modes=["rev"],
                eps=1e-2, atol=1e-2, rtol=1e-2)
    extreme = jnp.array([[-80.0, 80, -80, 80], [0, -200, 200, 0]])
    assert np.isfinite(jax.grad(lambda u: power_likelihood_loss(u, boxes, TARGETS).sum())(extreme)).all()


def test_errors():
    with pytest.raises(ValueError, match="'diou'.*giou"):
        iou_loss(BOXES, TARGETS, kind="diou")
    with pytest.raises(AssertionError):
        iou_loss(BOXES, TARGETS[:1])
    with pytest.raises(AssertionError):
        power_likelihood_loss(jnp.zeros((2, 1)), BOXES, TARGETS)
