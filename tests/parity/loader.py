"""Reads a parity file: recorded outputs of the authors' code, inputs and parameters made from their names.

The five systems were recorded apart; this hides how each names its arrays, subsamples them and scales what is made from a name
(see ../shared/parity/README.md).
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One parity file.

    Attributes:
      name: "<system>/<case>".
      meta: the file's JSON description.
      inputs: name -> array, stored inputs and those made by `formula.image` alike.
      outputs: name -> recorded array (subsampled, see `subsample`); statistics after a training pass are "state_after/<name>".
      parameters: () -> name -> array, made by `formula.parameter`: state_dict keys and PyTorch layout, or Keras names and layout.
      checkpoint: () -> the same for the arrays of a checkpoint file that the case reads; empty where it reads none.
    """

    name: str
    meta: dict[str, Any]
    inputs: Arrays
    outputs: Arrays
    parameters: Callable[[], Arrays]
    checkpoint: Callable[[], Arrays]

    @property
    def meta_name(self) -> str:
        """"<system>/<case>" as the file's meta says it: a twin of another file name has the same."""
        return f"{self.name.split('/')[0]}/{self.meta['case']}"

    @property
    def constructor(self) -> dict[str, Any]:
        """The reference's settings; empty where there are none."""
        return self.meta.get("constructor", {})

    def subsample(self, name: str, value: np.ndarray) -> np.ndarray:
        """What was kept of a value of the full shape; a value that has the recorded shape already stays as it is."""
        entry = self.meta["outputs"].get(name)
        if value.shape == self.outputs[name].shape or not isinstance(entry, dict):
            return value
        return value[subsampling(entry["stored"], entry.get("layout", ""), value.ndim)]


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
    inputs, outputs = split_arrays(arrays, meta.get("inputs", {}))
    for name, entry in meta.get("inputs", {}).items():
        source = entry if isinstance(entry, str) else entry["source"]
        if source.startswith("formula:"):
            inputs[name] = formula_input(formula, entry if isinstance(entry, dict) else prose_entry(entry, meta["constructor"]))

    def parameters() -> Arrays:
        return formula_parameters(formula, meta.get("parameters") or {}, meta.get("gains", []))

    def checkpoint() -> Arrays:
        return {name: np.float32(entry["multiply"]) * formula.parameter(name, entry["shape"]) + np.float32(entry["add"])
                for name, entry in meta.get("checkpoint", {}).items()}

    return Case(f"{path.parent.name}/{path.stem}", meta, inputs, outputs, parameters, checkpoint)


def split_arrays(arrays: Arrays, described: dict[str, Any]) -> tuple[Arrays, Arrays]:
    """(inputs, outputs): "in_x" and "out_x"; "in/x", "out/x" and "state_after/x"; or plain x, an input if it is described."""
    for mark in ("_", "/"):
        parts = {key: key.partition(mark) for key in arrays}
        if all(first in ("in", "out", "state_after") for first, _, _ in parts.values()):
            return ({parts[key][2]: array for key, array in arrays.items() if parts[key][0] == "in"},
                    {key if parts[key][0] == "state_after" else parts[key][2]: array
                     for key, array in arrays.items() if parts[key][0] != "in"})
    return ({key: array for key, array in arrays.items() if key in described},
            {key: array for key, array in arrays.items() if key not in described})


# ------------------------------------------------------------------------------------------------- arrays made from a name
def formula_input(formula: Any, entry: dict[str, Any]) -> np.ndarray:
    """The array that a source such as "formula:case/x scaled as 4*x-2" names.

    A transform that needs other inputs too (a mask) is the adapter's: it finds the array u of the formula here.
    """
    name, _, rest = entry["source"].removeprefix("formula:").partition(" ")
    shape = tuple(entry["shape"])
    if name == "parameter":
        return formula.parameter(rest, shape)
    change = entry.get("transform", rest.removeprefix("scaled as "))
    if "coarse" in change:
        return rough_image(formula, name, shape, change)
    return transformed(formula.image(name, shape), change).astype(entry.get("dtype", "float32"))


def transformed(u: np.ndarray, change: str) -> np.ndarray:
    """a*u+b or floor(a*u+b) in float32; u itself if the change is neither."""
    match = re.fullmatch(r"(floor\()?([\d.]+)\*[ux]([+-][\d.]+)?\)?(,? ?(in )?float32)?", change)
    if not match:
        return u
    scaled = np.float32(match[2]) * u + np.float32(match[3] or 0)
    return np.floor(scaled) if match[1] else scaled


def rough_image(formula: Any, name: str, shape: tuple[int, ...], change: str) -> np.ndarray:
    """"a*coarse+b*fine": the coarse image has a value for every 8 x 8 pixels."""
    coarse, fine = re.match(r"([\d.]+)\*coarse\+([\d.]+)\*fine", change).groups()  # type: ignore[union-attr]
    small = formula.image(f"{name}/coarse", (*shape[:-2], *(-(-n // 8) for n in shape[-2:])))
    large = small.repeat(8, -2).repeat(8, -1)[..., :shape[-2], :shape[-1]]
    return np.float32(coarse) * large + np.float32(fine) * formula.image(f"{name}/fine", shape)


def prose_entry(source: str, constructor: dict[str, Any]) -> dict[str, Any]:
    """"formula:x of shape [H,W], times 255, truncated to uint8" as a description like the others."""
    match = re.fullmatch(r"(formula:\S+) of shape \[H,W\], times (\d+), truncated to (\w+)", source)
    assert match, f"{source!r} is a new kind of input; teach it to tests/parity/loader.py"
    return {"source": match[1], "shape": [constructor["height"], constructor["width"]], "transform": f"{match[2]}*u",
            "dtype": match[3]}


def formula_parameters(formula: Any, entries: Any, gains: list[tuple[str, float]]) -> Arrays:
    """Weights by name: entries are {name: shape} or lists (Keras name, its shape, formula name, its shape)."""
    def value(name: str, shape: list[int]) -> np.ndarray:
        gain = math.prod(factor for pattern, factor in gains if re.search(pattern, name))
        return formula.parameter(name, shape) if gain == 1 else formula.parameter(name, shape) * np.float32(gain)

    if isinstance(entries, dict) or not entries or len(entries[0]) == 2:
        return {name: value(name, shape) for name, shape in dict(entries).items()}
    return {keras: keras_layout(keras, value(name, shape)) if name else keras_default(keras, keras_shape)
            for keras, keras_shape, name, shape in entries}


def keras_layout(name: str, array: np.ndarray) -> np.ndarray:
    """(out, in, kh, kw) -> (kh, kw, in, out); a depthwise kernel (C, 1, kh, kw) -> (kh, kw, C, 1)."""
    if array.ndim != 4:
        return array
    return array.transpose(2, 3, 0, 1) if name.endswith("depthwise_kernel") else array.transpose(2, 3, 1, 0)


def keras_default(name: str, shape: list[int]) -> np.ndarray:
    """What an unadapted Normalization layer holds."""
    return np.ones(shape, np.float32) if name.endswith("/variance") else np.zeros(shape, np.float32)


# -------------------------------------------------------------------------------------------------------------- subsampling
AXES = {"row": ("H",), "column": ("W",), "channel": ("C", "channels"), "token": ("L", "patches")}


def subsampling(stored: str, layout: str, ndim: int) -> tuple[slice, ...]:
    """Index of what was kept: "whole", "[:, ::4]" or words such as "every 8th channel, every 2nd row and column".

    The axes of words are those of the layout: "NCHW, blend gaussian" or "picked x H x W".
    """
    if stored == "whole":
        return (slice(None),) * ndim
    if stored.startswith("["):
        parts = stored.strip("[] ").replace(" ", "").split(",")
        return tuple(slice(*(int(n) if n else None for n in part.split(":"))) for part in parts)
    axes = layout.partition(",")[0]
    names = axes.split(" x ") if " x " in axes else list(axes)
    steps = [1] * ndim
    for step, what in re.findall(r"(\d+)(?:st|nd|rd|th) ([^\d]*)", stored):
        for word, letters in AXES.items():
            if word in what:
                steps[next(i for i, name in enumerate(names) if name.split()[0] in letters)] = int(step)
    return tuple(slice(None, None, step) for step in steps)
