"""PyTorch's side of the race: the same network, batch, loss and optimizer, as a careful user of PyTorch would run them.

Memory in channels_last, fused AdamW, gradients set to None; on a GPU bfloat16 by autocast and cuDNN's search for the fastest
convolutions. Eager and compiled run as two workers, of which the faster counts.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
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
from benchmarks.worker import Call, images, seconds_of

__all__ = ["calls"]


NETWORKS: Mapping[str, Callable[[Any], nn.Module]] = {
    "contour_proposal": ContourProposalNetwork, "maunet": MAUNetNetwork, "mesmer": MesmerNetwork}
"""System -> the network that its config describes: (image [B, C, H, W]) -> dict of maps [B, c, h, w], named as jaxcell's."""

DECODES: Mapping[str, Callable[[Any, Mapping[str, np.ndarray]], int]] = {
    "maunet": plain_cells_of_maunet, "mesmer": plain_cells_of_mesmer}
"""System -> the authors' post-processing: (config, maps as `benchmarks.network.DECODES` gives them) -> number of cells."""


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
            outputs = {name: value.float().permute(0, 2, 3, 1).cpu().numpy() for name, value in network(image).items()}
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
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    modules = dict(network.named_modules())
    state = {}
    for path, value in variables.items():
        name = ".".join(path[1:-1])
        axes = (2, 3, 0, 1) if isinstance(modules.get(name), nn.ConvTranspose2d) else (3, 2, 0, 1)
        state[f"{name}.{leaves[path[-1]]}"] = torch.from_numpy(np.array(value.transpose(axes) if value.ndim == 4 else value))
    missing, left = network.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or left:
        raise ValueError(f"the rival is another network: without a counterpart there {missing}, here {left}; mend rivals/.")


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
