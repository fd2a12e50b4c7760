"""Reads a parity file: recorded outputs of the authors' code, inputs and parameters made from their names.

The five systems were recorded apart; this hides how each names its arrays (see ../shared/parity/README.md).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """One parity file.

    Attributes:
      name: "<system>/<case>".
      meta: the file's JSON description.
      inputs: name -> array, stored inputs and those made by `formula.image` alike.
      outputs: name -> recorded array (subsampled as `stored` says).
      stored: output name -> "whole" or a numpy index such as "[:, ::4]".
      shapes: output name -> shape before subsampling.
      parameters: () -> state_dict key -> array, made by `formula.parameter`.
    """

    name: str
    meta: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    stored: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    parameters: Callable[[], dict[str, np.ndarray]]

    @property
    def meta_name(self) -> str:
        """"<system>/<case>" as the file's meta says it: a twin of another file name has the same."""
        return f"{self.name.split('/')[0]}/{self.meta['case']}"

    @property
    def constructor(self) -> dict[str, Any]:
        return self.meta["constructor"]


def load_formula(parity_dir: Path) -> Any:
    """The module that made the reference's parameters and inputs from their names."""
    spec = importlib.util.spec_from_file_location("parity_formula", parity_dir / "formula.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_case(path: Path) -> Case:
    """Reads `<parity dir>/<system>/<case>.npz`."""
    formula = load_formula(path.parent.parent)
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays.pop("meta")))
    inputs = {}
    for name, entry in meta["inputs"].items():
        source = entry["source"]
        if source.startswith("formula:"):
            inputs[name] = formula.image(source.removeprefix("formula:").split()[0], entry["shape"]).astype(entry["dtype"])
        else:
            inputs[name] = arrays[f"in_{name}"]
    outputs = {name: arrays[f"out_{name}"] for name in meta["outputs"]}

    def parameters() -> dict[str, np.ndarray]:
        return {key: formula.parameter(key, shape) for key, shape in dict(meta["parameters"]).items()}

    return Case(
        name=f"{path.parent.name}/{path.stem}", meta=meta, inputs=inputs, outputs=outputs,
        stored={name: entry["stored"] for name, entry in meta["outputs"].items()},
        shapes={name: tuple(entry["shape"]) for name, entry in meta["outputs"].items()},
        parameters=parameters,
    )
