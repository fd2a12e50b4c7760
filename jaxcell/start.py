"""What a run starts from: nothing, a published checkpoint, or the best of earlier runs."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from jaxcell.configuration import load_config, save_config
from jaxcell.pretrained.keras import is_keras, read_keras
from jaxcell.pretrained.torch import read_checkpoint
from jaxcell.system import System
from jaxcell.systems import build_system
from jaxcell.training.adversarial import init_adversarial_state
from jaxcell.training.checkpoint import Checkpoints, best_score, latest_step, restore_state
from jaxcell.training.mesh import make_mesh, replicated
from jaxcell.training.objectives import NETWORKS
from jaxcell.training.optimizer import make_optimizer
from jaxcell.training.state import TrainState, init_state, parameter_count

__all__ = ["import_published", "initial_state", "started_from", "trained_state", "with_networks"]


def initial_state(config: ml_collections.ConfigDict, system: System
                  ) -> tuple[optax.GradientTransformation, Callable[[Any], Any], Callable[[], TrainState]]:
    """(optimizer, learning rate of a step, function that makes a fresh state) of a config."""
    transformation, schedule = make_optimizer(config.optimizer)
    shape = (1, config.data.crop, config.data.crop, config.data.channels)

    def fresh() -> TrainState:
        if system.adversary is not None:
            return init_adversarial_state(system, transformation, seed=config.seed, image_shape=shape,
                                          average=bool(config.train.average_decay))
        return init_state(system.model, transformation, seed=config.seed, image_shape=shape,
                          networks=NETWORKS if config.semi.scheme == "cross" else (), average=bool(config.train.average_decay),
                          memory=system.objective.start if system.objective else dict)

    return transformation, schedule, fresh


def trained_state(config: ml_collections.ConfigDict, system: System, workdir: str | Path, mesh: Mesh, *, checkpoint: str = "best"
                  ) -> tuple[TrainState, Path]:
    """The state of a run, and the folder it was found in.

    Args:
      config: of the run.
      system: of the config.
      workdir: of the run.
      mesh: where the values go.
      checkpoint: "best" by validation score, or "latest". Where there is no best one that can be read, the latest serves, which
        is said on stderr.

    Raises:
      FileNotFoundError: the workdir has no checkpoint.
      ValueError: none can be read.
    """
    _, _, fresh = initial_state(config, system)
    abstract, problem = jax.eval_shape(fresh), ""
    for folder in {"best": ("best", "checkpoints"), "latest": ("checkpoints",)}[checkpoint]:
        path = Path(workdir) / folder
        if folder == "best" and latest_step(path) is None:
            problem = "no validation yet, so no best checkpoint"
            continue
        try:
            state, _ = restore_state(path, abstract, replicated(mesh))
        except ValueError as error:
            if folder == "checkpoints":
                raise
            problem = str(error)
            continue
        if problem:
            print(f"{problem}: using the latest, step {int(state.step)}", file=sys.stderr, flush=True)
        return state, path
    raise AssertionError("the last folder returns or raises")


def started_from(state: TrainState, system: System, start: str, mesh: Mesh) -> TrainState:
    """The state with the parameters and statistics of a published checkpoint, or of the best of earlier runs.

    Each of several networks takes what is there for it and keeps its own beginning where the checkpoint says nothing. A
    published file is of the network that predicts: the one that training sets against it keeps its beginning.

    Args:
      state: of this network; its step, optimizer state and rng stay.
      system: whose importer is used.
      start: a PyTorch .pt or .pth, .safetensors, .npz or Keras .h5 file; or workdirs, as a pattern such as
        "runs/generation0_*", of which the one with the highest validation score counts: the next generation of an evolution
        with warm restarts.
      mesh: where the values go.

    Raises:
      ValueError: nothing is there, the system has no importer, it is of another network, or two networks would begin alike.

    Source: Upschulte et al. 2023, section 3.2.2 (select the best models and restart with changed hyperparameters).
    """
    found, own = sorted(glob.glob(start)), state.by_network
    scores = {path: score for path in found if Path(path).is_dir() and (score := best_score(Path(path) / "best")) is not None}
    if scores:
        chosen = max(scores, key=lambda path: scores[path])
        print(f"starting from {chosen}, validation score {scores[chosen]:.4f}, the best of {len(scores)}", flush=True)
        config = load_config(chosen)
        earlier = trained_state(config, build_system(config), chosen, mesh)[0]
        variables = {name: earlier.by_network.get(name, earlier.predicting) for name in own}
    elif not found or Path(found[0]).is_dir():
        raise ValueError(f"config.pretrained={start!r}: no such file, and no workdir with a validated checkpoint. Name a "
                         "published checkpoint, or workdirs of finished runs.")
    elif system.load is None:
        raise ValueError(f"{start}: this system has no published checkpoints that could be loaded; leave config.pretrained "
                         "empty.")
    else:
        published = read_keras(start) if is_keras(start) else read_checkpoint(start)
        load = partial(system.load, published)
        taking = list(own)[:1] if system.adversary is not None else list(own)
        variables = dict(own) | {name: jax.device_put(load(own[name]), replicated(mesh)) for name in taking}
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (variables, own)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"config.pretrained={start!r} is of another network; use the config.model that it was trained with.")
    if len(own) > 1 and system.adversary is None and _all_equal(list(variables.values())):
        raise ValueError(f"config.pretrained={start!r} is one whole network: both of config.semi.scheme='cross' would begin, and "
                         "stay, alike. Start from an encoder alone, from a run of two networks, or take the scheme 'none'.")
    return with_networks(state, variables)


def _all_equal(trees: Sequence[Any]) -> bool:
    return all(bool(jnp.array_equal(*leaves)) for leaves in zip(*map(jax.tree.leaves, trees), strict=True))


def with_networks(state: TrainState, variables: Mapping[str, Mapping[str, Any]]) -> TrainState:
    """The state with the params and batch_stats of each of its networks (see `TrainState.by_network`); averages begin there."""
    def copy(part: str) -> Any:     # a step donates every part of the state, and a buffer cannot be donated twice
        parts = {name: jax.tree.map(jnp.copy, values[part]) for name, values in variables.items()}
        return parts if state.networks else parts[""]

    average = {part: copy(part) for part in state.average}
    return replace(state, params=copy("params"), batch_stats=copy("batch_stats"), average=average)


def import_published(config: ml_collections.ConfigDict, path: str | Path, workdir: str | Path) -> None:
    """Makes a workdir of a published checkpoint, from which `evaluate` and `predict` work as from a trained one.

    Args:
      config: of the network that the checkpoint is of.
      path: see `started_from`.
      workdir: must hold no run yet.

    Raises:
      ValueError: see `started_from`; or the workdir holds a run.
    """
    system, mesh = build_system(config), make_mesh()
    _, _, fresh = initial_state(config, system)
    state = started_from(jax.jit(fresh)(), system, str(path), mesh)
    Path(workdir).mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, keep=1)
    if checkpoints.latest_step() is not None:
        raise ValueError(f"{workdir} holds a run already; name a new --workdir.")
    save_config(config, workdir, continues=False)
    checkpoints.save(state, {"batches": 0})
    checkpoints.close()
    print(f"{config.system}: {parameter_count(state.params):,} parameters of {path} -> {workdir}")
