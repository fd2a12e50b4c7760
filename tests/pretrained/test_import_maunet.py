"""Published MAUNets, alone and in pairs, and ImageNet ResNets land in the right places; nothing is lost on either side."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.pretrained.maunet import load_maunet, maunet_paths
from jaxcell.systems.maunet import ENCODERS, MAUNet

NETWORK = MAUNet(encoder=partial(ENCODERS["wideresnet50"], width=8, stage_sizes=(1, 1)), width=2)

Shapes = dict[str, tuple[int, ...]]


def conv(name: str, outputs: int, inputs: int, side: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, side, side)}


def norm(name: str, width: int) -> Shapes:
    return {**{f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")},
            f"{name}.num_batches_tracked": ()}


def resnet(stages: int) -> Shapes:
    """As torchvision names a wide ResNet of one block a stage and a stem of 8."""
    shapes, inputs = conv("conv1", 8, 3, 7) | norm("bn1", 8), 8
    for stage in range(stages):
        name, width = f"layer{stage + 1}.0", 16 << stage
        for number, before, after, side in ((1, inputs, width, 1), (2, width, width, 3), (3, width, 2 * width, 1)):
            shapes |= conv(f"{name}.conv{number}", after, before, side) | norm(f"{name}.bn{number}", after)
        shapes |= conv(f"{name}.downsample.0", 2 * width, inputs, 1) | norm(f"{name}.downsample.1", 2 * width)
        inputs = 2 * width
    return shapes


def residual(name: str, outputs: int, inputs: int) -> Shapes:
    return {**conv(f"{name}.conv1.conv", outputs, inputs, 3), **conv(f"{name}.conv2.conv", outputs, outputs, 3),
            **conv(f"{name}.conv3.conv", outputs, inputs, 1)}


def maunet() -> Shapes:
    """As the reference names the network above."""
    shapes = {f"res.{name}": shape for name, shape in resnet(2).items()}
    for number, (inputs, width) in enumerate(((3, 2), (8, 2), (32, 4), (64, 8)), start=1):
        shapes |= residual(f"encoder{number}.layer", width, inputs)
    for suffix, outputs in (("", 4), ("_2", 1)):
        for number, width in ((3, 4), (2, 2), (1, 2)):
            above = {3: 8, 2: 4, 1: 2}[number]
            shapes |= {f"decoder{number}{suffix}.transp_conv.conv.weight": (above, width, 2, 2),
                       **residual(f"decoder{number}{suffix}.conv_block", width, 2 * width)}
        shapes |= {**conv(f"out{suffix}.conv.conv", outputs, 2, 1), f"out{suffix}.conv.conv.bias": (outputs,)}
    return shapes


def arrays(shapes: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.random(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def published() -> dict[str, np.ndarray]:
    return arrays(maunet())


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes)


def assert_same(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_leaves_land_in_their_places(published, variables):
    loaded = load_maunet(published, variables)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), loaded) == jax.tree.map(lambda a: (a.shape, a.dtype), dict(variables))
    params, statistics = loaded["params"], loaded["batch_stats"]
    assert_same(params["encoder"]["level2_block0"]["conv2"]["kernel"][1, 2, 3, 4],
                published["res.layer2.0.conv2.weight"][4, 3, 1, 2])
    assert_same(statistics["encoder"]["level0"]["norm1"]["var"], published["res.bn1.running_var"])
    assert_same(params["skips"]["level0"]["conv1"]["kernel"][1, 2, 0], published["encoder1.layer.conv1.conv.weight"][:, 0, 1, 2])
    assert_same(params["skips"]["level3"]["projection"]["kernel"][0, 0, 5],
                published["encoder4.layer.conv3.conv.weight"][:, 5, 0, 0])
    enlarge = params["distance_decoder"]["level2_enlarge"]["kernel"]            # [2, 2, 8, 4], there (8, 4, 2, 2)
    assert_same(enlarge[0, 1, 2], published["decoder3_2.transp_conv.conv.weight"][2, :, 0, 1])
    assert_same(params["classes_head"]["bias"], published["out.conv.conv.bias"])


def test_all_that_does_not_fit_is_named_at_once(published, variables):
    del published["res.layer1.0.bn2.running_mean"]
    published["encoder5.layer.conv1.conv.weight"] = np.zeros((16, 128, 3, 3))
    published["extra.weight"] = np.zeros(1)
    published["out.conv.conv.bias"] = np.zeros(3)
    with pytest.raises(ValueError) as error:
        load_maunet(published, variables)
    for part in ("batch_stats/encoder/level1_block0/norm2/mean", "encoder5.layer.conv1.conv.weight", "extra.weight",
                 "out.conv.conv.bias (3,) for params/classes_head/bias (4,)"):
        assert part in str(error.value)


def test_of_a_pair_each_network_takes_its_own(published, variables):
    both = ({f"branch1.{name}": array for name, array in arrays(resnet(4), seed=1).items()}
            | {f"branch2.{name}": array for name, array in published.items()})
    assert_same(load_maunet(both, variables, branch="branch2."), load_maunet(published, variables))
    assert_same(load_maunet(published, variables, branch="branch2."), load_maunet(published, variables))
    with pytest.raises(ValueError, match="left over in it"):
        load_maunet(both, variables)


def test_an_imagenet_resnet_fills_the_encoder_alone(variables):
    """The classifier and the stages that the network does without are left behind, nothing else is."""
    backbone = arrays(resnet(4)) | {"fc.weight": np.zeros((1000, 256)), "fc.bias": np.zeros(1000)}
    loaded = load_maunet(backbone, variables)
    assert_same(loaded["params"]["encoder"]["level1_block0"]["norm3"]["scale"], backbone["layer1.0.bn3.weight"])
    for name in variables["params"].keys() - {"encoder"}:
        assert_same(loaded["params"][name], variables["params"][name])
    with pytest.raises(ValueError, match="Missing in the checkpoint: .*'params/encoder/level2_block0/conv1/kernel'"):
        load_maunet({name: array for name, array in backbone.items() if not name.startswith("layer2")}, variables)
    with pytest.raises(ValueError, match=r"left over in it: \['layer1.1.conv1.weight'\]"):
        load_maunet(backbone | {"layer1.1.conv1.weight": np.zeros((16, 32, 1, 1))}, variables)


def test_another_file_is_no_backbone(variables):
    with pytest.raises(ValueError, match="of another network"):
        load_maunet({"core.conv.weight": np.zeros(3)}, variables)


@pytest.mark.parametrize(("name", "path"), [
    ("res.conv1.weight", "params/encoder/level0/conv1/kernel"),
    ("bn1.bias", "params/encoder/level0/norm1/bias"),
    ("layer4.2.bn3.running_var", "batch_stats/encoder/level4_block2/norm3/var"),
    ("res.layer3.0.downsample.1.weight", "params/encoder/level3_block0/projection_norm/scale"),
    ("encoder10.layer.conv2.conv.weight", "params/skips/level5/conv2/kernel"),
    ("decoder5.transp_conv.conv.weight", "params/classes_decoder/level4_enlarge/kernel"),
    ("decoder1_2.conv_block.conv3.conv.weight", "params/distance_decoder/level0/projection/kernel"),
    ("out_2.conv.conv.bias", "params/distance_head/bias"),
])
def test_names(name, path):
    assert maunet_paths([name]) == {name: tuple(path.split("/"))}


def test_counters_classifiers_and_unknown_names_have_no_place():
    assert maunet_paths(["res.bn1.num_batches_tracked", "fc.weight", "decoder1_3.conv_block.conv1.conv.weight"]) == {}
