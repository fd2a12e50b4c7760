"""Which query answers for which cell: scores of all pairs, and the one-to-one choice of the largest sum.

An image has N queries and up to M cells (rows that hold no cell are padding). Two solvers give the same sum: scipy's, called on
the host, and one of plain array operations that stays on the device. Both run once on every device's own share of the batch, so
that nothing is gathered: the arrays carry the mesh they lie on. Neither has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from scipy.optimize import linear_sum_assignment

__all__ = ["MATCHERS", "assign", "dice_scores", "match_on_device", "match_on_host", "pair_scores"]

State = tuple[jax.Array, ...]


def dice_scores(probabilities: jax.Array, masks: jax.Array) -> jax.Array:
    """How well every query's mask covers every cell: 2 sum(p g) / (sum(p^2) + sum(g^2) + 1e-4).

    Args:
      probabilities: [B, N, h, w] in [0, 1]; 0 where a pixel is to be ignored.
      masks: [B, M, h, w] in [0, 1], soft where they were resized; all zeros in rows that hold no cell.

    Returns:
      [B, N, M] in [0, 1].

    Source: the thesis, equation 4.13; SparseInst@a895019, sparseinst/loss.py dice_score.
    """
    chex.assert_rank([probabilities, masks], 4)
    shared = jnp.einsum("bnhw,bmhw->bnm", probabilities, masks, preferred_element_type=jnp.float32)
    squares = [jnp.sum(jnp.square(x), (2, 3), dtype=jnp.float32) for x in (probabilities, masks)]
    return 2 * shared / (squares[0][:, :, None] + squares[1][:, None, :] + 1e-4)


def pair_scores(dice: jax.Array, confidence: jax.Array, *, weight: float = 0.8) -> jax.Array:
    """dice ** weight * confidence ** (1 - weight), to be made as large as possible.

    Args:
      dice: [B, N, M] in [0, 1].
      confidence: [B, N, M] in [0, 1], the probability that a query is of a cell's class; [B, N, 1] where there is but one.
      weight: lambda of the thesis, in [0, 1].

    Returns:
      [B, N, M] in [0, 1].

    Source: the thesis, equation 4.11, and 4.10 whose "argmin" is of a product of scores; SparseInst@a895019, sparseinst/loss.py.
    """
    return dice ** weight * confidence ** (1 - weight)


def assign(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The one-to-one pairs of the largest sum, image by image, on the host.

    Args:
      scores: [B, N, M], any finite values; what is not finite counts as 0, since a step with such a loss changes nothing anyway.
      present: [B, M] bool, the rows that hold a cell.

    Returns:
      [B, M] int32, the query of each cell; -1 in rows without a cell, and of the cells that were left over where there are more
      of them than queries.

    Source: scipy.optimize.linear_sum_assignment(maximize=True), as SparseInst calls it.
    """
    queries = np.full(present.shape, -1, np.int32)
    for image, cells in enumerate(present):
        rows, columns = linear_sum_assignment(np.nan_to_num(scores[image][:, cells], posinf=0, neginf=0), maximize=True)
        queries[image, np.flatnonzero(cells)[columns]] = rows
    return queries


def match_on_host(scores: jax.Array, present: jax.Array) -> jax.Array:
    """`assign` within a compiled function; arguments and result are the same."""
    return _on_every_device(_call_host, scores, present)


def match_on_device(scores: jax.Array, present: jax.Array) -> jax.Array:
    """What `assign` finds, without leaving the device. Of several choices of the same sum it may take another one.

    Args:
      scores: [B, N, M], any finite values (others count as 0).
      present: [B, M] bool.

    Returns:
      [B, M] int32, the query of each cell, -1 in rows without a cell.

    Raises:
      ValueError: there can be more cells than queries.

    Source: Crouse 2016, "On implementing 2D rectangular assignment algorithms": shortest augmenting paths with dual variables.
      Departs: cells whose best query no other cell has as its best one are given to it beforehand, all at once.
    """
    if scores.shape[2] > scores.shape[1]:
        raise ValueError(f"match_on_device: {scores.shape[2]} cells for {scores.shape[1]} queries; every cell needs a query of "
                         "its own. Give the network more queries, or match on the host.")
    return _on_every_device(jax.vmap(_assign_one), scores, present)


MATCHERS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"host": match_on_host, "device": match_on_device}
"""name -> (scores [B, N, M], present [B, M]) -> the query of each cell [B, M]."""


def _on_every_device(solve: Callable[[jax.Array, jax.Array], jax.Array], scores: jax.Array, present: jax.Array) -> jax.Array:
    chex.assert_shape(present, (scores.shape[0], scores.shape[2]))
    scores = jax.lax.stop_gradient(scores)
    mesh = jax.typeof(scores).sharding.mesh
    # Left to itself the compiler would gather the batch for a callback, and let the devices wait for each other in every round of
    # a loop. (Outside of a mesh, as in a test, there is nothing to share out.)
    if mesh.empty or scores.shape[0] % mesh.size:
        return solve(scores, present)
    split = PartitionSpec(mesh.axis_names)
    return jax.shard_map(solve, mesh=mesh, in_specs=(split, split), out_specs=split, check_vma=False)(scores, present)


def _call_host(scores: jax.Array, present: jax.Array) -> jax.Array:
    def call(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
        return assign(np.asarray(scores), np.asarray(present))      # (jax arrays as they come would compute with jax, and hang)

    return jax.pure_callback(call, jax.ShapeDtypeStruct(present.shape, jnp.int32), scores, present)


def _assign_one(scores: jax.Array, present: jax.Array) -> jax.Array:
    """`match_on_device` of one image: [N, M] and [M] -> [M]."""
    cost = jnp.nan_to_num(-scores.T.astype(jnp.float32), posinf=0, neginf=0)     # [cells, queries], to be made small
    cells, queries = cost.shape
    if not cells:
        return jnp.zeros(0, jnp.int32)
    best = jnp.argmin(cost, axis=1)
    rank = jnp.where(present, jnp.arange(cells), cells)
    first = jnp.full(queries, cells).at[best].min(rank)
    chosen = present & (first[best] == rank)
    # `price` of a cell and of a query: no pair costs less than both together, and a pair that was chosen costs exactly that.
    state = (jnp.min(cost, axis=1), jnp.zeros(queries), jnp.where(chosen, best, -1).astype(jnp.int32),
             jnp.where(first < cells, first, -1).astype(jnp.int32))

    def add(cell: jax.Array, state: State) -> State:
        cell_price, query_price, query_of, cell_of = state
        needed = present[cell] & (query_of[cell] < 0)
        via, length, seen, end, total = _shortest_path(cost, cell_price, query_price, cell_of, cell, needed)
        change = jnp.where(seen, total - length, 0.0)
        # The cells on the tree are the new one and those of the queries seen, whose end has none.
        inside = seen & (cell_of >= 0)
        cell_price = cell_price.at[jnp.where(inside, cell_of, cells)].add(change, mode="drop")
        cell_price = cell_price.at[cell].add(jnp.where(needed, total, 0.0))
        query_of, cell_of = _swapped(via, query_of, cell_of, cell, end, needed)
        return cell_price, query_price - change, query_of, cell_of

    return jax.lax.fori_loop(0, cells, add, state)[2]


def _shortest_path(cost: jax.Array, cell_price: jax.Array, query_price: jax.Array, cell_of: jax.Array, cell: jax.Array,
                   needed: jax.Array) -> State:
    """The cheapest way from `cell` to a free query, over queries whose cells would have to move (Dijkstra).

    Returns:
      via [N] the cell from which each query is reached, length [N] of the way, seen [N], the free query at its end, and the
      length up to there.
    """
    queries = len(query_price)

    def going(state: State) -> jax.Array:
        return state[-1]

    def step(state: State) -> State:
        via, length, seen, at, _, total, _ = state
        reached = total + cost[at] - cell_price[at] - query_price
        shorter = ~seen & (reached < length)
        via, length = jnp.where(shorter, at, via), jnp.where(shorter, reached, length)
        open_length = jnp.where(seen, jnp.inf, length)
        nearest = jnp.argmin(open_length).astype(jnp.int32)
        return (via, length, seen.at[nearest].set(True), cell_of[nearest], nearest, open_length[nearest], cell_of[nearest] >= 0)

    nobody, far, zero = jnp.full(queries, -1, jnp.int32), jnp.full(queries, jnp.inf), jnp.zeros((), jnp.int32)
    start: State = nobody, far, jnp.zeros(queries, bool), cell.astype(jnp.int32), zero, jnp.zeros(()), needed
    via, length, seen, _, end, total, _ = jax.lax.while_loop(going, step, start)
    return via, jnp.where(seen, length, 0.0), seen, end, total


def _swapped(via: jax.Array, query_of: jax.Array, cell_of: jax.Array, cell: jax.Array, end: jax.Array, needed: jax.Array
             ) -> tuple[jax.Array, jax.Array]:
    """The pairs after every cell on the way back from `end` to `cell` has moved one query on."""
    def going(state: State) -> jax.Array:
        return state[-1]

    def step(state: State) -> State:
        query_of, cell_of, query, _ = state
        mover = via[query]
        before = query_of[mover]
        return query_of.at[mover].set(query), cell_of.at[query].set(mover), before, mover != cell

    start: State = query_of, cell_of, end, needed
    query_of, cell_of, _, _ = jax.lax.while_loop(going, step, start)
    return query_of, cell_of
