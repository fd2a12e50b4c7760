"""Puts the arrays of a published checkpoint into the places of a network's variables, and accounts for every one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

__all__ = ["Path", "Shape", "kernel_from_torch", "place_arrays"]

Path = tuple[str, ...]
Shape = tuple[int, ...]


def kernel_from_torch(array: np.ndarray) -> np.ndarray:
    """[out, in, k, k] -> [k, k, in, out]; what is no kernel of a convolution stays."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def place_arrays(state_dict: Mapping[str, np.ndarray], variables: Mapping[str, Any], paths: Mapping[str, Path], *, of: str,
                 convert: Callable[[str, np.ndarray, Path, Shape], np.ndarray], ignored: Callable[[str], bool],
                 stays: Callable[[Path], bool] = lambda path: False) -> dict[str, Any]:
    """Variables of the structure of `variables`, filled from a checkpoint.

    Args:
      state_dict: name -> array.
      variables: "params" and "batch_stats" of the network, arrays or shapes (`jax.eval_shape` of its `init`).
      paths: name -> ("params" or "batch_stats", module, ..., leaf); others than in `variables` have no place here.
      of: what the user chooses to get the network that the checkpoint is of, for the error.
      convert: (name, array, path, shape of the place) -> the array in our layout.
      ignored: name -> whether it may have no place here.
      stays: path -> whether it keeps its value in `variables`, which must then be an array.

    Returns:
      Numpy arrays in the dtype of `variables`, and what stays.

    Raises:
      ValueError: names that are missing, left over or differently shaped, all in one message.
    """
    expected = traverse_util.flatten_dict(dict(variables))
    loaded = {path: leaf for path, leaf in expected.items() if stays(path)}
    known, wrong = set(loaded) | set(paths.values()), []
    for name, path in paths.items():
        if path not in expected:
            continue
        shape = tuple(expected[path].shape)
        array = convert(name, np.asarray(state_dict[name]), path, shape)
        if array.shape == shape:
            loaded[path] = array.astype(expected[path].dtype)
        else:
            wrong.append(f"{name} {np.shape(state_dict[name])} for {'/'.join(path)} {shape}")
    left = [name for name in state_dict if paths.get(name) not in expected and not ignored(name)]
    missing = ["/".join(path) for path in expected if path not in known]
    if missing or left or wrong:
        raise ValueError(f"the checkpoint is of another network; choose {of} that it was trained with. Missing in the "
                         f"checkpoint: {missing or 'none'}; left over in it: {left or 'none'}; "
                         f"of another shape: {wrong or 'none'}.")
    return traverse_util.unflatten_dict(loaded)
