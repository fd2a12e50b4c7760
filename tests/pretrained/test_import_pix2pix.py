"""Published pix2pix weights land in the right places, and nothing is lost on either side."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.pix2pix import get_config
from jaxcell.pretrained.pix2pix import discriminator_paths, generator_paths, load_discriminator, load_generator
from jaxcell.start import initial_state, started_from
from jaxcell.systems import build_system
from jaxcell.systems.pix2pix import PatchDiscriminator, TranslationNetwork
from jaxcell.training.mesh import make_mesh

GENERATOR, DISCRIMINATOR = TranslationNetwork(levels=4, width=2), PatchDiscriminator(width=2)


def shapes_of(network, channels):
    return jax.eval_shape(partial(network.init, train=False), jax.random.key(0), jnp.zeros((1, 64, 64, channels)))


def norm(name, width):
    return {f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked": ()}


def published_generator():
    """Of 4 levels and width 2, as PyTorch names it."""
    inner = "model.model.1.model.3"
    return {name: np.random.default_rng(len(name)).random(shape).astype(np.float32) for name, shape in {
        "model.model.0.weight": (2, 1, 4, 4), "model.model.1.model.1.weight": (4, 2, 4, 4), **norm("model.model.1.model.2", 4),
        f"{inner}.model.1.weight": (8, 4, 4, 4), **norm(f"{inner}.model.2", 8),
        f"{inner}.model.3.model.1.weight": (16, 8, 4, 4), f"{inner}.model.3.model.3.weight": (16, 8, 4, 4),
        **norm(f"{inner}.model.3.model.4", 8), f"{inner}.model.5.weight": (16, 4, 4, 4), **norm(f"{inner}.model.6", 4),
        "model.model.1.model.5.weight": (8, 2, 4, 4), **norm("model.model.1.model.6", 2),
        "model.model.3.weight": (4, 2, 4, 4), "model.model.3.bias": (2,)}.items()}


def published_discriminator():
    shapes = {"model.0.weight": (2, 3, 4, 4), "model.0.bias": (2,), "model.2.weight": (4, 2, 4, 4), **norm("model.3", 4),
              "model.5.weight": (8, 4, 4, 4), **norm("model.6", 8), "model.8.weight": (16, 8, 4, 4), **norm("model.9", 16),
              "model.11.weight": (1, 16, 4, 4), "model.11.bias": (1,)}
    return {name: np.random.default_rng(len(name)).random(shape).astype(np.float32) for name, shape in shapes.items()}


CASES = {"generator": (load_generator, generator_paths, published_generator, GENERATOR, 1),
         "discriminator": (load_discriminator, discriminator_paths, published_discriminator, DISCRIMINATOR, 3)}


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_leaf_is_accounted_for(case):
    load, paths, published, network, channels = CASES[case]
    shapes, weights = shapes_of(network, channels), published()
    loaded = load(weights, shapes)
    assert jax.tree.map(np.shape, loaded) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    places = [place for name, place in paths(weights).items() if place]
    assert len(places) == len(set(places)) == len(jax.tree.leaves(shapes))
    outputs = network.apply(loaded, jnp.full((1, 64, 64, channels), 0.5))
    assert all(np.isfinite(value).all() for value in jax.tree.leaves(outputs))


@pytest.mark.parametrize("case", sorted(CASES))
def test_what_does_not_fit_is_named(case):
    load, _, published, network, channels = CASES[case]
    weights = published()
    taken = next(name for name in weights if name.endswith("bias"))
    first = next(iter(weights))
    value = weights.pop(taken)
    weights |= {f"{taken}.other": value, first: weights[first][:1]}
    with pytest.raises(ValueError, match="of another network") as error:
        load(weights, shapes_of(network, channels))
    assert f"{taken}.other" in str(error.value) and first in str(error.value) and "bias" in str(error.value)


def test_training_starts_from_a_published_generator_and_from_an_earlier_run(tmp_path):
    """The discriminator keeps its beginning where a file says nothing of it."""
    config = get_config("toy")
    config.model.update({"levels": 4, "width": 2, "judge_width": 2, "upsampling": "transposed"})
    config.data.crop = 64
    system, mesh = build_system(config), make_mesh(jax.devices()[:1])
    state = jax.jit(initial_state(config, system)[2])()
    weights = published_generator()
    np.savez(tmp_path / "generator.npz", **weights)
    started = started_from(state, system, str(tmp_path / "generator.npz"), mesh)
    np.testing.assert_array_equal(started.params["generator"]["up0"]["bias"], weights["model.model.3.bias"])
    jax.tree.map(np.testing.assert_array_equal, started.params["discriminator"], state.params["discriminator"])


def test_the_published_sizes():
    """What the reference prints of its networks for 3 planes to 3: 54.414 M and 2.769 M parameters."""
    generator = jax.eval_shape(TranslationNetwork(3, 3, levels=8).init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))["params"]
    judge = jax.eval_shape(PatchDiscriminator().init, jax.random.key(0), jnp.zeros((1, 256, 256, 6)))["params"]
    counts = [sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6 for params in (generator, judge)]
    assert counts == pytest.approx([54.414, 2.769], abs=5e-4)
