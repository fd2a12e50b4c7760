"""TransUNet from its parts: sizes, grids, skips, inputs, precision; and what its system makes of labels and losses."""

from __future__ import annotations

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.losses.outliers import batch_synthesis, class_synthesis, into_pixels
from jaxcell.losses.weighting import WEIGHTINGS
from jaxcell.models.encoders.hybrid_resnet import HybridResNet, StandardisedConv
from jaxcell.models.encoders.vit import VISION_SIZES, Attention
from jaxcell.models.resize import max_pool, resize_corner_aligned
from jaxcell.systems import build_system
from jaxcell.systems.morphoseg import STEMS, TERMS, TransUNet, class_targets, segmentation_losses, segmentation_objective
from jaxcell.types import Sample

SMALL = TransUNet(transformer=VISION_SIZES["toy"], stem=partial(STEMS["r11"], width=8), grid=4, widths=(8, 8, 8, 8), features=8)


def shapes(network: TransUNet, size: tuple[int, int] = (64, 64), channels: int = 1):
    image = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), image)


def random_variables(network: TransUNet, size: tuple[int, int] = (64, 64)):
    rng = np.random.default_rng(0)      # numpy's numbers: to compile the initialisation takes longer than all that is tested

    def values(path, leaf):
        numbers = jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
        if path[-1].key in ("scale", "var"):
            return 1 + 0.1 * jnp.abs(numbers)
        return numbers / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1 * numbers

    return jax.tree_util.tree_map_with_path(values, shapes(network, size))


def image_of(size: tuple[int, int] = (64, 64), channels: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).random((2, *size, channels)), jnp.float32)


# ---------------------------------------------------------------- network
@pytest.mark.parametrize(("settings", "expected"), [     # of the parity files, which count trained values
    ({"stem": None}, 91_673_186), ({"skips": 0}, 103_764_642), ({"skips": 3}, 105_276_066)], ids=["vit", "r50", "r50 skips"])
def test_parameter_counts_are_the_recorded_ones(settings, expected):
    variables = shapes(TransUNet(**settings), (224, 224))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected


@pytest.mark.parametrize("size", ["tiny", "small", "large", "huge"])
def test_other_transformers_are_a_row_of_a_table(size):
    params = shapes(TransUNet(transformer=VISION_SIZES[size], stem=None, grid=2), (32, 32))["params"]["transformer"]
    sizes = VISION_SIZES[size]
    assert params[f"layer{sizes.layers - 1}"]["mlp_in"]["kernel"].shape == (sizes.hidden, sizes.mlp)
    assert f"layer{sizes.layers}" not in params


def test_the_stem_hands_out_padded_features_and_goes_on_from_short_ones():
    stem = HybridResNet(stage_sizes=(1, 1, 1), width=8, groups=8)
    image = jax.ShapeDtypeStruct((1, 96, 64, 3), jnp.float32)
    features, state = jax.eval_shape(partial(stem.apply, capture_intermediates=True, mutable="intermediates"),
                                     jax.eval_shape(stem.init, jax.random.key(0), image), image)
    assert [feature.shape for feature in features] == [(1, 48, 32, 8), (1, 24, 16, 32), (1, 12, 8, 64), (1, 6, 4, 128)]
    assert state["intermediates"]["block1_unit1"]["__call__"][0].shape == (1, 23, 15, 32)


def test_standardised_kernels_do_not_feel_scale_and_shift():
    conv = StandardisedConv(4, 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 3)), jnp.float32)
    kernel = np.random.default_rng(1).normal(size=(3, 3, 3, 4)).astype(np.float32)
    one, other = (conv.apply({"params": {"kernel": jnp.asarray(k)}}, x) for k in (kernel, 7 * kernel + 3))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_attention_by_hand():
    rng = np.random.default_rng(0)
    module, x = Attention(2), rng.normal(size=(1, 5, 6)).astype(np.float32)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
                          jax.eval_shape(module.init, jax.random.key(0), x)["params"])
    query, key, value = (np.einsum("nc,chd->hnd", x[0], params[n]["kernel"]) + params[n]["bias"][:, None]
                         for n in ("query", "key", "value"))
    weights = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(3))
    mixed = weights / weights.sum(-1, keepdims=True) @ value
    expected = np.einsum("hnd,hdc->nc", mixed, params["out"]["kernel"]) + params["out"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "size"), [(1, (64, 64)), (3, (64, 64)), (1, (96, 96)), (1, (64, 96))])
def test_any_size_and_one_or_three_channels(channels, size):
    outputs = jax.eval_shape(SMALL.apply, shapes(SMALL), jax.ShapeDtypeStruct((2, *size, channels), jnp.float32))
    assert outputs["classes"].shape == (2, *size, 2) and outputs["classes"].dtype == jnp.float32


def test_a_grey_image_is_three_equal_channels_and_classes_may_be_many():
    network = SMALL.clone(stem=None, classes=5)
    variables, image = random_variables(network), image_of()
    apply = jax.jit(network.apply)
    one, three = (apply(variables, x)["classes"] for x in (image, jnp.repeat(image, 3, axis=-1)))
    assert one.shape[-1] == 5
    np.testing.assert_array_equal(one, three)


def test_half_precision_computes_near_single_precision():
    variables, image = random_variables(SMALL.clone(skips=3)), image_of()
    single, half = (jax.jit(SMALL.clone(skips=3, dtype=dtype).apply)(variables, image)["classes"]
                    for dtype in (jnp.float32, jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert 0 < np.abs(single - half).max() < 0.1 * np.abs(single).max()


@pytest.mark.parametrize(("settings", "size", "problem"), [
    ({"skips": 4}, (64, 64), "skips=4"), ({"stem": None, "skips": 1}, (64, 64), "skips=1"), ({}, (72, 64), "multiples of 16"),
    ({"widths": (8, 8, 8)}, (64, 64), "four widths")])
def test_networks_that_cannot_be(settings, size, problem):
    with pytest.raises(ValueError, match=problem):
        shapes(SMALL.clone(**settings), size)


# ---------------------------------------------------------------- its functions
@pytest.mark.parametrize(("have", "want"), [(7, 14), (1, 2), (14, 18), (5, 3), (14, 14), (4, 1)])
def test_corner_aligned_resizing_against_interpolation(have, want):
    x = np.random.default_rng(0).random((2, have, have, 3))
    axis = np.linspace(0, have - 1, want)
    rows = np.apply_along_axis(lambda v: np.interp(axis, np.arange(have), v), 1, x)
    expected = np.apply_along_axis(lambda v: np.interp(axis, np.arange(have), v), 2, rows)
    np.testing.assert_allclose(resize_corner_aligned(jnp.asarray(x, jnp.float32), (want, want)), expected, atol=1e-6)


def test_pooling_without_margin():
    x = jnp.arange(36.0).reshape(1, 6, 6, 1)
    np.testing.assert_array_equal(max_pool(x, size=3, stride=2, margin=0)[0, ..., 0], [[14, 16], [26, 28]])


# ---------------------------------------------------------------- system
def test_targets_part_neighbours_and_leave_ignored_pixels_out():
    labels = np.zeros((6, 9), np.int32)
    labels[1:5, 1:4], labels[1:5, 4:8], labels[0, 0] = 1, 2, -1
    sample = Sample(np.zeros((6, 9, 1), np.float32), labels[..., None])
    whole = class_targets(sample, np.random.default_rng(0), erosion=0)["classes"]
    np.testing.assert_array_equal(whole, np.where(labels > 0, 1, labels))
    assert class_targets(sample, np.random.default_rng(0), erosion=1)["classes"][2, 1:8].tolist() == [0, 1, 0, 0, 1, 1, 0]


def test_ignored_pixels_count_nowhere():
    rng = np.random.default_rng(0)
    logits, classes = jnp.asarray(rng.normal(size=(1, 6, 6, 2)), jnp.float32), rng.integers(0, 2, (1, 6, 6))
    classes[:, 3:] = -1
    np.testing.assert_allclose(segmentation_losses(logits, jnp.asarray(classes)),
                               segmentation_losses(logits[:, :3], jnp.asarray(classes[:, :3])), rtol=1e-6)


SYNTHESES = {"batch": batch_synthesis(sample_from=200, select=40, place=into_pixels),
             "classes": class_synthesis(classes=2, queue=100, per_image=30, sample_from=200, select=40)}


@pytest.mark.parametrize("name", [None, *SYNTHESES])
@pytest.mark.parametrize("weighting", ["balance", "pareto_min_norm", "pareto_kept"])
def test_outliers_begin_at_their_step(name, weighting):
    objective = segmentation_objective(synthesis=SYNTHESES.get(name), start_step=2, weighting=WEIGHTINGS[weighting])
    rng = np.random.default_rng(0)
    outputs = {"classes": jnp.asarray(rng.normal(size=(2, 16, 16, 2)), jnp.float32)}
    batch = {"classes": jnp.asarray(rng.integers(-1, 2, (2, 16, 16)), jnp.int32)}
    step, memory, found = jax.jit(objective.loss), objective.start(), []
    for number in range(4):
        total, terms, memory = step(outputs, batch, memory, jnp.int32(number), jax.random.key(number))
        assert float(total) == pytest.approx(sum(float(terms[k] * terms[f"weight/{k}"]) for k in TERMS if k in terms), rel=1e-5)
        found.append({k: float(v) for k, v in terms.items()})
    outliers = [f.get("outlier_cross_entropy", 0.0) for f in found]
    if name is None:
        assert outliers == [0] * 4 and set(memory["outliers"]) == set()
        return
    assert outliers[:2] == [0, 0] and outliers[2] > 0 and outliers[3] > 0 and outliers[2] != outliers[3]
    if name == "classes":
        assert (np.asarray(memory["outliers"]["arrived"]) > 0).all()


def test_every_variant_builds():
    configs = importlib.import_module("configs.morphoseg")
    for variant in configs.VARIANTS:
        config = configs.get_config(variant)
        system = build_system(config)
        assert config.data.crop % system.divisor == 0 and config.inference.tile == config.data.crop


@pytest.mark.parametrize(("key", "name"), [("model.stem", "r18"), ("model.transformer", "vast"), ("outliers.name", "queue"),
                                           ("outliers.placement", "rows"), ("loss.weighting", "equal"),
                                           ("decode.uncertainty", "margin")])
def test_unknown_words_name_the_known_ones(key, name):
    config = importlib.import_module("configs.morphoseg").get_config("t98g")
    config.update_from_flattened_dict({key: name})
    with pytest.raises(ValueError, match=f"config.{key}='{name}' is unknown; known are"):
        build_system(config)
