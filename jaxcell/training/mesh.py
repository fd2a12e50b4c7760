"""Devices, and how a batch and a state lie on them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = ["any_process", "describe_devices", "from_leader", "join_processes", "local_rows", "make_mesh", "on_own_devices",
           "replicated", "shard_batch", "unused_accelerators"]


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


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split over the mesh along its leading axis (or that lies on every device)."""
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def on_own_devices(tree: Any, mesh: Mesh) -> Any:
    """Replicated values of a run on several hosts, on this process's own `mesh`; of a single process, as they are."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.device_put(local_rows(leaf), replicated(mesh)), tree)


def from_leader(value: float) -> float:
    """The value that process 0 has, in every process."""
    return value if jax.process_count() == 1 else float(multihost_utils.broadcast_one_to_all(np.float64(value)))


def any_process(flag: bool, mesh: Mesh) -> bool:
    """Whether `flag` holds in any process: what one of them is told (a signal, the time) all must do at the same step."""
    if jax.process_count() == 1:
        return flag
    votes = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("data")),
                                                   np.full(len(mesh.local_devices), flag, np.int32))
    return bool(_largest(votes, mesh))


@partial(jax.jit, static_argnames="mesh")
def _largest(votes: jax.Array, mesh: Mesh) -> jax.Array:
    return jax.lax.with_sharding_constraint(votes.max(), replicated(mesh))


def join_processes(*, coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Connects the processes of a run on several hosts; call it before anything else of jax.

    Args:
      coordinator: host:port of process 0; "auto" lets jax find out from SLURM, Open MPI, GKE or a TPU pod; "" is one process.
      processes: how many there are; only where the coordinator is named.
      process: number of this one; only where the coordinator is named.

    Raises:
      ValueError: the three do not fit together, or nothing was found.
    """
    if not coordinator:
        if processes > 1 or process > 0:
            raise ValueError(f"--processes={processes} --process={process} without --coordinator; name host:port of process 0.")
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")     # of use on CPUs only, and no harm elsewhere
    if coordinator == "auto":
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"--coordinator=auto found no cluster ({error}); known are SLURM, Open MPI, GKE and TPU pods. Name "
                             "--coordinator=HOST:PORT --processes=N --process=K instead.") from error
        return
    if ":" not in coordinator or processes < 1 or not 0 <= process < processes:
        raise ValueError(f"--coordinator={coordinator} --processes={processes} --process={process}: the coordinator is host:port "
                         "of process 0, and processes are numbered from 0.")
    jax.distributed.initialize(coordinator, processes, process)


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
