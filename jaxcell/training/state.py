"""The train state: a value that holds everything the next step depends on, except the data cursor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = ["TrainState", "digests", "init_state", "parameter_count", "state_digest"]


@flax.struct.dataclass
class TrainState:
    """What a step takes and gives.

    Attributes:
      step: [] int32, batches seen.
      params: of the network; of several networks that train together, name -> params.
      batch_stats: running statistics, in the same way.
      opt_state: of the optimizer.
      memory: what the objective carries from step to step, such as queues; {} for one that carries nothing.
      average: running averages of params and batch_stats (`{"params", "batch_stats"}`), or {} where none are kept.
      skipped: [2] int32, updates left out because a loss or gradient was not finite: in all, and in a row up to now.
      rng: [2] uint32; folded with the step, never split.
      networks: names of several networks, of which the first predicts; () for one without a name.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any
    skipped: jax.Array
    rng: jax.Array
    memory: Any = flax.struct.field(default_factory=dict)
    networks: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())

    @property
    def variables(self) -> dict[str, Any]:
        """Parameters and statistics as the last step left them."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def by_network(self) -> dict[str, dict[str, Any]]:
        """Name of each network -> what `model.apply` takes to predict with it: the averages where they are kept. One without a
        name is ""."""
        variables = self.average or self.variables
        return {name: {key: value[name] for key, value in variables.items()} for name in self.networks} or {"": variables}

    @property
    def predicting(self) -> dict[str, Any]:
        """What `model.apply` takes to predict; of several networks the first."""
        return next(iter(self.by_network.values()))


def init_state(model: nn.Module, transformation: optax.GradientTransformation, *, seed: int, image_shape: tuple[int, ...],
               networks: Sequence[str] = (), average: bool = False, memory: Callable[[], Any] = dict) -> TrainState:
    """A fresh state. Call it under `jax.jit` with replicated out_shardings: every device then computes the same values.

    Args:
      model: the network.
      transformation: the optimizer.
      seed: of the parameters and of everything random in the steps.
      image_shape: one batch's [B, H, W, C], of which only C and the divisibility matter.
      networks: names of several networks of one architecture, initialised independently; () for one without a name.
      average: keep running averages.
      memory: () -> what the objective carries (`StatefulLoss.start`).
    """
    rng = jax.random.PRNGKey(seed)

    def init(key: jax.Array) -> tuple[Any, Any]:
        variables = model.init({"params": key}, jnp.zeros(image_shape, jnp.float32), False)
        return variables["params"], variables.get("batch_stats", {})

    params, batch_stats = init(rng)
    if networks:
        pairs = {name: init(jax.random.fold_in(rng, 2 + i)) for i, name in enumerate(networks)}
        params, batch_stats = ({name: pair[part] for name, pair in pairs.items()} for part in (0, 1))
    # A step donates every leaf, and one buffer cannot be donated twice: averages begin as copies.
    averages = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if average else {}
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, batch_stats=batch_stats,
                      opt_state=transformation.init(params), skipped=jnp.zeros(2, jnp.int32), rng=jax.random.fold_in(rng, 1),
                      average=averages, memory=memory(), networks=tuple(networks))


def parameter_count(params: Any) -> int:
    """Number of trainable values."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def digests(state: TrainState, cursor: Mapping[str, Any]) -> dict[str, str]:
    """Path of each leaf -> BLAKE2 of its dtype, shape and bytes, and "cursor" -> that of the data cursor.

    Equal on every topology. They are taken on the host, where the values go for a save anyway: a digest on the device of some
    hundred arrays takes XLA seconds to compile.
    """
    found = {jax.tree_util.keystr(path): _digest(np.ascontiguousarray(jax.device_get(leaf)))
             for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return found | {"cursor": hashlib.blake2b(json.dumps(cursor, sort_keys=True).encode(), digest_size=16).hexdigest()}


def _digest(value: np.ndarray) -> str:
    digest = hashlib.blake2b(f"{value.dtype} {value.shape}".encode(), digest_size=16)
    digest.update(value.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def state_digest(state: TrainState, cursor: Mapping[str, Any]) -> str:
    """SHA-256 over all `digests`: equal runs print equal lines."""
    return hashlib.sha256(json.dumps(digests(state, cursor), sort_keys=True).encode()).hexdigest()
