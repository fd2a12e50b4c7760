"""What a network that makes no mistake would answer, built from targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxcell.geometry.fourier import scale_contours, scale_fourier

Arrays = dict[str, np.ndarray]


def perfect_outputs(target: Mapping[str, np.ndarray], *, stride: int, buckets: int, uncertainty: bool) -> Arrays:
    """Dense outputs of the contour proposal network for one image: certain scores, exact contours, nothing left to refine."""
    labels = target["labels"]
    height, width = labels.shape
    cells, row = labels > 0, np.maximum(labels - 1, 0)
    small = (1 / stride, 1 / stride)
    offsets = scale_contours(target["locations"], small)[row] - np.stack(np.indices(labels.shape), axis=-1)
    fourier = scale_fourier(target["fourier"], small)[row].reshape(height, width, -1)
    outputs = {
        "scores": np.where(cells, 10.0, -10.0)[..., None],
        "locations": np.where(cells[..., None], offsets, 0),
        "fourier": np.where(cells[..., None], fourier, 0),
        "refinement": np.zeros((height * stride, width * stride, 2 * buckets)),
    }
    if uncertainty:
        outputs["uncertainty"] = np.full((height, width, 4), -10.0)
    return {name: value.astype(np.float32) for name, value in outputs.items()}


def _contour_proposal(target: Mapping[str, np.ndarray], config: Any) -> Arrays:
    # Imported here, so that the tests of what runs without jax run without it too.
    import jax

    from jaxcell.systems import build_system

    model = build_system(config).model
    image = jax.ShapeDtypeStruct((1, config.data.crop, config.data.crop, config.data.channels), np.float32)
    shapes, _ = jax.eval_shape(model.init_with_output, {"params": jax.random.PRNGKey(0)}, image)
    return perfect_outputs(target, stride=config.data.crop // shapes["scores"].shape[1], buckets=config.model.buckets,
                           uncertainty=config.model.uncertainty)


def _mesmer(target: Mapping[str, np.ndarray], config: Any) -> Arrays:
    return {name: target[name] for name in config.model.heads}


def _maunet(target: Mapping[str, np.ndarray], config: Any) -> Arrays:
    channels = 3 + config.model.proxies
    outputs = {"classes": np.where(target["classes"][..., None] == np.arange(channels), 10, -10).astype(np.float32)}
    return outputs | ({"distance": target["distance"]} if config.model.distance else {})


def _morphoseg(target: Mapping[str, np.ndarray], config: Any) -> Arrays:
    return {"classes": np.where(target["classes"][..., None] == np.arange(2), 10, -10).astype(np.float32)}


def _sparse_seunet(target: Mapping[str, np.ndarray], config: Any) -> Arrays:
    """Sure logits: a query for each place of a cell, and the planes."""
    said = {"masks": target["masks"], "scores": target["present"]} if config.model.branches != "none" else {}
    said |= {name: target[name] for name in config.model.heads}
    return {name: np.where(value > 0, 10.0, -10.0).astype(np.float32) for name, value in said.items()}


PERFECT_OUTPUTS: dict[str, Callable[[Mapping[str, np.ndarray], Any], Arrays]] = {
    "contour_proposal": _contour_proposal, "maunet": _maunet, "mesmer": _mesmer, "morphoseg": _morphoseg,
    "sparse_seunet": _sparse_seunet}
