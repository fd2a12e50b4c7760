"""One experiment, in the order in which it happens. Machinery is imported; every decision is the config's.

    python train.py --config configs/contour_proposal.py:bbbc038 --workdir runs/bbbc038 --config.data.root=DIR
    jaxcell train    --config ...                              (the same function)

The same command in the same workdir continues where the last checkpoint stands.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from jaxcell import viz
from jaxcell.configuration import save_config
from jaxcell.data.pipeline import make_train_iterator
from jaxcell.evaluate import make_predict, open_source, score_samples
from jaxcell.pretrained.torch import read_checkpoint
from jaxcell.systems import build_system
from jaxcell.training.checkpoint import Checkpoints, restore_state
from jaxcell.training.log import MetricLog, Stopwatch, progress_bar
from jaxcell.training.mesh import describe_devices, make_mesh, replicated, shard_batch, unused_accelerators
from jaxcell.training.objectives import supervised
from jaxcell.training.optimizer import make_optimizer
from jaxcell.training.state import TrainState, init_state, parameter_count, state_digest
from jaxcell.training.step import make_apply, make_train_step

__all__ = ["train"]

SIGTERM_EXIT = 128 + signal.SIGTERM     # what a process ended by SIGTERM reports: schedulers requeue on it


def train(config: ml_collections.ConfigDict, workdir: str | Path, *, minutes: float | None = None, allow_cpu: bool = False
          ) -> tuple[TrainState, bool]:
    """Trains until config.train.steps, or until SIGTERM, or for `minutes`; then saves.

    Args:
      config: of configs/<system>.py.
      workdir: config, checkpoints, metrics and pictures go there; a run that stands there is continued.
      minutes: save and stop after this long.
      allow_cpu: train on the CPU although the machine has an accelerator that jax does not see.

    Returns:
      (state, interrupted): interrupted says that SIGTERM came.
    """
    start, workdir = time.monotonic(), Path(workdir)
    stop = _stop_on_sigterm()

    # ---------------------------------------------------------------- workdir and devices
    workdir.mkdir(parents=True, exist_ok=True)
    save_config(config, workdir)
    print("devices:", describe_devices(), flush=True)
    if (problem := unused_accelerators()) and not allow_cpu:
        raise SystemExit(f"refusing to train on the CPU in silence: {problem} Pass --cpu to do it all the same.")
    mesh = make_mesh()

    # ---------------------------------------------------------------- system
    system = build_system(config)
    if config.data.crop % system.divisor:
        raise ValueError(f"config.data.crop={config.data.crop} must be a multiple of {system.divisor} for {config.system}.")

    # ---------------------------------------------------------------- data
    data = config.data
    train_source = open_source(data.train, root=data.root, cache_gb=data.cache_gb)
    val_source = open_source(data.val, root=data.root, cache_gb=data.cache_gb)
    print(f"data: {len(train_source)} training and {len(val_source)} validation images", flush=True)
    batches = make_train_iterator(
        train_source, targets=system.targets, batch_size=data.batch_size, crop=data.crop, augment=data.augment,
        normalize=dict(data.normalize), channels=data.channels, planes=data.planes, seed=config.seed, workers=data.workers,
        prefetch=data.prefetch, shard_index=jax.process_index(), shard_count=jax.process_count())

    # ---------------------------------------------------------------- optimizer and state
    transformation, schedule = make_optimizer(config.optimizer)

    def fresh():
        return init_state(system.model, transformation, seed=config.seed, image_shape=(1, data.crop, data.crop, data.channels))

    checkpoints = Checkpoints(workdir, keep=config.train.keep)
    if checkpoints.latest_step() is None:
        state = jax.jit(fresh, out_shardings=replicated(mesh))()
        if config.pretrained:
            if system.load is None:
                raise ValueError(f"config.pretrained is set, but no published checkpoints of {config.system} are known.")
            loaded = jax.device_put(system.load(read_checkpoint(config.pretrained), state.variables), replicated(mesh))
            state = replace(state, params=loaded["params"], batch_stats=loaded["batch_stats"])
    else:
        state, cursor = restore_state(checkpoints.directory, jax.eval_shape(fresh), replicated(mesh))
        batches.set_state(cursor)
        print(f"continuing from step {int(state.step)}", flush=True)
    print(f"{config.system}: {parameter_count(state.params):,} parameters", flush=True)

    # ---------------------------------------------------------------- the two compiled functions
    train_step = make_train_step(supervised(system), transformation, mesh)
    predict = make_predict(system, make_apply(system.model), mesh, config)

    # ---------------------------------------------------------------- loop
    first, last = int(state.step), config.train.steps
    until = min(config.train.stop_step or last, last)
    stopwatch, before = Stopwatch(), None
    with MetricLog(workdir, resume_step=first) as log, progress_bar(initial=first, total=last) as bar:
        for step in range(first + 1, until + 1):
            with stopwatch.waiting_for_data(before):
                batch, _ = next(batches)
            state, metrics = train_step(state, shard_batch(batch, mesh))
            # One step computes while the next one's batch is fetched; no more, or SIGTERM would wait for a whole queue.
            jax.block_until_ready(before)
            before = metrics["loss"]
            bar.update()

            if step % config.train.log_every == 0 or step == until:
                values = {k: float(v) for k, v in jax.device_get(metrics).items()}     # waits for the device: rarely
                values |= {"learning_rate": float(schedule(step - 1))} | stopwatch.read(data.batch_size)
                log.write(step, values)
                bar.set_postfix_str(f"loss {values['loss']:.3f}, {values['images_per_second']:.1f} images/s, "
                                    f"{values['data_wait_share']:.0%} waiting for data")
            timed_out = minutes is not None and time.monotonic() - start > 60 * minutes
            if (step % config.train.eval_every == 0 or step == last) and not stop and len(val_source):
                samples = (val_source[i] for i in range(min(len(val_source), config.train.eval_images)))
                report = score_samples(partial(predict, state.variables), samples, picture_count=config.train.images,
                                       pictures=workdir / "pictures" / f"step_{step:07d}")
                score = float(np.nan_to_num(report.pooled_f1))      # undefined without cells and predictions
                best = checkpoints.save_best(state, batches.get_state(), score)
                log.write(step, {"val/f1": score})
                bar.write(f"step {step}: validation F1@0.5 {score:.4f} (pooled){', the best so far' if best else ''}")
                viz.curves(log.path, workdir / "curves.png")
                stopwatch.read(data.batch_size)     # validation is not training time
            if step % config.train.checkpoint_every == 0:      # after validation: a run killed in between repeats both
                checkpoints.save(state, batches.get_state())
            if stop or timed_out:
                break

    # ---------------------------------------------------------------- end
    checkpoints.save(state, batches.get_state())
    checkpoints.wait()
    checkpoints.close()
    print(f"step {int(state.step)} of {last}, saved in {checkpoints.directory}", flush=True)
    print(f"state sha256: {state_digest(state, batches.get_state())}", flush=True)
    return state, bool(stop)


def _stop_on_sigterm() -> list[int]:
    """A list that is empty until SIGTERM arrives: the loop then finishes its step, saves and leaves."""
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    return received


def run() -> None:
    """Entry point of `python train.py` and `jaxcell train`."""
    config = config_flags.DEFINE_config_file("config", None, "configs/<system>.py[:variant]", lock_config=True)
    workdir = flags.DEFINE_string("workdir", None, "Where config, checkpoints, metrics and pictures of this run go.")
    minutes = flags.DEFINE_float("minutes", None, "Save and stop after this long; the same command continues.")
    cpu = flags.DEFINE_bool("cpu", False, "Train on the CPU although the machine has an accelerator that jax does not see.")
    flags.mark_flags_as_required(["config", "workdir"])

    def main(argv: list[str]) -> None:
        del argv
        logging.getLogger("absl").setLevel(logging.WARNING)      # orbax tells every save in ten lines
        _, interrupted = train(config.value, str(workdir.value), minutes=minutes.value, allow_cpu=cpu.value)
        if interrupted:
            sys.exit(SIGTERM_EXIT)

    app.run(main)
