"""MAUNet from its parts: sizes, keys, norms, precision; and what its system does around it."""

from __future__ import annotations

import importlib
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.losses.consistency import AGREEMENTS
from jaxcell.models.decoders.unetr import UnetrDecoder
from jaxcell.models.layers import Conv, ConvTranspose, InstanceNorm
from jaxcell.systems import build_system
from jaxcell.systems.maunet import ENCODERS, MAUNet, decode_maps, maunet_consistency, maunet_objective
from jaxcell.types import Sample

SMALL = MAUNet(encoder=partial(ENCODERS["wideresnet50"], width=8, stage_sizes=(1, 1, 1)), width=4)


def shapes(network: MAUNet, size: tuple[int, int] = (64, 96)):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    outputs, state = jax.eval_shape(partial(network.apply, mutable=["intermediates"]), variables, image)
    return variables, outputs, {name: value[0].shape[1:] for name, value in state["intermediates"].items()
                                if isinstance(value, tuple)}


# The parity files' own counts; the paper gives 39.40 M and 28.84 M.
@pytest.mark.parametrize(("encoder", "count"), [("resnet50", 39_403_021), ("wideresnet50", 28_838_157)])
def test_parameter_counts_are_the_published_ones(encoder, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(MAUNet(encoder=ENCODERS[encoder]))[0]["params"])) == count


@pytest.mark.parametrize(("encoder", "channels"), [
    ("resnet50", (64, 256, 512, 1024, 2048)), ("wideresnet50", (64, 256, 512, 1024)), ("resnet18", (64, 64, 128, 256, 512))])
def test_features_halve_and_widen(encoder, channels):
    _, outputs, features = shapes(MAUNet(encoder=ENCODERS[encoder]), (128, 96))
    sizes = [(128 >> i, 96 >> i) for i in range(len(channels) + 1)]
    assert [features[f"encoder.{i}"] for i in range(1, len(sizes))] == [
        (*size, width) for size, width in zip(sizes[1:], channels, strict=True)]
    widths = (24, 24, 48, 96, 192, 384)
    for name in ("skips", "classes", "distance"):
        assert [features[f"{name}.{i}"] for i in range(len(sizes))] == [
            (*size, width) for size, width in zip(sizes, widths, strict=False)]
    assert {name: value.shape for name, value in outputs.items()} == {"classes": (1, 128, 96, 4), "distance": (1, 128, 96, 1)}


def test_proxy_and_distance_can_be_left_out():
    whole = shapes(SMALL)[0]["params"]
    variables, outputs, _ = shapes(SMALL.clone(classes=3, distance=False))
    assert {name: value.shape for name, value in outputs.items()} == {"classes": (1, 64, 96, 3)}
    assert whole.keys() - variables["params"].keys() == {"distance_decoder", "distance_head"}


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).random((2, 32, 48, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(image):
    rng = np.random.default_rng(0)     # numpy's numbers: to compile the initialisation takes longer than all that is tested

    def values(path, leaf):
        numbers = jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
        if path[-1].key in ("scale", "var"):
            return 1 + 0.1 * jnp.abs(numbers)
        return numbers / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1 * numbers

    return jax.tree_util.tree_map_with_path(values, jax.eval_shape(SMALL.init, jax.random.key(0), image))


def test_training_changes_the_encoder_s_statistics_alone(image, variables):
    outputs, state = jax.jit(partial(SMALL.apply, train=True, mutable=["batch_stats"]))(variables, image)
    assert {name: value.shape for name, value in outputs.items()} == {"classes": (2, 32, 48, 4), "distance": (2, 32, 48, 1)}
    assert state["batch_stats"].keys() == {"encoder"}
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), variables["batch_stats"], dict(state["batch_stats"]))
    assert all(jax.tree.leaves(changed))


def test_images_of_a_batch_do_not_see_each_other_in_prediction(image, variables):
    apply = jax.jit(SMALL.apply)
    both, alone = apply(variables, image), apply(variables, image[1:])
    for name, value in alone.items():
        np.testing.assert_allclose(both[name][1:], value, atol=1e-5)


def test_half_precision_computes_near_single_precision(image, variables):
    single, half = (jax.jit(SMALL.clone(dtype=dtype).apply)(variables, image) for dtype in (jnp.float32, jnp.bfloat16))
    for name, value in half.items():
        assert value.dtype == jnp.float32
        assert 0 < np.abs(single[name] - value).mean() < 0.03 * np.abs(single[name]).max()


# ---------------------------------------------------------------- parts
def plain_instance_norm(x):
    mean, var = (f(x, (1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
    return (x - mean) / jnp.sqrt(var + 1e-5)


@pytest.mark.parametrize("size", [(3, 4), (37, 41), (64, 64), (1, 1)])
def test_instance_norm_by_definition(size):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, dy = (jnp.asarray(3 + 2 * rng.standard_normal((2, *size, 6))) for _ in range(2))
        ours, plain = (jax.vjp(f, x) for f in (partial(InstanceNorm(dtype=jnp.float64).apply, {}), plain_instance_norm))
        np.testing.assert_allclose(ours[0], plain[0], atol=1e-10)
        np.testing.assert_allclose(ours[1](dy)[0], plain[1](dy)[0], atol=1e-8)


def test_instance_norm_in_half_precision_keeps_float32_statistics():
    x = jnp.asarray(1000 + 10 * np.random.default_rng(0).standard_normal((2, 64, 64, 6)), jnp.bfloat16)
    y, variables = InstanceNorm(dtype=jnp.bfloat16).init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16 and not jax.tree.leaves(variables)
    np.testing.assert_allclose(y.astype(jnp.float32), plain_instance_norm(x.astype(jnp.float32)), atol=0.02)


def test_the_decoder_puts_the_enlarged_feature_before_the_skip():
    skips = [jnp.full((1, 4, 4, 2), 5.0), jnp.full((1, 2, 2, 3), 7.0)]
    decoder = UnetrDecoder(conv=Conv, conv_transpose=ConvTranspose, norm=lambda name: lambda x: x, act=nn.leaky_relu)
    params = jax.tree.map(jnp.zeros_like, decoder.init(jax.random.key(0), skips)["params"])
    params["level0_enlarge"]["kernel"] = params["level0_enlarge"]["kernel"].at[0, 1, 2, 0].set(1.0)   # odd columns of even rows
    params["level0"]["projection"]["kernel"] = params["level0"]["projection"]["kernel"].at[0, 0, 0, 1].set(1.0)
    finest, coarsest = decoder.apply({"params": params}, skips)
    expected = np.zeros((4, 4, 2))
    expected[::2, 1::2, 1] = 7
    np.testing.assert_array_equal(finest[0], expected)
    np.testing.assert_array_equal(coarsest, skips[1])


def test_convolutions_start_as_torchvision_s_and_pytorch_s_do(image):
    params = MAUNet(encoder=partial(ENCODERS["resnet50"], stage_sizes=(1,)), width=16).init(jax.random.key(0), image)["params"]
    kernel = params["encoder"]["level1_block0"]["conv2"]["kernel"]      # [3, 3, 64, 64], normal over the outputs
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.05)
    kernel = params["classes_decoder"]["level1"]["conv1"]["kernel"]     # [3, 3, 32, 16], uniform
    assert np.abs(kernel).max() == pytest.approx(1 / np.sqrt(9 * 32), rel=0.02)


# ---------------------------------------------------------------- system
def config_of(variant: str):
    return importlib.import_module("configs.maunet").get_config(variant)


def random_maps(*shape: int, classes: int = 4, seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal((*shape, channels)), jnp.float32)
            for name, channels in (("classes", classes), ("distance", 1))}


def test_every_variant_builds():
    for variant in importlib.import_module("configs.maunet").VARIANTS:
        config = config_of(variant).lock()
        system = build_system(config)
        assert not config.data.crop % system.divisor and not config.inference.tile % system.divisor
        assert (config.semi.scheme == "cross") == variant.removeprefix("table4_").removeprefix("mixed_").startswith("cr")


@pytest.mark.parametrize(("part", "key", "value", "message"), [
    ("model", "distance", False, "decode.name='three_watersheds' needs a distance"),
    ("loss", "agreement", "logits_without_proxy", "take 'logits'"),
    ("loss", "focal", "other", "config.loss.focal='other' is unknown; known are logits, probabilities, released"),
    ("decode", "name", "other", "config.decode.name='other' is unknown; known are interior_pieces, three_watersheds"),
])
def test_parts_that_do_not_go_together_are_refused(part, key, value, message):
    config = config_of("mixed")
    config[part][key] = value
    with pytest.raises(ValueError, match=message):
        build_system(config)


def test_targets_of_overlapping_cells_with_gaps_in_their_numbers():
    layers = np.zeros((40, 60, 2), np.int32)
    layers[5:25, 5:25, 0], layers[5:25, 20:40, 1], layers[:, 50:, 0] = 7, 3, -1
    target = build_system(config_of("toy")).targets(Sample(np.zeros((40, 60, 3), np.float32), layers), np.random.default_rng(0))
    assert {name: (value.shape, value.dtype) for name, value in target.items()} == {
        "classes": ((40, 60), np.int32), "distance": ((40, 60, 1), np.float32), "annotated": ((40, 60), np.float32)}
    assert target["classes"][15, [0, 10, 20, 30, 55]].tolist() == [0, 1, 2, 1, 0]
    assert target["distance"].max() == 1 and target["distance"][0, 0, 0] == 0
    np.testing.assert_array_equal(target["annotated"], layers[..., 0] >= 0)


def test_pixels_to_ignore_cost_nothing():
    outputs, other = random_maps(2, 8, 8), random_maps(2, 8, 8, seed=1)
    annotated = jnp.ones((2, 8, 8)).at[1, :, 4:].set(0)
    batch = {"classes": jnp.arange(128).reshape(2, 8, 8) % 3, "distance": jnp.abs(other["distance"]), "annotated": annotated}
    changed = {name: jnp.where(annotated[..., None] > 0, value, other[name]) for name, value in outputs.items()}
    weights = {"dice": 1.0, "focal": 2.0, "distance": 3.0}
    before, after = (maunet_objective(maps, batch, weights=weights) for maps in (outputs, changed))
    assert before.keys() == weights.keys()
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-6)
        np.testing.assert_allclose(maunet_objective(outputs, batch, weights={name: 1.0})[name] * weights[name], value, rtol=1e-6)
    nothing = maunet_objective(outputs, {**batch, "annotated": 0 * annotated}, weights=weights)
    assert all(value == 0 for value in nothing.values())


def test_consistency_both_ways_has_the_gradient_of_equation_3():
    first, second = random_maps(1, 4, 4), random_maps(1, 4, 4, seed=1)

    def both_ways(pair):
        terms = [maunet_consistency(pair[i], jax.lax.stop_gradient(pair[1 - i]), agreement=AGREEMENTS["pseudo_labels"])
                 for i in (0, 1)]
        return sum(sum(term.values()) for term in terms)

    def equation_3(pair):
        logs = [jax.nn.log_softmax(maps["classes"]) for maps in pair]
        pseudo = [jax.nn.one_hot(jnp.argmax(maps["classes"], -1), 4) for maps in pair]
        cross = -sum(jnp.mean(jnp.sum(pseudo[1 - i] * logs[i], -1)) for i in (0, 1))
        return cross + jnp.mean((pair[0]["distance"] - pair[1]["distance"]) ** 2)

    ours, theirs = (jax.grad(f)((first, second)) for f in (both_ways, equation_3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), ours, theirs)


def test_cells_without_a_distance_are_pieces_of_interior():
    logits = np.full((30, 50, 4), -10, np.float32)
    logits[..., 0] = 10
    logits[5:15, 5:15, 1], logits[5:15, 30:45, 1] = 30, 30
    cells = build_system(config_of("table4_no_regression")).decode({"classes": logits})
    assert cells.boxes.tolist() == [[5, 5, 15, 15], [5, 30, 15, 45]]
    np.testing.assert_allclose(cells.scores, 1, atol=1e-6)
    with pytest.raises(KeyError):
        decode_maps({"classes": logits})
