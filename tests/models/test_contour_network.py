"""The contour proposal network from its parts: sizes, keys, gradients, precision, messages."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.models.layers import Conv, GroupNorm
from jaxcell.systems.contour_proposal import (
    DECODER_NORMS,
    DECODERS,
    ENCODERS,
    FUSIONS,
    POOLINGS,
    ContourProposalNetwork,
)

PACKAGE = {"pooling": None, "decoder_norm": None, "decoder_act": nn.relu, "fuse": FUSIONS["conv_norm_act"], "resize": "features",
           "contour_features": ("decoder.1",), "score_features": ("decoder.1",), "refinement_features": ("decoder.0",),
           "buckets": 1, "uncertainty": False, "mean": (0.0,), "std": (1.0,)}

# Every part in one small network: group and batch norms, grouped convolutions, pyramid, laterals.
SMALL = ContourProposalNetwork(
    encoder=partial(ENCODERS["resnext101_32x8d"], width=8, stage_sizes=(1, 1)),
    pooling=partial(POOLINGS["pyramid"], features=4, scales=(1, 2)), decoder_norm=partial(GroupNorm, num_groups=4),
    order=3, buckets=2, head_kernel=3, head_features=8)


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).random((2, 32, 48, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(image):
    rng = np.random.default_rng(0)     # numpy's numbers: to compile the initialisation takes longer than all that is tested

    def values(path, leaf):
        numbers = jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
        return 0.1 * numbers if path[-1].key in ("kernel", "bias", "mean") else 1 + 0.1 * jnp.abs(numbers)

    return jax.tree_util.tree_map_with_path(values, jax.eval_shape(SMALL.init, jax.random.key(0), image))


@pytest.fixture(scope="module")
def evaluated(variables, image):
    return jax.jit(SMALL.apply)(variables, image)


def shapes(network: ContourProposalNetwork, size: tuple[int, int] = (64, 96)):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    outputs, state = jax.eval_shape(partial(network.apply, mutable=["intermediates"]), variables, image)
    return variables, outputs, {name: value[0].shape[1:] for name, value in state["intermediates"].items()}


@pytest.mark.parametrize(("network", "count"), [
    (ContourProposalNetwork(), 228_242_999),
    (ContourProposalNetwork(encoder=ENCODERS["unet22"], decoder=DECODERS["unet"], order=5, **PACKAGE), 31_568_089),
    (ContourProposalNetwork(encoder=ENCODERS["resnet50"], decoder=DECODERS["full_resolution_unet"], order=6, **{
        **PACKAGE, "score_features": ("decoder.1", "encoder.1"), "refinement_features": ("decoder.0", "encoder.0"), "buckets": 6,
        "uncertainty": True}), 164_763_947),
    (ContourProposalNetwork(encoder=ENCODERS["resnet50"], decoder=DECODERS["fpn"], order=6, **PACKAGE), 40_314_717),
], ids=["challenge", "unet22", "resnet50_unet", "resnet50_fpn"])
def test_parameter_counts_are_the_published_ones(network, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(network)[0]["params"])) == count


# torchvision's published counts without the classifier (2048 or 512 inputs, 1000 classes)
@pytest.mark.parametrize(("name", "count"), [
    ("resnet18", 11_689_512 - 513_000), ("resnet34", 21_797_672 - 513_000), ("resnet50", 25_557_032 - 2_049_000),
    ("resnet101", 44_549_160 - 2_049_000), ("resnext101_32x8d", 88_791_336 - 2_049_000),
    ("wide_resnet50_2", 68_883_240 - 2_049_000)])
def test_encoders_are_torchvision_s(name, count):
    variables, _, features = shapes(ContourProposalNetwork(encoder=ENCODERS[name]))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["encoder"])) == count
    widths = (64, 64, 128, 256, 512) if name in ("resnet18", "resnet34") else (64, 256, 512, 1024, 2048)
    assert [features[f"encoder.{i}"] for i in range(5)] == [(32 >> i, 48 >> i, width) for i, width in enumerate(widths)]


def test_levels_of_the_decoders():
    small = partial(ENCODERS["resnet18"], width=8)
    settings = {**PACKAGE, "encoder": small, "order": 2}
    _, outputs, features = shapes(ContourProposalNetwork(decoder=DECODERS["unet"], **settings))
    assert [features[f"decoder.{i}"] for i in range(5)] == [(32, 48, 8), (16, 24, 8), (8, 12, 16), (4, 6, 32), (2, 3, 64)]
    assert outputs["scores"].shape == (1, 16, 24, 1)
    _, outputs, features = shapes(ContourProposalNetwork(decoder=DECODERS["full_resolution_unet"], **settings))
    assert [features[f"decoder.{i}"] for i in range(3)] == [(64, 96, 8), (32, 48, 8), (16, 24, 16)]
    assert outputs["scores"].shape == (1, 32, 48, 1)
    _, _, features = shapes(ContourProposalNetwork(decoder=partial(DECODERS["fpn"], features=12), **settings))
    assert [features[f"decoder.{i}"] for i in range(6)] == [(64 >> i, 96 >> i, 12) for i in range(1, 6)] + [(1, 2, 12)]


def test_biases_of_the_feature_pyramid_start_at_zero():
    pyramid = DECODERS["fpn"](conv=Conv, norm=None, act=nn.relu, features=4)
    parameters = pyramid.init(jax.random.key(0), [jnp.ones((1, 4 >> i, 4 >> i, 6)) for i in range(2)])["params"]
    assert all(not convolution["bias"].any() and convolution["kernel"].any() for convolution in parameters.values())


def test_pyramid_pooling_with_and_without_its_input():
    settings = {**PACKAGE, "encoder": partial(ENCODERS["resnet18"], width=8), "decoder": DECODERS["unet"]}
    for name, channels in (("pyramid", 4 * 5), ("pyramid_and_input", 64 + 4 * 5)):
        network = ContourProposalNetwork(**{**settings, "pooling": partial(POOLINGS[name], features=5)})
        assert shapes(network)[2]["encoder.5"] == (2, 3, channels)


def test_outputs_have_the_same_keys_and_shapes_in_training(image, variables, evaluated):
    assert set(variables) == {"params", "batch_stats"}
    train = jax.jit(partial(SMALL.apply, train=True, mutable=["batch_stats"]))
    trained, state = train(variables, image, rngs={"dropout": jax.random.key(1)})
    expected = {"scores": (2, 8, 12, 1), "locations": (2, 8, 12, 2), "fourier": (2, 8, 12, 12), "uncertainty": (2, 8, 12, 4),
                "refinement": (2, 32, 48, 4)}
    assert {k: v.shape for k, v in evaluated.items()} == {k: v.shape for k, v in trained.items()} == expected
    assert np.abs(evaluated["refinement"]).max() <= SMALL.margin
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), variables["batch_stats"], dict(state["batch_stats"]))
    assert all(jax.tree.leaves(changed))


def test_every_parameter_gets_a_gradient(image, variables):
    network = SMALL.clone(dropout=0.0)

    @jax.jit
    @jax.grad
    def gradient(params):
        outputs, _ = network.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
        return sum(jnp.sum(value * jnp.cos(jnp.arange(value.size).reshape(value.shape))) for value in outputs.values())

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        assert np.isfinite(leaf).all() and np.any(leaf != 0), jax.tree_util.keystr(path)


def test_half_precision_computes_near_single_precision(image, variables, evaluated):
    half = SMALL.clone(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), image))} == {jnp.dtype("float32")}
    halved = jax.jit(half.apply)(variables, image)
    for name, value in evaluated.items():
        assert halved[name].dtype == jnp.float32
        assert 0 < np.abs(halved[name] - value).max() < 0.05 * max(1.0, float(np.abs(value).max())), name


def test_decoder_starts_kaiming_normal_and_heads_as_pytorch():
    network = ContourProposalNetwork(encoder=partial(ENCODERS["resnet18"], width=32, stage_sizes=(1,)), pooling=None)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    decoder = params["decoder"]["level0"]["conv2"]["kernel"]                       # [3, 3, 32, 32]
    assert np.std(decoder) == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.03)
    head = params["location_head"]["conv1"]["kernel"]                              # [7, 7, 32, 32]
    assert np.abs(head).max() == pytest.approx(1 / np.sqrt(49 * 32), rel=0.01)


def test_heads_may_sit_on_other_levels_and_lack_uncertainty():
    network = SMALL.clone(uncertainty=False, contour_features=("decoder.0",), score_features=("decoder.0",),
                          refinement_features=("decoder.1",))
    _, outputs, _ = shapes(network)
    assert "uncertainty" not in outputs
    assert outputs["fourier"].shape == (1, 32, 48, 12)
    assert outputs["refinement"].shape == (1, 64, 96, 4)


def test_wrong_settings_name_the_remedy():
    image = jnp.zeros((1, 32, 32, 1))
    with pytest.raises(ValueError, match=r"mean .* 3 values for an image of 1 channels"):
        jax.eval_shape(SMALL.init, jax.random.key(0), image)
    with pytest.raises(ValueError, match=r"no features \['decoder.9'\] for the score head; there are .*'decoder.0'"):
        jax.eval_shape(SMALL.clone(score_features=("decoder.9",), mean=(0.5,), std=(0.2,)).init, jax.random.key(0), image)


def test_named_parts_cover_the_defaults():
    assert ContourProposalNetwork().decoder_norm is DECODER_NORMS["group"]
    assert ContourProposalNetwork().pooling is POOLINGS["pyramid"]
    assert ContourProposalNetwork().fuse is FUSIONS["reduce"]
