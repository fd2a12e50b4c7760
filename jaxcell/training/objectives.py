"""From a system's loss terms to a differentiable objective: supervised, and two networks that supervise each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxcell.system import Arrays, System

__all__ = ["NETWORKS", "Objective", "cross_supervised", "supervised"]

# (params, batch_stats, batch, rng) -> (loss, (terms, new batch_stats))
Objective = Callable[[Any, Any, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]
Loss = Callable[[Arrays, Arrays], dict[str, Any]]

NETWORKS = ("first", "second")
"""Names of the two networks that `cross_supervised` trains; the first predicts."""


def supervised(system: System, *, loss: Loss | None = None) -> Objective:
    """The sum of the system's loss terms on a batch.

    Args:
      system: whose network it is.
      loss: (outputs, batch) -> terms; None for the system's own.
    """
    loss = system.loss if loss is None else loss

    def objective(params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], rng: jax.Array):
        outputs, batch_stats = _forward(system, params, batch_stats, batch["image"], rng)
        terms = loss(outputs, batch)
        return sum(terms.values()), (terms, batch_stats)

    return objective


def cross_supervised(system: System, *, weight: float) -> Objective:
    """Two networks learn from the annotated images, and each from the other's predictions of the images without annotation.

    The batch has `unlabelled` [b, H, W, C] beside the annotated images. Terms carry the network's name, those of agreement
    also "consistency". What one network teaches has no gradient into it.

    Args:
      system: with `consistency`.
      weight: of the consistency terms.

    Raises:
      ValueError: the system has no consistency terms.

    Source: Chen et al., "Semi-supervised semantic segmentation with cross pseudo supervision", CVPR 2021.
    """
    if system.consistency is None:
        raise ValueError("cross supervision needs a system with consistency terms, and this one has none; choose another "
                         "config.semi.scheme.")
    consistency = system.consistency

    def objective(params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], rng: jax.Array):
        terms: dict[str, jax.Array] = {}
        unlabelled, new_stats = {}, {}
        for number, name in enumerate(NETWORKS):
            keys = jax.random.split(jax.random.fold_in(rng, number))
            outputs, stats = _forward(system, params[name], batch_stats[name], batch["image"], keys[0])
            terms |= {f"{name}/{key}": value for key, value in system.loss(outputs, batch).items()}
            unlabelled[name], new_stats[name] = _forward(system, params[name], stats, batch["unlabelled"], keys[1])
        for name, other in (NETWORKS, NETWORKS[::-1]):
            agreement = consistency(unlabelled[name], jax.lax.stop_gradient(unlabelled[other]))
            terms |= {f"{name}/consistency/{key}": weight * value for key, value in agreement.items()}
        return sum(terms.values()), (terms, new_stats)

    return objective


def _forward(system: System, params: Any, batch_stats: Any, image: jax.Array, rng: jax.Array) -> tuple[dict[str, jax.Array], Any]:
    """(outputs in training mode, new batch_stats)."""
    outputs, updated = system.model.apply({"params": params, "batch_stats": batch_stats}, image, True, rngs={"dropout": rng},
                                          mutable=["batch_stats"])
    return outputs, updated.get("batch_stats", batch_stats)
