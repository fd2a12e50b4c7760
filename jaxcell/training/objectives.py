"""From a system's loss terms to a differentiable objective. Semi-supervised schemes are further functions of this shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxcell.system import System

__all__ = ["Objective", "supervised"]

# (params, batch_stats, batch, rng) -> (loss, (terms, new batch_stats))
Objective = Callable[[Any, Any, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]


def supervised(system: System) -> Objective:
    """The sum of the system's loss terms on a labelled batch."""

    def objective(params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], rng: jax.Array):
        outputs, updated = system.model.apply(
            {"params": params, "batch_stats": batch_stats}, batch["image"], True, rngs={"dropout": rng}, mutable=["batch_stats"])
        terms = system.loss(outputs, batch)
        return sum(terms.values()), (terms, updated.get("batch_stats", batch_stats))

    return objective
