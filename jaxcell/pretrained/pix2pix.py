"""Published pix2pix networks (PyTorch state dicts) -> parameters and statistics of `TranslationNetwork`, `PatchDiscriminator`.

Source: names and layouts of junyanz/pytorch-CycleGAN-and-pix2pix, models/networks.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxcell.pretrained.places import Path, Shape, kernel_from_torch, place_arrays

__all__ = ["discriminator_paths", "generator_paths", "load_discriminator", "load_generator"]

_LEAVES = {"weight": ("params", "kernel"), "bias": ("params", "bias"), "running_mean": ("batch_stats", "mean"),
           "running_var": ("batch_stats", "var")}
_COUNTER = "num_batches_tracked"      # nothing reads it
_BLOCK = {"1": "down{0}", "2": "down{0}_norm", "5": "up{0}", "6": "up{0}_norm"}
_INNERMOST = {"1": "down{0}", "3": "up{0}", "4": "up{0}_norm"}
_OUTERMOST = {"0": "down0", "3": "up0"}


def generator_paths(names: Iterable[str]) -> dict[str, Path]:
    """Where each entry of a published generator lives in the variables of `TranslationNetwork`.

    Returns:
      name -> ("params" or "batch_stats", module, leaf); () for names without a place.
    """
    names = list(names)
    innermost = max((len(match[1]) for name in names if (match := _in_block(name))), default=0)
    return {name: _generator_path(name, innermost) for name in names}


def discriminator_paths(names: Iterable[str]) -> dict[str, Path]:
    """Where each entry of a published discriminator lives in the variables of `PatchDiscriminator`; see `generator_paths`."""
    names = list(names)
    last = max((int(match[1]) for name in names if (match := re.match(r"model\.(\d+)\.", name))), default=0)
    return {name: _discriminator_path(name, last) for name in names}


def load_generator(state_dict: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, Any]:
    """A generator's parameters and running statistics in the places of `variables`.

    Args:
      state_dict: name -> array, as `read_checkpoint` gives it.
      variables: "params" and "batch_stats" of the same network here, arrays or shapes.

    Returns:
      Variables of the same structure, numpy arrays.

    Raises:
      ValueError: names that are missing, left over or differently shaped, all in one message.
    """
    return _load(generator_paths(state_dict), state_dict, variables)


def load_discriminator(state_dict: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, Any]:
    """A discriminator's; see `load_generator`."""
    return _load(discriminator_paths(state_dict), state_dict, variables)


def _in_block(name: str) -> re.Match[str] | None:
    """Of a name inside the outermost block: (".model.3" for each block between, number of the layer, what of it)."""
    return re.fullmatch(r"model\.model\.1((?:\.model\.3)*)\.model\.(\d)\.(\w+)", name)


def _generator_path(name: str, innermost: int) -> Path:
    """Blocks lie in each other: the one at level i is layer 3 of the one at level i - 1."""
    if match := _in_block(name):
        nested, layer, leaf = match.groups()
        names, level = (_INNERMOST if len(nested) == innermost else _BLOCK), 1 + nested.count(".model.3")
    elif match := re.fullmatch(r"model\.model\.(\d)\.(\w+)", name):
        (layer, leaf), names, level = match.groups(), _OUTERMOST, 0
    else:
        return ()
    return _place(names[layer].format(level), leaf) if layer in names else ()


def _discriminator_path(name: str, last: int) -> Path:
    """A convolution, then for each layer a convolution, a norm and a rectifier, and the output."""
    match = re.fullmatch(r"model\.(\d+)\.(\w+)", name)
    if not match:
        return ()
    number, leaf = int(match[1]), match[2]
    layer, part = divmod(number + 1, 3)
    names = {0: "conv0", last: "output"}
    return _place(names.get(number, f"conv{layer}" if part == 0 else f"norm{layer}"), leaf)


def _place(module: str, leaf: str) -> Path:
    if leaf not in _LEAVES:
        return ()
    collection, last = _LEAVES[leaf]
    return (collection, module, "scale" if "norm" in module and last == "kernel" else last)


def _load(paths: Mapping[str, Path], state_dict: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, Any]:
    return place_arrays(state_dict, variables, paths, of="the planes, levels, width and upsampling", convert=_converted,
                        ignored=lambda name: name.endswith(_COUNTER))


def _converted(name: str, array: np.ndarray, path: Path, shape: Shape) -> np.ndarray:
    if path[1].startswith("up") and array.ndim == 4:    # transposed convolutions: inputs come first
        return array.transpose(2, 3, 0, 1)
    return kernel_from_torch(array)
