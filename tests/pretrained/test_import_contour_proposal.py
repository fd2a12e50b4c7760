"""A published state dict lands in the right places, in (y, x), and nothing is lost on either side."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.pretrained.contour_proposal import contour_proposal_paths, load_contour_proposal
from jaxcell.systems.contour_proposal import DECODERS, ENCODERS, ContourProposalNetwork

NETWORK = ContourProposalNetwork(
    encoder=partial(ENCODERS["unet22"], width=4, levels=2), pooling=None, decoder=DECODERS["unet"], decoder_norm=None,
    decoder_act=nn.relu, order=2, buckets=2, contour_features=("decoder.0",), score_features=("decoder.0",),
    refinement_features=("decoder.0",), head_kernel=3, mean=(0.0,), std=(1.0,))


def conv(name: str, outputs: int, inputs: int, side: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, side, side), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {**{f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")},
            f"{name}.num_batches_tracked": ()}


def pair(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {**conv(f"{name}.0", outputs, inputs, 3), **norm(f"{name}.1", outputs), **conv(f"{name}.3", outputs, outputs, 3),
            **norm(f"{name}.4", outputs)}


@pytest.fixture
def published() -> dict[str, np.ndarray]:
    """Names and shapes as celldetection 0.4.9 writes them for the network above."""
    shapes = {"order_weights": (2, 1), **pair("core.backbone.body.0", 4, 3), **pair("core.backbone.body.1.1", 8, 4),
              **conv("core.backbone.unet.inner_blocks.0", 4, 8, 1), **pair("core.backbone.unet.layer_blocks.0", 4, 8)}
    for head, outputs in (("score", 1), ("location", 2), ("fourier", 8), ("uncertainty", 4), ("refinement", 4)):
        name = f"core.{head}_head.block"
        shapes |= {**conv(f"{name}.0", 4, 4, 3), **norm(f"{name}.1", 4), **conv(f"{name}.4", outputs, 4, 1)}
    rng = np.random.default_rng(0)
    return {name: rng.random(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def variables():
    return jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def test_leaves_land_in_their_places(published, variables):
    loaded = load_contour_proposal(published, variables)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), loaded) == jax.tree.map(lambda a: (a.shape, a.dtype), dict(variables))
    params, statistics = loaded["params"], loaded["batch_stats"]
    np.testing.assert_array_equal(params["encoder"]["level1"]["conv2"]["kernel"][1, 2, 3, 4],
                                  published["core.backbone.body.1.1.3.weight"][4, 3, 1, 2])
    np.testing.assert_array_equal(params["decoder"]["level0_reduce"]["bias"], published["core.backbone.unet.inner_blocks.0.bias"])
    np.testing.assert_array_equal(statistics["score_head"]["norm1"]["var"], published["core.score_head.block.1.running_var"])


@pytest.mark.parametrize(("head", "order"), [
    ("score", [0]), ("location", [1, 0]), ("uncertainty", [1, 0, 3, 2]), ("refinement", [1, 0, 3, 2]),
    ("fourier", [2, 3, 0, 1, 6, 7, 4, 5])])
def test_output_channels_become_y_x(published, variables, head, order):
    output = load_contour_proposal(published, variables)["params"][f"{head}_head"]["output"]
    np.testing.assert_array_equal(output["bias"], published[f"core.{head}_head.block.4.bias"][order])
    np.testing.assert_array_equal(output["kernel"][0, 0], published[f"core.{head}_head.block.4.weight"][order, :, 0, 0].T)


def test_all_that_does_not_fit_is_named_at_once(published, variables):
    del published["core.backbone.body.0.4.running_mean"]
    published["core.score_reduce.weight"] = np.zeros((4, 8, 1, 1))
    published["core.fourier_head.block.4.bias"] = np.zeros(12)
    published["core.extra.weight"] = np.zeros(1)
    with pytest.raises(ValueError) as error:
        load_contour_proposal(published, variables)
    for part in ("batch_stats/encoder/level0/norm2/mean", "core.score_reduce.weight", "core.extra.weight",
                 "core.fourier_head.block.4.bias (12,) for params/fourier_head/output/bias (8,)"):
        assert part in str(error.value)


@pytest.mark.parametrize(("name", "path"), [
    ("core.backbone.body.0.0.weight", "params/encoder/level0/conv1/kernel"),
    ("core.backbone.body.1.1.0.conv1.weight", "params/encoder/level1_block0/conv1/kernel"),
    ("core.backbone.body.3.22.bn3.running_var", "batch_stats/encoder/level3_block22/norm3/var"),
    ("core.backbone.body.2.0.downsample.1.weight", "params/encoder/level2_block0/projection_norm/scale"),
    ("core.backbone.body.2.1.downsample.0.weight", "params/encoder/level2_block1/projection/kernel"),
    ("core.backbone.body.5.mods.3.2.bias", "params/pooling/branch3/norm1/bias"),
    ("core.backbone.body.5.blocks.0.1.weight", "params/pooling/branch0/conv1/kernel"),
    ("core.backbone.unet.layer_blocks.4.block.3.weight", "params/decoder/level4/conv2/kernel"),
    ("core.backbone.unet.layer_blocks.0.downsample.1.weight", "params/decoder/level0/projection_norm/scale"),
    ("core.backbone.fpn.layer_blocks.2.0.weight", "params/decoder/level2_output/kernel"),
    ("core.score_reduce.weight", "params/score_fuse/conv1/kernel"),
    ("core.refinement_fuse.block.1.weight", "params/refinement_fuse/norm1/scale"),
])
def test_names(name, path):
    assert contour_proposal_paths([name]) == {name: tuple(path.split("/"))}


def test_counters_and_unknown_names_have_no_place():
    assert contour_proposal_paths(["core.score_head.block.1.num_batches_tracked", "order_weights", "core.other.weight"]) == {}
