"""Published Inception-v3 weights (PyTorch) -> parameters and statistics of `InceptionV3`.

Source: mseitzer/pytorch-fid, pt_inception-2015-12-05-6726825d.pth; torchvision's names are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

__all__ = ["load_inception"]

_LEAVES = {"weight": ("params", "kernel"), "bias": ("params", "bias"), "running_mean": ("batch_stats", "mean"),
           "running_var": ("batch_stats", "var")}
_IGNORED = ("fc.", "AuxLogits.")        # the classifiers
_COUNTER = "num_batches_tracked"


def load_inception(state_dict: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, Any]:
    """The network's parameters and running statistics in the places of `variables`.

    Args:
      state_dict: name -> array, as `read_checkpoint` gives it.
      variables: "params" and "batch_stats" of the network, arrays or shapes.

    Returns:
      Variables of the same structure, numpy arrays.

    Raises:
      ValueError: names that are missing, left over or differently shaped.
    """
    expected = traverse_util.flatten_dict(dict(variables))
    loaded, left = {}, []
    for name, value in state_dict.items():
        *modules, leaf = name.split(".")
        collection, last = _LEAVES.get(leaf, ("", ""))
        path = (collection, *modules, "scale" if modules[-1:] == ["bn"] and last == "kernel" else last)
        array = np.asarray(value)
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        if path in expected and expected[path].shape == array.shape:
            loaded[path] = array.astype(expected[path].dtype)
        elif not name.startswith(_IGNORED) and leaf != _COUNTER:
            left.append(f"{name} {array.shape}")
    missing = ["/".join(path) for path in expected if path not in loaded]
    if missing or left:
        raise ValueError(f"load_inception: not the weights of an Inception-v3. Missing: {missing or 'none'}; left over or of "
                         f"another shape: {left or 'none'}. Use pt_inception-2015-12-05 of pytorch-fid.")
    return traverse_util.unflatten_dict(loaded)
