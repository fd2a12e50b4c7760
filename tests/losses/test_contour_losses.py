"""The contour objective: one cell by hand, then the properties that every batch must have."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcell.geometry.fourier import contours_from_fourier
from jaxcell.geometry.refinement import clip_contours, refine_contours
from jaxcell.losses.contours import (
    CHALLENGE_WEIGHTS,
    PACKAGE_WEIGHTS,
    TERMS,
    TeacherThresholds,
    contour_objective,
    propose,
    supervise,
    teacher_agreement,
)

EVEN = dict.fromkeys(TERMS, 1.0)
objective = jax.jit(contour_objective)


def one_cell(shift: float = 0.0):
    """A circle of radius 4 around (8, 8) in 16 x 16 pixels, stride 2, proposed by grid pixel (4, 4), `shift` pixels too low."""
    sampling = np.array([[0.0, 0.25, 0.5, 0.75]], np.float32)
    circle = np.array([[[4.0, 0, 0, 4]]], np.float32)
    labels = np.zeros((1, 8, 8), np.int32)
    labels[0, 4, 4] = 1
    labels[0, 4, 5] = -1
    batch = {"labels": labels, "foreground": np.array([[36, -1, -1]], np.int32), "fourier": circle[None, 0:1],
             "locations": np.array([[[8.0, 8.0]]], np.float32), "sampling": sampling, "iterations": np.array([2], np.int32),
             "contours": np.array([[[[12, 8], [8, 12], [4, 8], [8, 4]]]], np.float32)}
    outputs = {"scores": np.zeros((1, 8, 8, 1)), "locations": np.zeros((1, 8, 8, 2)),
               "fourier": np.tile([2.0, 0, 0, 2.0], (1, 8, 8, 1)), "refinement": np.zeros((1, 16, 16, 6)),
               "uncertainty": np.zeros((1, 8, 8, 4))}
    outputs["locations"][..., 0] = shift / 2
    return jax.tree.map(jnp.asarray, ({k: v.astype(np.float32) for k, v in outputs.items()}, batch))


def random_case(seed=0, *, images=4, grid=(6, 9), stride=2, order=3, buckets=3, points=10, cells=5, slots=20, classes=1):
    rng = np.random.default_rng(seed)
    (h, w), (height, width) = grid, (grid[0] * stride, grid[1] * stride)
    labels = rng.integers(-1, cells + 1, (images, h, w)) * (rng.random((images, h, w)) < 0.6)
    foreground = np.full((images, slots), -1)
    for row, image in zip(foreground, labels, strict=True):
        found = rng.permutation(np.flatnonzero(image > 0))[:slots]
        row[:len(found)] = found
    outputs = {"scores": rng.normal(size=(images, h, w, classes)), "locations": rng.normal(size=(images, h, w, 2)),
               "fourier": rng.normal(size=(images, h, w, 4 * order)), "uncertainty": rng.normal(size=(images, h, w, 4)),
               "refinement": rng.uniform(-3, 3, (images, height, width, 2 * buckets))}
    batch = {"fourier": rng.normal(size=(images, cells, order, 4)),
             "locations": rng.uniform(0, height, (images, cells, 2)), "sampling": np.sort(rng.uniform(size=(images, points))),
             "teacher_scores": rng.uniform(0.7, 1, (images, cells)),
             "teacher_uncertainty": np.where(rng.random((images, cells, 4)) < 0.7, 0, rng.uniform(0, 0.6, (images, cells, 4))),
             "teacher_score_maps": rng.uniform(0, 0.3, (images, height, width, 1))}
    batch = {name: value.astype(np.float32) for name, value in batch.items()}
    batch["contours"] = np.stack([contours_from_fourier(f, l, s) for f, l, s in
                                  zip(batch["fourier"], batch["locations"], batch["sampling"], strict=True)])
    batch |= {"labels": labels.astype(np.int32), "foreground": foreground.astype(np.int32),
              "iterations": rng.integers(1, 5, images).astype(np.int32),
              "classes": rng.integers(1, max(classes, 2), (images, cells)).astype(np.int32)}
    return jax.tree.map(jnp.asarray, ({k: v.astype(np.float32) for k, v in outputs.items()}, batch))


def total(outputs, batch, **options):
    return jnp.stack(list(contour_objective(outputs, batch, **options).values())).sum()


# One cell, by hand

def test_a_perfect_proposal_costs_only_what_the_score_and_the_widths_cost():
    terms = jax.jit(partial(contour_objective, weights=EVEN))(*one_cell())
    log2 = np.log(2)
    np.testing.assert_allclose(terms.pop("scores"), log2 + 2 * log2, rtol=1e-6)
    np.testing.assert_allclose(terms.pop("uncertainty"), 4 * np.log(3.5) + 2 * np.log(2 * np.pi), rtol=1e-5)
    for name, value in terms.items():
        np.testing.assert_allclose(value, 0, atol=2e-6, err_msg=name)


def test_a_proposal_two_pixels_too_low():
    outputs, batch = one_cell(shift=2.0)
    outputs["scores"] = jnp.full_like(outputs["scores"], 0.5)
    terms = objective(outputs, batch)                                        # boxes 6..14 and 4..12: IoU = GIoU = 0.6
    variance = 3.5**2
    expected = {
        "scores": (np.log1p(np.exp(0.5)) - 0.5 * 0.6) + 2 * np.log1p(np.exp(0.5)), "fourier": 0, "locations": 1.0,
        "contours": 1.5 * 1.0, "refinement": 1.0, "boxes": 0.88 * 1.0, "iou": 0.4,
        "uncertainty": 0.6 * (2 * 4 / (2 * variance) + 2 * np.log(variance) + 2 * np.log(2 * np.pi))}
    assert set(terms) == set(CHALLENGE_WEIGHTS)
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5, atol=2e-6, err_msg=name)
    plain = contour_objective(outputs, batch, box_confidence=False)
    np.testing.assert_allclose(plain["scores"], np.log1p(np.exp(-0.5)) + 2 * np.log1p(np.exp(0.5)), rtol=1e-6)
    package = contour_objective(outputs, batch, weights=PACKAGE_WEIGHTS, refinement="sum", background_weight=1.0,
                                box_confidence=False)
    np.testing.assert_allclose(package["refinement"], 4.0, rtol=1e-5)               # a zero field: the same error four times
    assert "boxes" not in package and package["contours"] == pytest.approx(3.0)


def test_fourier_term_weighs_low_orders():
    outputs, batch = one_cell()
    outputs["fourier"] = jnp.concatenate([outputs["fourier"]] * 3, axis=-1)
    batch["fourier"] = jnp.concatenate([batch["fourier"] + d for d in (1.0, 2.0, 4.0)], axis=2)
    assert objective(outputs, batch)["fourier"] == pytest.approx((5 * 1 + 2 * 2 + 1 * 4) / 3)
    assert contour_objective(outputs, batch, order_weighting=False)["fourier"] == pytest.approx((1 + 2 + 4) / 3)


def test_a_box_too_small_for_an_iou():
    outputs, batch = one_cell()
    outputs["fourier"] = jnp.zeros_like(outputs["fourier"])
    terms, gradient = objective(outputs, batch), jax.jit(jax.grad(total))(outputs, batch)
    assert terms["iou"] == 0 and terms["uncertainty"] == 0
    outputs["scores"] = outputs["scores"].at[0, 4, 4, 0].set(3.0)
    raised = objective(outputs, batch)["scores"] - terms["scores"]                    # softplus(s) - 0.1 s
    assert raised == pytest.approx(np.log1p(np.exp(3)) - 0.3 - np.log(2), rel=1e-5)
    assert all(np.isfinite(g).all() for g in gradient.values())


def test_several_classes():
    outputs, batch = one_cell()
    outputs["scores"] = jnp.zeros((1, 8, 8, 3)).at[0, 4, 4].set(jnp.log(jnp.array([1.0, 2.0, 5.0])))
    batch["classes"] = jnp.array([[2]])
    terms = contour_objective(outputs, batch, box_confidence=False)
    np.testing.assert_allclose(terms["scores"], -np.log(5 / 8) + 2 * np.log(3), rtol=1e-6)
    with pytest.raises(ValueError, match="box_confidence with 3 score channels"):
        objective(outputs, batch)
    del batch["classes"]
    with pytest.raises(ValueError, match="no 'classes'"):
        contour_objective(outputs, batch, box_confidence=False)


# Properties

def test_jit_equals_eager():
    outputs, batch = random_case()
    eager, compiled = contour_objective(outputs, batch), objective(outputs, batch)
    for name in TERMS:
        np.testing.assert_allclose(compiled[name], eager[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("options", [
    {}, {"refinement": "sum", "weights": PACKAGE_WEIGHTS, "box_confidence": False}, {"iou_kind": "log-giou"},
    {"iou_kind": "log-iou"}, {"teacher": TeacherThresholds()}])
def test_terms_and_gradients_are_finite(options):
    def both(outputs, batch):
        terms = contour_objective(outputs, batch, **options)
        return jnp.stack(list(terms.values())).sum(), terms

    step = jax.jit(jax.grad(both, has_aux=True))
    outputs, batch = random_case()
    nobody = batch | {"foreground": jnp.full_like(batch["foreground"], -1)}
    empty = nobody | {"labels": jnp.zeros_like(batch["labels"])}
    ignored = nobody | {"labels": jnp.full_like(batch["labels"], -1)}
    for case in (batch, empty, ignored):
        gradient, terms = step(outputs, case)
        assert all(np.isfinite(value) for value in terms.values())
        assert all(np.isfinite(value).all() for value in gradient.values())
        if case is batch:
            assert all(np.abs(gradient[name]).max() > 0 for name in outputs if name != "uncertainty" or name in terms)
        else:
            assert all(value == 0 for name, value in terms.items() if name != "scores")
            assert (terms["scores"] > 0) == (case is empty)


@pytest.mark.parametrize(("output", "term"), [
    ("scores", "scores"), ("uncertainty", "uncertainty"), ("refinement", "refinement"), ("refinement", "iou"),
    ("fourier", "contours"), ("locations", "locations")])
def test_gradients_against_finite_differences(output, term):
    """The slope along the gradient is its length; one iteration, as rounding makes steps from one to the next."""
    outputs, batch = random_case()
    batch["iterations"] = jnp.ones_like(batch["iterations"])

    def value(maps):
        return contour_objective(outputs | {output: maps}, batch, weights={term: 1.0}, box_confidence=False)[term]

    value = jax.jit(value)
    gradient = jax.grad(value)(outputs[output])
    length = jnp.sqrt((gradient**2).sum())
    step = 3e-2 * gradient / length
    slope = (value(outputs[output] + step) - value(outputs[output] - step)) / 6e-2
    assert length > 1e-3
    np.testing.assert_allclose(slope, length, rtol=2e-2)


def test_order_of_cells_and_slots_is_immaterial():
    outputs, batch = random_case()
    rng = np.random.default_rng(5)
    rows, slots = rng.permutation(batch["locations"].shape[1]), rng.permutation(batch["foreground"].shape[1])
    place = np.argsort(rows)
    other = batch | {name: batch[name][:, rows] for name in ("fourier", "locations", "contours")}
    other["labels"] = jnp.where(batch["labels"] > 0, place[jnp.maximum(batch["labels"] - 1, 0)] + 1, batch["labels"])
    other["foreground"] = batch["foreground"][:, slots]
    expected, terms = objective(outputs, batch), objective(outputs, other)
    for name in TERMS:
        np.testing.assert_allclose(terms[name], expected[name], rtol=1e-5, err_msg=name)


def test_transposing_the_image_is_immaterial():
    outputs, batch = random_case()
    h, w = batch["labels"].shape[1:]

    def turn(maps, *, groups):
        """Transposes the maps and reorders each group of channels."""
        grouped = jnp.swapaxes(maps, 1, 2).reshape(maps.shape[0], maps.shape[2], maps.shape[1], -1, len(groups))
        return grouped[..., jnp.array(groups)].reshape(*grouped.shape[:3], -1)

    groups = {"scores": [0], "locations": [1, 0], "fourier": [2, 3, 0, 1], "uncertainty": [1, 0, 3, 2], "refinement": [1, 0]}
    turned = {name: turn(value, groups=groups[name]) for name, value in outputs.items()}
    index = batch["foreground"]
    other = batch | {"labels": jnp.swapaxes(batch["labels"], 1, 2), "locations": batch["locations"][..., ::-1],
                     "contours": batch["contours"][..., ::-1], "fourier": batch["fourier"][..., jnp.array([2, 3, 0, 1])],
                     "foreground": jnp.where(index < 0, -1, index % w * h + index // w)}
    expected, terms = objective(outputs, batch), objective(turned, other)
    for name in TERMS:
        np.testing.assert_allclose(terms[name], expected[name], rtol=1e-5, err_msg=name)


def test_means_are_over_the_pixels_of_the_whole_batch():
    outputs, batch = random_case(images=3)
    weights = {name: 1.0 for name in TERMS if name != "scores"}
    counts = np.asarray((batch["foreground"] >= 0).sum(axis=1))
    step = jax.jit(partial(contour_objective, weights=weights))
    each = [step(*jax.tree.map(lambda x, i=i: x[i:i + 1], (outputs, batch))) for i in range(3)]
    together = step(outputs, batch)
    for name in ("fourier", "locations", "contours", "refinement", "boxes"):
        pooled = sum(count * terms[name] for count, terms in zip(counts, each, strict=True)) / counts.sum()
        np.testing.assert_allclose(together[name], pooled, rtol=1e-5)


def test_a_batch_over_four_devices_gives_the_same_without_moving_arrays():
    if len(jax.devices()) < 4:
        pytest.skip("needs four devices")
    outputs, batch = random_case(images=4)
    step = jax.jit(jax.value_and_grad(total))
    expected, expected_gradient = step(outputs, batch)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    spread = jax.device_put((outputs, batch), NamedSharding(mesh, PartitionSpec("data")))
    compiled = step.lower(*spread).compile()
    value, gradient = compiled(*spread)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name in outputs:
        np.testing.assert_allclose(gradient[name], expected_gradient[name], atol=1e-6)
    assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()


@pytest.mark.parametrize("count", [1, 3, 4])
def test_each_image_is_refined_as_often_as_drawn(count):
    outputs, batch = random_case()
    batch["iterations"] = batch["iterations"].at[1].set(count)
    found = propose(outputs, batch)
    series = refine_contours(found.contours[1], batch["sampling"][1], outputs["refinement"][1], iterations=count)
    np.testing.assert_allclose(found.refined[0, 1], clip_contours(series[-1], outputs["refinement"].shape[1:3]), atol=1e-5)
    every = propose(outputs, batch, refinement="sum", refinement_iterations=4)
    assert every.refined.shape[0] == 4
    np.testing.assert_allclose(every.refined[count - 1, 1], found.refined[0, 1], atol=1e-5)


def test_a_random_subset_of_the_foreground_is_enough():
    """Slots decide what is supervised; the background is all pixels with label 0, in either case."""
    outputs, batch = random_case()
    fewer = batch | {"foreground": batch["foreground"].at[:, 1:].set(-1)}
    found = supervise(propose(outputs, fewer), fewer)
    assert found.scores.sum() == 4 and found.background.sum() == (batch["labels"] == 0).sum()


def test_half_precision_outputs_are_computed_in_single():
    outputs, batch = random_case()
    half = {name: value.astype(jnp.bfloat16) for name, value in outputs.items()}
    expected = objective({name: value.astype(jnp.float32) for name, value in half.items()}, batch)
    for name, value in objective(half, batch).items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected[name], rtol=1e-6)


def test_what_is_not_finite_is_not_hidden():
    outputs, batch = one_cell()
    outputs["fourier"] = outputs["fourier"].at[0, 4, 4, 0].set(jnp.nan)
    assert not np.isfinite(objective(outputs, batch)["fourier"])
    outputs, batch = one_cell()
    outputs["fourier"] = outputs["fourier"].at[0, 0, 0, 0].set(jnp.nan)               # not supervised
    assert np.isfinite(total(outputs, batch))


# Teacher

def test_a_student_listens_where_the_teacher_is_more_certain():
    logit = lambda p: jnp.log(p / (1 - p))     # noqa: E731
    student = logit(jnp.array([0.7, 0.7, 0.45, 0.2]))
    teacher = jnp.array([0.5, 0.65, 0.1, 0.0])
    keep = teacher_agreement(student, teacher, thresholds=TeacherThresholds())
    np.testing.assert_array_equal(keep, (True, False, False, True))   # margin met; margin missed; student certain; annotated
    paper = teacher_agreement(student, teacher, thresholds=TeacherThresholds(certain=-1.0))
    np.testing.assert_array_equal(paper, (True, False, False, False))
    np.testing.assert_array_equal(teacher_agreement(None, teacher, thresholds=TeacherThresholds()), (True,) * 4)


def test_annotations_are_a_certain_teacher():
    outputs, batch = random_case()
    batch |= {"teacher_scores": jnp.ones_like(batch["teacher_scores"]),
              "teacher_uncertainty": jnp.zeros_like(batch["teacher_uncertainty"]),
              "teacher_score_maps": jnp.zeros_like(batch["teacher_score_maps"])}
    expected, terms = objective(outputs, batch), contour_objective(outputs, batch, teacher=TeacherThresholds())
    for name in TERMS:
        np.testing.assert_allclose(terms[name], expected[name], rtol=1e-6)


def test_what_the_teacher_masks():
    outputs, batch = random_case()
    found = propose(outputs, batch)
    learn = supervise(found, batch, teacher=TeacherThresholds())
    valid, cells = np.asarray(found.valid), np.asarray(found.cells)
    scores = np.take_along_axis(np.asarray(batch["teacher_scores"]), cells, axis=1)
    np.testing.assert_array_equal(learn.scores, valid & (scores >= 0.9))
    grid = np.asarray(batch["teacher_score_maps"])[:, ::2, ::2, 0]
    np.testing.assert_array_equal(learn.background, (np.asarray(batch["labels"]) == 0) & (grid <= 0.1))
    np.testing.assert_array_equal(learn.contours, np.asarray(learn.boundaries).all(axis=-1))
    for mask in (learn.scores, learn.background, learn.boundaries, learn.contours):
        assert 0 < mask.sum() < mask.size


# Errors

def test_errors_name_the_remedy():
    outputs, batch = one_cell()
    with pytest.raises(ValueError, match="score.*scores, fourier"):
        contour_objective(outputs, batch, weights={"score": 1.0})
    without = {name: value for name, value in outputs.items() if name != "uncertainty"}
    with pytest.raises(ValueError, match="Build it with one"):
        contour_objective(without, batch)
    assert "uncertainty" not in contour_objective(without, batch, weights=PACKAGE_WEIGHTS)
    with pytest.raises(ValueError, match="teacher_scores"):
        contour_objective(outputs, batch, teacher=TeacherThresholds())
    with pytest.raises(ValueError, match="'mean'"):
        contour_objective(outputs, batch, refinement="mean")
