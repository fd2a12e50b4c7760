"""PyTorch's side of the race: the same network, batch, loss and optimizer, as a careful user of PyTorch would run them.

Memory in channels_last, fused AdamW, gradients set to None; on a GPU bfloat16 by autocast and cuDNN's search for the fastest
convolutions. Eager and compiled run as two workers, of which the faster counts.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.rivals.contour_proposal import ContourProposalNetwork
from benchmarks.rivals.maunet import MAUNetNetwork
from benchmarks.rivals.maunet import plain_cells as plain_cells_of_maunet
from benchmarks.rivals.mesmer import MesmerNetwork
from benchmarks.rivals.mesmer import plain_cells as plain_cells_of_mesmer
from benchmarks.rivals.morphoseg import TransUNetNetwork
from benchmarks.rivals.morphoseg import plain_cells as plain_cells_of_morphoseg
from benchmarks.rivals.sparse_seunet import SparseSEUNetNetwork
from benchmarks.rivals.sparse_seunet import plain_cells as plain_cells_of_sparse_seunet
from benchmarks.worker import Call, images, seconds_of

__all__ = ["calls"]


NETWORKS: Mapping[str, Callable[[Any], nn.Module]] = {
    "contour_proposal": ContourProposalNetwork, "maunet": MAUNetNetwork, "mesmer": MesmerNetwork,
    "morphoseg": TransUNetNetwork, "sparse_seunet": SparseSEUNetNetwork}
"""System -> the network that its config describes: (image [B, C, H, W]) -> dict of maps [B, c, h, w], named as jaxcell's."""

ALIKE: Mapping[str, Sequence[str]] = {"sparse_seunet": ("masks", "scores", "objectness")}
"""System -> outputs [B, N, ...] with an entry for each of N queries, whose axes are the same in both frameworks: no maps."""

DECODES: Mapping[str, Callable[[Any, Mapping[str, np.ndarray]], int]] = {
    "maunet": plain_cells_of_maunet, "mesmer": plain_cells_of_mesmer, "morphoseg": plain_cells_of_morphoseg,
    "sparse_seunet": plain_cells_of_sparse_seunet}
"""System -> the authors' post-processing, or what a PyTorch user writes where they have none: (config, maps as
`benchmarks.network.DECODES` gives them) -> number of cells."""


def calls(config: Any, *, place: str, precision: str, compiled: bool) -> dict[str, Call]:
    """The commands of a worker.

    device: its name. compare: takes the variables in a file of jaxcell, gives the greatest difference of each output as a share
    of its greatest value (of 1 where all are 0). parameters: their number. step, infer: seconds. checkpoint: seconds to save and
    to restore. peak: operations a second of a large matrix product. memory (on a GPU): most in use, GB. decode: as jaxcell's,
    where there is one.
    """
    device = torch.device("cuda" if place == "gpu" else "cpu")
    torch.backends.cudnn.benchmark = True
    network = NETWORKS[config.system](config).to(device, memory_format=torch.channels_last)
    forward = torch.compile(network) if compiled else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    image = torch.from_numpy(images(config)).permute(0, 3, 1, 2).to(device)

    def half() -> Any:
        return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()

    def wait() -> None:
        if place == "gpu":
            torch.cuda.synchronize()

    def step() -> None:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        with half():
            loss = sum(value.float().square().mean() for value in forward(image).values())
        loss.backward()
        optimizer.step()
        loss.item()
        wait()

    def infer() -> None:
        network.eval()
        with torch.inference_mode(), half():
            forward(image)
        wait()

    def compare(path: str) -> dict[str, float]:
        arrays = np.load(path)
        variables = {tuple(name.split("/")[1:]): arrays[name] for name in arrays.files if name.startswith("variables/")}
        copy_variables(network, variables)
        network.eval()
        with torch.inference_mode(), half():
            outputs = as_jaxcell(network(image), ALIKE.get(config.system, ()))
        wanted = {name.partition("/")[2]: arrays[name] for name in arrays.files if name.startswith("outputs/")}
        if set(outputs) != set(wanted):
            raise ValueError(f"outputs are {sorted(outputs)} here, {sorted(wanted)} in jaxcell; mend rivals/.")
        return {name: float(np.abs(outputs[name] - value).max() / (np.abs(value).max() or 1)) for name, value in wanted.items()}

    def checkpoint(folder: str) -> dict[str, float]:
        path, start = Path(folder) / "checkpoint.pt", time.perf_counter()
        torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, path)
        middle = time.perf_counter()
        state = torch.load(path, map_location=device)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        return {"waiting": middle - start, "save": middle - start, "restore": time.perf_counter() - middle,
                "MB": path.stat().st_size / 1e6}

    commands: dict[str, Call] = {
        "compare": compare, "checkpoint": checkpoint, "step": seconds_of(step), "infer": seconds_of(infer),
        "parameters": lambda _: sum(p.numel() for p in network.parameters()),
        "peak": lambda size: _peak(int(size), device, precision),
        "device": lambda _: torch.cuda.get_device_name() if place == "gpu" else "cpu",
        "decode": lambda count: _decode(config, int(count)) if config.system in DECODES else None}
    on_gpu: dict[str, Call] = {"memory": lambda _: torch.cuda.max_memory_allocated() / 1e9}
    return commands | (on_gpu if place == "gpu" else {})


def copy_variables(network: nn.Module, variables: Mapping[tuple[str, ...], np.ndarray]) -> None:
    """Puts jaxcell's variables, flat by path, into the network; every one of both sides must find its counterpart.

    Raises:
      ValueError: names or shapes differ.
    """
    leaves = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    modules = dict(network.named_modules())
    state = {}
    for path, value in variables.items():
        name = ".".join(path[1:-1])
        array = _kernel_for(modules.get(name), value) if path[-1] == "kernel" else _bias_for(modules.get(name), value)
        state[f"{name}.{leaves.get(path[-1], path[-1])}"] = torch.from_numpy(np.array(array))
    missing, left = network.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or left:
        raise ValueError(f"the rival is another network: without a counterpart there {missing}, here {left}; mend rivals/.")


def as_jaxcell(outputs: Mapping[str, torch.Tensor], alike: Sequence[str]) -> dict[str, np.ndarray]:
    """Maps with channels last; the outputs that `alike` names as they are."""
    return {name: (value if name in alike else value.permute(0, 2, 3, 1)).detach().float().cpu().numpy()
            for name, value in outputs.items()}


def _kernel_for(module: nn.Module | None, kernel: np.ndarray) -> np.ndarray:
    """A kernel [..., inputs, outputs] of jaxcell in the layout of the module that holds it.

    A linear layer's inputs, its outputs or both may have several axes there, or be those of a 1x1 convolution.
    """
    if isinstance(module, nn.Linear):
        return kernel.reshape(module.in_features, module.out_features).T
    return kernel.transpose((2, 3, 0, 1) if isinstance(module, nn.ConvTranspose2d) else (3, 2, 0, 1))


def _bias_for(module: nn.Module | None, value: np.ndarray) -> np.ndarray:
    """Whatever is no kernel; only a linear layer's biases may have several axes in jaxcell."""
    return value.ravel() if isinstance(module, nn.Linear) else value


def _decode(config: Any, count: int) -> dict[str, Any]:
    from benchmarks.network import DECODES as OURS  # (needs jax, which this process otherwise does without)

    _, maps = OURS[config.system](copy.deepcopy(config))
    found: list[int] = []
    return {"seconds": seconds_of(lambda: found.append(DECODES[config.system](config, maps)))(str(count)), "cells": found[-1]}


def _peak(size: int, device: torch.device, precision: str) -> float:
    """Operations a second of [n, n] @ [n, n], the best of some."""
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32)

    def product() -> None:
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize()

    product()
    return 2 * size ** 3 / min(seconds_of(product)("8"))
