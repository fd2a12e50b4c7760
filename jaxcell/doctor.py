"""What `jaxcell doctor` finds out: the place where things stand, a short test of it, and what is wrong."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxcell.models.backend import compiler_options
from jaxcell.models.convolution import convolve
from jaxcell.models.precision import compute_dtype
from jaxcell.training.compile_cache import default_folder, use_compile_cache
from jaxcell.training.mesh import describe_devices, unused_accelerators

__all__ = ["facts", "problems", "self_test"]

PACKAGES = ("jaxcell", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless")
GIB = 2**30
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
ENOUGH_SHARED_GIB = 0.25


def facts() -> dict[str, str]:
    """Versions, devices and what will be used of them, memory, and the cache of compiled programs."""
    found = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    found |= {key: str(value) for key, value in describe_devices().items()}
    backend = found["backend"]
    found["will train on"] = f"{found['devices']} x {found['kind']} ({backend}), in {jnp.dtype(compute_dtype('auto')).name}"
    for device in jax.local_devices():
        if stats := device.memory_stats():
            found[f"memory of {device.platform}:{device.id}"] = (
                f"{stats['bytes_in_use'] / GIB:.1f} of {stats['bytes_limit'] / GIB:.1f} GiB in use")
    if available := _available_memory():
        found["memory of the host"] = f"{available / GIB:.1f} GiB available"
    if (shared := Path("/dev/shm")).is_dir():
        found["shared memory"] = f"{shutil.disk_usage(shared).free / GIB:.1f} GiB free (batches of config.data.workers pass here)"
    return found | {"compiled programs": _cache()}


def _available_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)


def _cache() -> str:
    folder = default_folder()
    files = [f for f in folder.iterdir() if f.is_file()] if folder.is_dir() else []
    return f"{sum(f.stat().st_size for f in files) / 1e6:.0f} MB in {len(files)} files of {folder}"


def self_test() -> tuple[dict[str, str], list[str]]:
    """Compiles a convolution with its gradient as networks use it, and compares it with the uncompiled one, on each device kind.

    Returns:
      (what was measured, what went wrong).
    """
    image = jnp.asarray(np.random.default_rng(0).random((4, 64, 64, 32), np.float32))
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 32, 32)).astype(np.float32)) / 16

    def loss(kernel: jax.Array, image: jax.Array) -> jax.Array:
        dtype = compute_dtype("auto")
        return jnp.mean(jnp.square(convolve(image.astype(dtype), kernel.astype(dtype)).astype(jnp.float32)))

    gradient = jax.jit(jax.grad(loss), compiler_options=compiler_options())
    start = time.perf_counter()
    error = float(jnp.abs(gradient(kernel, image) - jax.grad(loss)(kernel, image)).max() / jnp.abs(gradient(kernel, image)).max())
    ready, count = time.perf_counter(), 0
    while time.perf_counter() - ready < 1:
        gradient(kernel, image).block_until_ready()
        count += 1
    rate = 3 * 2 * image.size * 9 * 32 * count / (time.perf_counter() - ready) / 1e9
    passed = {"self-test": f"compiled and uncompiled gradients differ by {error:.1e}; ready after {ready - start:.1f} s, "
                           f"then {rate:.0f} GFLOP/s"}
    dtype = jnp.dtype(compute_dtype("auto")).name
    if error <= TOLERANCE[dtype]:
        return passed, []
    return passed, [f"compiled and uncompiled gradients differ by {error:.1e} of the largest, more than {TOLERANCE[dtype]:g}: do "
                    "not trust this jaxlib; install another version of the tested range."]


def problems() -> list[str]:
    """What would make a run slow, or end it: accelerators that are not used, an unusable cache, little shared memory."""
    found = [problem] if (problem := unused_accelerators()) else []
    try:
        use_compile_cache(default_folder())
    except (OSError, ValueError) as error:
        found.append(f"compiled programs are not kept, so every start compiles anew: {error}")
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free / GIB) < ENOUGH_SHARED_GIB:
        found.append(f"only {free:.2f} GiB of shared memory are free: with config.data.workers > 0 a run may be killed. Start "
                     "the container with --shm-size=2g, or set config.data.workers=0.")
    return found
