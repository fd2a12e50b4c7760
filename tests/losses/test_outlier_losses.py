"""Virtual outliers, Dice and the weightings: by hand, against brute force, and at the sizes that the authors ran."""

from __future__ import annotations

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.losses.dice import squared_dice
from jaxcell.losses.outliers import (
    PLACEMENTS,
    batch_gaussian,
    batch_synthesis,
    class_gaussians,
    class_synthesis,
    enqueue,
    into_memory,
    into_pixels,
    least_likely,
    log_density,
    new_queues,
)
from jaxcell.losses.weighting import WEIGHTINGS, min_norm_weights, total_loss
from jaxcell.models.backend import compiler_options


@pytest.fixture
def logits():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 6, 3)), jnp.float32)


@pytest.fixture
def classes():
    return jnp.asarray(np.random.default_rng(1).integers(-1, 3, (2, 8, 6)), jnp.int32)


# ---------------------------------------------------------------- Dice
def test_dice_by_hand():
    probabilities = jnp.asarray([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]])
    target = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])      # (the last pixel is ignored)
    found = squared_dice(probabilities, target, smooth=0.1)
    np.testing.assert_allclose(found, [1 - (2 * 1.5 + 0.1) / (1.25 + 2 + 0.1), 1 - 0.1 / (0.25 + 0.1)], rtol=1e-6)
    with pytest.raises(AssertionError):
        squared_dice(probabilities, target[:2])


# ---------------------------------------------------------------- Gaussians
def test_gaussian_of_a_batch_leaves_ignored_pixels_out(logits, classes):
    valid = (classes >= 0).astype(jnp.float32)
    mean, covariance = batch_gaussian(logits, valid, ridge=0.01)
    rows = np.asarray(logits)[np.asarray(classes) >= 0]
    np.testing.assert_allclose(mean, rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(rows.T) + 0.01 * np.eye(3), atol=1e-5)


def test_gaussian_of_the_authors_batch_counts_every_pixel():
    image = np.random.default_rng(0).normal((1, -2), 2, (1, 224, 224, 2)).astype(np.float32)
    logits = np.broadcast_to(image, (128, 224, 224, 2))
    gaussian = jax.jit(partial(batch_gaussian, ridge=0.0), compiler_options=compiler_options())
    mean, covariance = gaussian(logits, np.ones(logits.shape[:3], np.float32))
    rows = image.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-4)
    np.testing.assert_allclose(covariance, np.cov(rows.T, bias=True), rtol=1e-4, atol=1e-4)


def test_log_density_against_scipy():
    from scipy.stats import multivariate_normal
    root = np.random.default_rng(2).normal(size=(3, 3))
    covariance, points = root @ root.T + np.eye(3), np.random.default_rng(3).normal(size=(4, 5, 3))
    found = log_density(points, jnp.ones(3), np.linalg.cholesky(covariance))
    np.testing.assert_allclose(found, multivariate_normal(np.ones(3), covariance).logpdf(points), rtol=1e-5)


def test_the_least_likely_draws_are_so_for_any_gaussian():
    rng = np.random.default_rng(4)
    draws, mean = jnp.asarray(rng.normal(size=(500, 3)), jnp.float32), jnp.asarray(rng.normal(size=3), jnp.float32)
    cholesky = jnp.asarray(np.tril(rng.normal(size=(3, 3))) + 3 * np.eye(3), jnp.float32)
    density = log_density(mean + draws @ cholesky.T, mean, cholesky)
    assert least_likely(draws, 40).tolist() == np.argsort(density)[:40].tolist()


# ---------------------------------------------------------------- placing
def test_an_outlier_takes_one_pixel_or_runs_of_memory(logits):
    outliers, positions = jnp.asarray([[10.0, 11, 12], [20, 21, 22]]), jnp.asarray([1, 1000])
    pixels = np.asarray(into_pixels(logits, outliers, positions))
    assert pixels[0, 0, 1].tolist() == [10, 11, 12]
    np.testing.assert_array_equal(np.delete(pixels.reshape(-1, 3), 1, 0), np.delete(np.asarray(logits).reshape(-1, 3), 1, 0))
    memory = np.asarray(into_memory(logits, outliers, positions))
    assert memory[0, 0, 3:6, 0].tolist() == [10, 11, 12], "three neighbours in the map of the first class"
    assert (memory != np.asarray(logits)).sum() == 3


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_batchs_outliers_are_far_out_and_as_many_as_wanted(logits, classes, placement):
    synthesis = batch_synthesis(sample_from=400, select=20, place=PLACEMENTS[placement], ridge=0.01)
    replaced = np.asarray(synthesis.replace(logits, classes, synthesis.start(), jax.random.key(0)))
    changed = replaced != np.asarray(logits)
    assert changed.sum() == 20 * 3
    mean, covariance = batch_gaussian(logits, (classes >= 0).astype(jnp.float32))
    if placement == "pixels":
        z = (replaced[changed.all(-1)] - mean) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
        assert (np.linalg.norm(z, axis=1) > 2.5).all()      # of 400 draws in three dimensions a twentieth lies beyond 2.8
    again = synthesis.replace(logits, classes, {}, jax.random.key(1))
    assert (np.asarray(again) != replaced).any()


def test_gradients_flow_through_the_batchs_samples(logits, classes):
    synthesis = batch_synthesis(sample_from=100, select=96, place=into_pixels)
    everywhere = jnp.zeros_like(classes)        # every pixel is replaced, so what comes back comes through the samples
    gradient = jax.grad(lambda x: jnp.sum(synthesis.replace(x, everywhere, {}, jax.random.key(0)) ** 2))(logits)
    assert np.isfinite(gradient).all() and (np.abs(gradient).max(-1) > 0).all()


def test_more_selected_than_drawn_is_refused():
    with pytest.raises(ValueError, match="select=11 of sample_from=10"):
        batch_synthesis(sample_from=10, select=11, place=into_pixels)


# ---------------------------------------------------------------- queues
def test_queues_are_first_in_first_out_however_many_come():
    rng, length, kinds = np.random.default_rng(5), 7, 3
    queues, expected = new_queues(kinds, 2, length), [[] for _ in range(kinds)]
    add = jax.jit(enqueue)
    for count in (1, 4, 40, 3, 3, 3, 3, 40, 40, 2):
        vectors, classes = rng.normal(size=(40, 2)).astype(np.float32), rng.integers(-1, kinds, 40)
        classes[count:] = -1
        queues = add(queues, vectors, classes)
        for vector, k in zip(vectors, classes, strict=True):
            if k >= 0:
                expected[k] = [*expected[k], vector.tolist()][-length:]
        for k in range(kinds):
            held = np.asarray(queues["vectors"][k])[:min(int(queues["arrived"][k]), length)].tolist()
            assert sorted(held) == sorted(expected[k])
    assert int(queues["arrived"].max()) < 4 * length, "counts do not grow for ever"


def test_class_gaussians_by_hand():
    vectors = np.asarray([[0.0, 0], [2, 0], [5, 5]], np.float32)
    means, covariance = class_gaussians(enqueue(new_queues(3, 2, 10), vectors, np.asarray([0, 0, 1])))
    np.testing.assert_allclose(means, [[1, 0], [5, 5], [0, 0]])
    np.testing.assert_allclose(covariance, [[2 / 3, 0], [0, 0]], atol=1e-6)


def test_class_outliers_lie_where_their_class_is_the_truth_and_below_the_density(logits, classes):
    options = {"classes": 3, "queue": 50, "per_image": 40, "sample_from": 300, "select": 30}
    synthesis = class_synthesis(**options)
    two = jnp.minimum(classes, 1)       # none of the last class
    memory = synthesis.remember(synthesis.start(), logits, two, jax.random.key(0))
    replaced = np.asarray(jax.jit(synthesis.replace)(logits, classes, memory, jax.random.key(1)))
    changed = (replaced != np.asarray(logits)).all(-1)
    counts = [(changed & (np.asarray(classes) == k)).sum() for k in (-1, 0, 1, 2)]
    assert counts[0] == 0 and counts[1] == counts[2] == 10 and counts[3] == 0
    means, covariance = class_gaussians(memory)
    cholesky = jnp.linalg.cholesky(covariance + 1e-4 * jnp.eye(3))
    density = np.concatenate([log_density(replaced[changed & (np.asarray(classes) == k)], means[k], cholesky) for k in (0, 1)])
    epsilon = float(np.exp(np.median(density)))
    strict = class_synthesis(**options, epsilon=epsilon).replace(logits, classes, memory, jax.random.key(1))
    assert (np.asarray(strict) != np.asarray(logits)).all(-1).sum() == (density < np.log(epsilon)).sum() == 10


def test_queues_pass_gradients_of_this_step_alone(logits, classes):
    synthesis = class_synthesis(classes=3, queue=50, per_image=10, sample_from=100, select=30)
    old = synthesis.remember(synthesis.start(), logits, classes, jax.random.key(0))

    def outliers(x):
        memory = synthesis.remember(old, x, classes, jax.random.key(1))
        replaced = synthesis.replace(jax.lax.stop_gradient(x), classes, memory, jax.random.key(2))
        return jnp.sum(replaced ** 2)

    touched = np.abs(jax.grad(outliers)(logits)).max(-1) > 0
    assert 0 < touched.sum() <= 20


# ---------------------------------------------------------------- weightings
@pytest.mark.parametrize("seed", range(5))
def test_min_norm_weights_against_a_fine_grid(seed):
    vectors = np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)
    weights = np.asarray(min_norm_weights(jnp.asarray(vectors @ vectors.T)))
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1, abs=1e-5)
    grid = np.asarray([(a, b, 100 - a - b) for a, b in product(range(101), repeat=2) if a + b <= 100]) / 100
    best = np.linalg.norm(grid @ vectors, axis=1).min()
    assert np.linalg.norm(weights @ vectors) <= best + 1e-4


@pytest.mark.parametrize("vectors", [np.zeros((4, 2)), np.ones((4, 2)), [[1, 0], [1, 0], [-1, 0], [0, 1e-20]]])
def test_min_norm_weights_where_gradients_are_alike(vectors):
    vectors = np.asarray(vectors, np.float32)
    weights = np.asarray(min_norm_weights(jnp.asarray(vectors @ vectors.T)))
    assert np.isfinite(weights).all() and weights.min() >= 0 and weights.sum() == pytest.approx(1, abs=1e-5)


def test_the_min_norm_gradient_lowers_every_loss():
    targets = jnp.asarray([[3.0, 0], [0, 2], [1, 1]])
    point = jnp.asarray([4.0, 4.0])

    def losses(x):
        return jnp.sum((x - targets) ** 2, -1)

    gradient = jax.grad(lambda x: total_loss(losses, x, jnp.ones(3), WEIGHTINGS["pareto_min_norm"])[0])(point)
    assert (np.asarray(losses(point - 1e-3 * gradient)) < np.asarray(losses(point))).all()


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_no_gradient_flows_through_weights(name):
    point = jnp.asarray([0.3, 0.8])

    def total(x):
        return total_loss(lambda x: x ** 2, x, jnp.asarray([0.2, 0.7]), WEIGHTINGS[name])[0]

    value, losses, weights, _ = total_loss(lambda x: x ** 2, point, jnp.asarray([0.2, 0.7]), WEIGHTINGS[name])
    assert value == pytest.approx(float(jnp.sum(weights * losses)))
    np.testing.assert_allclose(jax.grad(total)(point), 2 * weights * point, rtol=1e-6)


# ---------------------------------------------------------------- the authors' sizes
@pytest.mark.parametrize("make", [
    partial(batch_synthesis, place=into_pixels), partial(class_synthesis, classes=2, queue=10_000, per_image=1000)],
    ids=["batch", "classes"])
def test_the_authors_sizes_take_little_memory(make):
    """100,000 draws and 10,000 outliers, in a batch of 8 x 224 x 224: temporaries stay within a few copies of the logits."""
    synthesis = make(sample_from=100_000, select=10_000)
    logits, classes = jax.ShapeDtypeStruct((8, 224, 224, 2), jnp.float32), jax.ShapeDtypeStruct((8, 224, 224), jnp.int32)

    def loss(logits, classes, memory, rng):
        memory = synthesis.remember(memory, logits, classes, rng)
        return jnp.sum(synthesis.replace(logits, classes, memory, rng) ** 2), memory

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    compiled = step.lower(logits, classes, jax.eval_shape(synthesis.start), jax.random.PRNGKey(0)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 40 * 8 * 224 * 224
