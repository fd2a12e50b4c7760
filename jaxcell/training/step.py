"""The jitted functions of training: a step, and the forward pass for prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxcell.models.backend import compiler_options
from jaxcell.training.mesh import replicated
from jaxcell.training.objectives import Objective, carried_of
from jaxcell.training.state import TrainState

__all__ = ["Update", "Updated", "descending", "make_apply", "make_train_step"]

DeviceAugmentation = Callable[[jax.Array, jax.Array], jax.Array]


class Updated(NamedTuple):
    """What an update makes of a state: its loss, the terms of it, the norm of all gradients, and the parts that change."""

    loss: jax.Array
    terms: Mapping[str, jax.Array]
    norm: jax.Array
    params: Any
    batch_stats: Any
    memory: Any
    opt_state: Any


Update = Callable[[TrainState, Mapping[str, jax.Array], jax.Array], Updated]

AUGMENT = 2**31 - 1     # which of a step's random streams this is; objectives fold with small numbers
IMAGES = ("image", "unlabelled")


def descending(objective: Objective, transformation: optax.GradientTransformation) -> Update:
    """All parameters together go down the gradient of an objective.

    Args:
      objective: to minimise.
      transformation: the optimizer.
    """
    def update(state: TrainState, batch: Mapping[str, jax.Array], rng: jax.Array) -> Updated:
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, (terms, carried)), grads = gradient(state.params, carried_of(state), batch, rng)
        updates, opt_state = transformation.update(grads, state.opt_state, state.params)
        return Updated(loss, terms, optax.tree.norm(grads), optax.apply_updates(state.params, updates), carried.batch_stats,
                       carried.memory, opt_state)

    return update


def make_train_step(update: Update, mesh: Mesh, *, augment: DeviceAugmentation | None = None, average_decay: float = 0.0
                    ) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """One step: (state, batch) -> (state, metrics). The batch lies split over the mesh, the state on every device.

    The losses are sums over the global batch divided by global counts, so 1 device and N devices compute the same update.
    Where the loss or the gradient is not finite the step counts, but parameters, statistics, memory, optimizer and averages stay.
    The state is donated: the caller's old one is dead after the call.

    Args:
      update: (state, batch, rng) -> what the state becomes, such as `descending`.
      mesh: of the batch.
      augment: (image [B, H, W, C], rng) -> image, before the network.
      average_decay: share of the running averages that a step keeps, less in the first steps; of a state that has averages.

    Returns:
      The compiled step; metrics are scalars: "loss", "loss/<term>", "grad_norm", "skipped" and "skipped_in_a_row".
    """

    def step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        # Folding instead of splitting makes the randomness of a step a function of its number: resuming needs no replay.
        rng = jax.random.fold_in(state.rng, state.step)
        if augment is not None:
            keys = jax.random.split(jax.random.fold_in(rng, AUGMENT), len(IMAGES))
            pairs = [(name, key) for name, key in zip(IMAGES, keys, strict=True) if name in batch]
            batch = {**batch, **{name: augment(batch[name], key) for name, key in pairs}}
        done = update(state, batch, rng)
        variables = {"params": done.params, "batch_stats": done.batch_stats}
        average = _averaged(state.average, variables, state.step, average_decay) if state.average else {}
        new = {**variables, "memory": done.memory, "opt_state": done.opt_state, "average": average}
        finite = jnp.isfinite(done.loss) & jnp.isfinite(done.norm)
        old = {"params": state.params, "batch_stats": state.batch_stats, "memory": state.memory, "opt_state": state.opt_state,
               "average": state.average}
        kept = jax.tree.map(partial(jnp.where, finite), new, old)
        skipped = jnp.where(finite, state.skipped * jnp.array([1, 0]), state.skipped + 1)
        metrics = {"loss": done.loss, "grad_norm": done.norm, "skipped": skipped[0], "skipped_in_a_row": skipped[1]}
        metrics |= {f"loss/{name}": value for name, value in done.terms.items()}
        return replace(state, step=state.step + 1, skipped=skipped, **kept), metrics

    return jax.jit(step, donate_argnums=(0,), out_shardings=(replicated(mesh), replicated(mesh)),
                   compiler_options=compiler_options())


def _averaged(average: Any, new: Any, step: jax.Array, decay: float) -> Any:
    # The first steps' parameters are far from any later ones: with the full decay they would stay in the average for long.
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, n: keep * a + (1 - keep) * n, average, new)


def make_apply(model: nn.Module) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
    """The network in eval mode: (variables, image [B, H, W, C]) -> outputs. One trace per input shape."""
    return jax.jit(lambda variables, image: model.apply(variables, image, False), compiler_options=compiler_options())
