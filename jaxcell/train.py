"""One experiment, in the order in which it happens. Machinery is imported; every decision is the config's.

    python train.py --config configs/contour_proposal.py:bbbc038 --workdir runs/bbbc038 --config.data.root=DIR
    jaxcell train    --config ...                              (the same function)

The same command in the same workdir continues where the last checkpoint stands.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from jaxcell import viz
from jaxcell.configuration import read_command_line, save_config
from jaxcell.data.pipeline import make_train_iterator
from jaxcell.data.sources import open_source
from jaxcell.evaluate import make_predict, score_samples
from jaxcell.start import import_published, initial_state, started_from
from jaxcell.system import System
from jaxcell.systems import build_system
from jaxcell.training.adversarial import alternating
from jaxcell.training.allocator import keep_freed_memory
from jaxcell.training.checkpoint import Checkpoints, latest_step
from jaxcell.training.compile_cache import use_compile_cache
from jaxcell.training.device_augment import device_augmentation
from jaxcell.training.lock import only_run_in
from jaxcell.training.log import MetricLog, Stopwatch, memory_use, profiled, progress_bar, quiet_libraries
from jaxcell.training.mesh import (
    any_process,
    describe_devices,
    from_leader,
    join_processes,
    make_mesh,
    on_own_devices,
    replicated,
    shard_batch,
    unused_accelerators,
)
from jaxcell.training.objectives import Objective, cross_supervised, supervised
from jaxcell.training.semi import make_teacher
from jaxcell.training.state import TrainState, parameter_count, state_digest
from jaxcell.training.step import descending, make_apply, make_train_step
from jaxcell.translate import image_scorer, make_translate
from jaxcell.types import Sample

__all__ = ["train"]

SCHEMES = ("none", "listen2student", "cross")

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
      FloatingPointError: updates were not finite `config.train.max_skipped` times in a row.
      OSError: a checkpoint could not be written.
    """
    Path(workdir).mkdir(parents=True, exist_ok=True)
    with only_run_in(workdir) if jax.process_index() == 0 else nullcontext():
        return _train(config, Path(workdir), minutes, allow_cpu)


def _train(config: ml_collections.ConfigDict, workdir: Path, minutes: float | None, allow_cpu: bool) -> tuple[TrainState, bool]:
    start = time.monotonic()

    # ---------------------------------------------------------------- devices
    leader = jax.process_index() == 0       # of several processes the one that writes and prints
    print("devices:", describe_devices(), flush=True)
    if (problem := unused_accelerators()) and not allow_cpu:
        raise SystemExit(f"refusing to train on the CPU in silence: {problem} Pass --cpu to do it all the same.")
    mesh = make_mesh()

    # ---------------------------------------------------------------- system
    system, semi = build_system(config), config.semi
    if config.data.crop % system.divisor:
        raise ValueError(f"config.data.crop={config.data.crop} must be a multiple of {system.divisor} for {config.system}.")
    targets, objective = scheme_of(config, system)
    for key, size in (("data", config.data.batch_size), ("semi", semi.batch_size if semi.scheme != "none" else 0)):
        if size % mesh.size:
            raise ValueError(f"config.{key}.batch_size={size} does not divide over {mesh.size} devices; make it a multiple.")
    for key in ("log_every", "eval_every", "checkpoint_every"):
        if config.train[key] < 1:
            raise ValueError(f"config.train.{key}={config.train[key]}; it is a number of steps, 1 or more. Above "
                             "config.train.steps it is done at the end alone.")

    # ---------------------------------------------------------------- data
    data = config.data
    opened = partial(open_source, root=data.root, cache_gb=data.cache_gb, disk_cache=data.disk_cache,
                     disk_cache_gb=data.disk_cache_gb, unreadable=data.unreadable)
    train_source, val_source = opened(data.train), opened(data.val)
    print(f"data: {len(train_source)} training and {len(val_source)} validation images", flush=True)
    reading = partial(
        make_train_iterator, crop=data.crop, normalize=dict(data.normalize), channels=data.channels,
        planes=tuple(data.planes) or None, seed=config.seed, workers=data.workers, prefetch=data.prefetch,
        shard_index=jax.process_index(), shard_count=jax.process_count())
    batches = reading(train_source, targets=targets, batch_size=data.batch_size, augment=data.augment,
                      reject_empty=data.reject_empty, epoch_fraction=data.epoch_fraction)
    unlabelled = None
    if semi.scheme != "none":
        source = opened(semi.unlabelled)
        print(f"data: {len(source)} images without annotation", flush=True)
        unlabelled = reading(source, targets=no_targets, batch_size=semi.batch_size, augment=semi.augment)

    # ---------------------------------------------------------------- optimizer and state
    transformation, schedule, fresh = initial_state(config, system)
    saved = workdir / "checkpoints"
    if leader:
        continues = saved.is_dir() and latest_step(saved) is not None
        _check_images(workdir, train_source.names, continues=continues)
        save_config(config, workdir, continues=continues)
    checkpoints = Checkpoints(workdir, keep=config.train.keep)
    if checkpoints.latest_step() is None:
        state = jax.jit(fresh, out_shardings=replicated(mesh))()
        if config.pretrained:
            state = started_from(state, system, config.pretrained, mesh)
    else:
        state, cursor = checkpoints.restore(jax.eval_shape(fresh), replicated(mesh))
        batches.set_state(cursor)
        if unlabelled:
            unlabelled.set_state(cursor["unlabelled"])
        print(f"continuing from step {int(state.step)}", flush=True)
    print(f"{config.system}: {parameter_count(state.params):,} parameters", flush=True)

    def cursor_now() -> dict[str, Any]:
        return batches.get_state() | ({"unlabelled": unlabelled.get_state()} if unlabelled else {})

    # ---------------------------------------------------------------- the compiled functions
    apply = make_apply(system.model)
    update = alternating(system, transformation) if system.adversary else descending(objective, transformation)
    train_step = make_train_step(update, mesh, augment=device_augmentation(data.device_augment),
                                 average_decay=config.train.average_decay)
    # Validation is the leader's alone, on its own devices; the others wait for its verdict.
    own_mesh = make_mesh(jax.local_devices())
    judge = make_judge(system, apply, own_mesh, config)
    teach = None
    if semi.scheme == "listen2student" and system.teaching:
        teach = make_teacher(system.teaching, apply, mesh, seed=config.seed)

    # ---------------------------------------------------------------- loop
    first, last = int(state.step), config.train.steps
    until = min(config.train.stop_step or last, last)
    if first >= until:
        print(f"the run has these {until} steps already; nothing is trained", flush=True)
    stopwatch, before = Stopwatch(), None
    # Whatever ends the run, what is being written is finished first.
    with (MetricLog(workdir, resume_step=first, active=leader) as log,
          progress_bar(initial=first, total=last, active=leader) as bar, stop_signals() as stop, closing(checkpoints)):

        def validate(step: int) -> None:
            if not len(val_source) or (step % config.train.eval_every and step != last):
                return
            values = {judge.key: 0.0}
            if leader:
                variables = on_own_devices(state.predicting, own_mesh)
                samples = (val_source[i] for i in range(min(len(val_source), config.train.eval_images)))
                values = judge.score(variables, samples, workdir / "pictures" / f"step_{step:07d}")
            score = from_leader(values[judge.key])
            best = checkpoints.save_best(state, cursor_now(), score if judge.more_is_better else -score)
            log.write(step, values)
            bar.write(f"step {step}: validation {judge.words} {score:.4f}{', the best so far' if best else ''}")
            if leader:
                viz.curves(log.path, workdir / "curves.png")

        if first and not log.has(judge.key, first):
            validate(first)     # a run that was killed between the checkpoint and its validation makes up for it
        for step in range(first + 1, until + 1):
            with stopwatch.waiting_for_data(before and before.metrics["loss"]):
                batch, names = next(batches)
                if unlabelled and step > semi.start_step:
                    extra, extra_names = next(unlabelled)
                    names = names + extra_names
            if unlabelled and step > semi.start_step:
                batch = (teach(state.predicting, batch, extra, extra_names, step) if teach else
                         {**batch, "unlabelled": extra["image"]})
            with profiled(step, config.train.profile, workdir / "profile"):
                state, metrics = train_step(state, shard_batch(batch, mesh))
                # One step computes while the next one's batch is fetched; no more, or a signal would wait for a whole queue.
                report_skipped(before, workdir, bar, most=config.train.max_skipped)
            before = Step(step, metrics, names)
            bar.update()

            timed_out = minutes is not None and time.monotonic() - start > 60 * minutes
            leaving = any_process(bool(stop) or timed_out, mesh) or step == until
            due = step % config.train.checkpoint_every == 0 or step % config.train.eval_every == 0 or leaving
            if due:     # what is not finite must not end as the last good checkpoint's neighbour unnoticed
                report_skipped(before, workdir, bar, most=config.train.max_skipped)
                before = None
            if due or step % config.train.log_every == 0:
                values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                values |= {"learning_rate": float(schedule(step - 1))} | stopwatch.read(data.batch_size)
                log.write(step, values)
                bar.set_postfix_str(f"loss {values['loss']:.3f}, {values['images_per_second']:.1f} images/s, "
                                    f"{values['data_wait_share']:.0%} waiting for data", refresh=False)
            if due:
                checkpoints.save(state, cursor_now())
                if not stop:
                    validate(step)
                    stopwatch.read(data.batch_size)     # saving and validating are not training time
            if leaving:
                break

    # ---------------------------------------------------------------- end
    if leader and log.path.stat().st_size:
        viz.curves(log.path, workdir / "curves.png")
    for iterator in (batches, unlabelled):
        if iterator:
            iterator.close()
    print(f"step {int(state.step)} of {last}, saved in {checkpoints.directory}; {memory_use()}", flush=True)
    print(f"state sha256: {state_digest(state, cursor_now())}", flush=True)
    return state, bool(stop) and int(state.step) < last


def _check_images(workdir: Path, names: Sequence[str], *, continues: bool) -> None:
    """Refuses to continue with other training images than the run began with: their folder may move, so its path does not tell.

    Raises:
      ValueError: their names or their order differ.
    """
    path, now = workdir / "images.json", {"count": len(names), "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest()}
    if continues and path.exists() and (before := json.loads(path.read_text())) != now:
        raise ValueError(f"{workdir} holds a run that began with {before['count']} training images; these are {len(names)} of "
                         f"other names, such as {names[0]!r}. Continuing would mix two experiments: use a new --workdir, or "
                         "--config.data.root=DIR where the run's images lie now.")
    path.write_text(json.dumps(now))


class Step(NamedTuple):
    """One step on its way: its number, metrics that may not be computed yet, and the names of this process's samples."""

    number: int
    metrics: dict[str, jax.Array]
    names: list[str]


def report_skipped(step: Step | None, workdir: Path, bar: Any, *, most: int) -> None:
    """Waits for a step and, if its update was skipped, says which samples it had: on the terminal and in `skipped.jsonl`.

    Raises:
      FloatingPointError: it was the `most`-th in a row.
    """
    if step is None or not (in_a_row := int(step.metrics["skipped_in_a_row"])):
        return
    facts = {key: float(value) for key, value in jax.device_get(step.metrics).items()}
    wrong = ", ".join(f"{key} {value}" for key, value in facts.items() if not np.isfinite(value))
    bar.write(f"step {step.number}: not finite: {wrong}; update skipped ({in_a_row} in a row). Samples: {', '.join(step.names)}")
    with (workdir / "skipped.jsonl").open("a") as file:
        file.write(json.dumps({"step": step.number, "in_a_row": in_a_row, "not_finite": wrong, "samples": step.names}) + "\n")
    if in_a_row >= most:
        raise FloatingPointError(
            f"step {step.number}: {in_a_row} updates in a row were not finite ({wrong}); stopped. Parameters are those of step "
            f"{step.number - in_a_row}, the checkpoints are whole, and {workdir}/skipped.jsonl names the samples. Look at them, "
            "or start a new workdir with a lower config.optimizer.schedule.base or with config.optimizer.clip_norm.")


class Judge(NamedTuple):
    """How validation scores the network.

    Attributes:
      key: of the score that chooses the best checkpoint.
      words: for the terminal.
      score: (variables, samples, folder for pictures) -> scores for the log.
      more_is_better: whether the best checkpoint has the highest score, or the lowest.
    """

    key: str
    words: str
    score: Callable[[Any, Iterable[Sample], Path], dict[str, float]]
    more_is_better: bool = True


def make_judge(system: System, apply: Callable[..., Any], mesh: Mesh, config: ml_collections.ConfigDict) -> Judge:
    """F1 of cells, or the mean absolute error of systems that make images."""
    if system.draw is not None:
        translate = make_translate(system, mesh, config)
        score = image_scorer(config)

        def distances(variables: Any, samples: Iterable[Sample], pictures: Path) -> dict[str, float]:
            scores = score(partial(translate, variables), samples, pictures=pictures, picture_count=config.train.images)
            return {f"val/{name}": value for name, value in scores.items()}

        return Judge("val/l1", "mean absolute error", distances, more_is_better=False)
    predict = make_predict(system, apply, mesh, config)

    def f1(variables: Any, samples: Iterable[Sample], pictures: Path) -> dict[str, float]:
        report = score_samples(partial(predict, variables), samples, picture_count=config.train.images, pictures=pictures)
        return {"val/f1": float(np.nan_to_num(report.pooled_f1))}       # undefined without cells and predictions

    return Judge("val/f1", "F1@0.5 (pooled)", f1)


def scheme_of(config: ml_collections.ConfigDict, system: System) -> tuple[Callable[..., Any], Objective]:
    """(targets of annotated samples, objective) of `config.semi.scheme`.

    Raises:
      ValueError: an unknown scheme, or one that this system or config cannot serve.
    """
    semi = config.semi
    if semi.scheme not in SCHEMES:
        raise ValueError(f"config.semi.scheme={semi.scheme!r} is unknown; known are {', '.join(SCHEMES)}.")
    if semi.scheme != "none" and (not semi.unlabelled or semi.batch_size < 1):
        raise ValueError(f"config.semi.scheme={semi.scheme!r} needs images: name sources in config.semi.unlabelled and set "
                         "config.semi.batch_size.")
    if semi.scheme == "cross":
        if not config.pretrained and not semi.start_step:
            print("note: config.semi.start_step=0: networks that begin at random and must agree from the first step on learn "
                  "each other's first guesses; let them train apart for half of the run, or name config.pretrained.", flush=True)
        return system.targets, cross_supervised(system, weight=semi.weight)
    if semi.scheme == "listen2student":
        if system.teaching is None or not config.train.average_decay:
            raise ValueError(f"config.semi.scheme='listen2student': {config.system} "
                             + ("cannot learn from a teacher." if system.teaching is None else
                                "learns from the running average of itself; set config.train.average_decay, such as 0.999."))
        return partial(system.teaching.targets, None), supervised(system, loss=system.teaching.loss)
    return system.targets, supervised(system)


def no_targets(sample: Sample, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Of an image without annotation."""
    return {}


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
    cache = flags.DEFINE_string("compile_cache", None, "Folder for compiled programs, which must be yours alone; '' for none, "
                                "default: below ~/.cache/jaxcell.", flag_values=values)
    coordinator = flags.DEFINE_string("coordinator", "", "Of a run of several processes: host:port of process 0, or 'auto' "
                                      "(SLURM, Open MPI, GKE, TPU pods).", flag_values=values)
    processes = flags.DEFINE_integer("processes", 0, "How many, if the coordinator is named.", flag_values=values)
    process = flags.DEFINE_integer("process", -1, "Number of this one, if the coordinator is named.", flag_values=values)
    if not read_command_line(values, usage="jaxcell train --config FILE[:VARIANT] --workdir DIR [options] [--config.a.b=c ...]",
                             text=str(__doc__), required=("config", "workdir")):
        return
    quiet_libraries()
    join_processes(coordinator=coordinator.value, processes=processes.value, process=process.value)
    use_compile_cache(cache.value)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    if published.value:
        import_published(config.value, published.value, str(workdir.value))
        return
    _, interrupted = train(config.value, str(workdir.value), minutes=minutes.value, allow_cpu=bool(cpu.value))
    if interrupted:
        sys.exit(SIGTERM_EXIT)
