"""How several losses become one: weights by name, constant or from the losses and their gradients.

A weighting takes (losses [T], gram, held [T]) and gives (weights [T], held [T]). `gram` is a function that gives [T, T], the
products of the losses' gradients; `held` is what the weighting keeps from step to step, ones at first. The total is the sum of
weights * losses; through the weights there is no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["WEIGHTINGS", "Weighting", "constant", "inverse_losses", "inverse_shares", "min_norm", "min_norm_weights", "ones",
           "total_loss"]

Gram = Callable[[], jax.Array]
Weighting = Callable[[jax.Array, Gram, jax.Array], tuple[jax.Array, jax.Array]]


def constant(losses: jax.Array, gram: Gram, held: jax.Array, *, weights: Mapping[int, Sequence[float]]
             ) -> tuple[jax.Array, jax.Array]:
    """The same weights at every step: "balance" of the paper, section 5.4.

    Args:
      weights: number of losses -> their weights. The authors trained with (0.5, 0.5), with outliers with (0.3, 0.3, 0.2, 0.2).
    """
    return jnp.asarray(weights[len(losses)], losses.dtype), held


def inverse_losses(losses: jax.Array, gram: Gram, held: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Every loss divided by its own value: the total is the number of losses, its gradient that of the sum of their logarithms.

    Source: MorphoSeg, equation 23; RanchoGoose/MorphoSeg@a2ab9fe, trainer_vos.py ("norm").
    """
    return 1 / (losses + 1e-8), held


def ones(losses: jax.Array, gram: Gram, held: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The plain sum. The released "pareto" comes to this: what would adapt its weights is made anew at every step.

    Source: RanchoGoose/MorphoSeg@a2ab9fe, trainer_vos.py ParetoMultiTaskLoss.
    """
    return jnp.ones_like(losses), held


def inverse_shares(losses: jax.Array, gram: Gram, held: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights that fall with a loss's share of the sum at the step before, and add up to 1 from the second step on.

    What the released "pareto" does if what adapts its weights is kept, as its class intends.

    Source: as `ones`.
    """
    inverse = 1 / (losses / jnp.sum(losses) + 1e-6)
    return held, inverse / jnp.sum(inverse)


def min_norm(losses: jax.Array, gram: Gram, held: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights whose weighted gradient is the shortest there is: no loss can fall faster without another one rising.

    Source: Sener and Koltun, "Multi-task learning as multi-objective optimization", NeurIPS 2018, equation 3 (MorphoSeg's
      reference 58 for "Pareto optimization"); where the gradients are those of the network's outputs, equation 9 (MGDA-UB).
    """
    return min_norm_weights(gram()), held


WEIGHTINGS: Mapping[str, Weighting] = {
    "balance": partial(constant, weights={2: (0.5, 0.5), 4: (0.3, 0.3, 0.2, 0.2)}),
    "norm": inverse_losses,
    "pareto": ones,
    "pareto_kept": inverse_shares,
    "pareto_min_norm": min_norm,
}
"""Weightings by name: the first three as released, then "pareto" mended in two ways."""


def min_norm_weights(gram: jax.Array) -> jax.Array:
    """The point of a simplex whose combination of vectors is shortest.

    Every set of vectors that may carry the shortest combination is solved for, and the best one with no negative weight taken:
    exact, and quick for the handful of losses that there are.

    Args:
      gram: [T, T] products of the vectors, T at most 6 or so.

    Returns:
      [T], at least 0, sum 1. Of vectors that are all zero one of the shortest combinations.

    Source: the Karush-Kuhn-Tucker conditions of Sener and Koltun's equation 3.
    """
    count = len(gram)
    gram = gram / jnp.maximum(jnp.trace(gram), jnp.finfo(gram.dtype).tiny)
    ridge = 1e-6 * jnp.eye(count, dtype=gram.dtype)     # parallel gradients have many shortest combinations
    supports = jnp.asarray(np.asarray(list(product((0, 1), repeat=count))[1:]), gram.dtype)

    def solve(support: jax.Array) -> tuple[jax.Array, jax.Array]:
        matrix = (gram + ridge) * support * support[:, None] + jnp.diag(1 - support)
        weights = jnp.linalg.solve(matrix, support) * support
        weights = weights / jnp.sum(weights)
        allowed = jnp.all(weights >= 0)         # (not so where a number is not finite)
        length = weights @ (gram + ridge) @ weights
        return jnp.where(allowed, weights, 0), jnp.where(allowed, length, jnp.inf)

    weights, lengths = jax.vmap(solve)(supports)
    return weights[jnp.argmin(lengths)]


def total_loss(losses_of: Callable[[jax.Array], jax.Array], outputs: jax.Array, held: jax.Array, weighting: Weighting
               ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Several losses of a network's outputs as one.

    Args:
      losses_of: outputs -> losses [T].
      outputs: of the network, any shape; gradients that `weighting` compares are theirs.
      held: [T], see above.
      weighting: an entry of `WEIGHTINGS`.

    Returns:
      (total, losses [T], weights [T], held [T]).
    """
    losses, pull_back = jax.vjp(losses_of, outputs)

    def gram() -> jax.Array:
        rows = [pull_back(row)[0] for row in jnp.eye(len(losses), dtype=losses.dtype)]
        return jnp.stack([jnp.stack([jnp.sum(a * b) for b in rows]) for a in rows])

    weights, held = jax.lax.stop_gradient(weighting(jax.lax.stop_gradient(losses), gram, held))
    return jnp.sum(weights * losses), losses, weights, held
