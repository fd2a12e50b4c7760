"""Published MAUNets (PyTorch state dicts) and torchvision's ImageNet ResNets -> parameters and statistics of `MAUNet`.

Source: names and layouts of neurips22-cellseg_saltfish@c2b85d5 (MONAI 0.9.0) and of torchvision 0.12.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np

from jaxcell.pretrained.places import Path, Shape, kernel_from_torch, place_arrays

__all__ = ["load_maunet", "maunet_paths"]

# The children of one module there and here.
_BOTTLENECK = {"conv1": "conv1", "bn1": "norm1", "conv2": "conv2", "bn2": "norm2", "conv3": "conv3", "bn3": "norm3",
               "downsample.0": "projection", "downsample.1": "projection_norm"}
_RESIDUAL = {"conv1.conv": "conv1", "conv2.conv": "conv2", "conv3.conv": "projection"}
_WHOLE = {"": ""}

_LEVELS = {"1": 0, "2": 1, "3": 2, "4": 3, "5": 4, "10": 5}
"""Numbers of blocks there -> levels here, 0 that of the image."""

_MAPS = {None: "classes", "_2": "distance"}
"""Suffix of decoders and heads there -> what they predict."""

# (module there, module here, children): what follows the pattern is the child.
_MODULES: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    (r"conv1", "encoder/level0/conv1", _WHOLE),
    (r"bn1", "encoder/level0/norm1", _WHOLE),
    (r"layer(?P<stage>\d)\.(?P<block>\d+)", "encoder/level{stage}_block{block}", _BOTTLENECK),
    (r"encoder(?P<level>\d+)\.layer", "skips/level{level}", _RESIDUAL),
    (r"decoder(?P<level>\d+)(?P<map>_2)?\.transp_conv\.conv", "{map}_decoder/level{level}_enlarge", _WHOLE),
    (r"decoder(?P<level>\d+)(?P<map>_2)?\.conv_block", "{map}_decoder/level{level}", _RESIDUAL),
    (r"out(?P<map>_2)?\.conv\.conv", "{map}_head", _WHOLE),
)

_BACKBONE = "res."      # before the names of the ResNet inside a MAUNet


def maunet_paths(names: Iterable[str]) -> dict[str, Path]:
    """Where each entry of a published state dict lives in the network's variables.

    Args:
      names: of a MAUNet, or of a ResNet of torchvision.

    Returns:
      name -> ("params" or "batch_stats", module, ..., leaf); counters of batches, the classifier and unknown names are left out.
    """
    paths = {name: _path(name) for name in names}
    return {name: path for name, path in paths.items() if path}


def _path(name: str) -> Path:
    module, _, leaf = name.removeprefix(_BACKBONE).rpartition(".")
    for pattern, template, children in _MODULES:
        for child, here in children.items():
            match = re.fullmatch(pattern + (r"\." + re.escape(child) if child else ""), module)
            if not match:
                continue
            groups = match.groupdict()
            groups |= {"level": _LEVELS[groups["level"]]} if "level" in groups else {}
            groups |= {"map": _MAPS[groups["map"]]} if "map" in groups else {}
            path = (*template.format_map(groups).split("/"), *([here] if here else []))
            leaves = {"weight": ("params", "scale" if "norm" in path[-1] else "kernel"), "bias": ("params", "bias"),
                      "running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var")}
            return (leaves[leaf][0], *path, leaves[leaf][1]) if leaf in leaves else ()
    return ()


def load_maunet(state_dict: Mapping[str, np.ndarray], variables: Mapping[str, Any], *, branch: str = "") -> dict[str, Any]:
    """Parameters and running statistics of a published network in the places of `variables`.

    A checkpoint of a ResNet alone, by torchvision's names, fills the encoder; all else stays.

    Args:
      state_dict: name -> array, as `read_checkpoint` gives it.
      variables: "params" and "batch_stats" of the same network here, arrays or shapes (`jax.eval_shape` of its `init`); for a
        ResNet alone arrays.
      branch: what the names of this network begin with where the file holds two; those that begin otherwise are the other's.

    Returns:
      Variables of the same structure, numpy arrays in the dtype of `variables`.

    Raises:
      ValueError: names that are missing, left over or differently shaped, all in one message.
    """
    if branch and any(name.startswith(branch) for name in state_dict):
        state_dict = {name.removeprefix(branch): array for name, array in state_dict.items() if name.startswith(branch)}
    backbone = not any(name.startswith(_BACKBONE) for name in state_dict)
    if backbone:
        modules = variables["params"]["encoder"]
        state_dict = {name: array for name, array in state_dict.items() if not _is_beyond(name, modules)}
    return place_arrays(state_dict, variables, maunet_paths(state_dict), of="the encoder, classes and decoders",
                        convert=_converted, ignored=lambda name: name.endswith(".num_batches_tracked"),
                        stays=lambda path: backbone and path[1] != "encoder")


def _converted(name: str, array: np.ndarray, path: Path, shape: Shape) -> np.ndarray:
    if ".transp_conv." in name and array.ndim == 4:     # its inputs come first
        return array.transpose(2, 3, 0, 1)
    return kernel_from_torch(array)


def _is_beyond(name: str, modules: Container[str]) -> bool:
    """Whether a name of torchvision's belongs to the classifier, or to a stage that is not among the encoder's modules."""
    match = re.match(r"(fc)|layer(\d+)", name)
    return match is not None and (match[1] == "fc" or f"level{match[2]}_block0" not in modules)
