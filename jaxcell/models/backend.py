"""What a network's arithmetic does otherwise on a CPU than on accelerators, decided when a function is traced."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["compiler_options", "on_cpu", "precise", "stored", "sum_of_pixels"]


def compiler_options() -> dict[str, str] | None:
    """Options for `jax.jit(..., compiler_options=...)` of a function that runs a network; None where the defaults are best.

    On a CPU, jaxlib 0.10 and 0.11 hand convolutions and matrix products to their library YNNPACK, which takes 1.3 to 3 times as
    long over them as the Eigen kernels that they have as well (benchmarks/README.md), and gave wrong numbers in reported cases
    (jax issue 39103). The first option, empty, turns the library off; the second keeps the barriers of `stored`.
    """
    if not on_cpu():
        return None
    return {"xla_cpu_experimental_ynn_fusion_type": "", "xla_disable_hlo_passes": "cse_barrier_expander"}


def on_cpu() -> bool:
    """Whether jax computes on the CPU, where other formulations are fast."""
    return jax.default_backend() == "cpu"


def stored(x: jax.Array) -> jax.Array:
    """x, and backwards its gradient, written to memory once: a CPU otherwise computes it anew in everything that reads it."""
    return lax.optimization_barrier(x) if on_cpu() else x


def precise(x: jax.Array) -> jax.Array:
    """x in float32 at least, for sums."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def sum_of_pixels(x: jax.Array) -> jax.Array:
    """[B, ..., C] -> [B, C] sums over the axes between.

    On a CPU up to 32 rows onto one another at a time, a vectorised loop that takes in what made x, and the sums stored: XLA's own
    sum over all rows takes 5 times as long, and sums of sums it fuses and computes anew.
    """
    if not on_cpu() or x.size == 0:
        return jnp.sum(x, tuple(range(1, x.ndim - 1)))
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    while (count := x.shape[1]) > 1:
        fold = max((n for n in range(2, 33) if count % n == 0), default=count)
        x = stored(jnp.sum(x.reshape(x.shape[0], fold, count // fold, x.shape[-1]), 1))
    return x[:, 0]
