"""The panoptic network from its parts: sizes, keys, paddings, inputs, dropped blocks; and what its system does around it."""

from __future__ import annotations

import importlib
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.models.decoders.panoptic import PanopticDecoder
from jaxcell.models.encoders.efficientnet import InvertedBottleneck, _strided
from jaxcell.models.heads.semantic import SemanticHead
from jaxcell.models.inputs import append_location, divide_by_maximum, standardise, standardise_windows
from jaxcell.models.layers import BatchNorm, Conv
from jaxcell.models.resize import resize_bilinear
from jaxcell.systems import build_system
from jaxcell.systems.mesmer import CLASSES, ENCODERS, PanopticNetwork, panoptic_objective
from jaxcell.types import Sample

SMALL = PanopticNetwork(
    heads=tuple(CLASSES.items()), encoder=partial(ENCODERS["resnet50"], width=4, stage_sizes=(1, 1, 1, 1)), features=8,
    head_features=(4, 8))


def shapes(network: PanopticNetwork, size: tuple[int, int] = (64, 96), channels: int = 1):
    image = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    outputs, state = jax.eval_shape(partial(network.apply, mutable=["intermediates"]), variables, image)
    return variables, outputs, {name: value[0].shape[1:] for name, value in state["intermediates"].items()}


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("settings", "expected"), [     # parameter_count of the parity files: running statistics count too
    ({}, 25_557_008), ({"depthwise": True}, 24_969_488), ({"levels": (2, 3, 4, 5)}, 25_548_944),
    ({"encoder": ENCODERS["densenet201"]}, 20_447_440),
    ({"encoder": ENCODERS["efficientnetb7"]}, 66_271_783 - 1),      # Keras also counts the images its normalization has seen
], ids=["resnet50", "lite", "levels", "densenet201", "efficientnetb7"])
def test_parameter_counts_are_the_recorded_ones(settings, expected):
    assert count(shapes(PanopticNetwork(**settings))[0]) == expected


@pytest.mark.parametrize(("name", "widths"), [
    ("resnet50", (64, 256, 512, 1024, 2048)), ("densenet201", (64, 256, 512, 1792, 1920)),
    ("efficientnetb7", (192, 288, 480, 1344, 2560))])
def test_features_of_the_encoders(name, widths):
    _, outputs, features = shapes(PanopticNetwork(encoder=ENCODERS[name]), (704, 544), channels=2)
    assert [features[f"encoder.{i}"] for i in range(1, 6)] == [(704 >> i, 544 >> i, width) for i, width in enumerate(widths, 1)]
    assert features["pyramid"] == (88, 68, 256)
    assert {key: value.shape for key, value in outputs.items()} == {
        "inner_distance": (1, 704, 544, 1), "pixelwise": (1, 704, 544, 3)}


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).random((2, 32, 64, 2)), jnp.float32)


@pytest.fixture(scope="module")
def variables(image):
    rng = np.random.default_rng(0)     # numpy's numbers: to compile the initialisation takes longer than all that is tested

    def values(path, leaf):
        numbers = jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
        if path[-1].key in ("scale", "var"):
            return 1 + 0.1 * jnp.abs(numbers)
        return numbers / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1 * numbers

    return jax.tree_util.tree_map_with_path(values, jax.eval_shape(SMALL.init, jax.random.key(0), image))


def test_heads_give_distances_and_probabilities_in_training_as_in_prediction(image, variables):
    evaluated = jax.jit(SMALL.apply)(variables, image)
    trained, state = jax.jit(partial(SMALL.apply, train=True, mutable=["batch_stats"]))(variables, image)
    expected = {name: (2, 32, 64, channels) for name, channels in CLASSES.items()}
    for outputs in (evaluated, trained):
        assert {name: value.shape for name, value in outputs.items()} == expected
        assert all((value >= 0).all() for value in outputs.values())
        for name in ("fgbg", "pixelwise"):
            np.testing.assert_allclose(outputs[name].sum(-1), 1, rtol=1e-5)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), variables["batch_stats"], dict(state["batch_stats"]))
    assert all(jax.tree.leaves(changed))


def test_half_precision_computes_near_single_precision(image, variables):
    network = SMALL.clone(heads=(("pixelwise", 3),))
    single, half = (jax.jit(network.clone(dtype=dtype).apply)(variables, image)["pixelwise"]
                    for dtype in (jnp.float32, jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert 0 < np.abs(single - half).max() < 0.05


def test_convolutions_start_as_keras_does():
    network = PanopticNetwork(encoder=lambda conv, norm, dropout, name: lambda x: [x] * 5, levels=(5,), features=32)
    params = network.init(jax.random.key(0), jnp.zeros((1, 1, 1, 1)))["params"]
    kernel = params["decoder"]["P5"]["kernel"]                                  # [3, 3, 32, 32]
    assert np.abs(kernel).max() == pytest.approx(np.sqrt(6 / (9 * 64)), rel=0.01)
    assert not any(np.any(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "bias")


@pytest.mark.parametrize("size", [(6, 8), (7, 8), (5, 7)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("groups", [1, 4])
def test_strided_convolutions_pad_as_keras_does(size, kernel, groups):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, *size, 4)), jnp.float32)
    weights = jnp.asarray(rng.standard_normal((kernel, kernel, 4 // groups, 4)), jnp.float32)
    padding = [(kernel // 2 - (1 - length % 2), kernel // 2) for length in size]     # keras.applications' correct_pad
    expected = jax.lax.conv_general_dilated(x, weights, (2, 2), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
                                            feature_group_count=groups)
    layer = Conv(4, kernel, 2, groups=groups, parent=None).bind({"params": {"kernel": weights}})
    np.testing.assert_allclose(_strided(layer, x), expected, rtol=1e-4, atol=1e-5)


def test_blocks_are_dropped_while_training_alone():
    block = InvertedBottleneck(4, conv=Conv, norm=partial(BatchNorm, use_running_average=True), kernel=3, stride=1, expansion=1,
                               drop=0.5, dropout=partial(nn.Dropout, deterministic=False))
    x = jnp.asarray(np.random.default_rng(0).random((64, 2, 2, 4)), jnp.float32)
    variables = block.init({"params": jax.random.key(0), "dropout": jax.random.key(0)}, x)
    kept = block.clone(drop=0.0).apply(variables, x)[0] - x
    added = block.apply(variables, x, rngs={"dropout": jax.random.key(1)})[0] - x
    dropped = np.all(added == 0, axis=(1, 2, 3))
    assert 16 < dropped.sum() < 48
    np.testing.assert_allclose(added[~dropped], 2 * kept[~dropped], rtol=1e-3, atol=1e-6)      # whole samples, and the mean stays
    still = block.clone(dropout=partial(nn.Dropout, deterministic=True)).apply(variables, x)[0]
    np.testing.assert_array_equal(still - x, kept)


def test_pyramid_adds_what_is_coarser_and_a_depthwise_level_keeps_channels_apart():
    fine, coarse = jnp.ones((1, 4, 4, 3)), jnp.ones((1, 2, 2, 5))
    decoder = PanopticDecoder(conv=Conv, resize=resize_bilinear, features=2, depthwise=True, finest=4)
    params = decoder.init(jax.random.key(0), [fine, coarse])["params"]
    assert {name: leaves["kernel"].shape for name, leaves in params.items()} == {
        "C4_reduced": (1, 1, 3, 2), "C5_reduced": (1, 1, 5, 2), "P4": (3, 3, 1, 2)}
    params = jax.tree.map(jnp.zeros_like, params)
    params["C4_reduced"]["bias"], params["C5_reduced"]["bias"] = jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, 2.0])
    params["P4"]["kernel"] = jnp.zeros((3, 3, 1, 2)).at[1, 1].set(1.0)
    np.testing.assert_array_equal(decoder.apply({"params": params}, [fine, coarse]), np.broadcast_to([1.0, 2.0], (1, 4, 4, 2)))


def test_a_head_doubles_its_grid_as_often_as_asked():
    head = SemanticHead(3, 2, conv=Conv, norm=partial(BatchNorm, use_running_average=True), resize=resize_bilinear, features=4,
                        final_features=6)
    shape, variables = jax.eval_shape(head.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 7, 8)))
    assert shape.shape == (1, 20, 28, 3)
    assert variables["params"]["upsample1"]["kernel"].shape == (3, 3, 4, 4)


# ---------------------------------------------------------------------------------------------------------------- inputs
def test_every_pixel_knows_its_place():
    place = append_location(jnp.zeros((2, 3, 5, 1)))[..., 1:]
    np.testing.assert_allclose(place[1, :, 2], [[0, 0.5], [0.5, 0.5], [1, 0.5]])
    np.testing.assert_allclose(place[0, 1, :, 1], [0, 0.25, 0.5, 0.75, 1])
    assert np.isfinite(append_location(jnp.zeros((1, 1, 1, 1)))).all()


def test_normalisations_against_loops():
    x = np.random.default_rng(0).random((2, 6, 7, 2)).astype(np.float32)
    np.testing.assert_allclose(standardise(x)[1, ..., 0], (x[1, ..., 0] - x[1, ..., 0].mean()) / x[1, ..., 0].std(), rtol=1e-4)

    def window_mean(values):
        padded = np.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return np.stack([[padded[:, i:i + 3, j:j + 3].sum((1, 2)) / 9 for j in range(7)] for i in range(6)]).transpose(2, 0, 1, 3)

    difference = x - window_mean(x)
    deviation = np.sqrt(window_mean(difference ** 2) - window_mean(difference) ** 2)
    np.testing.assert_allclose(standardise_windows(x, size=3), difference / (deviation + 1e-7), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(divide_by_maximum(x, size=3), x / x.max() - window_mean(x / x.max()), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------- system
def config_of(variant: str):
    return importlib.import_module("configs.mesmer").get_config(variant)


def test_every_variant_builds():
    for variant in importlib.import_module("configs.mesmer").VARIANTS:
        config = config_of(variant)
        assert build_system(config).divisor == 32
        assert config.data.crop % 32 == config.inference.tile % 32 == 2 * config.inference.margin % 32 == 0


def test_ignored_pixels_change_neither_losses_nor_gradients():
    system = build_system(config_of("resnet50_inner_outer_fgbg_pixelwise"))
    rng = np.random.default_rng(0)
    labels = np.zeros((32, 32, 1), np.int32)
    labels[4:14, 4:14], labels[18:28, 10:20], labels[:, 24:] = 1, 2, -1
    targets = system.targets(Sample(np.zeros((32, 32, 1), np.float32), labels), rng)
    batch = {name: value[None] for name, value in targets.items()}
    assert targets["annotated"].sum() == 32 * 24
    outputs = {name: rng.random((1, 32, 32, CLASSES[name])).astype(np.float32) + 0.1 for name in CLASSES}
    other = {name: np.where(targets["annotated"][None, ..., None] > 0, value, rng.random(value.shape) + 0.1)
             for name, value in outputs.items()}
    terms, changed = system.loss(outputs, batch), system.loss(other, batch)
    assert set(terms) == set(CLASSES)
    for name in terms:
        assert terms[name] > 0
        np.testing.assert_allclose(terms[name], changed[name], rtol=1e-6)
    gradient = jax.grad(lambda o: sum(system.loss(o, batch).values()))(outputs)
    assert not any(np.any(value[:, :, 24:]) for value in gradient.values())


def test_objective_is_the_mean_over_pixels_times_the_weight():
    outputs = {"inner_distance": jnp.full((1, 2, 2, 1), 0.5), "fgbg": jnp.full((1, 2, 2, 2), 0.5)}
    one_hot = jnp.asarray([[[[1.0, 0], [1, 0]], [[1, 0], [0, 1]]]])
    batch = {"inner_distance": jnp.zeros((1, 2, 2, 1)), "fgbg": one_hot, "annotated": jnp.ones((1, 2, 2))}
    terms = panoptic_objective(outputs, batch, weights={"inner_distance": 1.0, "fgbg": 0.01})
    assert terms["inner_distance"] == pytest.approx(0.25)
    weights = 4 / (2 * (np.asarray([3, 1]) + 1))        # total / (classes * (count + 1))
    assert terms["fgbg"] == pytest.approx(0.01 * np.log(2) * (3 * weights[0] + weights[1]) / 4)


def test_wrong_settings_name_the_remedy():
    image = jnp.zeros((1, 32, 32, 1))
    for settings, message in (({"levels": (3, 5)}, "without gaps up to 5"), ({"levels": ()}, "without gaps up to 5"),
                              ({"heads": (("a", 1), ("a", 2))}, "each name once"), ({"heads": ()}, "one at least")):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(SMALL.clone(**settings).init, jax.random.key(0), image)
    for key, value, message in (("model.heads", ("distance",), "no head of the network"), ("decode.markers", "fgbg", "no head"),
                                ("model.encoder", "resnet", "known are densenet201"), ("model.resize", "cubic", "bilinear")):
        config = config_of("toy")
        part, name = key.split(".")
        config[part][name] = value
        with pytest.raises(ValueError, match=message):
            build_system(config)
