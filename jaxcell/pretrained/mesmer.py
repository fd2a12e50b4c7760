"""Published Keras networks -> parameters and statistics of `PanopticNetwork`: DeepCell's own, and ImageNet backbones.

Source: names and layouts of vanvalenlab/deepcell-tf@f1839a4 and of keras.applications.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcell.pretrained.places import Path, Shape, place_arrays

__all__ = ["load_mesmer", "mesmer_paths"]

_LEAVES = {"kernel": ("params", "kernel"), "depthwise_kernel": ("params", "kernel"), "bias": ("params", "bias"),
           "gamma": ("params", "scale"), "beta": ("params", "bias"),
           "moving_mean": ("batch_stats", "mean"), "moving_variance": ("batch_stats", "var"),
           "mean": ("batch_stats", "mean"), "variance": ("batch_stats", "var")}

# (layer there, module here): the pattern's groups fill the template; "{head}" is the head of the number that ends a name.
_MODULES = (
    (r"conv_channels", "conv_channels"),
    (r"(C\d_reduced|P\d)", "decoder/{0}"),
    (r"conv_(\d+)_semantic_upsample_(?P<head>\d+)", "{head}_head/upsample{0}"),
    (r"conv_0_semantic_(?P<head>\d+)", "{head}_head/conv1"),
    (r"batch_normalization_0_semantic_(?P<head>\d+)", "{head}_head/norm1"),
    (r"conv_1_semantic_(?P<head>\d+)", "{head}_head/output"),
    (r"(conv\d_block\d+|block\d[a-z])_(.+)", "encoder/{0}/{1}"),
    (r"(.+)", "encoder/{0}"),
)

_IGNORED = ("predictions", "probs", "fc1000", "bn")
"""Layers of ImageNet classifiers behind what a pyramid uses; "bn" is the last norm of a DenseNet."""


def mesmer_paths(names: Iterable[str], *, heads: Sequence[str]) -> dict[str, Path]:
    """Where each Keras weight lives in the network's variables.

    Args:
      names: "<layer>/<weight>", such as "conv2_block1_1_conv/kernel"; layers may have "/" in their names.
      heads: names of the heads in the order of their numbers there.

    Returns:
      name -> ("params" or "batch_stats", module, ..., leaf). What is no weight of a layer, or of a head too many, is left out.
    """
    paths = {name: _path(name, heads) for name in names}
    return {name: path for name, path in paths.items() if path}


def _path(name: str, heads: Sequence[str]) -> Path:
    layer, _, leaf = name.rpartition("/")
    if leaf not in _LEAVES or layer in _IGNORED:
        return ()
    template, match = next((template, match) for pattern, template in _MODULES if (match := re.fullmatch(pattern, layer)))
    groups = match.groupdict()
    if groups and int(groups["head"]) >= len(heads):
        return ()
    module = template.format(*(group.replace("/", "_") for group in match.groups()),
                             head=heads[int(groups["head"])] if groups else "")
    collection, last = _LEAVES[leaf]
    return (collection, *module.split("/"), last)


def load_mesmer(state_dict: Mapping[str, np.ndarray], variables: Mapping[str, Any], *, heads: Sequence[str]) -> dict[str, Any]:
    """Parameters and running statistics of a published network in the places of `variables`.

    A checkpoint that has weights of the backbone alone, by the names of Keras' layers, fills the encoder; all else stays.

    Args:
      state_dict: "<layer>/<weight>" -> array, as `read_keras` gives it.
      variables: "params" and "batch_stats" of the same network here, arrays or shapes (`jax.eval_shape` of its `init`); for a
        backbone arrays.
      heads: names of the heads in the order of their numbers there.

    Returns:
      Variables of the same structure, numpy arrays in the dtype of `variables`.

    Raises:
      ValueError: names that are missing, left over or differently shaped, all in one message.
    """
    paths = mesmer_paths(state_dict, heads=heads)
    backbone = all(path[1] == "encoder" for path in paths.values())
    return place_arrays(state_dict, variables, paths, of="the encoder, levels, heads and channels", convert=_converted,
                        ignored=_is_ignored, stays=lambda path: backbone and path[1] != "encoder")


def _converted(name: str, array: np.ndarray, path: Path, shape: Shape) -> np.ndarray:
    return array.transpose(0, 1, 3, 2) if name.endswith("/depthwise_kernel") else array


def _is_ignored(name: str) -> bool:
    """Layers without a place here, and how many images a Normalization layer has seen."""
    return name.rpartition("/")[0] in _IGNORED or name == "normalization/count"
