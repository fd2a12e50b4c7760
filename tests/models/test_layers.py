"""Layers written for speed equal their plain formulations, in value and gradient."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcell.models.layers import (
    BatchNorm,
    Conv,
    adaptive_average_pool,
    convolve,
    grouped_convolution,
    max_pool,
    resize_bilinear,
    resize_nearest,
)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_same(function, plain, *arguments):
    """Equal values, and equal gradients of a sum with unequal weights."""
    @partial(jax.jit, static_argnums=0)
    def value_and_gradients(f, *arguments):
        value, pull_back = jax.vjp(f, *arguments)
        return value, pull_back(normal(*value.shape, seed=9))

    (value, gradients), (plain_value, plain_gradients) = (value_and_gradients(f, *arguments) for f in (function, plain))
    np.testing.assert_allclose(value, plain_value, atol=2e-5)
    for gradient, expected in zip(gradients, plain_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, atol=2e-4)


def plain_convolution(x, kernel, stride, groups):
    margin = kernel.shape[0] // 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(margin, margin)] * 2, feature_group_count=groups,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(("side", "stride", "shape"), [(3, 1, (6, 5)), (3, 2, (7, 6)), (1, 2, (5, 4)), (5, 1, (6, 6))])
def test_grouped_convolution(side, stride, shape):
    x, kernel = normal(2, *shape, 12), normal(side, side, 3, 8, seed=1)
    assert_same(lambda x, k: grouped_convolution(x, k, stride=stride, groups=4), lambda x, k: plain_convolution(x, k, stride, 4),
                x, kernel)
    assert_same(lambda x, k: convolve(x, k, stride=stride, groups=4), lambda x, k: plain_convolution(x, k, stride, 4), x, kernel)


@pytest.mark.parametrize(("size", "stride", "shape"), [(3, 2, (8, 7)), (2, 2, (6, 8)), (2, 2, (7, 5)), (3, 1, (4, 4))])
def test_max_pool(size, stride, shape):
    margin = (size - 1) // 2

    def plain(x):
        return nn.max_pool(x, (size, size), (stride, stride), [(margin, margin)] * 2)

    assert_same(lambda x: max_pool(x, size=size, stride=stride), plain, normal(2, *shape, 3))


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_adaptive_average_pool_with_overlapping_windows(size):
    x = normal(2, 4, 7, 3)

    def plain(x):
        def windows(n):
            return [(int(np.floor(i * n / size)), int(np.ceil((i + 1) * n / size))) for i in range(size)]
        return jnp.stack([jnp.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in windows(7)], 1) for a, b in windows(4)], 1)

    assert_same(lambda x: adaptive_average_pool(x, size=size), plain, x)


@pytest.mark.parametrize("shape", [(8, 10), (12, 5), (7, 11), (3, 4), (4, 5)])
def test_resize_bilinear(shape):
    assert_same(lambda x: resize_bilinear(x, shape),
                lambda x: jax.image.resize(x, (2, *shape, 3), "bilinear", antialias=False), normal(2, 4, 5, 3))


def test_resize_bilinear_by_hand():
    # Centres of 4 pixels in a row of 2: -0.25 (border), 0.25, 0.75, 1.25 (border).
    x = jnp.asarray([0.0, 4.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(resize_bilinear(x, (1, 4)).ravel(), [0, 1, 3, 4])
    np.testing.assert_allclose(resize_bilinear(x, (1, 3)).ravel(), [0, 2, 4], atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 10), (7, 9), (2, 3), (4, 15)])
def test_resize_nearest(shape):
    rows, columns = (np.arange(n) * have // n for n, have in zip(shape, (4, 5), strict=True))
    assert_same(lambda x: resize_nearest(x, shape), lambda x: x[:, rows][:, :, columns], normal(2, 4, 5, 3))


def test_convolution_starts_as_pytorch_starts():
    variables = Conv(64, 3, use_bias=True).init(jax.random.key(0), jnp.zeros((1, 8, 8, 32)))
    bound = 1 / np.sqrt(9 * 32)
    for leaf in jax.tree.leaves(variables["params"]):
        assert np.abs(leaf).max() <= bound
        assert np.abs(leaf).max() > 0.9 * bound
    assert np.std(variables["params"]["kernel"]) == pytest.approx(bound / np.sqrt(3), rel=0.02)


def normalise(x, scale, bias):
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": jnp.zeros(5), "var": jnp.ones(5)}}
    return BatchNorm(use_running_average=False).apply(variables, x, mutable=["batch_stats"])


def test_batch_norm_by_definition():
    x, scale, bias = 3 + 2 * normal(2, 3, 4, 5), normal(5, seed=1), normal(5, seed=2)

    def plain(x, scale, bias):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    assert_same(lambda *a: normalise(*a)[0], plain, x, scale, bias)
    statistics = normalise(x, scale, bias)[1]["batch_stats"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)   # unbiased, as PyTorch's


def test_batch_norm_in_half_precision_keeps_float32_statistics():
    x = (1000 + normal(2, 8, 8, 5)).astype(jnp.bfloat16)
    module = BatchNorm(use_running_average=False, dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), x)
    y, state = module.apply(variables, x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, state))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(state["batch_stats"]["mean"], 0.1 * x.astype(jnp.float32).mean((0, 1, 2)), rtol=1e-5)


def test_batch_norm_over_a_sharded_batch_uses_the_whole_batch():
    devices = jax.devices()
    x = normal(len(devices) * 2, 4, 4, 5) + jnp.arange(len(devices) * 2.0)[:, None, None, None]
    scale, bias = jnp.ones(5), jnp.zeros(5)
    sharded = jax.device_put(x, NamedSharding(Mesh(devices, ("data",)), PartitionSpec("data")))
    together, apart = jax.jit(normalise)(x, scale, bias), jax.jit(normalise)(sharded, scale, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together, apart)
