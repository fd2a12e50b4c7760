"""Published Keras weights land in the right places, whole networks and backbones, and nothing is lost on either side."""

from __future__ import annotations

from functools import partial

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.models.encoders.efficientnet import Normalization
from jaxcell.pretrained.keras import is_keras, read_keras
from jaxcell.pretrained.mesmer import load_mesmer, mesmer_paths
from jaxcell.systems.mesmer import ENCODERS, PanopticNetwork

HEADS = ("inner_distance", "pixelwise")
NETWORK = PanopticNetwork(encoder=partial(ENCODERS["resnet50"], width=2, stage_sizes=(1, 1, 1, 1)), features=4, depthwise=True,
                          head_features=(3, 5))

Shapes = dict[str, tuple[int, ...]]


def conv(name: str, side: int, inputs: int, outputs: int) -> Shapes:
    return {f"{name}/kernel": (side, side, inputs, outputs), f"{name}/bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}/{leaf}": (width,) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}


def backbone_shapes() -> Shapes:
    shapes, inputs = conv("conv1_conv", 7, 3, 2) | norm("conv1_bn", 2), 2
    for stage in range(4):
        name, width = f"conv{stage + 2}_block1", 2 << stage
        for number, side, before, after in ((1, 1, inputs, width), (2, 3, width, width), (3, 1, width, 4 * width),
                                            (0, 1, inputs, 4 * width)):
            shapes |= conv(f"{name}_{number}_conv", side, before, after) | norm(f"{name}_{number}_bn", after)
        inputs = 4 * width
    return shapes


def arrays(shapes: Shapes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.random(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def backbone() -> dict[str, np.ndarray]:
    """Names and shapes as keras.applications has them."""
    return arrays(backbone_shapes())


@pytest.fixture
def published() -> dict[str, np.ndarray]:
    """Names and shapes as deepcell-tf writes them for the network above."""
    shapes = conv("conv_channels", 1, 3, 3) | backbone_shapes()
    for level, inputs in ((3, 16), (4, 32), (5, 64)):
        shapes |= conv(f"C{level}_reduced", 1, inputs, 4)
    shapes |= {"P3/depthwise_kernel": (3, 3, 4, 1), "P3/bias": (4,)}
    for head, outputs in enumerate((1, 3)):
        for i in range(3):
            shapes |= conv(f"conv_{i}_semantic_upsample_{head}", 3, 3 if i else 4, 3)
        shapes |= conv(f"conv_0_semantic_{head}", 1, 3, 5) | norm(f"batch_normalization_0_semantic_{head}", 5)
        shapes |= conv(f"conv_1_semantic_{head}", 1, 5, outputs)
    return arrays(shapes)


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes)


load = partial(load_mesmer, heads=HEADS)


def test_leaves_land_in_their_places(published, variables):
    loaded = load(published, variables)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), loaded) == jax.tree.map(lambda a: (a.shape, a.dtype), dict(variables))
    params, statistics = loaded["params"], loaded["batch_stats"]
    np.testing.assert_array_equal(params["encoder"]["conv3_block1"]["2_conv"]["kernel"], published["conv3_block1_2_conv/kernel"])
    np.testing.assert_array_equal(params["encoder"]["conv1_bn"]["scale"], published["conv1_bn/gamma"])
    np.testing.assert_array_equal(params["decoder"]["P3"]["kernel"][:, :, 0], published["P3/depthwise_kernel"][..., 0])
    np.testing.assert_array_equal(params["pixelwise_head"]["output"]["bias"], published["conv_1_semantic_1/bias"])
    np.testing.assert_array_equal(statistics["inner_distance_head"]["norm1"]["var"],
                                  published["batch_normalization_0_semantic_0/moving_variance"])


def test_all_that_does_not_fit_is_named_at_once(published, variables):
    del published["conv2_block1_1_bn/moving_mean"]
    published["conv_0_semantic_2/bias"] = np.zeros(5)
    published["extra/kernel"] = np.zeros(1)
    published["conv_1_semantic_1/bias"] = np.zeros(4)
    with pytest.raises(ValueError) as error:
        load(published, variables)
    for part in ("batch_stats/encoder/conv2_block1/1_bn/mean", "conv_0_semantic_2/bias", "extra/kernel",
                 "conv_1_semantic_1/bias (4,) for params/pixelwise_head/output/bias (3,)"):
        assert part in str(error.value)


def test_a_backbone_fills_the_encoder_alone(backbone, variables):
    loaded = load(backbone | {"predictions/kernel": np.zeros((64, 1000)), "predictions/bias": np.zeros(1000)}, variables)
    np.testing.assert_array_equal(loaded["params"]["encoder"]["conv1_conv"]["kernel"], backbone["conv1_conv/kernel"])
    for name in ("conv_channels", "decoder", "inner_distance_head"):
        jax.tree.map(np.testing.assert_array_equal, loaded["params"][name], variables["params"][name])
    del backbone["conv5_block1_3_conv/bias"]
    with pytest.raises(ValueError, match=r"Missing in the checkpoint: \['params/encoder/conv5_block1/3_conv/bias'\]"):
        load(backbone, variables)


def test_another_file_is_no_backbone(variables):
    with pytest.raises(ValueError, match="of another network"):
        load({"core.conv.weight": np.zeros(3)}, variables)


@pytest.mark.parametrize(("name", "path"), [
    ("conv1/bn/moving_mean", "batch_stats/encoder/conv1_bn/mean"),                          # DenseNet
    ("conv4_block48_0_bn/gamma", "params/encoder/conv4_block48/0_bn/scale"),
    ("pool3_conv/kernel", "params/encoder/pool3_conv/kernel"),
    ("normalization/variance", "batch_stats/encoder/normalization/var"),                    # EfficientNet
    ("block6m_se_expand/bias", "params/encoder/block6m/se_expand/bias"),
    ("block1a_dwconv/depthwise_kernel", "params/encoder/block1a/dwconv/kernel"),
    ("top_bn/beta", "params/encoder/top_bn/bias"),
    ("C5_reduced/kernel", "params/decoder/C5_reduced/kernel"),
    ("conv_2_semantic_upsample_1/kernel", "params/pixelwise_head/upsample2/kernel"),
])
def test_names(name, path):
    assert mesmer_paths([name], heads=HEADS) == {name: tuple(path.split("/"))}


def test_counters_classifiers_and_further_heads_have_no_place():
    names = ["normalization/count", "predictions/kernel", "bn/gamma", "conv_1_semantic_2/bias", "conv_channels"]
    assert mesmer_paths(names, heads=HEADS) == {}


def test_a_normalization_layer_keeps_its_statistics():
    """ImageNet weights of EfficientNets bring the mean and variance of the images, which training leaves alone."""
    layer = Normalization()
    statistics = {"batch_stats": {"mean": jnp.asarray([0.5]), "var": jnp.asarray([0.25])}}
    y, state = layer.apply(statistics, jnp.ones((1, 2, 2, 1)), mutable=["batch_stats"])
    np.testing.assert_array_equal(y, np.ones((1, 2, 2, 1)))
    jax.tree.map(np.testing.assert_array_equal, dict(state), statistics)


# ----------------------------------------------------------------------------------------------------------------- files
def write_keras(group, weights: dict[str, np.ndarray]) -> None:
    """Layers and weights as Keras up to 2.15 writes them."""
    layers: dict[str, list[str]] = {}
    for name in weights:
        layers.setdefault(name.rpartition("/")[0], []).append(name)
    group.attrs["layer_names"] = [layer.encode() for layer in layers]
    for layer, names in layers.items():
        group.create_group(layer).attrs["weight_names"] = [f"{name}:0".encode() for name in names]
        for name in names:
            group[layer][f"{name}:0"] = weights[name]


@pytest.mark.parametrize("folder", [None, "model_weights"])
def test_files_of_keras_are_read(tmp_path, folder):
    weights = arrays({"conv1/bn/gamma": (3,), "conv1/conv/kernel": (3, 3, 1, 3), "top_bn/beta": (2,)})
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        write_keras(file.create_group(folder) if folder else file, weights)
    read = read_keras(path)
    assert list(read) == list(weights)
    jax.tree.map(np.testing.assert_array_equal, read, weights)
    assert is_keras(path)


def test_long_lists_of_names_are_split_over_attributes(tmp_path):
    weights = arrays({f"layer{i:02}/kernel": (1,) for i in range(12)})
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        write_keras(file, weights)
        names = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        for i in range(12):
            file.attrs[f"layer_names{i}"] = names[i:i + 1]
    assert list(read_keras(tmp_path / "weights.h5")) == list(weights)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "new.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros(3)
    with pytest.raises(ValueError, match="names no layers"):
        read_keras(path)
    np.savez(tmp_path / "x.npz", a=np.zeros(1))
    assert not is_keras(tmp_path / "x.npz")
