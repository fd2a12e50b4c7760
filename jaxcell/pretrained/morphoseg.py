"""Published TransUNets, and Google's ViT and R50+ViT checkpoints -> parameters and statistics of `TransUNet`.

Source: names and layouts of RanchoGoose/MorphoSeg@a2ab9fe (PyTorch, equal to Beckschen/TransUNet@02ef001) and of the npz files
that google-research/vision_transformer publishes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcell.models.resize import resize_corner_aligned
from jaxcell.pretrained.places import Path, Shape, kernel_from_torch, place_arrays

__all__ = ["fit_positions", "load_morphoseg", "morphoseg_paths"]

_UNIT = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3", "gn1": "norm1", "gn2": "norm2", "gn3": "norm3",
         "downsample": "projection", "conv_proj": "projection", "gn_proj": "projection_norm"}
_ATTENTION = {"query": "query", "key": "key", "value": "value", "out": "out"}

# (module there, module here, names that a group stands for): groups fill the template, looked up where a table is given.
_MODULES: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    # PyTorch
    (r"transformer\.embeddings\.hybrid_model\.root\.conv", "stem/root_conv", {}),
    (r"transformer\.embeddings\.hybrid_model\.root\.gn", "stem/root_norm", {}),
    (r"transformer\.embeddings\.hybrid_model\.body\.(block\d+)\.(unit\d+)\.(\w+)", "stem/{0}_{1}/{2}", _UNIT),
    (r"transformer\.embeddings\.patch_embeddings", "transformer/embedding", {}),
    (r"transformer\.encoder\.layer\.(\d+)\.attn\.(\w+)", "transformer/layer{0}/attention/{1}", _ATTENTION),
    (r"transformer\.encoder\.layer\.(\d+)\.(\w+)", "transformer/layer{0}/{1}",
     {"attention_norm": "attention_norm", "ffn_norm": "mlp_norm"}),
    (r"transformer\.encoder\.layer\.(\d+)\.ffn\.(\w+)", "transformer/layer{0}/{1}", {"fc1": "mlp_in", "fc2": "mlp_out"}),
    (r"transformer\.encoder\.encoder_norm", "transformer/norm", {}),
    (r"decoder\.conv_more\.0", "cascade/input/conv1", {}),
    (r"decoder\.conv_more\.1", "cascade/input/norm1", {}),
    (r"decoder\.blocks\.(\d+)\.conv(\d)\.0", "cascade/level{0}/conv{1}", {}),
    (r"decoder\.blocks\.(\d+)\.conv(\d)\.1", "cascade/level{0}/norm{1}", {}),
    (r"segmentation_head\.0", "head", {}),
    # Google
    (r"conv_root", "stem/root_conv", {}),
    (r"gn_root", "stem/root_norm", {}),
    (r"(block\d+)/(unit\d+)/(\w+)", "stem/{0}_{1}/{2}", _UNIT),
    (r"embedding", "transformer/embedding", {}),
    (r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_1/(\w+)", "transformer/layer{0}/attention/{1}", _ATTENTION),
    (r"Transformer/encoderblock_(\d+)/(LayerNorm_\d)", "transformer/layer{0}/{1}",
     {"LayerNorm_0": "attention_norm", "LayerNorm_2": "mlp_norm"}),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_3/(\w+)", "transformer/layer{0}/{1}", {"Dense_0": "mlp_in", "Dense_1": "mlp_out"}),
    (r"Transformer/encoder_norm", "transformer/norm", {}),
)
_POSITIONS = ("transformer.embeddings.position_embeddings", "Transformer/posembed_input/pos_embedding")

_TRUNK = ("stem", "transformer")
"""What a checkpoint of an encoder alone fills."""

_IGNORED = re.compile(r"cls|head/.*|pre_logits/.*|.*\.num_batches_tracked")
"""Google's class token and classifier, and a counter that nothing reads."""


def morphoseg_paths(names: Iterable[str]) -> dict[str, Path]:
    """Where each array of a checkpoint lives in the network's variables.

    Args:
      names: of a PyTorch state dict ("decoder.conv_more.0.weight") or of a file by Google ("block1/unit1/conv1/kernel").

    Returns:
      name -> ("params" or "batch_stats", module, ..., leaf); names without a place are left out.
    """
    paths = {name: _path(name) for name in names}
    return {name: path for name, path in paths.items() if path}


def _path(name: str) -> Path:
    if name in _POSITIONS:
        return ("params", "transformer", "embedding", "positions")
    module, leaf = re.fullmatch(r"(.*?)[./]?([^./]*)", name).groups()  # type: ignore[union-attr]
    for pattern, template, names in _MODULES:
        match = re.fullmatch(pattern, module)
        if not match or (names and not any(group in names for group in match.groups())):
            continue
        place = template.format(*(names.get(group, group) if names else group for group in match.groups()))
        norm = "norm" in place.rpartition("/")[2]
        leaves = {"weight": ("params", "scale" if norm else "kernel"), "kernel": ("params", "kernel"),
                  "scale": ("params", "scale"), "bias": ("params", "bias"), "running_mean": ("batch_stats", "mean"),
                  "running_var": ("batch_stats", "var")}
        if leaf not in leaves:
            return ()
        collection, last = leaves[leaf]
        return (collection, *place.split("/"), last)
    return ()


def fit_positions(positions: np.ndarray, grid: int) -> np.ndarray:
    """Position embeddings of another grid, interpolated between its corners.

    Args:
      positions: [1, N, C] or [N, C], row by row; N a square, or one more: the first one, of the class token, is left out.
      grid: places a side that are wanted.

    Returns:
      [grid, grid, C].

    Raises:
      ValueError: N is neither.

    Source: RanchoGoose/MorphoSeg@a2ab9fe, vit_seg_modeling.py load_from (scipy.ndimage.zoom of order 1).
    """
    rows = positions.reshape(-1, positions.shape[-1])
    side = int(np.sqrt(len(rows)))
    if len(rows) - side * side not in (0, 1):
        raise ValueError(f"position embeddings {positions.shape} are of no square grid, with or without a class token; the "
                         "checkpoint must be of a ViT.")
    square = rows[len(rows) - side * side:].reshape(1, side, side, -1)
    return np.asarray(resize_corner_aligned(jnp.asarray(square), (grid, grid)))[0]


def load_morphoseg(state_dict: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters and running statistics of a published network in the places of `variables`.

    A checkpoint without a decoder, such as Google's, fills stem and transformer; all else stays.

    Args:
      state_dict: name -> array, as `read_checkpoint` gives it.
      variables: "params" and "batch_stats" of the same network here, arrays or shapes (`jax.eval_shape` of its `init`); for a
        checkpoint without a decoder arrays.

    Returns:
      Variables of the same structure, numpy arrays in the dtype of `variables`.

    Raises:
      ValueError: names that are missing, left over or differently shaped, all in one message.
    """
    paths = morphoseg_paths(state_dict)
    trunk = all(path[1] in _TRUNK for path in paths.values())
    return place_arrays(state_dict, variables, paths, of="the stem, transformer, widths and skips", convert=_fitted,
                        ignored=lambda name: _IGNORED.fullmatch(name) is not None,
                        stays=lambda path: trunk and path[1] not in _TRUNK)


def _fitted(name: str, array: np.ndarray, path: Path, shape: Shape) -> np.ndarray:
    """An array of a checkpoint in the layout of ours; one that cannot be is returned as it is."""
    if path[-1] == "positions":
        return fit_positions(array, shape[0])
    if name.endswith(".weight") and array.ndim > 1:     # PyTorch: outputs first
        array = kernel_from_torch(array) if array.ndim == 4 else array.T
    # PyTorch joins the heads of attention; Google's group norms are (1, 1, 1, C).
    split = "attention" in path or array.shape[:-1] == (1,) * (array.ndim - 1)
    return array.reshape(shape) if split and array.size == np.prod(shape) else array
