"""In which numbers a network computes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["compute_dtype"]

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
FASTEST = {"cpu": "float32", "gpu": "bfloat16", "tpu": "bfloat16"}      # a CPU has no bfloat16 convolutions


def compute_dtype(name: str) -> Any:
    """The type of a network's arithmetic; parameters, statistics of norms, outputs and losses are float32 all the same.

    Args:
      name: "float32", "bfloat16", or "auto": bfloat16 where the backend computes with it, else float32.

    Raises:
      ValueError: another name.
    """
    if name == "auto":
        return DTYPES[FASTEST.get(jax.default_backend(), "float32")]
    if name not in DTYPES:
        raise ValueError(f"config.model.dtype={name!r} is unknown; known are auto, {', '.join(DTYPES)}.")
    return DTYPES[name]
