"""Layers written for speed equal their plain formulations, in value and gradient."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxcell.models.backend import compiler_options, stored
from jaxcell.models.convolution import convolve, convolve_transposed
from jaxcell.models.encoders.resnet import Bottleneck
from jaxcell.models.layers import BatchNorm, Conv, ConvTranspose, GroupNorm
from jaxcell.models.resize import (
    adaptive_average_pool,
    average_pool,
    max_pool,
    resize_bilinear,
    resize_corner_aligned,
    resize_nearest,
)
from jaxcell.system import System
from jaxcell.training.mesh import make_mesh, replicated, shard_batch
from jaxcell.training.objectives import supervised
from jaxcell.training.state import init_state
from jaxcell.training.step import descending, make_train_step


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def value_and_gradients(function, *arguments):
    value, pull_back = jax.vjp(function, *arguments)
    return value, *pull_back(jnp.asarray(normal(*value.shape, seed=9), value.dtype))


def assert_same(function, plain, *arguments, dtype=np.float64, share=1e-6, jit=True):
    """Equal values, and equal gradients of a sum with unequal weights: their difference is a small share of the largest.

    In float64, where a difference is one of formulas and not of rounding.
    """
    def call(function):
        evaluate = partial(value_and_gradients, function)
        return jax.jit(evaluate, compiler_options=compiler_options()) if jit else evaluate

    with jax.enable_x64(dtype == np.float64):
        arguments = [jnp.asarray(argument, dtype) for argument in arguments]
        for got, wanted in zip(call(function)(*arguments), call(plain)(*arguments), strict=True):
            assert got.dtype == wanted.dtype == dtype
            assert got.shape == wanted.shape
            got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
            np.testing.assert_allclose(got, wanted, rtol=0, atol=share * np.abs(wanted).max(initial=1e-30))


# ---------------------------------------------------------------- convolutions
def plain_convolution(x, kernel, stride, groups):
    margin = kernel.shape[0] // 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(margin, margin)] * 2, feature_group_count=groups,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


def assert_convolves(shape, side, inputs, outputs, *, stride=1, groups=1, **options):
    assert_same(lambda x, k: convolve(x, k, stride=stride, groups=groups), lambda x, k: plain_convolution(x, k, stride, groups),
                normal(*shape, inputs), normal(side, side, inputs // groups, outputs, seed=1), **options)


@pytest.mark.parametrize("shape", [(2, 8, 6), (3, 7, 5), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_convolution(side, stride, shape):
    assert_convolves(shape, side, 3, 4, stride=stride)


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [
    (12, 8, 4), (96, 48, 3), (128, 64, 32), (6, 6, 6), (4, 12, 4), (8, 8, 2)])
@pytest.mark.parametrize(("side", "stride", "shape"), [
    (3, 1, (2, 6, 5)), (3, 2, (2, 7, 6)), (1, 2, (1, 5, 4)), (2, 1, (2, 4, 4)), (5, 1, (2, 6, 6)), (7, 3, (1, 8, 7))], ids=str)
def test_grouped_convolution(side, stride, shape, inputs, outputs, groups):
    assert_convolves(shape, side, inputs, outputs, stride=stride, groups=groups)


@pytest.mark.parametrize(("dtype", "share"), [(np.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("groups", [1, 4, 16], ids=["dense", "grouped", "depthwise"])
@pytest.mark.parametrize("side", [3, 7])
def test_convolution_in_other_precisions(side, groups, dtype, share):
    assert_convolves((2, 16, 16), side, 16, 16, groups=groups, dtype=dtype, share=share)


@pytest.mark.parametrize("groups", [1, 4, 16], ids=["dense", "grouped", "depthwise"])
def test_convolution_without_jit(groups):
    assert_convolves((2, 8, 6), 3, 16, 16, stride=2, groups=groups, jit=False)


def test_convolution_of_no_images():
    for groups in (1, 2, 4):
        got = jax.grad(lambda k, g=groups: convolve(jnp.zeros((0, 6, 6, 4)), k, groups=g).sum())(jnp.ones((3, 3, 4 // groups, 8)))
        assert not np.any(got)


def test_convolution_refuses_shapes_that_do_not_belong_together():
    for kernel, groups in (((3, 3, 3, 8), 1), ((3, 1, 4, 8), 1), ((3, 3, 2, 7), 2)):
        with pytest.raises(ValueError, match="groups that divide C and F"):
            convolve(jnp.zeros((1, 8, 8, 4)), jnp.zeros(kernel), groups=groups)


@pytest.mark.parametrize("side", [2, 3])
def test_transposed_convolution(side):
    def plain(x, kernel):
        return lax.conv_transpose(x, kernel[::-1, ::-1], (side, side), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert_same(convolve_transposed, plain, normal(2, 4, 5, 3), normal(side, side, 3, 6, seed=1))


@pytest.mark.parametrize(("side", "stride"), [(4, 2), (8, 4)])
def test_transposed_convolution_that_overlaps(side, stride):
    """PyTorch's ConvTranspose2d(side, stride, padding=stride // 2) as its definition has it: the transpose of a convolution."""
    def plain(x, kernel):
        shape = jax.ShapeDtypeStruct((x.shape[0], stride * x.shape[1], stride * x.shape[2], kernel.shape[-1]), x.dtype)
        margin = stride // 2
        forward = partial(lax.conv_general_dilated, rhs=kernel.swapaxes(2, 3), window_strides=(stride, stride),
                          padding=[(margin, margin)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.linear_transpose(forward, shape)(x)[0]

    assert_same(partial(convolve_transposed, stride=stride), plain, normal(2, 4, 5, 3), normal(side, side, 3, 6, seed=1))


def test_transposed_convolution_refuses_other_strides():
    for side, stride in ((4, 3), (6, 3), (2, 1)):
        with pytest.raises(ValueError, match="half of it and even"):
            convolve_transposed(jnp.zeros((1, 4, 4, 3)), jnp.zeros((side, side, 3, 2)), stride=stride)


@pytest.mark.parametrize(("side", "stride", "padding"), [(4, 2, 1), (4, 1, 1), (3, 1, 0), (5, 1, 0), (6, 1, 2), (3, 2, 0)])
def test_convolution_with_other_padding(side, stride, padding):
    def plain(x, kernel):
        return lax.conv_general_dilated(x, kernel, (stride, stride), [(padding, padding)] * 2,
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert_same(partial(convolve, stride=stride, padding=padding), plain, normal(2, 9, 8, 3), normal(side, side, 3, 4, seed=1))
    with pytest.raises(ValueError, match="Pad the image before"):
        convolve(jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 2, 4)), groups=2, padding=0)


def test_transposed_convolution_by_hand():
    pixels, kernel = jnp.asarray([1.0, 10.0]).reshape(1, 1, 2, 1), jnp.asarray([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    np.testing.assert_array_equal(convolve_transposed(pixels, kernel)[0, ..., 0], [[1, 2, 10, 20], [3, 4, 30, 40]])


@pytest.mark.parametrize("layer", [Conv(6, 3, use_bias=True), ConvTranspose(6)])
def test_bias(layer):
    def plain(x, kernel, bias):
        form = convolve_transposed if isinstance(layer, ConvTranspose) else convolve
        return form(x, kernel) + bias

    def function(x, kernel, bias):
        return layer.copy(dtype=jnp.float64).apply({"params": {"kernel": kernel, "bias": bias}}, x)

    assert_same(function, plain, normal(2, 6, 5, 3), normal(layer.kernel, layer.kernel, 3, 6), normal(6))


def test_gradient_of_a_bias_in_half_precision_is_summed_in_float32():
    def total(bias):
        return Conv(1, 1, use_bias=True, dtype=jnp.bfloat16).apply({"params": {"kernel": jnp.zeros((1, 1, 1, 1)), "bias": bias}},
                                                                   jnp.zeros((1, 64, 67, 1))).sum()

    np.testing.assert_allclose(jax.jit(jax.grad(total))(jnp.zeros(1)), 64 * 67, rtol=4e-3)     # bfloat16 counts to 256


def test_layers_start_as_pytorch_starts():
    for layer, fan_in in ((Conv(64, 3, use_bias=True), 9 * 32), (ConvTranspose(64), 4 * 64)):
        variables = layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 32)))
        bound = 1 / np.sqrt(fan_in)
        for leaf in jax.tree.leaves(variables["params"]):
            assert leaf.dtype == jnp.float32
            assert 0.9 * bound < np.abs(leaf).max() <= bound
        assert np.std(variables["params"]["kernel"]) == pytest.approx(bound / np.sqrt(3), rel=0.02)


# ---------------------------------------------------------------- pooling and resizing
@pytest.mark.parametrize(("size", "stride", "shape"), [
    (3, 2, (8, 7)), (2, 2, (6, 8)), (2, 2, (7, 5)), (3, 1, (4, 4)), (5, 2, (9, 6))])
def test_max_pool(size, stride, shape):
    margin = (size - 1) // 2

    def plain(x):
        return nn.max_pool(x, (size, size), (stride, stride), [(margin, margin)] * 2)

    assert_same(lambda x: max_pool(x, size=size, stride=stride), plain, normal(2, *shape, 3))


@pytest.mark.parametrize(("size", "stride", "shape"), [
    (2, 2, (6, 8)), (2, 2, (7, 5)), (3, 1, (4, 4)), (3, 2, (9, 6)), (8, 8, (8, 8))])
def test_average_pool(size, stride, shape):
    assert_same(lambda x: average_pool(x, size=size, stride=stride), lambda x: nn.avg_pool(x, (size, size), (stride, stride)),
                normal(2, *shape, 3))


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_adaptive_average_pool_with_overlapping_windows(size):
    def windows(n):
        return [(int(np.floor(i * n / size)), int(np.ceil((i + 1) * n / size))) for i in range(size)]

    def plain(x):
        return jnp.stack([jnp.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in windows(7)], 1) for a, b in windows(4)], 1)

    assert_same(lambda x: adaptive_average_pool(x, size=size), plain, normal(2, 4, 7, 3))


@pytest.mark.parametrize("shape", [(8, 10), (12, 5), (7, 11), (3, 4), (4, 5)])
def test_resize_bilinear(shape):
    assert_same(lambda x: resize_bilinear(x, shape),
                lambda x: jax.image.resize(x, (2, *shape, 3), "bilinear", antialias=False), normal(2, 4, 5, 3))


def interpolated(x, factor, axis):
    """Between corners, from the definition: a row of distances for every output."""
    have = x.shape[axis]
    places = jnp.arange(factor * have) * (have - 1) / max(factor * have - 1, 1)
    near = jnp.maximum(0, 1 - jnp.abs(places[:, None] - jnp.arange(have)))
    return jnp.moveaxis(jnp.tensordot(near, x, (1, axis)), 0, axis)


@pytest.mark.parametrize("factor", [1, 2, 3, 16])
@pytest.mark.parametrize("shape", [(4, 5), (1, 2)])
def test_resize_corner_aligned(shape, factor):
    larger = [factor * n for n in shape]
    assert_same(lambda x: resize_corner_aligned(x, larger), lambda x: interpolated(interpolated(x, factor, 1), factor, 2),
                normal(2, *shape, 3))


def test_resize_bilinear_by_hand():
    # Centres of 4 pixels in a row of 2: -0.25 (border), 0.25, 0.75, 1.25 (border).
    x = jnp.asarray([0.0, 4.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(resize_bilinear(x, (1, 4)).ravel(), [0, 1, 3, 4])
    np.testing.assert_allclose(resize_bilinear(x, (1, 3)).ravel(), [0, 2, 4], atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 10), (7, 9), (2, 3), (4, 15)])
def test_resize_nearest(shape):
    rows, columns = (np.arange(n) * have // n for n, have in zip(shape, (4, 5), strict=True))
    assert_same(lambda x: resize_nearest(x, shape), lambda x: x[:, rows][:, :, columns], normal(2, 4, 5, 3))


# ---------------------------------------------------------------- norms
def batch_norm(x, scale, bias, dtype=np.float32):
    statistics = {"mean": jnp.zeros(len(scale)), "var": jnp.ones(len(scale))}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": statistics}
    return BatchNorm(use_running_average=False, dtype=dtype).apply(variables, x, mutable=["batch_stats"])


def group_norm(x, scale, bias, dtype):
    return GroupNorm(num_groups=3, dtype=dtype).apply({"params": {"scale": scale, "bias": bias}}, x)


def plain_batch_norm(x, scale, bias):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def plain_group_norm(x, scale, bias):
    groups = x.reshape(*x.shape[:3], 3, -1)
    mean, var = (f(groups, (1, 2, 4), keepdims=True) for f in (jnp.mean, jnp.var))
    return ((groups - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias


@pytest.mark.parametrize(("shape", "dtype", "share"), [
    *(((2, *size, 6), np.float64, 1e-6) for size in ((3, 4), (37, 41), (64, 64))), ((2, 64, 64, 6), np.float32, 1e-5),
    ((2, 1, 1, 6), np.float64, 1e-6)], ids=str)      # (of two values the gradient is nothing but cancellation)
def test_norms_by_definition(shape, dtype, share):
    arguments = 3 + 2 * normal(*shape), normal(6, seed=1), normal(6, seed=2)
    assert_same(lambda *a: batch_norm(*a, dtype)[0], plain_batch_norm, *arguments, dtype=dtype, share=share)
    assert_same(lambda *a: group_norm(*a, dtype), plain_group_norm, *arguments, dtype=dtype, share=share)


def test_group_norm_is_flax_s():
    x = jnp.asarray(normal(2, 5, 4, 6), jnp.float32)
    variables = {"params": {"scale": jnp.asarray(normal(6, seed=1), jnp.float32), "bias": jnp.asarray(normal(6), jnp.float32)}}
    np.testing.assert_allclose(GroupNorm(num_groups=3).apply(variables, x), nn.GroupNorm(3, epsilon=1e-5).apply(variables, x),
                               atol=1e-5)


def test_batch_norm_keeps_pytorch_s_running_statistics():
    x = jnp.asarray(3 + 2 * normal(2, 3, 4, 5), jnp.float32)
    statistics = batch_norm(x, jnp.ones(5), jnp.zeros(5))[1]["batch_stats"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)   # unbiased, as PyTorch's


def test_norms_in_half_precision_keep_float32_statistics():
    x = jnp.asarray(1000 + 10 * normal(2, 64, 64, 6), jnp.bfloat16)    # bfloat16 cannot count to 4096, nor tell 1000 from 1002
    exact = x.astype(jnp.float32)
    for layer, plain in ((BatchNorm(use_running_average=False, dtype=jnp.bfloat16), plain_batch_norm),
                         (GroupNorm(num_groups=3, dtype=jnp.bfloat16), plain_group_norm)):
        variables = layer.init(jax.random.key(0), x)
        y, state = layer.apply(variables, x, mutable=["batch_stats"])
        assert y.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves((variables, state))} == {jnp.dtype("float32")}
        np.testing.assert_allclose(y.astype(jnp.float32), plain(exact, jnp.ones(6), jnp.zeros(6)), atol=0.02)
        if state:
            np.testing.assert_allclose(state["batch_stats"]["mean"], 0.1 * exact.mean((0, 1, 2)), rtol=1e-5)


def test_stored_changes_nothing():
    assert_same(lambda x: stored(jnp.sin(x)), jnp.sin, normal(2, 3, 4, 5))


# ---------------------------------------------------------------- several devices
class Network(nn.Module):
    """Everything that could gather a batch: grouped, depthwise, dense and transposed convolutions, norms, pooling, resizing.

    64 channels in 4 groups stay grouped; narrower ones would be joined to one dense convolution.
    """

    @nn.compact
    def __call__(self, image, train):
        batch_norm = partial(BatchNorm, use_running_average=not train)
        x = max_pool(Conv(16, 7, 2, use_bias=True)(image), size=3, stride=2)
        x = Bottleneck(8, conv=Conv, norm=batch_norm, act=nn.relu, groups=4, width_per_group=128, stride=2)(x)
        x = GroupNorm(num_groups=4)(Conv(32, 3, groups=32)(x))
        x = ConvTranspose(8)(x) + resize_nearest(average_pool(Conv(8, 1)(x), size=2, stride=2), (8, 8))
        return {"scores": resize_bilinear(x, image.shape[1:3])}


def two_steps(devices):
    """(the compiled step, parameters, statistics and loss after two)"""
    system = System(Network(), lambda sample, rng: {}, lambda outputs, batch: {"fit": jnp.mean((outputs["scores"] - 1) ** 2)},
                    lambda outputs: None, 16)
    mesh, transformation = make_mesh(devices), optax.sgd(0.1)
    state = jax.device_put(init_state(system.model, transformation, seed=0, image_shape=(1, 32, 32, 3)), replicated(mesh))
    step = make_train_step(descending(supervised(system), transformation), mesh)
    batch = shard_batch({"image": normal(4, 32, 32, 3).astype(np.float32)}, mesh)
    program = step.lower(state, batch).compile().as_text()
    for _ in range(2):
        state, metrics = step(state, batch)
    return program, jax.device_get((state.params, state.batch_stats, metrics["loss"]))


@pytest.mark.slow
def test_four_devices_compute_what_one_does_and_gather_no_batch():
    assert len(jax.devices()) >= 4
    (_, one), (program, four) = two_steps(jax.devices()[:1]), two_steps(jax.devices()[:4])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(a).max())), one, four)
    assert "all-reduce" in program
    assert "all-gather" not in program
