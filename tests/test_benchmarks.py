"""The race with PyTorch runs, and its counts are right."""

from __future__ import annotations

import importlib.util

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util

from benchmarks.battery import NETWORKS, Place, race, run, selected
from benchmarks.network import DECODES, forward_operations
from benchmarks.slide import make_slide, merging, post_processing
from configs import maunet, mesmer
from jaxcell.models.layers import Conv, ConvTranspose
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
             "scale": lambda x: 1 + 0.1 * x, "var": lambda x: np.exp(0.3 * x)}
    shapes = traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image))
    return {path: known[path[-1]](rng.standard_normal(leaf.shape)).astype(np.float32) for path, leaf in shapes.items()
            if path[0] != "intermediates"}


def mesmer_variables(model, image):
    found = random_variables(model, image)
    found["params", "inner_distance_head", "output", "bias"] += 2       # else the rectifier may leave nothing to compare
    return found


def shares(theirs, ours):
    """Greatest difference of each output as a share of its greatest value."""
    theirs = {name: value.detach().permute(0, 2, 3, 1).numpy() for name, value in theirs.items()}
    assert set(theirs) == set(ours)
    return {name: np.abs(theirs[name] - value).max() / np.abs(value).max() for name, value in ours.items()}


@pytest.mark.parametrize("encoder", [
    "resnet50", pytest.param("densenet201", marks=pytest.mark.slow), pytest.param("efficientnetb7", marks=pytest.mark.slow)])
def test_mesmers_rivals_are_its_networks(encoder):
    torch = pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.mesmer import MesmerNetwork
    from benchmarks.rivals.network import copy_variables

    config, image = small_mesmer(encoder), np.random.default_rng(0).random((2, 64, 96, 3), np.float32)
    model = build_system(config).model
    variables = mesmer_variables(model, image)
    network = MesmerNetwork(config).to(memory_format=torch.channels_last).eval()
    copy_variables(network, variables)
    ours = make_apply(model)(traverse_util.unflatten_dict(variables), image)
    with torch.inference_mode():
        theirs = network(torch.from_numpy(image).permute(0, 3, 1, 2))
    assert max(shares(theirs, ours).values()) < 1e-4


def test_mesmers_rival_trains_with_the_same_statistics():
    torch = pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.mesmer import MesmerNetwork
    from benchmarks.rivals.network import copy_variables

    config, image = small_mesmer("resnet26"), np.random.default_rng(0).random((2, 64, 96, 3), np.float32)
    model = build_system(config).model
    variables = mesmer_variables(model, image)
    network = MesmerNetwork(config).train()
    copy_variables(network, variables)
    train = jax.jit(lambda variables: model.apply(variables, image, train=True, mutable=["batch_stats"]))
    ours, changed = train(traverse_util.unflatten_dict(variables))
    assert max(shares(network(torch.from_numpy(image).permute(0, 3, 1, 2)), ours).values()) < 1e-3
    buffers = dict(network.named_buffers())
    for path, value in traverse_util.flatten_dict(changed["batch_stats"]).items():
        np.testing.assert_allclose(buffers[".".join((*path[:-1], f"running_{path[-1]}"))], value, rtol=1e-4, atol=1e-5)


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
    torch = pytest.importorskip("torch", reason="only the benchmarks need it; make bench installs it")
    from benchmarks.rivals.maunet import MAUNetNetwork
    from benchmarks.rivals.network import copy_variables

    config, image = maunet.get_config("toy"), np.random.default_rng(0).random((2, 64, 96, 3), np.float32)
    config.model.update({"encoder": encoder, "proxies": proxies, "distance": distance})
    config.decode.name = "three_watersheds" if distance else "interior_pieces"
    model = build_system(config).model
    variables = random_variables(model, image)
    network = MAUNetNetwork(config).to(memory_format=torch.channels_last).eval()
    copy_variables(network, variables)
    ours = make_apply(model)(traverse_util.unflatten_dict(variables), image)
    with torch.inference_mode():
        theirs = network(torch.from_numpy(image).permute(0, 3, 1, 2))
    assert max(shares(theirs, ours).values()) < 1e-5


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


def test_the_parts_of_a_small_slide(tmp_path):
    config = "maunet:resnet50"
    cells = make_slide(tmp_path, config, (300, 700), 90)
    assert post_processing(tmp_path, config, 1024)["how"] == f"{cells} cells found"
    assert post_processing(tmp_path, config, 256)["part"].endswith("blocks of 256")
    assert [merging(tmp_path, config, scales)["calls"] for scales in ((1.0,), (1.0, 2.0))] == [1, 3]     # 2 and 2 * 4 windows
