"""Published TransUNets and Google's checkpoints land in the right places, and nothing is lost on either side."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxcell.models.encoders.hybrid_resnet import HybridResNet
from jaxcell.models.encoders.vit import VisionSize
from jaxcell.pretrained.morphoseg import fit_positions, load_morphoseg
from jaxcell.pretrained.torch import read_checkpoint
from jaxcell.systems.morphoseg import TransUNet

NETWORK = TransUNet(transformer=VisionSize(8, 12, 2, 2), stem=partial(HybridResNet, stage_sizes=(1, 1, 2), width=4, groups=2),
                    grid=4, widths=(6, 5, 4, 3), features=7)

Shapes = dict[str, tuple[int, ...]]


def units() -> list[tuple[str, int, int, bool]]:
    """(block/unit, input channels, width, has a projected shortcut)."""
    return [("block1/unit1", 4, 4, True), ("block2/unit1", 16, 8, True), ("block3/unit1", 32, 16, True),
            ("block3/unit2", 64, 16, False)]


def google_shapes() -> Shapes:
    shapes: Shapes = {"cls": (1, 1, 8), "head/kernel": (8, 10), "head/bias": (10,), "pre_logits/kernel": (8, 8),
                      "pre_logits/bias": (8,), "embedding/kernel": (1, 1, 64, 8), "embedding/bias": (8,),
                      "Transformer/posembed_input/pos_embedding": (1, 10, 8), "Transformer/encoder_norm/scale": (8,),
                      "Transformer/encoder_norm/bias": (8,), "conv_root/kernel": (7, 7, 3, 4), "gn_root/scale": (1, 1, 1, 4),
                      "gn_root/bias": (1, 1, 1, 4)}
    for name, inputs, width, projected in units():
        convs = {"conv1": (1, 1, inputs, width), "conv2": (3, 3, width, width), "conv3": (1, 1, width, 4 * width)}
        convs |= {"conv_proj": (1, 1, inputs, 4 * width)} if projected else {}
        for conv, shape in convs.items():
            norm = conv.replace("conv", "gn")
            shapes |= {f"{name}/{conv}/kernel": shape, f"{name}/{norm}/scale": (1, 1, 1, shape[-1]),
                       f"{name}/{norm}/bias": (1, 1, 1, shape[-1])}
    for i in range(2):
        layer = f"Transformer/encoderblock_{i}"
        for part, inputs, outputs in (("query", (8,), (2, 4)), ("key", (8,), (2, 4)), ("value", (8,), (2, 4)),
                                      ("out", (2, 4), (8,))):
            attention = f"{layer}/MultiHeadDotProductAttention_1/{part}"
            shapes |= {f"{attention}/kernel": (*inputs, *outputs), f"{attention}/bias": outputs}
        for dense, shape in (("Dense_0", (8, 12)), ("Dense_1", (12, 8))):
            shapes |= {f"{layer}/MlpBlock_3/{dense}/kernel": shape, f"{layer}/MlpBlock_3/{dense}/bias": shape[1:]}
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{layer}/{norm}/scale": (8,), f"{layer}/{norm}/bias": (8,)}
    return shapes


def torch_names(google: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The trunk as PyTorch has it, made of the same numbers; and a decoder."""
    body, found = "transformer.embeddings.hybrid_model", {}
    for name, value in google.items():
        parts, leaf = name.split("/")[:-1], name.split("/")[-1]
        if parts[:1] == ["conv_root"] or parts[:1] == ["gn_root"]:
            module = f"{body}.root.{parts[0].removesuffix('_root')}"
        elif name.startswith("block"):
            module = f"{body}.body.{parts[0]}.{parts[1]}.{parts[2].replace('conv_proj', 'downsample')}"
        elif name.startswith("embedding"):
            module = "transformer.embeddings.patch_embeddings"
        elif name == "Transformer/encoder_norm/" + leaf:
            module = "transformer.encoder.encoder_norm"
        elif "encoderblock" in name:
            inner = {"MultiHeadDotProductAttention_1": "attn", "MlpBlock_3": "ffn", "LayerNorm_0": "attention_norm",
                     "LayerNorm_2": "ffn_norm"}
            last = {"Dense_0": "fc1", "Dense_1": "fc2"}
            module = ".".join(["transformer.encoder.layer", parts[1].removeprefix("encoderblock_"), inner[parts[2]],
                               *(last.get(part, part) for part in parts[3:])])
        else:
            continue
        if leaf == "kernel":
            joined = value.reshape(8, 8) if "MultiHead" in name else value
            value = joined.transpose(3, 2, 0, 1) if joined.ndim == 4 else joined.T
        found[f"{module}.{'bias' if leaf == 'bias' else 'weight'}"] = value if leaf == "kernel" else value.reshape(-1)
    found["transformer.embeddings.position_embeddings"] = google["Transformer/posembed_input/pos_embedding"][:, 1:]
    rng, inputs = np.random.default_rng(1), 7

    def block(name: str, before: int, after: int) -> dict[str, np.ndarray]:
        shapes = {"0.weight": (after, before, 3, 3), **{f"1.{leaf}": (after,) for leaf in (
            "weight", "bias", "running_mean", "running_var")}}
        return {f"{name}.{leaf}": rng.random(shape, np.float32) for leaf, shape in shapes.items()} | {
            f"{name}.1.num_batches_tracked": np.zeros((), np.int64)}

    found |= block("decoder.conv_more", 8, 7)
    for i, width in enumerate((6, 5, 4, 3)):
        found |= block(f"decoder.blocks.{i}.conv1", inputs, width) | block(f"decoder.blocks.{i}.conv2", width, width)
        inputs = width
    return found | {"segmentation_head.0.weight": rng.random((2, 3, 3, 3), np.float32),
                    "segmentation_head.0.bias": rng.random(2, np.float32)}


@pytest.fixture
def google() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.random(shape).astype(np.float32) for name, shape in google_shapes().items()}


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros((1, 64, 64, 1)))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes)


def test_googles_checkpoint_fills_the_trunk_and_leaves_the_rest(google, variables):
    loaded = load_morphoseg(google, variables)
    assert jax.tree.map(np.shape, loaded) == jax.tree.map(np.shape, dict(variables))
    trunk = loaded["params"]["transformer"] | {"stem": loaded["params"]["stem"]}
    assert not any((leaf == 0.5).all() for leaf in jax.tree.leaves(trunk))
    for name in ("cascade", "head"):
        assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(loaded["params"][name]))
    attention = loaded["params"]["transformer"]["layer1"]["attention"]
    np.testing.assert_array_equal(attention["out"]["kernel"],
                                  google["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/kernel"])
    np.testing.assert_array_equal(loaded["params"]["stem"]["block1_unit1"]["projection_norm"]["scale"],
                                  google["block1/unit1/gn_proj/scale"].ravel())
    np.testing.assert_array_equal(loaded["params"]["transformer"]["layer0"]["mlp_norm"]["bias"],
                                  google["Transformer/encoderblock_0/LayerNorm_2/bias"])


def test_pytorchs_checkpoint_is_the_same_network(google, variables):
    one, other = load_morphoseg(google, variables), load_morphoseg(torch_names(google), variables)
    for part in ("stem", "transformer"):
        jax.tree.map(np.testing.assert_array_equal, other["params"][part], one["params"][part])
    decoder = torch_names(google)
    np.testing.assert_array_equal(other["params"]["cascade"]["level2"]["conv1"]["kernel"],
                                  decoder["decoder.blocks.2.conv1.0.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(other["batch_stats"]["cascade"]["level0"]["norm2"]["var"],
                                  decoder["decoder.blocks.0.conv2.1.running_var"])
    np.testing.assert_array_equal(other["params"]["head"]["bias"], decoder["segmentation_head.0.bias"])


def test_a_file_of_google_is_read(google, variables, tmp_path):
    np.savez(tmp_path / "R50+ViT-B_16.npz", **google)
    loaded = load_morphoseg(read_checkpoint(tmp_path / "R50+ViT-B_16.npz"), variables)
    np.testing.assert_array_equal(loaded["params"]["transformer"]["embedding"]["bias"], google["embedding/bias"])


@pytest.mark.parametrize("token", [0, 1])
@pytest.mark.parametrize("grid", [3, 4, 7])
def test_positions_are_resized_as_scipy_zooms(token, grid):
    positions = np.random.default_rng(0).random((1, 9 + token, 5)).astype(np.float32)
    square = positions[0, token:].reshape(3, 3, 5)
    expected = square if grid == 3 else ndimage.zoom(square, (grid / 3, grid / 3, 1), order=1)
    np.testing.assert_allclose(fit_positions(positions, grid), expected, atol=1e-6)


def test_positions_of_no_grid_are_refused():
    with pytest.raises(ValueError, match="no square grid"):
        fit_positions(np.zeros((1, 12, 5)), 4)


def test_what_is_missing_left_over_or_of_another_shape_is_named(google, variables):
    google["Transformer/encoderblock_2/LayerNorm_0/scale"] = np.zeros(8, np.float32)
    google["conv_root/kernel"] = np.zeros((7, 7, 1, 4), np.float32)
    del google["block3/unit2/gn2/bias"]
    with pytest.raises(ValueError) as error:
        load_morphoseg(google, variables)
    for text in ("encoderblock_2/LayerNorm_0/scale", "conv_root/kernel (7, 7, 1, 4)", "stem/block3_unit2/norm2/bias"):
        assert text in str(error.value)
