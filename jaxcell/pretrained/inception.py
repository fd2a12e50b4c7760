"""Published Inception-v3 weights (PyTorch) -> parameters and statistics of `InceptionV3`.

Source: mseitzer/pytorch-fid, pt_inception-2015-12-05-6726825d.pth; torchvision's names are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcell.pretrained.places import Path, kernel_from_torch, place_arrays

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
    return place_arrays(state_dict, variables, {name: _path(name) for name in state_dict}, of="pt_inception-2015-12-05, the file",
                        convert=lambda name, array, path, shape: kernel_from_torch(array),
                        ignored=lambda name: name.startswith(_IGNORED) or name.endswith(_COUNTER))


def _path(name: str) -> Path:
    *modules, leaf = name.split(".")
    collection, last = _LEAVES.get(leaf, ("", ""))
    return (collection, *modules, "scale" if modules[-1:] == ["bn"] and last == "kernel" else last)
