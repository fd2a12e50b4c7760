"""Optimizers and learning-rate schedules from a config: two literal dicts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

__all__ = ["OPTIMIZERS", "SCHEDULES", "clip_each", "make_optimizer", "make_schedule"]

Schedule = Callable[[Any], Any]


def constant(*, base: float) -> Schedule:
    """The same rate at every step."""
    return optax.constant_schedule(base)


def warmup_cosine(*, base: float, steps: int, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Linear from 0 to `base` over `warmup_steps`, at most half of all, then half a cosine down to `end` at `steps`."""
    warmup_steps = min(warmup_steps, steps // 2)        # a run shortened to a few steps learns too
    return optax.warmup_cosine_decay_schedule(0.0 if warmup_steps else base, base, warmup_steps, steps, end)


def warmup_multistep(*, base: float, milestones: Sequence[int], gamma: float = 0.666, warmup_steps: int = 1000,
                     warmup_factor: float = 0.001) -> Schedule:
    """Warm-up from `base * warmup_factor`, then times `gamma` at every milestone (a step index) passed.

    Source: CPN paper Table 2; FZJ-INM1-BDA/neurips22-cell-seg@ab6a154 WarmupMultiStepLR. Step 0 is the first update.
    Departs: the released script drops the config's gamma (0.1 results) and counts milestones in examples while it steps per
      batch; here gamma is the paper's and milestones are steps.
    """
    edges = jnp.asarray(list(milestones), jnp.int32)

    def schedule(step: Any) -> Any:
        t = jnp.asarray(step)
        share = jnp.clip(t / max(warmup_steps, 1), 0.0, 1.0) if warmup_steps else 1.0
        return base * (warmup_factor * (1 - share) + share) * gamma ** jnp.sum(t >= edges)

    return schedule


def step_decay(*, base: float, every: int, factor: float = 0.95) -> Schedule:
    """`base`, times `factor` after every `every` steps, at once.

    Source: MAUNet paper, Table 2 (0.95 every 10 epochs); PyTorch's StepLR.
    """
    return optax.exponential_decay(base, every, factor, staircase=True)


def polynomial(*, base: float, steps: int, power: float = 0.9) -> Schedule:
    """`base` at step 0, then `base` times (1 - (step - 1) / steps) ** power: at every step what the one before has set.

    Source: RanchoGoose/MorphoSeg@a2ab9fe, trainer_vos.py, which sets the rate after a step, from the count before it; so the
      first two steps have `base`, and the last one is above 0.
    """
    def schedule(step: Any) -> Any:
        done = jnp.clip(jnp.asarray(step) - 1, 0, steps)
        return base * (1 - done / steps) ** power

    return schedule


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "warmup_cosine": warmup_cosine,
    "warmup_multistep": warmup_multistep,
    "step_decay": step_decay,
    "polynomial": polynomial,
}


def adam(schedule: Schedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, l2: float = 0.0
         ) -> optax.GradientTransformation:
    """Adam; `l2` is added to the gradient (PyTorch's Adam weight_decay), not decoupled."""
    decay = [optax.add_decayed_weights(l2)] if l2 else []
    return optax.chain(*decay, optax.scale_by_adam(b1, b2, eps), optax.scale_by_learning_rate(schedule))


def adamw(schedule: Schedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 1e-2
          ) -> optax.GradientTransformation:
    """Adam with decoupled weight decay."""
    return optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay)


def sgd(schedule: Schedule, *, momentum: float = 0.9, nesterov: bool = False, l2: float = 0.0) -> optax.GradientTransformation:
    """SGD with momentum; `l2` is added to the gradient."""
    decay = [optax.add_decayed_weights(l2)] if l2 else []
    return optax.chain(*decay, optax.sgd(schedule, momentum, nesterov))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adam": adam, "adamw": adamw, "sgd": sgd}


def _pick(table: dict[str, Any], kind: str, name: str) -> Any:
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; known are {', '.join(sorted(table))}.")
    return table[name]


def _call(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"options {', '.join(unknown)} are not of this function, whose options are {', '.join(known)}. Another "
                         "optimizer or schedule is chosen in a config file, where its options can be named with it.")
    return function(**options)


def make_schedule(config: Any) -> Schedule:
    """The schedule of `config.schedule`: `name` and the keyword arguments of that function."""
    options = dict(config)
    return _call(_pick(SCHEDULES, "schedule", options.pop("name")), options)


def clip_each(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient of each array, by itself, to a norm of at most `max_norm`.

    Source: Keras optimizers, `clipnorm`.
    """
    def clip(gradient: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
        return gradient * (max_norm / jnp.maximum(norm, max_norm))

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))


def make_optimizer(config: Any) -> tuple[optax.GradientTransformation, Schedule]:
    """Optimizer and schedule of `config`: name, schedule, and the keyword arguments of that optimizer.

    Before it the gradient is scaled to a global norm of at most `clip_norm` and each array's to `clip_each_norm` (0: not).
    With `accumulate` = k the parameters move at every k-th step, by the mean gradient of k batches; the schedule counts
    steps all the same, and an update has the rate of the first of its batches.

    Returns:
      (transformation, schedule); the schedule maps a step to the learning rate of its update, for the log.

    Raises:
      ValueError: an unknown name or option, or `accumulate` below 1.
    """
    options = dict(config)
    schedule = make_schedule(options.pop("schedule"))
    clip, clip_one, every = options.pop("clip_norm", 0.0), options.pop("clip_each_norm", 0.0), options.pop("accumulate", 1)
    if every < 1:
        raise ValueError(f"config.optimizer.accumulate={every}; it is the number of batches of one update, 1 or more.")
    clips = ([optax.clip_by_global_norm(clip)] if clip else []) + ([clip_each(clip_one)] if clip_one else [])
    make = _pick(OPTIMIZERS, "optimizer", options.pop("name"))
    optimizer = _call(partial(make, lambda update: schedule(update * every)), options)
    transformation = optax.chain(*clips, optimizer) if clips else optimizer
    if every == 1:
        return transformation, schedule
    # In the host loop's steps, not in a scan: XLA's fast convolutions on a CPU are those outside of loops.
    return optax.MultiSteps(transformation, every).gradient_transformation(), lambda step: schedule(step // every * every)
