"""Published SE-U-Nets and SparseInst decoders (PyTorch state dicts) -> parameters and statistics of `SparseSEUNet`.

Source: names and layouts of SlavkoPrytula/IAUNet@836185a and hustvl/SparseInst@a899015.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcell.pretrained.places import Path, Shape, kernel_from_torch, place_arrays

__all__ = ["load_sparse_seunet", "sparse_seunet_paths", "swap_coordinates"]

# The children of one module there and here.
_DOUBLE_CONV = {f"conv{half}.{i}": name for half, names in ((1, ("conv1", "norm1", "conv2", "norm2")),
                                                           (2, ("conv3", "norm3", "conv4", "norm4")))
                for i, name in zip((0, 1, 3, 4), names, strict=True)}
_EXCITE = {"excite.0": "squeeze", "excite.2": "excite"}
_WINDOW = {"interp.1": "conv1", "interp.2": "norm1"}
_HEAD = {"iam_conv": "maps", "fc": "hidden1", "cls_score": "scores", "mask_kernel": "kernels",
         "objectness": "objectness"}
_WHOLE = {"": ""}
_NORMED = {f"{3 * i + j}": f"{name}{i + 1}" for i in range(8) for j, name in enumerate(("conv", "norm"))}
_BARE = {f"{2 * i}": f"conv{i + 1}" for i in range(8)}

# (module there, module here, children): the pattern's groups fill the template, what follows the pattern is the child.
_MODULES: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    (r"down_conv_layers\.(\d+)", "encoder/level{0}", _DOUBLE_CONV),
    (r"down_se_blocks\.(\d+)", "encoder/level{0}_se", _EXCITE),
    (r"down_pp_layers\.(\d+)\.interp_block(?P<block>\d+)", "encoder/level{0}_pyramid/window{window}", _WINDOW),
    (r"pp_se_blocks\.(\d+)", "encoder/level{0}_pyramid_se", _EXCITE),
    (r"middleConv", "encoder/bottom", _DOUBLE_CONV),
    (r"middleSE", "encoder/bottom_se", _EXCITE),
    (r"up_conv_layers\.(\d+)", "instance_decoder/step{0}", _DOUBLE_CONV),
    (r"up_se_blocks\.(\d+)", "instance_decoder/step{0}_se", _EXCITE),
    (r"up_conv_layers_overlap\.(\d+)", "overlap_decoder/step{0}", _DOUBLE_CONV),
    (r"up_se_blocks_overlap\.(\d+)", "overlap_decoder/step{0}_se", _EXCITE),
    (r"overlap_conv", "overlap_head", _WHOLE),
    (r"up_conv_heads\.(?P<head>\d+)\.(\d+)", "{head}_decoder/step{1}", _DOUBLE_CONV),
    (r"up_se_heads\.(?P<head>\d+)\.(\d+)", "{head}_decoder/step{1}_se", _EXCITE),
    (r"mask_convs\.(?P<head>\d+)", "{head}_head", _WHOLE),
    (r"inst(?:ance)?_branch", "instances/head", _HEAD),
    (r"mask_branch\.projection", "instances/projection", _WHOLE),
)
# Stacks of convolutions: (module there, module here). Their numbers depend on whether norms lie between.
_STACKS = (
    (r"prior_instance_branch\.(\d+)\.inst_convs", "instances/instance_branch/step{0}"),
    (r"mask_branch\.(\d+)\.mask_convs", "instances/mask_branch/step{0}"),
    (r"inst_branch\.inst_convs", "instances/instance_branch/step0"),
    (r"mask_branch\.mask_convs", "instances/mask_branch/step0"),
)
_COORDINATES = re.compile(r"up_conv_(layers|layers_overlap|heads\.\d+)\.\d+\.conv1\.0\.weight"
                          r"|inst_branch\.inst_convs\.0\.weight|mask_branch\.mask_convs\.0\.weight")
"""Kernels whose first two inputs are the place of a pixel: (x, y) there, (y, x) here."""

_IGNORED = ("num_batches_tracked", "softmax_bias")
"""Last parts of names without a place here: a counter that nothing reads, and a constant that a softmax does not see."""


def sparse_seunet_paths(names: Iterable[str], *, heads: Sequence[str] = (), windows: Sequence[int] = (1, 2, 4, 8, 16)
                        ) -> dict[str, Path]:
    """Where each entry of a published state dict lives in the network's variables.

    Args:
      names: of the state dict.
      heads: of the decoupled decoders, in the order of their numbers there.
      windows: of the pyramids, rising; there they are numbered from the largest.

    Returns:
      name -> ("params" or "batch_stats", module, ..., leaf); names without a place (see `_IGNORED`) or unknown are left out.
    """
    names = list(names)
    normed = any(re.search(r"_convs\.\d+\.running_mean$", name) for name in names)
    modules = (*_MODULES, *((there, here, _NORMED if normed else _BARE) for there, here in _STACKS))
    paths = {name: _path(name, modules, heads, windows) for name in names}
    return {name: path for name, path in paths.items() if path}


def _path(name: str, modules: Iterable[tuple[str, str, Mapping[str, str]]], heads: Sequence[str], windows: Sequence[int]) -> Path:
    module, _, leaf = name.rpartition(".")
    for pattern, template, children in modules:
        match = re.match(pattern + r"(?:\.|$)", module)
        child = module[match.end():] if match else ""
        if match is None or child not in children:
            continue
        groups = match.groupdict()
        head, block = int(groups.get("head") or 0), int(groups.get("block") or 1)
        if ("head" in groups and head >= len(heads)) or block > len(windows):
            return ()
        here = children[child]
        leaves = {"weight": ("params", "scale" if "norm" in here else "kernel"), "bias": ("params", "bias"),
                  "running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var")}
        if leaf not in leaves:
            return ()
        place = template.format(*match.groups(), head=heads[head] if "head" in groups else "", window=windows[-block])
        collection, last = leaves[leaf]
        return (collection, *place.split("/"), *([here] if here else []), last)
    return ()


def swap_coordinates(name: str, kernel: np.ndarray) -> np.ndarray:
    """A kernel [k, k, in, out] with its first two inputs exchanged, if the entry `name` reads places; else as it is."""
    return np.concatenate([kernel[:, :, 1::-1], kernel[:, :, 2:]], axis=2) if _COORDINATES.fullmatch(name) else kernel


def load_sparse_seunet(state_dict: Mapping[str, np.ndarray], variables: Mapping[str, Any], *, heads: Sequence[str] = (),
                       windows: Sequence[int] = (1, 2, 4, 8, 16)) -> dict[str, Any]:
    """Parameters and running statistics of a published network in the places of `variables`.

    Kernels become [k, k, in, out], those of linear layers [1, 1, in, out]; inputs that are places change from (x, y) to (y, x).

    Args:
      state_dict: name -> array, as `read_checkpoint` gives it.
      variables: "params" and "batch_stats" of the same network here, arrays or shapes (`jax.eval_shape` of its `init`).
      heads: see `sparse_seunet_paths`.
      windows: see there.

    Returns:
      Variables of the same structure, numpy arrays in the dtype of `variables`.

    Raises:
      ValueError: names that are missing, left over or differently shaped, all in one message.
    """
    return place_arrays(state_dict, variables, sparse_seunet_paths(state_dict, heads=heads, windows=windows),
                        of="the levels, heads, branches and widths", convert=_converted,
                        ignored=lambda name: name.rpartition(".")[2] in _IGNORED)


def _converted(name: str, array: np.ndarray, path: Path, shape: Shape) -> np.ndarray:
    if path[-1] != "kernel":
        return array
    return swap_coordinates(name, kernel_from_torch(array[..., None, None] if array.ndim == 2 else array))
