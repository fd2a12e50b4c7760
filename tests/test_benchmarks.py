"""The race with PyTorch runs, and its counts are right."""

from __future__ import annotations

import importlib.util
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util

from benchmarks.battery import NETWORKS, Place, race, run, selected
from benchmarks.network import DECODES, forward_operations
from benchmarks.slide import make_slide, merging, post_processing
from configs import maunet, mesmer, morphoseg, sparse_seunet
from jaxcell.models.decoders.instances import EveryLevelBranch, InstanceDecoder, InstanceHead
from jaxcell.models.encoders.hybrid_resnet import StandardisedConv
from jaxcell.models.encoders.vit import VisionSize, VisionTransformer
from jaxcell.models.layers import Conv, ConvTranspose, NoNorm
from jaxcell.systems import build_system
from jaxcell.training.step import make_apply


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, image, train=False):
        x = Conv(8, 3, 2, use_bias=True)(image)
        x = ConvTranspose(5)(Conv(12, 3, groups=4)(x))
        return ConvTranspose(7, 4, 2)(x)


def test_operations_of_a_network_by_hand():
    first, grouped, transposed = 2 * 8 * 6 * 8 * 9 * 3, 2 * 8 * 6 * 12 * 9 * 2, 2 * 16 * 12 * 5 * 12
    overlapping = 2 * 32 * 24 * 7 * 5 * 4       # every output pixel is the sum of 2 x 2 taps of a kernel of 4
    assert forward_operations(Tiny(), (1, 16, 12, 3)) == first + grouped + transposed + overlapping
    assert forward_operations(Tiny(), (3, 16, 12, 3)) == 3 * (first + grouped + transposed + overlapping)


class TinyTransformer(nn.Module):
    @nn.compact
    def __call__(self, image, train=False):
        x = StandardisedConv(5, 3, 2)(image)
        return VisionTransformer(VisionSize(8, 20, 2, 3), 4, 2, partial(nn.Dropout, 0.0, deterministic=True))(x)


def test_operations_of_a_transformer_by_hand():
    convolution, patches = 2 * 8 * 12 * 5 * 9 * 3, 2 * (2 * 3) * 8 * 4 * 4 * 5
    linear, attention, mlp = 4 * 2 * 6 * 8 * 8, 2 * (2 * 6 * 6 * 8), 2 * 2 * 6 * 8 * 20     # of 6 tokens
    assert forward_operations(TinyTransformer(), (1, 16, 24, 3)) == convolution + patches + 3 * (linear + attention + mlp)


class TinyInstances(nn.Module):
    @nn.compact
    def __call__(self, image, train=False):
        branch, head = partial(EveryLevelBranch, depth=1), partial(InstanceHead, queries=7, groups=2, objectness=False)
        return InstanceDecoder(branch, head, Conv, NoNorm, nn.relu, instance_features=6, mask_features=5)([image])


def test_operations_of_an_instance_decoder_by_hand():
    pixels, branches, maps = 8 * 12, (6 + 5) * 9 * 3, 14 * 9 * 3
    gathered, masks, linear = 14 * 6, 7 * 5, 7 * 12 * (1 + 5)       # of 7 queries, which gather 2 x 6 numbers
    assert forward_operations(TinyInstances(), (1, 8, 12, 3)) == 2 * (pixels * (branches + maps + gathered + masks) + linear)


def test_a_part_that_fails_leaves_the_others(tmp_path, capsys):
    def fails():
        raise RuntimeError("out of luck")

    parts = [("Networks", "one", lambda: [{"a": 1.0}]), ("Networks", "two", fails), ("Networks", "three", lambda: [{"b": 2.0}])]
    assert run(parts, tmp_path / "x", {"cores": 2}) == ["two: out of luck"]
    text = (tmp_path / "x.md").read_text()
    assert "| a | b |" in text
    assert "FAILED two: out of luck" in text
    assert "FAILED two" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_race():
    if not importlib.util.find_spec("torch"):
        pytest.skip("PyTorch, which only the benchmarks need, is not installed; make bench installs it")
    step, infer = race("contour_proposal:toy", "toy", batch=2, crop=32, place=Place("cpu", "float32"), rounds=1, seconds=0,
                       compiled=False)
    assert (step["work"], infer["work"]) == ("step", "infer")
    assert step["GFLOP"] == pytest.approx(3 * infer["GFLOP"])
    assert step["PyTorch / jaxcell"] == pytest.approx(step["PyTorch ms"] / step["jaxcell ms"])


def test_a_worker_that_fails_says_why():
    if not importlib.util.find_spec("torch"):
        pytest.skip("PyTorch, which only the benchmarks need, is not installed; make bench installs it")
    with pytest.raises(RuntimeError, match="no variant 'none'"):
        race("contour_proposal:none", "none", batch=1, crop=32, place=Place("cpu", "float32"), rounds=1, seconds=0,
             compiled=False)


def test_networks_are_chosen_by_system_or_by_name():
    assert selected("contour_proposal:u22,mesmer") == ["contour_proposal:u22", *(n for n in NETWORKS if n.startswith("mesmer:"))]
    assert selected("mesmer:resnet50,mesmer:resnet50") == ["mesmer:resnet50"]
    with pytest.raises(SystemExit, match="unknown; there are contour_proposal:bbbc038"):
        selected("mesmer,unet")


def small_mesmer(encoder):
    config = mesmer.get_config("toy")
    config.model.update({"encoder": encoder, "depthwise": True, "scale": 255.0 if encoder == "efficientnetb7" else 1.0})
    return config


def random_variables(model, image):
    """Of every array values that leave a mark: a forgotten bias, scale or statistic is seen in the outputs."""
    rng = np.random.default_rng(1)
    known = {"kernel": lambda x: x / np.sqrt(x[..., 0].size), "bias": lambda x: 0.1 * x, "mean": lambda x: 0.1 * x,
             "scale": lambda x: 1 + 0.1 * x, "var": lambda x: np.exp(0.3 * x), "positions": lambda x: x}
    shapes = traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image))
    return {path: known[path[-1]](rng.standard_normal(leaf.shape)).astype(np.float32) for path, leaf in shapes.items()
            if path[0] != "intermediates"}


def mesmer_variables(model, image):
    found = random_variables(model, image)
    found["params", "inner_distance_head", "output", "bias"] += 2       # else the rectifier may leave nothing to compare
    return found


def shares(theirs, ours, alike=()):
    """Greatest difference of each output as a share of its greatest value."""
    from benchmarks.rivals.network import as_jaxcell

    theirs = as_jaxcell(theirs, alike)
    assert set(theirs) == set(ours)
    return {name: np.abs(theirs[name] - value).max() / np.abs(value).max() for name, value in ours.items()}


def difference(model, network, variables, image, alike=()):
    """Greatest of the shares of two networks with the same variables."""
    import torch

    from benchmarks.rivals.network import copy_variables

    copy_variables(network.to(memory_format=torch.channels_last).eval(), variables)
    ours = make_apply(model)(traverse_util.unflatten_dict(variables), image)
    with torch.inference_mode():
        return max(shares(network(torch.from_numpy(image).permute(0, 3, 1, 2)), ours, alike).values())


def training_difference(model, network, variables, image, alike=()):
    """The same of a pass with the batch's statistics, by which running ones must change alike."""
    import torch

    from benchmarks.rivals.network import copy_variables

    copy_variables(network.train(), variables)
    train = jax.jit(lambda variables: model.apply(variables, image, train=True, mutable=["batch_stats"]))
    ours, changed = train(traverse_util.unflatten_dict(variables))
    theirs, buffers = network(torch.from_numpy(image).permute(0, 3, 1, 2)), dict(network.named_buffers())
    for path, value in traverse_util.flatten_dict(changed["batch_stats"]).items():
        np.testing.assert_allclose(buffers[".".join((*path[:-1], f"running_{path[-1]}"))], value, rtol=1e-4, atol=1e-5)
    return max(shares(theirs, ours, alike).values())


@pytest.mark.parametrize("encoder", [
    "resnet50", pytest.param("densenet201", marks=pytest.mark.slow), pytest.param("efficientnetb7", marks=pytest.mark.slow)])
def test_mesmers_rivals_are_its_networks(encoder):
    pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.mesmer import MesmerNetwork

    config, image = small_mesmer(encoder), np.random.default_rng(0).random((2, 64, 96, 3), np.float32)
    model = build_system(config).model
    assert difference(model, MesmerNetwork(config), mesmer_variables(model, image), image) < 1e-4


def test_mesmers_rival_trains_with_the_same_statistics():
    pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.mesmer import MesmerNetwork

    config, image = small_mesmer("resnet26"), np.random.default_rng(0).random((2, 64, 96, 3), np.float32)
    model = build_system(config).model
    assert training_difference(model, MesmerNetwork(config), mesmer_variables(model, image), image) < 1e-3


def test_mesmers_blocks_are_dropped_while_training_alone():
    torch = pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.mesmer import InvertedBottleneck

    block, x = InvertedBottleneck(8, 8, kernel=3, stride=1, expansion=1, drop=0.5), torch.ones(64, 8, 4, 4)
    torch.manual_seed(0)
    lost = (block.train()(x)[0] == x).all((1, 2, 3))
    assert 16 < int(lost.sum()) < 48
    assert not (block.eval()(x)[0] == x).all((1, 2, 3)).any()


def test_mesmers_post_processings_find_the_same_cells():
    pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.mesmer import plain_cells

    config = mesmer.get_config("resnet50")
    decode, maps = DECODES["mesmer"](config)
    maps = {name: value[:256, :256] for name, value in maps.items()}
    assert len(decode(maps)) == plain_cells(config, maps) > 5
    config.decode.small_objects = 3
    with pytest.raises(ValueError, match="config.decode has {'small_objects': 3}"):
        plain_cells(config, maps)


@pytest.mark.parametrize(("encoder", "proxies", "distance"), [("resnet50", 1, True), ("wideresnet50", 0, False)])
def test_maunets_rivals_are_its_networks(encoder, proxies, distance):
    pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.maunet import MAUNetNetwork

    config, image = maunet.get_config("toy"), np.random.default_rng(0).random((2, 64, 96, 3), np.float32)
    config.model.update({"encoder": encoder, "proxies": proxies, "distance": distance})
    config.decode.name = "three_watersheds" if distance else "interior_pieces"
    model = build_system(config).model
    assert difference(model, MAUNetNetwork(config), random_variables(model, image), image) < 1e-5


def test_maunets_post_processings_find_the_same_cells():
    pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.maunet import plain_cells

    config = maunet.get_config("resnet50")
    decode, maps = DECODES["maunet"](config)
    maps = {name: value[:256, :256] for name, value in maps.items()}
    assert len(decode(maps)) == plain_cells(config, maps) > 5
    config.decode.skeleton_threshold = 0.8
    with pytest.raises(ValueError, match="config.decode has {'skeleton_threshold': 0.8}"):
        plain_cells(config, maps)


def small_morphoseg(stem, skips, dropout):
    config = morphoseg.get_config("toy")
    config.data.update({"crop": 64, "channels": 1})
    config.model.update({"stem": stem, "skips": skips, "dropout": dropout})
    return config


@pytest.mark.parametrize(("stem", "skips"), [("r11", 3), ("r20", 0), ("none", 0)])
def test_morphosegs_rivals_are_its_networks(stem, skips):
    pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.morphoseg import TransUNetNetwork

    config, image = small_morphoseg(stem, skips, 0.1), np.random.default_rng(0).random((2, 64, 64, 1), np.float32)
    model = build_system(config).model
    assert difference(model, TransUNetNetwork(config), random_variables(model, image), image) < 1e-5


def test_morphosegs_rival_trains_with_the_same_statistics():
    pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.morphoseg import TransUNetNetwork

    config, image = small_morphoseg("r11", 3, 0.0), np.random.default_rng(0).random((2, 64, 64, 1), np.float32)
    model = build_system(config).model
    assert training_difference(model, TransUNetNetwork(config), random_variables(model, image), image) < 1e-3


def test_morphosegs_post_processings_find_the_same_cells():
    pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.morphoseg import plain_cells

    config = morphoseg.get_config("vit_b16")
    decode, maps = DECODES["morphoseg"](config)
    maps = {name: value[:256, :256] for name, value in maps.items()}
    assert len(decode(maps)) == plain_cells(config, maps) > 5
    config.decode.expansion = 1
    with pytest.raises(ValueError, match="config.decode has {'expansion': 1}"):
        plain_cells(config, maps)


def test_outliers_of_both_frameworks_are_the_least_likely():
    pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.outliers import all_calls, check, in_turns, logits_of

    logits = logits_of(2, 64)
    calls = all_calls(logits, 20_000, 2000)     # (looks at them)
    times = in_turns({name: calls[name]["replace"] for name in ("PyTorch", "pixels")}, 1)
    assert {name: len(values) for name, values in times.items()} == {"PyTorch": 1, "pixels": 1}
    before = logits.reshape(-1, 2)
    after = before.copy()
    after[:2000] = np.random.default_rng(0).permutation(before)[:2000]      # likely ones
    with pytest.raises(RuntimeError, match="there must be 2000, from 4.605 on"):
        check(logits, before, after, 20_000, 2000)
    with pytest.raises(RuntimeError, match="0 outliers"):
        check(logits, before, before, 20_000, 2000)


def small_sparse_seunet(changes):
    config = sparse_seunet.get_config("toy")
    config.data.channels = 2
    config.model.update({"windows": (1, 2, 4)} | changes)
    return config


SPARSE = {
    "thesis": {"levels": 3, "heads": ("cytoplasm", "overlap")},
    "single": {"branches": "single", "condition": "", "heads": (), "kernel_features": 12},
    "released": {"activation": "softmax", "head_depth": 1, "objectness": True, "groups": 4, "branch_norm": "none"},
    "semantic": {"levels": 3, "heads": ("cytoplasm", "nuclei", "border", "background"), "condition": "", "branches": "none"},
}


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_seunets_rivals_are_its_networks(name):
    pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.network import ALIKE
    from benchmarks.rivals.sparse_seunet import SparseSEUNetNetwork

    config, image = small_sparse_seunet(SPARSE[name]), np.random.default_rng(0).random((2, 32, 48, 2), np.float32)
    model = build_system(config).model
    variables = random_variables(model, image)
    assert difference(model, SparseSEUNetNetwork(config), variables, image, ALIKE["sparse_seunet"]) < 1e-4


def test_sparse_seunets_rival_trains_with_the_same_statistics():
    pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.network import ALIKE
    from benchmarks.rivals.sparse_seunet import SparseSEUNetNetwork

    config, image = small_sparse_seunet({}), np.random.default_rng(0).random((2, 32, 48, 2), np.float32)
    model = build_system(config).model
    variables = random_variables(model, image)
    assert training_difference(model, SparseSEUNetNetwork(config), variables, image, ALIKE["sparse_seunet"]) < 1e-3


@pytest.mark.parametrize(("variant", "name", "value"), [("multi", "duplicate_iou", 0.5), ("semantic_4head", "markers", "nuclei")])
def test_sparse_seunets_post_processings_find_the_same_cells(variant, name, value):
    pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.sparse_seunet import plain_cells

    config = sparse_seunet.get_config(variant)
    decode, maps = DECODES["sparse_seunet"](config)
    assert len(decode(maps)) == plain_cells(config, maps) > 50
    config.decode[name] = value
    with pytest.raises(ValueError, match=f"config.decode has {{'{name}': "):
        plain_cells(config, maps)


def test_the_parts_of_a_small_slide(tmp_path):
    config = "maunet:resnet50"
    cells = make_slide(tmp_path, config, (300, 700), 90)
    assert post_processing(tmp_path, config, 1024)["how"] == f"{cells} cells found"
    assert post_processing(tmp_path, config, 256)["part"].endswith("blocks of 256")
    assert [merging(tmp_path, config, scales)["calls"] for scales in ((1.0,), (1.0, 2.0))] == [1, 3]     # 2 and 2 * 4 windows
