"""Published SE-U-Nets land in the right places, with and without norms in the branches, and nothing is lost on either side."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest
from flax import traverse_util

from jaxcell.models.decoders.instances import EveryLevelBranch, InstanceDecoder, InstanceHead
from jaxcell.models.decoders.se_unet import SEUNetDecoder
from jaxcell.models.encoders.se_unet import SEUNetEncoder
from jaxcell.models.layers import NoNorm
from jaxcell.pretrained.sparse_seunet import load_sparse_seunet, sparse_seunet_paths
from jaxcell.systems.sparse_seunet import SparseSEUNet

WIDTH, WINDOWS = 4, (1, 2, 4)
Shapes = dict[str, tuple[int, ...]]


def weight(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def norm(name: str, width: int) -> Shapes:
    statistics = {f"{name}.{leaf}": (width,) for leaf in ("running_mean", "running_var")}
    return weight(name, width) | statistics | {f"{name}.num_batches_tracked": ()}


def double_conv(name: str, inputs: int) -> Shapes:
    shapes = {}
    for number, place in enumerate(("conv1.0", "conv1.3", "conv2.0", "conv2.3")):
        shapes |= weight(f"{name}.{place}", WIDTH, WIDTH if number else inputs, 3, 3)
        shapes |= norm(f"{name}.{place[:-1]}{int(place[-1]) + 1}", WIDTH)
    return shapes


def excite(name: str, width: int) -> Shapes:
    return weight(f"{name}.excite.0", width // 2, width) | weight(f"{name}.excite.2", width, width // 2)


def stack(name: str, inputs: int, width: int, *, normed: bool) -> Shapes:
    shapes = {}
    for number in range(4):
        shapes |= weight(f"{name}.{(3 if normed else 2) * number}", width, width if number else inputs, 3, 3)
        shapes |= norm(f"{name}.{3 * number + 1}", width) if normed else {}
    return shapes


def published_shapes(*, normed: bool) -> Shapes:
    """A network of two levels with an overlap decoder, named as the author's."""
    shapes, skip = {}, WIDTH + 2 * len(WINDOWS)
    for level, inputs in enumerate((1, WIDTH)):
        shapes |= double_conv(f"down_conv_layers.{level}", inputs) | excite(f"down_se_blocks.{level}", WIDTH)
        shapes |= excite(f"pp_se_blocks.{level}", skip)
        for block in range(1, len(WINDOWS) + 1):
            name = f"down_pp_layers.{level}.interp_block{block}.interp"
            shapes |= {f"{name}.1.weight": (2, WIDTH, 1, 1)} | norm(f"{name}.2", 2)
        for ending in ("", "_overlap"):
            shapes |= double_conv(f"up_conv_layers{ending}.{level}", WIDTH + 2 + level * skip)
            shapes |= excite(f"up_se_blocks{ending}.{level}", WIDTH)
        for name, width in (("prior_instance_branch.{}.inst_convs", 6), ("mask_branch.{}.mask_convs", 5)):
            shapes |= stack(name.format(level), 2 * (WIDTH + skip) + level * width, width, normed=normed)
    shapes |= double_conv("middleConv", 2 * WIDTH) | excite("middleSE", WIDTH) | weight("overlap_conv", 1, WIDTH + skip, 1, 1)
    head = {"iam_conv": (3, 6, 3, 3), "fc": (6, 6), "cls_score": (1, 6), "mask_kernel": (5, 6), "objectness": (1, 6)}
    return shapes | {key: shape for name, size in head.items() for key, shape in weight(f"instance_branch.{name}", *size).items()}


def variables_of(*, normed: bool) -> dict:
    instances = partial(InstanceDecoder, branch=EveryLevelBranch, head=partial(InstanceHead, queries=3, depth=1),
                        instance_features=6, mask_features=5)
    network = SparseSEUNet(heads=("overlap",), condition="overlap", instances=instances, branch_norm=None if normed else NoNorm,
                           encoder=partial(SEUNetEncoder, width=WIDTH, levels=2, windows=WINDOWS, pyramid_features=2),
                           decoder=partial(SEUNetDecoder, width=WIDTH))
    return jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32))


def published(*, normed: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in published_shapes(normed=normed).items()}


load = partial(load_sparse_seunet, heads=("overlap",), windows=WINDOWS)


@pytest.mark.parametrize("normed", [True, False])
def test_every_array_has_one_place(normed):
    state = published(normed=normed)
    loaded = traverse_util.flatten_dict(load(state, variables_of(normed=normed)))
    paths = sparse_seunet_paths(state, heads=("overlap",), windows=WINDOWS)
    assert len(set(paths.values())) == len(paths) == len(loaded)
    assert set(state) - set(paths) == {name for name in state if name.endswith("num_batches_tracked")}
    last = "9" if normed else "6"
    np.testing.assert_array_equal(loaded["params", "instances", "mask_branch", "step1", "conv4", "kernel"],
                                  state[f"mask_branch.1.mask_convs.{last}.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(loaded["params", "instances", "head", "scores", "kernel"][0, 0],
                                  state["instance_branch.cls_score.weight"].T)
    np.testing.assert_array_equal(loaded["params", "encoder", "level0_pyramid", "window4", "conv1", "kernel"],
                                  state["down_pp_layers.0.interp_block1.interp.1.weight"].transpose(2, 3, 1, 0))


def test_places_of_pixels_change_from_x_y_to_y_x():
    state = published(normed=True)
    kernel = load(state, variables_of(normed=True))["params"]["overlap_decoder"]["step1"]["conv1"]["kernel"]
    there = state["up_conv_layers_overlap.1.conv1.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel[:, :, 0], there[:, :, 1])
    np.testing.assert_array_equal(kernel[:, :, 1], there[:, :, 0])
    np.testing.assert_array_equal(kernel[:, :, 2:], there[:, :, 2:])


def test_another_network_is_refused_with_every_name():
    state = published(normed=True)
    del state["middleSE.excite.0.weight"]
    state["fpn.weight"] = np.zeros(2, np.float32)
    state["overlap_conv.bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError) as error:
        load(state, variables_of(normed=True))
    for part in ("params/encoder/bottom_se/squeeze/kernel", "fpn.weight",
                 "overlap_conv.bias (3,) for params/overlap_head/bias (1,)"):
        assert part in str(error.value)
