"""Checkpoints: train state and data cursor in one orbax step; the latest few and the best; each leaf with a digest.

What is read back is compared with the digests of what was to be written. A checkpoint that is
damaged is named, set aside, and the one before it used.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding

from jaxcell.training.state import TrainState, digests

__all__ = ["Checkpoints", "best_score", "latest_step", "restore_state"]

ITEMS = ("state", "cursor", "digests")
SET_ASIDE = "damaged"       # folder beside the checkpoints' for those that cannot be read


# ---------------------------------------------------------------- reading
def restore_state(directory: str | Path, abstract: TrainState, sharding: Sharding, *, step: int | None = None,
                  set_aside: bool = False) -> tuple[TrainState, dict[str, Any]]:
    """Reads (state, cursor) of the latest checkpoint that is whole, placed as `sharding` says.

    Shapes come from `abstract` and placement from `sharding`, never from the file: a state saved on eight GPUs loads on a CPU.
    Every leaf is compared with its digest. One that cannot be read, or differs, is named on stderr and the checkpoint before
    it is tried.

    Args:
      directory: of `Checkpoints`.
      abstract: shapes and dtypes of the state.
      sharding: of every leaf.
      step: this one only.
      set_aside: move damaged checkpoints into the folder `damaged` beside `directory`, so that their steps can be saved anew.

    Raises:
      FileNotFoundError: the directory has no finished checkpoint.
      ValueError: none can be read, or they belong to another network or optimizer.
    """
    directory = Path(directory).resolve()
    steps = _steps(directory) if step is None else [step]
    if not steps:
        raise FileNotFoundError(f"no finished checkpoint under {directory}; train first, or name another --workdir.")
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)
    problems: dict[int, str] = {}
    for number in steps:
        try:
            state, cursor = _read(directory, number, target)
        except Exception as error:      # what a damaged file raises depends on which byte is wrong
            problems[number] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            continue
        for bad, problem in problems.items():
            place = _set_aside(directory, bad) if set_aside else None
            print(f"checkpoint {directory}/{bad} is damaged ({problem}); using step {number} instead"
                  + (f". The damaged one is now {place}." if place else "."), file=sys.stderr, flush=True)
        return state, cursor
    raise ValueError(f"no checkpoint under {directory} ({', '.join(map(str, steps))}) can be used: each is damaged, or of "
                     "another network or optimizer. Use the config that it was trained with (config.json in its workdir), or a "
                     f"new --workdir. The latest says: {problems[steps[0]]}")


def _read(directory: Path, step: int, target: Any) -> tuple[TrainState, dict[str, Any]]:
    with _manager(directory, keep=None, best=False, read_only=True) as manager:
        restored = manager.restore(step, args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_parts(target)), cursor=ocp.args.JsonRestore(), digests=ocp.args.JsonRestore()))
    state = target.replace(**restored.state)
    now, then = digests(state, dict(restored.cursor)), dict(restored.digests)
    if wrong := sorted(path for path in {*now, *then} if now.get(path) != then.get(path)):
        raise ValueError(f"{len(wrong)} of {len(now)} arrays differ from what was saved, first {wrong[0]}")
    return state, dict(restored.cursor)


def _set_aside(directory: Path, step: int) -> Path:
    folder = directory.parent / SET_ASIDE
    if jax.process_index() == 0:
        folder.mkdir(exist_ok=True)
        number = sum(1 for _ in folder.iterdir())
        (directory / str(step)).rename(folder / f"{directory.name}_{step}_{number}")
    return folder


def _steps(directory: Path) -> list[int]:
    """Finished checkpoints, latest first."""
    if not directory.is_dir():
        return []
    with _manager(directory, keep=None, best=False, read_only=True) as manager:
        return sorted(manager.all_steps(), reverse=True)


def latest_step(directory: str | Path) -> int | None:
    """Step of the latest finished checkpoint under `directory`, or None."""
    return next(iter(_steps(Path(directory).resolve())), None)


def best_score(directory: str | Path) -> float | None:
    """Validation score of the best checkpoint under `directory` (a `best` folder), or None.

    Raises:
      ValueError: its score cannot be read.
    """
    directory = Path(directory).resolve()
    if not directory.is_dir():
        return None
    try:
        with _manager(directory, keep=None, best=True, read_only=True) as manager:
            return _best_score(manager)
    except Exception as error:      # (as in `restore_state`)
        raise ValueError(f"the score of the best checkpoint, {directory}, cannot be read ({error}). Remove the folder: the "
                         "latest checkpoints are not touched, and the next validation makes a new one.") from error


def _best_score(manager: ocp.CheckpointManager) -> float | None:
    step = manager.best_step()
    return None if step is None else float(manager.metrics(step)["score"])


def _manager(directory: Path, *, keep: int | None, best: bool, read_only: bool = False) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, read_only=read_only, create=not read_only, cleanup_tmp_directories=not read_only,
        best_fn=(lambda metrics: metrics["score"]) if best else None, best_mode="max",
        enable_async_checkpointing=not read_only)
    return ocp.CheckpointManager(directory, options=options, item_names=ITEMS)


# ---------------------------------------------------------------- writing
class Checkpoints:
    """The checkpoints of one workdir: `<workdir>/checkpoints/<step>` (the latest k) and `<workdir>/best/<step>`.

    A save is written beside its final place and renamed when whole, so a kill at any moment leaves the previous one intact;
    unfinished ones are removed at the next start. Every process of a run calls the same methods; each value is written once.
    """

    def __init__(self, workdir: str | Path, *, keep: int) -> None:
        self.directory = Path(workdir).resolve() / "checkpoints"
        self.best_directory = Path(workdir).resolve() / "best"
        self._set_unreadable_best_aside()
        self._latest = _manager(self.directory, keep=keep, best=False)
        self._best = _manager(self.best_directory, keep=1, best=True)

    def _set_unreadable_best_aside(self) -> None:
        try:
            best_score(self.best_directory)
        except ValueError as error:
            places = [_set_aside(self.best_directory, int(p.name)) for p in self.best_directory.iterdir() if p.name.isdigit()]
            print(f"{error} It is now in {places[0]}.", file=sys.stderr, flush=True)

    def latest_step(self) -> int | None:
        """Step of the latest finished checkpoint, or None."""
        return self._latest.latest_step()

    def best_score(self) -> float | None:
        """Validation score of the best checkpoint so far, or None."""
        return _best_score(self._best)

    def restore(self, abstract: TrainState, sharding: Sharding) -> tuple[TrainState, dict[str, Any]]:
        """`restore_state` of the latest whole checkpoint, to go on from there; damaged ones are set aside."""
        restored = restore_state(self.directory, abstract, sharding, set_aside=True)
        self._latest.reload()
        return restored

    def save(self, state: TrainState, cursor: dict[str, Any]) -> None:
        """Saves in the background; the values are copied before this returns, so the caller may donate `state`.

        Raises:
          OSError: this save, or the one before it, could not be written; says what to do.
        """
        step = int(state.step)
        if step != self._latest.latest_step():
            self._writing(partial(self._latest.save, step, args=_items(state, cursor), force=True))

    def save_best(self, state: TrainState, cursor: dict[str, Any], score: float) -> bool:
        """Saves under best/ if `score` beats every earlier one; says whether it did.

        Raises:
          OSError: as for `save`.
        """
        self._writing(self._best.wait_until_finished)       # its score cannot be read before
        known, step = self.best_score(), int(state.step)
        if known is not None and score <= known:
            return False
        if step in self._best.all_steps():      # scored again after a kill, and better on this device: orbax would refuse
            self._best.delete(step)
        return bool(self._writing(partial(self._best.save, step, args=_items(state, cursor), metrics={"score": score},
                                          force=True)))

    def close(self) -> None:
        """Waits until every save is on disk and releases the background threads.

        Raises:
          OSError: a save could not be written.
        """
        self._writing(self._latest.close)
        self._writing(self._best.close)

    def _writing(self, write: Any) -> Any:
        try:
            return write()
        except Exception as error:      # a full disk arrives as OSError, ValueError (tensorstore) or RuntimeError (its thread)
            whole = _steps(self.directory)
            raise OSError(f"no checkpoint could be written under {self.directory.parent}: {' '.join(str(error).split())[:400]} "
                          f"The last whole one is step {whole[0] if whole else 'none'}. Free some space (or lower "
                          "config.train.keep) and start the same command again: it goes on from there.") from error


def _parts(state: TrainState) -> dict[str, Any]:
    """What is stored, by name. A memory that holds nothing is left out: checkpoints were written before there was one."""
    parts = {"step": state.step, "params": state.params, "batch_stats": state.batch_stats, "opt_state": state.opt_state,
             "average": state.average, "skipped": state.skipped, "rng": state.rng}
    return parts | ({"memory": state.memory} if state.memory else {})


def _items(state: TrainState, cursor: dict[str, Any]) -> ocp.args.Composite:
    return ocp.args.Composite(state=ocp.args.StandardSave(_parts(state)), cursor=ocp.args.JsonSave(cursor),
                              digests=ocp.args.JsonSave(digests(state, cursor)))
