"""Inception-v3 has the published size, takes every weight by its published name, and gives features of any image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxcell.models.encoders.inception import InceptionV3, average_3x3
from jaxcell.pretrained.inception import load_inception

NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


@pytest.fixture(scope="module")
def shapes():
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), jnp.zeros((1, 64, 48, 3)))


def published(shapes):
    """Made of the network's own places by the published rule of names; the rule itself is checked below."""
    rng = np.random.default_rng(0)
    weights = {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        value = 1 + 0.1 * rng.standard_normal(leaf.shape) if path[-1] in ("scale", "var") else (
            rng.standard_normal(leaf.shape) * (2 / max(np.prod(leaf.shape[:-1]), 1)) ** 0.5)
        value = value.astype(np.float32)
        weights[".".join((*path[1:-1], NAMES[path[-1]]))] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    return weights | {"fc.weight": np.zeros((1008, 2048)), "Mixed_5b.branch1x1.bn.num_batches_tracked": np.zeros(())}


def test_size_and_names(shapes):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 21_785_568      # torchvision's without classifiers
    names = set(published(shapes))
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch5x5_2.bn.running_var", "Mixed_5d.branch_pool.conv.weight",
            "Mixed_6a.branch3x3.conv.weight", "Mixed_6e.branch7x7dbl_5.conv.weight", "Mixed_7a.branch7x7x3_4.bn.bias",
            "Mixed_7c.branch3x3dbl_3b.conv.weight", "Mixed_7b.branch3x3_2a.bn.weight"} <= names
    assert published(shapes)["Mixed_6b.branch7x7_2.conv.weight"].shape == (128, 128, 1, 7)
    assert published(shapes)["Mixed_7c.branch1x1.conv.weight"].shape == (320, 2048, 1, 1)


@pytest.mark.slow
def test_features(shapes):
    variables = load_inception(published(shapes), shapes)
    image = np.random.default_rng(1).random((2, 40, 56, 3)).astype(np.float32)
    features = InceptionV3().apply(variables, image)
    assert features.shape == (2, 2048) and np.isfinite(features).all() and not np.allclose(features[0], features[1])


def test_what_does_not_fit_is_named(shapes):
    weights = published(shapes)
    weights["Mixed_5b.branch9x9.conv.weight"] = weights.pop("Mixed_5b.branch1x1.conv.weight")
    with pytest.raises(ValueError, match=r"Mixed_5b/branch1x1/conv/kernel.*branch9x9"):
        load_inception(weights, shapes)


def test_averages_leave_out_what_is_not_there():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    np.testing.assert_allclose(average_3x3(x)[0, 0, 0, 0], np.mean([0, 1, 4, 5]))
    np.testing.assert_allclose(average_3x3(x)[0, 1, 1, 0], np.mean([0, 1, 2, 4, 5, 6, 8, 9, 10]))
