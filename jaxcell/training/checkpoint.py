"""Checkpoints: train state and data cursor in one orbax step; the latest few and the best."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding

from jaxcell.training.state import TrainState

__all__ = ["Checkpoints", "latest_step", "restore_state"]

logger = logging.getLogger(__name__)


def restore_state(directory: str | Path, abstract: TrainState, sharding: Sharding, step: int | None = None
                  ) -> tuple[TrainState, dict[str, Any]]:
    """Reads (state, cursor) of `step` (default: the latest) from a checkpoint directory, placed as `sharding` says.

    Shapes come from `abstract` and placement from `sharding`, never from the file: a state saved on eight GPUs loads on a CPU.

    Raises:
      FileNotFoundError: the directory has no finished checkpoint.
      ValueError: the checkpoint belongs to another network or optimizer.
    """
    directory = Path(directory).resolve()
    with _manager(directory, keep=None, best=False, read_only=True) as manager:
        step = manager.latest_step() if step is None else step
        if step is None:
            raise FileNotFoundError(f"no finished checkpoint under {directory}; train first, or name another --workdir.")
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)
        try:
            restored = manager.restore(step, args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), cursor=ocp.args.JsonRestore()))
        except (ValueError, KeyError) as error:
            raise ValueError(f"checkpoint {directory}/{step} does not fit this network and optimizer; use the config that it was "
                             f"trained with (config.json in its workdir), or a new --workdir. Orbax says: {error}") from error
    return restored.state, dict(restored.cursor)


def latest_step(directory: str | Path) -> int | None:
    """Step of the latest finished checkpoint under `directory`, or None."""
    with _manager(Path(directory).resolve(), keep=None, best=False, read_only=True) as manager:
        return manager.latest_step()


def _manager(directory: Path, *, keep: int | None, best: bool, read_only: bool = False) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, read_only=read_only, create=not read_only, cleanup_tmp_directories=not read_only,
        best_fn=(lambda metrics: metrics["score"]) if best else None, best_mode="max",
        enable_async_checkpointing=not read_only)
    return ocp.CheckpointManager(directory, options=options, item_names=("state", "cursor"))


class Checkpoints:
    """The checkpoints of one workdir: `<workdir>/checkpoints/<step>` (the latest k) and `<workdir>/best/<step>`.

    A save is written beside its final place and renamed when whole, so a kill at any moment leaves the previous one intact;
    unfinished ones are removed at the next start.
    """

    def __init__(self, workdir: str | Path, *, keep: int) -> None:
        self.directory = Path(workdir).resolve() / "checkpoints"
        self.best_directory = Path(workdir).resolve() / "best"
        self._latest = _manager(self.directory, keep=keep, best=False)
        self._best = _manager(self.best_directory, keep=1, best=True)

    def latest_step(self) -> int | None:
        """Step of the latest finished checkpoint, or None."""
        return self._latest.latest_step()

    def best_score(self) -> float | None:
        """Validation score of the best checkpoint so far, or None."""
        step = self._best.best_step()
        return None if step is None else float(self._best.metrics(step)["score"])

    def save(self, state: TrainState, cursor: dict[str, Any]) -> None:
        """Saves in the background; the values are copied before this returns, so the caller may donate `state`."""
        step = int(state.step)
        if step != self._latest.latest_step():
            self._latest.save(step, args=_items(state, cursor), force=True)

    def save_best(self, state: TrainState, cursor: dict[str, Any], score: float) -> bool:
        """Saves under best/ if `score` beats every earlier one; says whether it did."""
        known, step = self.best_score(), int(state.step)
        if known is not None and score <= known:
            return False
        if step in self._best.all_steps():      # scored again after a kill, and better on this device: orbax would refuse
            self._best.delete(step)
        return bool(self._best.save(step, args=_items(state, cursor), metrics={"score": score}, force=True))

    def close(self) -> None:
        """Waits until every save is on disk and releases the background threads."""
        self._latest.close()
        self._best.close()


def _items(state: TrainState, cursor: dict[str, Any]) -> ocp.args.Composite:
    return ocp.args.Composite(state=ocp.args.StandardSave(state), cursor=ocp.args.JsonSave(cursor))
