"""One experiment, in the order in which it happens. Machinery is imported; every decision is the config's.

    python train.py --config configs/contour_proposal.py:bbbc038 --workdir runs/bbbc038 --config.data.root=DIR
    jaxcell train    --config ...                              (the same function)

The same command in the same workdir continues where the last checkpoint stands.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from jaxcell import viz
from jaxcell.configuration import readable_flag_errors, save_config
from jaxcell.data.pipeline import make_train_iterator
from jaxcell.data.sources import open_source
from jaxcell.evaluate import make_predict, score_samples
from jaxcell.pretrained.torch import read_checkpoint
from jaxcell.system import System
from jaxcell.systems import build_system
from jaxcell.training.checkpoint import Checkpoints, latest_step, restore_state
from jaxcell.training.log import MetricLog, Stopwatch, progress_bar, quiet_libraries
from jaxcell.training.mesh import describe_devices, make_mesh, replicated, shard_batch, unused_accelerators
from jaxcell.training.objectives import supervised
from jaxcell.training.optimizer import make_optimizer
from jaxcell.training.state import TrainState, init_state, parameter_count, state_digest
from jaxcell.training.step import make_apply, make_train_step

__all__ = ["import_published", "train"]

SIGTERM_EXIT = 128 + signal.SIGTERM     # what a process ended by SIGTERM reports: schedulers requeue on it


def train(config: ml_collections.ConfigDict, workdir: str | Path, *, minutes: float | None = None, allow_cpu: bool = False
          ) -> tuple[TrainState, bool]:
    """Trains until config.train.steps, or until a signal, or for `minutes`; then saves.

    Args:
      config: of configs/<system>.py.
      workdir: config, checkpoints, metrics and pictures go there; a run that stands there is continued.
      minutes: save and stop after this long.
      allow_cpu: train on the CPU although the machine has an accelerator that jax does not see.

    Returns:
      (state, interrupted): interrupted says that a signal came before the last step.

    Raises:
      ValueError: the config contradicts itself, or is not the one that the workdir's run began with.
      FloatingPointError: the loss is no longer finite; the last checkpoint is from before.
    """
    start, workdir = time.monotonic(), Path(workdir)

    # ---------------------------------------------------------------- devices
    print("devices:", describe_devices(), flush=True)
    if (problem := unused_accelerators()) and not allow_cpu:
        raise SystemExit(f"refusing to train on the CPU in silence: {problem} Pass --cpu to do it all the same.")
    if jax.process_count() > 1:
        raise SystemExit(f"{jax.process_count()} processes: training over several hosts is not there yet. Start one process.")
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
        normalize=dict(data.normalize), channels=data.channels, planes=tuple(data.planes) or None, reject_empty=data.reject_empty,
        epoch_fraction=data.epoch_fraction, seed=config.seed, workers=data.workers, prefetch=data.prefetch)

    # ---------------------------------------------------------------- optimizer and state
    transformation, schedule = make_optimizer(config.optimizer)

    def fresh() -> TrainState:
        return init_state(system.model, transformation, seed=config.seed, image_shape=(1, data.crop, data.crop, data.channels))

    workdir.mkdir(parents=True, exist_ok=True)
    saved = workdir / "checkpoints"
    save_config(config, workdir, continues=saved.is_dir() and latest_step(saved) is not None)
    checkpoints = Checkpoints(workdir, keep=config.train.keep)
    if checkpoints.latest_step() is None:
        state = jax.jit(fresh, out_shardings=replicated(mesh))()
        if config.pretrained:
            state = with_published(state, system, config.pretrained, mesh)
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
    with (MetricLog(workdir, resume_step=first) as log, progress_bar(initial=first, total=last) as bar, stop_signals() as stop):

        def validate(step: int) -> None:
            if not len(val_source) or (step % config.train.eval_every and step != last) or log.has("val/f1", step):
                return
            samples = (val_source[i] for i in range(min(len(val_source), config.train.eval_images)))
            report = score_samples(partial(predict, state.variables), samples, picture_count=config.train.images,
                                   pictures=workdir / "pictures" / f"step_{step:07d}")
            score = float(np.nan_to_num(report.pooled_f1))      # undefined without cells and predictions
            best = checkpoints.save_best(state, batches.get_state(), score)
            log.write(step, {"val/f1": score})
            bar.write(f"step {step}: validation F1@0.5 {score:.4f} (pooled){', the best so far' if best else ''}")
            viz.curves(log.path, workdir / "curves.png")

        if first:
            validate(first)     # a run that was killed between the checkpoint and its validation makes up for it
        for step in range(first + 1, until + 1):
            with stopwatch.waiting_for_data(before):
                batch, _ = next(batches)
            state, metrics = train_step(state, shard_batch(batch, mesh))
            # One step computes while the next one's batch is fetched; no more, or a signal would wait for a whole queue.
            jax.block_until_ready(before)
            before = metrics["loss"]
            bar.update()

            timed_out = minutes is not None and time.monotonic() - start > 60 * minutes
            leaving = bool(stop) or timed_out or step == until
            due = step % config.train.checkpoint_every == 0 or step % config.train.eval_every == 0 or leaving
            if due or step % config.train.log_every == 0:
                values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                values |= {"learning_rate": float(schedule(step - 1))} | stopwatch.read(data.batch_size)
                log.write(step, values)
                bar.set_postfix_str(f"loss {values['loss']:.3f}, {values['images_per_second']:.1f} images/s, "
                                    f"{values['data_wait_share']:.0%} waiting for data", refresh=False)
                if not np.isfinite(values["loss"] + values["grad_norm"]):
                    raise FloatingPointError(
                        f"step {step}: the loss is {values['loss']}, the gradient's norm {values['grad_norm']}; stopped. The "
                        f"last checkpoint, step {checkpoints.latest_step()}, is from before. Start a new workdir with a lower "
                        "config.optimizer.schedule.base or with config.optimizer.clip_norm.")
            if due:
                checkpoints.save(state, batches.get_state())
                if not stop:
                    validate(step)
                    stopwatch.read(data.batch_size)     # saving and validating are not training time
            if leaving:
                break

        # ------------------------------------------------------------ end
        checkpoints.close()
        if log.path.stat().st_size:
            viz.curves(log.path, workdir / "curves.png")
    batches.close()
    print(f"step {int(state.step)} of {last}, saved in {checkpoints.directory}", flush=True)
    print(f"state sha256: {state_digest(state, batches.get_state())}", flush=True)
    return state, bool(stop) and int(state.step) < last


def with_published(state: TrainState, system: System, path: str | Path, mesh: Mesh) -> TrainState:
    """The state with parameters and statistics of a published checkpoint; every array is accounted for.

    Args:
      state: of this network; its step, optimizer state and rng stay.
      system: whose importer is used.
      path: a PyTorch .pt or .pth, .safetensors or .npz file.

    Raises:
      ValueError: the system has no importer, or the checkpoint is of another network.
    """
    if system.load is None:
        raise ValueError(f"{path}: this system has no published checkpoints that could be loaded; leave config.pretrained empty.")
    loaded = jax.device_put(system.load(read_checkpoint(path), state.variables), replicated(mesh))
    return replace(state, params=loaded["params"], batch_stats=loaded["batch_stats"])


def import_published(config: ml_collections.ConfigDict, path: str | Path, workdir: str | Path) -> None:
    """Makes a workdir of a published checkpoint, from which `evaluate` and `predict` work as from a trained one.

    Args:
      config: of the network that the checkpoint is of.
      path: see `with_published`.
      workdir: must hold no run yet.

    Raises:
      ValueError: see `with_published`; or the workdir holds a run.
    """
    system, mesh = build_system(config), make_mesh()
    transformation, _ = make_optimizer(config.optimizer)
    shape = (1, config.data.crop, config.data.crop, config.data.channels)
    state = jax.jit(lambda: init_state(system.model, transformation, seed=config.seed, image_shape=shape))()
    state = with_published(state, system, path, mesh)
    Path(workdir).mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, keep=1)
    if checkpoints.latest_step() is not None:
        raise ValueError(f"{workdir} holds a run already; name a new --workdir.")
    save_config(config, workdir, continues=False)
    checkpoints.save(state, {"batches": 0})
    checkpoints.close()
    print(f"{config.system}: {parameter_count(state.params):,} parameters of {path} -> {workdir}")


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM or Ctrl-C arrives: the loop then finishes its step, saves and leaves.

    A second signal ends the program at once. Outside the main thread (a notebook's worker) signals stay as they are.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def receive(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    former = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run() -> None:
    """Entry point of `jaxcell train`: reads sys.argv.

    Raises:
      ValueError: a config file or a key that does not exist.
    """
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, "configs/<system>.py[:variant]", flag_values=values)
    workdir = flags.DEFINE_string("workdir", None, "Where config, checkpoints, metrics and pictures of this run go.",
                                  flag_values=values)
    published = flags.DEFINE_string("import_only", None, "Put this published checkpoint into a new workdir, without training.",
                                    flag_values=values)
    minutes = flags.DEFINE_float("minutes", None, "Save and stop after this long; the same command continues.",
                                 flag_values=values)
    cpu = flags.DEFINE_bool("cpu", False, "Train on the CPU although the machine has an accelerator that jax does not see.",
                            flag_values=values)
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"usage: jaxcell train --config FILE[:VARIANT] --workdir DIR [options] [--config.a.b=c ...]\n\n{__doc__}\n"
              f"{values.get_help()}")
        return
    with readable_flag_errors():
        rest = values(sys.argv)[1:]
        missing = [name for name, flag in (("--config", config), ("--workdir", workdir)) if flag.value is None]
    if missing or rest:
        problem = f"{' and '.join(missing)} must be given" if missing else f"not understood: {' '.join(rest)}"
        raise ValueError(f"{problem}; see --help.")
    quiet_libraries()
    if published.value:
        import_published(config.value, published.value, str(workdir.value))
        return
    _, interrupted = train(config.value, str(workdir.value), minutes=minutes.value, allow_cpu=bool(cpu.value))
    if interrupted:
        sys.exit(SIGTERM_EXIT)
