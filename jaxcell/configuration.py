"""Saving a run's config beside its checkpoints, and refusing to continue a run under another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_collections

__all__ = ["load_config", "save_config"]

# Keys that may change when a run continues: they say when it looks and stops, not what it computes.
FREE = ("train.stop_step", "train.log_every", "train.eval_every", "train.checkpoint_every", "train.keep", "train.images",
        "data.workers", "data.prefetch", "data.cache_gb", "inference.")


def load_config(workdir: str | Path) -> ml_collections.ConfigDict:
    """The locked config of the run in `workdir`.

    Raises:
      FileNotFoundError: no run has started there.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: no run was started in this workdir. Train first: "
                                f"python train.py --config configs/<system>.py --workdir {workdir}")
    return ml_collections.ConfigDict(json.loads(path.read_text())).lock()


def save_config(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Writes `config.json`, or checks that a run already there has the same config.

    Raises:
      ValueError: the workdir holds a run with another config; names every key that differs.
    """
    path = Path(workdir) / "config.json"
    text = json.dumps(config.to_dict(), indent=2, default=list)
    if path.exists():
        old, new = _flatten(json.loads(path.read_text())), _flatten(json.loads(text))
        changed = [f"{key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}" for key in sorted({*old, *new})
                   if old.get(key) != new.get(key) and not key.startswith(FREE)]
        if changed:
            raise ValueError(f"{workdir} holds a run with another config; continuing would mix two experiments. Changed:\n  "
                             + "\n  ".join(changed) + "\nUse a new --workdir, or the config that this run started with.")
    partial = path.with_suffix(".tmp")
    partial.write_text(text)
    partial.replace(path)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in _flatten(sub, f"{prefix}.{key}" if prefix else key).items()}
