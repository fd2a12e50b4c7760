"""Losses of matched masks by hand: pairs, counts, ignored pixels; and over several devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.losses.instances import (
    OBJECTNESS_ERRORS,
    found_queries,
    instance_losses,
    mask_dice,
    mask_iou,
    of_cells,
    resize_masks,
)
from jaxcell.losses.pixels import binary_focal
from jaxcell.training.mesh import make_mesh, shard_batch


def random_batch(images=4, queries=6, cells=3, side=8):
    rng = np.random.default_rng(0)
    present = np.arange(cells) < rng.integers(0, cells + 1, (images, 1))
    target = (rng.random((images, cells, side, side)) < 0.3) * present[:, :, None, None]
    matched = np.where(present, np.argsort(rng.random((images, queries)))[:, :cells], -1)
    return {"scores": rng.standard_normal((images, queries)), "masks": rng.standard_normal((images, queries, side, side)),
            "objectness": rng.standard_normal((images, queries)), "target": target.astype(np.float64), "present": present,
            "annotated": (rng.random((images, side, side)) < 0.8).astype(np.float64), "queries": matched}


def as_float32(batch):
    return {k: v.astype({"f": np.float32, "i": np.int32, "b": bool}[v.dtype.kind]) for k, v in batch.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_loops(b):
    """All terms, pair by pair."""
    bce, dice, iou_error, cells, pixels = 0.0, 0.0, [], 0, 0
    focal = 0.0
    for i in range(len(b["scores"])):
        p = sigmoid(b["scores"][i])
        for n in range(len(p)):
            yes = n in b["queries"][i][b["present"][i]]
            focal += -0.25 * (1 - p[n]) ** 2 * np.log(p[n]) if yes else -0.75 * p[n] ** 2 * np.log(1 - p[n])
        for m in np.flatnonzero(b["present"][i]):
            where = b["annotated"][i] > 0
            logit, y = b["masks"][i, b["queries"][i, m]][where], b["target"][i, m][where]
            q = sigmoid(logit)
            bce += -(y * np.log(q) + (1 - y) * np.log(1 - q)).sum()
            dice += 1 - 2 * (q * y).sum() / ((q**2).sum() + (y**2).sum() + 1e-4)
            iou = ((q >= 0.4) & (y > 0.5)).sum() / (((q >= 0.4) | (y > 0.5)).sum() + 1e-6)
            iou_error.append((sigmoid(b["objectness"][i, b["queries"][i, m]]) - iou) ** 2)
            cells, pixels = cells + 1, pixels + where.sum()
    return {"scores": focal / cells, "masks": bce / pixels, "dice": dice / cells, "objectness": np.mean(iou_error)}


def test_terms_pair_by_pair():
    batch = random_batch()
    found = instance_losses(**as_float32(batch), objectness_error=OBJECTNESS_ERRORS["squared"])
    for name, value in by_loops(batch).items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)


def test_ignored_pixels_have_no_gradient_and_unmatched_masks_neither():
    batch = as_float32(random_batch())

    def loss(masks):
        terms = instance_losses(**batch | {"masks": masks})
        return terms["masks"] + terms["dice"] + terms["objectness"]

    gradient = np.asarray(jax.grad(loss)(batch["masks"]))
    assert not gradient[np.broadcast_to(batch["annotated"][:, None] == 0, gradient.shape)].any()
    matched = np.asarray(found_queries(batch["queries"], 6)) > 0
    assert not gradient[~matched].any() and (np.abs(gradient[matched]).max((1, 2)) > 0).all()


def test_batch_without_cells_asks_only_for_no_confidence():
    batch = as_float32(random_batch())
    batch |= {"present": np.zeros_like(batch["present"]), "queries": np.full_like(batch["queries"], -1)}
    terms = instance_losses(**batch)
    assert terms["scores"] > 0 and terms["masks"] == terms["dice"] == terms["objectness"] == 0


def test_without_objectness_there_is_no_such_term():
    batch = as_float32(random_batch()) | {"objectness": None}
    assert set(instance_losses(**batch)) == {"scores", "masks", "dice"}


def test_four_devices_sum_up_what_one_does():
    batch = as_float32(random_batch())
    results = [jax.jit(lambda b: instance_losses(**b))(shard_batch(batch, make_mesh(jax.devices()[:n]))) for n in (1, 4)]
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=1e-6)


def test_queries_of_cells():
    values = np.arange(8.0).reshape(1, 4, 2)
    np.testing.assert_array_equal(of_cells(jnp.asarray(values), jnp.asarray([[2, 0]])), [[[4, 5], [0, 1]]])
    np.testing.assert_array_equal(found_queries(jnp.asarray([[2, -1, 0]]), 4), [[1, 0, 1, 0]])


def test_perfect_masks_cost_nothing_and_have_iou_1():
    masks = np.zeros((1, 2, 6, 6), np.float32)
    masks[0, 0, :3], masks[0, 1, 2:, 2:] = 1, 1
    ones = np.ones((1, 6, 6), np.float32)
    np.testing.assert_allclose(mask_dice(60 * masks - 30, masks, ones), 0, atol=1e-4)
    np.testing.assert_allclose(mask_iou(60 * masks - 30, masks, ones), 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (2, 8), (8, 8), (16, 12)])
def test_masks_resized_between_pixel_centres(shape):
    masks = np.random.default_rng(0).random((1, 1, 8, 8)).astype(np.float32)
    at = [np.clip((np.arange(n) + 0.5) * 8 / n - 0.5, 0, 7) for n in shape]
    low = [np.floor(a).astype(int) for a in at]
    high, part = [np.minimum(x + 1, 7) for x in low], [a - x for a, x in zip(at, low, strict=True)]
    rows = masks[0, 0, low[0]] * (1 - part[0])[:, None] + masks[0, 0, high[0]] * part[0][:, None]
    expected = rows[:, low[1]] * (1 - part[1]) + rows[:, high[1]] * part[1]
    np.testing.assert_allclose(resize_masks(masks, shape)[0, 0], expected, atol=1e-6)


def test_binary_focal_by_hand_and_at_extremes():
    p = 0.3
    logit = np.float32(np.log(p / (1 - p)))
    yes, no = 0.25 * 0.7**2 * -np.log(0.3), 0.75 * 0.3**2 * -np.log(0.7)
    np.testing.assert_allclose(binary_focal(logit, np.float32(1)), yes, rtol=1e-5)
    np.testing.assert_allclose(binary_focal(logit, np.float32(0)), no, rtol=1e-5)
    np.testing.assert_allclose(binary_focal(logit, np.float32(0.4)), 0.4 * yes + 0.6 * no, rtol=1e-5)
    gradients = jax.vmap(jax.grad(binary_focal))(np.float32([-200, 200, 0]), np.float32([1, 0, 1]))
    assert np.isfinite(gradients).all()
    with pytest.raises(AssertionError):
        binary_focal(np.zeros((2, 1)), np.zeros(2))
