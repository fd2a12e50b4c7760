"""Published contour proposal networks (PyTorch state dicts) -> parameters and statistics of `ContourProposalNetwork`.

Source: names and layouts of neurips22-cell-seg@ab6a154 (celldetection 0.4.0) and of celldetection 0.4.9.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxcell.pretrained.places import Path, Shape, kernel_from_torch, place_arrays

__all__ = ["contour_proposal_paths", "load_contour_proposal"]

# The children of one module there and here.
_BLOCK = {"conv1": "conv1", "bn1": "norm1", "conv2": "conv2", "bn2": "norm2", "conv3": "conv3", "bn3": "norm3",
          "downsample.0": "projection", "downsample.1": "projection_norm"}
_SEQUENTIAL = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}
_DECODER = {**_SEQUENTIAL, **{f"block.{i}": name for i, name in _SEQUENTIAL.items()},
            "downsample.0": "projection", "downsample.1": "projection_norm"}
_BRANCH = {"1": "conv1", "2": "norm1"}
_HEAD = {"block.0": "conv1", "block.1": "norm1", "block.4": "output"}
_FUSE = {"block.0": "conv1", "block.1": "norm1"}
_WHOLE = {"": ""}

# (module there, module here, children): the pattern's groups fill the template, what follows the pattern is the child.
_MODULES: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    (r"backbone\.body\.0", "encoder/level0", _SEQUENTIAL),                                   # ResNet stem, first U-Net level
    (r"backbone\.body\.(\d)\.1", "encoder/level{0}", _SEQUENTIAL),                           # U-Net level behind its pooling
    (r"backbone\.body\.1\.1\.(\d+)", "encoder/level1_block{0}", _BLOCK),                     # ResNet stage behind its pooling
    (r"backbone\.body\.(\d)\.(\d+)", "encoder/level{0}_block{1}", _BLOCK),
    (r"backbone\.body\.\d\.(?:mods|blocks)\.(\d)", "pooling/branch{0}", _BRANCH),
    (r"backbone\.unet\.inner_blocks\.(\d)", "decoder/level{0}_reduce", _WHOLE),
    (r"backbone\.unet\.layer_blocks\.(\d)", "decoder/level{0}", _DECODER),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.0", "decoder/level{0}_lateral", _WHOLE),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.0", "decoder/level{0}_output", _WHOLE),
    (r"(score|refinement)_reduce", "{0}_fuse/conv1", _WHOLE),
    (r"(score|location|fourier|uncertainty|refinement)_fuse", "{0}_fuse", _FUSE),
    (r"(score|location|fourier|uncertainty|refinement)_head", "{0}_head", _HEAD),
)

_IGNORED = ("num_batches_tracked", "order_weights")
"""Last parts of names without a place here: a counter that nothing reads, and constants of the loss."""


def contour_proposal_paths(names: Iterable[str]) -> dict[str, Path]:
    """Where each entry of a published state dict lives in the network's variables.

    Args:
      names: of the state dict, with or without a leading "core.".

    Returns:
      name -> ("params" or "batch_stats", module, ..., leaf); names without a place (see `_IGNORED`) or unknown are left out.
    """
    paths = {name: _path(name) for name in names}
    return {name: path for name, path in paths.items() if path}


def _path(name: str) -> Path:
    module, _, leaf = name.removeprefix("core.").rpartition(".")
    for pattern, template, children in _MODULES:
        for child, here in children.items():
            match = re.fullmatch(pattern + (r"\." + re.escape(child) if child else ""), module)
            if not match:
                continue
            norm = "norm" in here
            leaves = {"weight": ("params", "scale" if norm else "kernel"), "bias": ("params", "bias"),
                      "running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var")}
            if leaf not in leaves:
                return ()
            collection, last = leaves[leaf]
            return (collection, *template.format(*match.groups()).split("/"), *([here] if here else []), last)
    return ()


def _yx_channels(head: str, count: int) -> np.ndarray:
    """Order in which the reference's (x, y) output channels of a head become (y, x)."""
    pairs = np.arange(count)
    if head in ("location_head", "refinement_head", "uncertainty_head"):   # (x, y), per bucket, or (left, top), (right, bottom)
        return pairs.reshape(-1, 2)[:, ::-1].reshape(-1)
    if head == "fourier_head":                                             # per order (x cos, x sin, y cos, y sin)
        return pairs.reshape(-1, 2, 2)[:, ::-1].reshape(-1)
    return pairs


def load_contour_proposal(state_dict: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters and running statistics of a published network in the places of `variables`.

    Kernels become [k, k, in, out]; the output channels of the heads change from (x, y) to (y, x).

    Args:
      state_dict: name -> array, as `read_checkpoint` gives it.
      variables: "params" and "batch_stats" of the same network here, arrays or shapes (`jax.eval_shape` of its `init`).

    Returns:
      Variables of the same structure, numpy arrays in the dtype of `variables`.

    Raises:
      ValueError: names that are missing, left over or differently shaped, all in one message.
    """
    return place_arrays(state_dict, variables, contour_proposal_paths(state_dict), of="the encoder, decoder and heads",
                        convert=_converted, ignored=lambda name: name.rpartition(".")[2] in _IGNORED)


def _converted(name: str, array: np.ndarray, path: Path, shape: Shape) -> np.ndarray:
    array = kernel_from_torch(array)
    heads = path[-2] == "output" and array.shape == shape
    return array[..., _yx_channels(path[-3], array.shape[-1])] if heads else array
