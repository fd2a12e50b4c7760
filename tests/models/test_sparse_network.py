"""The parts of SE-U-Nets against plain formulations, and what the whole network promises."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from configs.sparse_seunet import VARIANTS, get_config
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.models.decoders.instances import EveryLevelBranch, InstanceDecoder, InstanceHead, sigmoid_weights, softmax_weights
from jaxcell.models.decoders.se_unet import SEUNetDecoder
from jaxcell.models.encoders.se_unet import SEUNetEncoder, WindowPyramid
from jaxcell.models.layers import Conv, NoNorm, SqueezeExcite
from jaxcell.systems import build_system
from jaxcell.systems.sparse_seunet import SparseSEUNet

PARTS = {"conv": Conv, "norm": NoNorm, "act": nn.relu}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


IMAGE = normal(1, 16, 16, 2)


@cache
def small_network(condition: str | None = None) -> tuple[SparseSEUNet, dict]:
    """(network, variables) with five queries and an overlap decoder."""
    instances = partial(InstanceDecoder, branch=partial(EveryLevelBranch, depth=1), head=partial(InstanceHead, queries=5),
                        instance_features=8, mask_features=4)
    encoder = partial(SEUNetEncoder, width=8, levels=2, depth=1, windows=(1, 4), pyramid_features=2)
    network = SparseSEUNet(instances=instances, encoder=encoder, heads=("overlap",), condition=condition,
                           decoder=partial(SEUNetDecoder, width=8, depth=1))
    return network, jax.jit(network.init)(jax.random.key(0), IMAGE)


def answer(network: SparseSEUNet, variables: dict) -> tuple[dict, dict]:
    """(outputs, what was sown)."""
    outputs, state = jax.jit(partial(network.apply, mutable="intermediates"))(variables, IMAGE)
    return outputs, state["intermediates"]


def test_squeeze_and_excitation_weighs_channels_by_their_means():
    x, block = normal(2, 3, 5, 6), SqueezeExcite(conv=Conv, reduction=3)
    y, variables = block.init_with_output(jax.random.key(0), x)
    squeeze, excite = (variables["params"][name] for name in ("squeeze", "excite"))
    assert squeeze["kernel"].shape == (1, 1, 6, 2)
    hidden = np.maximum(x.mean((1, 2)) @ squeeze["kernel"][0, 0] + squeeze["bias"], 0)
    np.testing.assert_allclose(y, x * expit(hidden @ excite["kernel"][0, 0] + excite["bias"])[:, None, None], rtol=1e-5)


def test_pyramid_appends_the_means_of_windows_to_the_input():
    x, pyramid = normal(1, 8, 8, 3), WindowPyramid(**PARTS, windows=(1, 2, 8), features=3)
    variables = {"params": {f"window{w}": {"conv1": {"kernel": np.eye(3)[None, None]}} for w in (1, 2, 8)}}
    y = np.asarray(pyramid.apply(variables, x))
    np.testing.assert_array_equal(y[..., :3], x)
    np.testing.assert_allclose(y[..., 3:6], np.maximum(x, 0))
    corner = x[:, :2, :2].mean((1, 2))
    np.testing.assert_allclose(y[:, 0, 0, 6:9], np.maximum(corner, 0), rtol=1e-5)
    whole = np.maximum(x.mean((1, 2), keepdims=True), 0)
    np.testing.assert_allclose(y[..., 9:], np.broadcast_to(whole, x.shape), rtol=1e-5, atol=1e-6)


def test_encoder_refuses_sides_that_its_windows_do_not_divide():
    encoder = SEUNetEncoder(**PARTS, width=4, levels=2, windows=(1, 4))
    with pytest.raises(ValueError, match="images of 16 x 20; 2 levels and windows up to 4 need sides that divide by 8"):
        encoder.init(jax.random.key(0), normal(1, 16, 20, 1))


@pytest.mark.parametrize("weights", [sigmoid_weights, softmax_weights])
def test_activation_maps_are_weights_of_pixels(weights):
    logits = 5 * normal(2, 30, 4)
    maps = np.asarray(weights(jnp.asarray(logits)))
    np.testing.assert_allclose(maps.sum(1), 1, rtol=1e-5)
    assert (np.diff(np.take_along_axis(maps, np.argsort(logits, 1), 1), axis=1) >= 0).all()
    assert np.isfinite(weights(jnp.full((1, 30, 4), -1e4))).all()


def test_each_group_of_maps_gathers_features_for_its_instance():
    """Pixel by pixel and map by map: instance n hears map n of every group, side by side."""
    groups, queries, channels = 2, 3, 4
    x = normal(1, 5, 6, channels)
    head = InstanceHead(queries, 7, conv=Conv, groups=groups)
    found, variables = head.init_with_output(jax.random.key(1), x)
    _, sown = head.apply(variables, x, mutable="intermediates")
    maps = np.asarray(sown["intermediates"]["activation_maps"][0])[0]
    assert maps.shape == (5, 6, groups * queries)
    kernel = variables["params"]["kernels"]["kernel"][0, 0]
    for n in range(queries):
        gathered = []
        for group in range(groups):
            weight = expit(maps[..., group * queries + n])
            gathered.append((weight[..., None] * x[0]).sum((0, 1)) / weight.sum())
        np.testing.assert_allclose(found["kernels"][0, n], np.concatenate(gathered) @ kernel, rtol=1e-4, atol=1e-7)


def test_masks_are_kernels_times_mask_features():
    outputs, sown = answer(*small_network())
    features, kernels = np.asarray(sown["instances"]["mask_features"][0]), np.asarray(sown["kernels"][0])
    for n in range(5):
        np.testing.assert_allclose(outputs["masks"][0, n], features[0] @ kernels[0, n], rtol=1e-4, atol=1e-6)


def test_a_query_is_no_cell_before_training():
    np.testing.assert_allclose(expit(answer(*small_network())[0]["scores"]), 0.01, rtol=0.1)


@pytest.mark.parametrize("condition", [None, "overlap"])
def test_branches_see_the_overlap_decoder_only_where_they_shall(condition):
    network, variables = small_network(condition)
    before, _ = answer(network, variables)
    params = variables["params"] | {"overlap_decoder": jax.tree.map(lambda p: p + 1, variables["params"]["overlap_decoder"])}
    after, _ = answer(network, variables | {"params": params})
    assert np.abs(after["overlap"] - before["overlap"]).max() > 0
    assert (np.abs(after["masks"] - before["masks"]).max() > 0) == (condition is not None)


def test_arithmetic_in_bfloat16_gives_float32_outputs_near_those_of_float32():
    network, variables = small_network()
    exact, fast = (answer(network.clone(dtype=dtype), variables)[0] for dtype in (jnp.float32, jnp.bfloat16))
    for name, value in fast.items():
        assert value.dtype == jnp.float32
        assert np.abs(value - exact[name]).max() < 0.05 * np.abs(exact[name]).max()


def test_every_variant_is_a_system():
    for variant in VARIANTS:
        config = get_config(variant)
        system = build_system(config)
        assert config.data.crop % system.divisor == config.inference.tile % system.divisor == 0
        assert 2 * config.inference.margin % system.divisor == 0
        assert (config.inference.mode == "windows") == (config.model.branches != "none")
        if config.model.branches == "none":     # which head its cells come from differs
            maps = {name: np.full((64, 64, 1), -5.0, np.float32) for name in config.model.heads}
            maps[config.model.heads[0]][8:24, 8:24] = 5.0
            assert len(system.decode(maps)) == 1


def test_pixels_whose_nuclei_are_not_known_teach_nothing():
    system, sample = build_system(get_config("semantic_nuclei")), SyntheticSource(1, size=64, seed=3)[0]
    nuclei = np.where(np.arange(64) < 32, -1, sample.nuclei).astype(np.int32)
    batch = {key: value[None] for key, value in system.targets(replace(sample, nuclei=nuclei), np.random.default_rng(0)).items()}
    loss, gradient = jax.value_and_grad(lambda x: system.loss({"nuclei": x}, batch)["nuclei"])(jnp.zeros((1, 64, 64, 1)))
    np.testing.assert_array_equal(gradient[0, ..., 0] == 0, nuclei < 0)
    np.testing.assert_allclose(loss, np.log(2) * get_config("semantic_nuclei").loss.weights.nuclei, rtol=1e-5)


@pytest.mark.parametrize(("change", "message"), [
    ({"model.heads": ("nucleus",)}, "model.heads='nucleus' is unknown; known are background"),
    ({"targets.max_cells": 17}, "max_cells=17 with config.model.queries=16"),
    ({"model.branches": "none", "model.heads": ()}, "without branches: cells are decoded from cytoplasm"),
    ({"model.activation": "tanh"}, "known are sigmoid, softmax"),
])
def test_what_does_not_fit_is_refused(change, message):
    config = get_config("baby_yeast")
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        build_system(config)
