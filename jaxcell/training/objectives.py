"""From a system's loss terms to a differentiable objective: supervised, and two networks that supervise each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxcell.system import Arrays, System
from jaxcell.training.state import TrainState

__all__ = ["NETWORKS", "Carried", "Objective", "carried_of", "cross_supervised", "forward", "supervised"]


class Carried(NamedTuple):
    """What an objective knows of the train state beside the parameters; it gives the first two back, changed or not."""

    batch_stats: Any
    memory: Any
    step: jax.Array


# (params, carried, batch, rng) -> (loss, (terms, carried))
Objective = Callable[[Any, Carried, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, tuple[dict[str, jax.Array], Carried]]]
Loss = Callable[[Arrays, Arrays], dict[str, Any]]

LOSS = 2    # folded into a step's rng for losses that draw numbers (0 and 1: the networks of `cross_supervised`)

NETWORKS = ("first", "second")
"""Names of the two networks that `cross_supervised` trains; the first predicts."""


def carried_of(state: TrainState) -> Carried:
    """What the state tells an objective."""
    return Carried(state.batch_stats, state.memory, state.step)


def supervised(system: System, *, loss: Loss | None = None) -> Objective:
    """What the system minimises on a batch: its own objective where it has one, else the sum of its loss terms.

    Args:
      system: whose network it is.
      loss: (outputs, batch) -> terms whose sum is taken instead; None for the system's own.
    """
    terms_of = system.loss if loss is None else loss
    stateful = system.objective if loss is None else None

    def objective(params: Any, carried: Carried, batch: Mapping[str, jax.Array], rng: jax.Array):
        outputs, batch_stats = forward(system, params, carried.batch_stats, batch["image"], rng)
        if stateful is None:
            terms, memory = terms_of(outputs, batch), carried.memory
            total = sum(terms.values())
        else:
            key = jax.random.fold_in(rng, LOSS)
            total, terms, memory = stateful.loss(outputs, batch, carried.memory, carried.step, key)
        return total, (terms, carried._replace(batch_stats=batch_stats, memory=memory))

    return objective


def cross_supervised(system: System, *, weight: float) -> Objective:
    """Two networks learn from the annotated images, and each from the other's predictions of the images without annotation.

    The batch has `unlabelled` [b, H, W, C] beside the annotated images, or, until `config.semi.start_step`, these alone. Terms
    carry the network's name, those of agreement also "consistency". What one network teaches has no gradient into it.

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

    def objective(params: Any, carried: Carried, batch: Mapping[str, jax.Array], rng: jax.Array):
        terms: dict[str, jax.Array] = {}
        unlabelled, new_stats = {}, {}
        for number, name in enumerate(NETWORKS):
            keys = jax.random.split(jax.random.fold_in(rng, number))
            outputs, stats = forward(system, params[name], carried.batch_stats[name], batch["image"], keys[0])
            terms |= {f"{name}/{key}": value for key, value in system.loss(outputs, batch).items()}
            new_stats[name] = stats
            if "unlabelled" in batch:
                unlabelled[name], new_stats[name] = forward(system, params[name], stats, batch["unlabelled"], keys[1])
        for name, other in (NETWORKS, NETWORKS[::-1]) if unlabelled else ():
            agreement = consistency(unlabelled[name], jax.lax.stop_gradient(unlabelled[other]))
            terms |= {f"{name}/consistency/{key}": weight * value for key, value in agreement.items()}
        return sum(terms.values()), (terms, carried._replace(batch_stats=new_stats))

    return objective


def forward(system: System, params: Any, batch_stats: Any, image: jax.Array, rng: jax.Array) -> tuple[dict[str, jax.Array], Any]:
    """(outputs in training mode, new batch_stats); `rng` is for dropout."""
    outputs, updated = system.model.apply({"params": params, "batch_stats": batch_stats}, image, True, rngs={"dropout": rng},
                                          mutable=["batch_stats"])
    return outputs, updated.get("batch_stats", batch_stats)
