"""Devices, and how a batch and a state lie on them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = ["describe_devices", "make_mesh", "replicated", "shard_batch", "unused_accelerators"]


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh ("data") over `devices` (default: all of them).

    The axis is Auto: with the Explicit axes that jax.make_mesh now gives, linen's Dropout fails.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Places a batch on the mesh, leading axis split over "data".

    Args:
      batch: this process's share of the global batch, [B / processes, ...] each.
      mesh: of `make_mesh`.

    Raises:
      ValueError: the batch does not divide by the number of devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    local = len(mesh.local_devices)
    sizes = {len(v) for v in batch.values()}
    if any(size % local for size in sizes):
        raise ValueError(f"batch of {sorted(sizes)} does not divide over {local} devices of this process; "
                         f"set config.data.batch_size to a multiple of {mesh.size}.")
    return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}


def unused_accelerators() -> str | None:
    """A sentence when this machine shows an accelerator that jax does not use, else None: CPU training must not be silent."""
    if jax.default_backend() != "cpu":
        return None
    if os.path.exists("/proc/driver/nvidia/version"):
        return ("an NVIDIA GPU driver is present, but jax sees only the CPU. Install the GPU build: pip install 'jaxcell[cuda]' "
                "(and unset JAX_PLATFORMS if it is set to cpu).")
    if any(os.path.exists(f"/dev/{name}") for name in ("accel0", "vfio/0")):
        return "a TPU device is present, but jax sees only the CPU. Install the TPU build: pip install 'jaxcell[tpu]'."
    return None


def describe_devices() -> dict[str, Any]:
    """What jax computes on: backend, kinds, counts, processes."""
    devices = jax.devices()
    return {
        "backend": jax.default_backend(),
        "devices": len(devices),
        "local_devices": jax.local_device_count(),
        "kind": devices[0].device_kind,
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count(),
    }
