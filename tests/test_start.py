"""What a run starts from: each network takes what a file or an earlier run has for it, and nothing else changes."""

from __future__ import annotations

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs.maunet import get_config
from jaxcell.configuration import save_config
from jaxcell.start import initial_state, started_from
from jaxcell.systems import build_system
from jaxcell.training.checkpoint import Checkpoints
from jaxcell.training.mesh import make_mesh
from jaxcell.training.objectives import NETWORKS
from jaxcell.training.state import TrainState

MESH = make_mesh(jax.devices()[:1])


def config_of(scheme: str = "none"):
    config = get_config("toy")
    config.semi.scheme = scheme
    config.train.average_decay = 0.9
    return config


@cache
def random_state(scheme: str, *, seed: int = 0) -> TrainState:
    """In the place of a fresh one, which takes long to compile."""
    config, rng = config_of(scheme), np.random.default_rng(seed)
    abstract = jax.eval_shape(initial_state(config, build_system(config))[2])
    return jax.tree.map(lambda leaf: jnp.asarray(100 * rng.random(leaf.shape), leaf.dtype), abstract)


def start(state: TrainState, where) -> TrainState:
    return started_from(state, build_system(config_of()), str(where), MESH)


def flat(variables) -> dict[tuple[str, ...], np.ndarray]:
    return traverse_util.flatten_dict(jax.device_get(variables))


def torchvision_name(path: tuple[str, ...]) -> str:
    """Of a leaf of the encoder; as torchvision calls it."""
    module = re.sub(r"level(\d)_block(\d+)", r"layer\1.\2", ".".join(path[2:-1])).replace("level0.", "").replace("norm", "bn")
    module = module.replace("projection_bn", "downsample.1").replace("projection", "downsample.0")
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return f"{module}.{leaves[path[-1]]}"


@pytest.fixture
def backbone(tmp_path):
    """(file of a ResNet alone, its leaves here)."""
    leaves = {path: leaf for path, leaf in flat(random_state("none", seed=5).predicting).items() if path[1] == "encoder"}
    file = tmp_path / "resnet.npz"
    np.savez(file, **{torchvision_name(path): leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
                      for path, leaf in leaves.items()})
    return file, leaves


@pytest.mark.parametrize("scheme", ["none", "cross"])
def test_what_a_file_does_not_hold_keeps_its_own_beginning(backbone, scheme):
    file, encoder = backbone
    before = random_state(scheme)
    after = start(before, file)
    assert list(after.by_network) == (list(NETWORKS) if scheme == "cross" else [""])
    for name, variables in after.by_network.items():
        expected = flat(before.by_network[name]) | encoder
        jax.tree.map(np.testing.assert_array_equal, flat(variables), expected)
    jax.tree.map(np.testing.assert_array_equal, after.average, after.variables)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, before.opt_state)


def test_two_networks_from_one_file_stay_two(backbone):
    first, second = (flat(variables) for variables in start(random_state("cross"), backbone[0]).by_network.values())
    kernels = [path for path in first if path[-1] == "kernel"]
    assert {path[1] for path in kernels if np.array_equal(first[path], second[path])} == {"encoder"}
    assert {path[1] for path in kernels} > {"encoder", "skips", "classes_decoder", "distance_decoder"}


@pytest.fixture
def run_of(tmp_path):
    """Makes a validated workdir of a scheme; gives its state and place."""
    def make(scheme: str):
        state, workdir = random_state(scheme, seed=3), tmp_path / scheme
        workdir.mkdir()
        save_config(config_of(scheme), workdir, continues=False)
        checkpoints = Checkpoints(workdir, keep=1)
        checkpoints.save(state, {})
        checkpoints.save_best(state, {}, 0.5)
        checkpoints.close()
        return state, workdir

    return make


@pytest.mark.parametrize(("earlier", "later"), [("none", "none"), ("cross", "cross"), ("cross", "none")])
def test_each_network_continues_its_own_of_an_earlier_run(run_of, earlier, later):
    state, workdir = run_of(earlier)
    found = start(random_state(later), workdir)
    for name, variables in found.by_network.items():
        jax.tree.map(np.testing.assert_array_equal, variables, state.by_network.get(name, state.predicting))
    jax.tree.map(np.testing.assert_array_equal, found.average, found.variables)


def test_two_networks_that_would_begin_alike_are_refused(run_of):
    _, workdir = run_of("none")
    with pytest.raises(ValueError, match="would begin, and stay, alike"):
        start(random_state("cross"), workdir)
