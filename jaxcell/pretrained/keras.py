"""Reads weights that Keras wrote as HDF5, without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["is_keras", "read_keras"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_keras(path: str | Path) -> bool:
    """Whether a file is HDF5, as Keras writes it."""
    with Path(path).open("rb") as file:
        return file.read(len(_SIGNATURE)) == _SIGNATURE


def read_keras(path: str | Path) -> dict[str, np.ndarray]:
    """The weights in an HDF5 file of Keras: "<layer>/<weight>" -> array.

    Args:
      path: of `model.save_weights` or `model.save` to HDF5 of Keras up to 2.15, as the published weights of keras.applications
        are. Layers have the names that they have in the model, weights the last part of theirs ("kernel", "moving_mean").

    Returns:
      Arrays as stored, in the order of the file.

    Raises:
      ValueError: the file has no list of layers, as those of Keras 3 (".weights.h5"); or h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f"{path}: reading weights of Keras needs the package h5py; pip install 'jaxcell[keras]'.") from error
    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        if not any(key.startswith("layer_names") for key in root.attrs):
            raise ValueError(f"{path}: names no layers; it must be an HDF5 file of Keras up to 2.15. Load it there and call "
                             "model.save_weights('weights.h5').")
        return {f"{layer}/{weight.rpartition('/')[2].partition(':')[0]}": np.asarray(root[layer][weight])
                for layer in _names(root, "layer_names") for weight in _names(root[layer], "weight_names")}


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names in an attribute; long ones are split over "<attribute>0", "<attribute>1" ..."""
    keys = [attribute] if attribute in group.attrs else sorted(
        (key for key in group.attrs if key.startswith(attribute)), key=lambda key: int(key.removeprefix(attribute)))
    return [name.decode() if isinstance(name, bytes) else str(name) for key in keys for name in group.attrs[key]]
