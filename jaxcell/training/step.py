"""The two jitted functions of training: one update, and the forward pass for prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh

from jaxcell.training.mesh import replicated
from jaxcell.training.objectives import Objective
from jaxcell.training.state import TrainState

__all__ = ["make_apply", "make_train_step"]


def make_train_step(objective: Objective, transformation: optax.GradientTransformation, mesh: Mesh
                    ) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """One update: (state, batch) -> (state, metrics). The batch lies split over the mesh, the state on every device.

    The losses are sums over the global batch divided by global counts, so 1 device and N devices compute the same update.
    The state is donated: the caller's old one is dead after the call.
    """

    def step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        # Folding instead of splitting makes the randomness of a step a function of its number: resuming needs no replay.
        rng = jax.random.fold_in(state.rng, state.step)
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, (terms, batch_stats)), grads = gradient(state.params, state.batch_stats, batch, rng)
        updates, opt_state = transformation.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.global_norm(grads)} | {f"loss/{k}": v for k, v in terms.items()}
        return replace(state, step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state), metrics

    return jax.jit(step, donate_argnums=(0,), out_shardings=(replicated(mesh), replicated(mesh)))


def make_apply(model: nn.Module) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
    """The network in eval mode: (variables, image [B, H, W, C]) -> outputs. One trace per input shape."""
    return jax.jit(lambda variables, image: model.apply(variables, image, False))
