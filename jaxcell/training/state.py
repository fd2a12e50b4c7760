"""The train state: a value that holds everything the next step depends on, except the data cursor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = ["TrainState", "init_state", "parameter_count", "state_digest"]


@flax.struct.dataclass
class TrainState:
    """step [] int32, params, batch_stats (running statistics), opt_state, rng [2] uint32 (folded with the step, never split)."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    rng: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(model: nn.Module, transformation: optax.GradientTransformation, *, seed: int, image_shape: tuple[int, ...]
               ) -> TrainState:
    """A fresh state; `image_shape` is one batch's [B, H, W, C], of which only C and the divisibility matter.

    Call it under `jax.jit` with replicated out_shardings: every device then computes the same values.
    """
    rng = jax.random.PRNGKey(seed)
    variables = model.init({"params": rng}, jnp.zeros(image_shape, jnp.float32), False)
    params = variables["params"]
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, batch_stats=variables.get("batch_stats", {}),
                      opt_state=transformation.init(params), rng=jax.random.fold_in(rng, 1))


def parameter_count(params: Any) -> int:
    """Number of trainable values."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def state_digest(state: TrainState, cursor: Mapping[str, Any]) -> str:
    """SHA-256 over every leaf's path, dtype, shape and bytes, and over the data cursor: equal runs print equal lines."""
    digest = hashlib.sha256()
    for path, leaf in sorted(((jax.tree_util.keystr(p), v) for p, v in jax.tree_util.tree_leaves_with_path(state))):
        value = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{path} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    digest.update(json.dumps(cursor, sort_keys=True).encode())
    return digest.hexdigest()
