"""Two networks against each other: one learns to tell images that the other made from real ones, which learns to mislead it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcell.system import Adversary, Arrays, System
from jaxcell.training.objectives import forward
from jaxcell.training.state import TrainState, init_state
from jaxcell.training.step import Update, Updated

__all__ = ["OPPONENTS", "alternating", "discriminator_terms", "generator_terms", "init_adversarial_state"]

OPPONENTS = ("generator", "discriminator")
"""Names of the two networks in the train state; the first predicts."""

Adversarial = Callable[[jax.Array, float], jax.Array]


def discriminator_terms(real: jax.Array, fake: jax.Array, *, adversarial: Adversarial) -> dict[str, jax.Array]:
    """What its verdicts cost a discriminator; half of each, which slows it down beside the generator.

    Args:
      real, fake: logits of real images and of made ones, any shape.
      adversarial: an entry of `jaxcell.losses.adversarial.ADVERSARIAL`.

    Source: Isola et al. 2017, section 3.3.
    """
    return {"real": 0.5 * jnp.mean(adversarial(real, 1.0)), "fake": 0.5 * jnp.mean(adversarial(fake, 0.0))}


def generator_terms(fake: jax.Array, *, adversarial: Adversarial) -> dict[str, jax.Array]:
    """What the verdicts on its images cost a generator: they should be "real"."""
    return {"adversarial": jnp.mean(adversarial(fake, 1.0))}


def init_adversarial_state(system: System, transformation: optax.GradientTransformation, *, seed: int,
                           image_shape: tuple[int, ...], average: bool = False) -> TrainState:
    """A fresh state of both networks, each with an optimizer of its own; see `init_state`.

    Raises:
      ValueError: the system has no adversary.
    """
    adversary = _adversary(system)
    state = init_state(system.model, transformation, seed=seed, image_shape=image_shape)
    image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    outputs = jax.eval_shape(lambda x: system.model.apply(state.variables, x, False), image)
    shown = jax.eval_shape(adversary.shown, outputs, {"image": image})
    judge = adversary.model.init(jax.random.fold_in(jax.random.PRNGKey(seed), 2), jnp.zeros(shown.shape, shown.dtype), False)
    params = dict(zip(OPPONENTS, (state.params, judge["params"]), strict=True))
    batch_stats = dict(zip(OPPONENTS, (state.batch_stats, judge.get("batch_stats", {})), strict=True))
    averages = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if average else {}
    return replace(state, params=params, batch_stats=batch_stats, average=averages, networks=OPPONENTS,
                   opt_state={name: transformation.init(value) for name, value in params.items()})


def alternating(system: System, transformation: optax.GradientTransformation) -> Update:
    """In each step the discriminator learns from what the generator makes, then the generator from what the new one says of it.

    Terms carry the network's name. The generator runs once; its gradient passes through the discriminator's verdict and the
    system's own loss terms.

    Args:
      system: with an adversary.
      transformation: the optimizer, of each network apart.

    Raises:
      ValueError: the system has no adversary.

    Source: Isola et al. 2017, section 3.3; junyanz/pytorch-CycleGAN-and-pix2pix, models/pix2pix_model.py optimize_parameters.
    """
    adversary = _adversary(system)
    first, second = OPPONENTS

    def judged(params: Any, batch_stats: Any, maps: Arrays, batch: Arrays) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = adversary.model.apply(variables, adversary.shown(maps, batch), True, mutable=["batch_stats"])
        return logits, updated.get("batch_stats", batch_stats)

    def update(state: TrainState, batch: Mapping[str, jax.Array], rng: jax.Array) -> Updated:
        def make(params: Any) -> tuple[Any, Any]:
            return forward(system, params, state.batch_stats[first], batch["image"], rng)

        outputs, pull_back, made_stats = jax.vjp(make, state.params[first], has_aux=True)

        def cost_of_verdicts(params: Any) -> tuple[Any, tuple[Any, Any]]:
            fake, stats = judged(params, state.batch_stats[second], outputs, batch)
            real, stats = judged(params, stats, batch, batch)
            terms = discriminator_terms(real, fake, adversarial=adversary.loss)
            return sum(terms.values()), (terms, stats)

        gradient = jax.value_and_grad(cost_of_verdicts, has_aux=True)
        (judge_loss, (judge_terms, judge_stats)), judge_grads = gradient(state.params[second])
        judge_params, judge_opt = _stepped(transformation, judge_grads, state, second)

        def cost_of_outputs(outputs: Arrays) -> tuple[Any, tuple[Any, Any]]:
            fake, stats = judged(judge_params, judge_stats, outputs, batch)
            terms = generator_terms(fake, adversarial=adversary.loss) | system.loss(outputs, batch)
            return sum(terms.values()), (terms, stats)

        (loss, (terms, judge_stats)), towards = jax.value_and_grad(cost_of_outputs, has_aux=True)(outputs)
        grads, = pull_back(towards)
        params, opt_state = _stepped(transformation, grads, state, first)
        named = {f"{name}/{key}": value for name, part in ((first, terms), (second, judge_terms)) for key, value in part.items()}
        return Updated(loss + judge_loss, named, optax.tree.norm((grads, judge_grads)), {first: params, second: judge_params},
                       {first: made_stats, second: judge_stats}, state.memory, {first: opt_state, second: judge_opt})

    return update


def _adversary(system: System) -> Adversary:
    if system.adversary is None:
        raise ValueError("this system has no adversary to train against; train it on its own loss.")
    return system.adversary


def _stepped(transformation: optax.GradientTransformation, grads: Any, state: TrainState, name: str) -> tuple[Any, Any]:
    """(new params, new optimizer state) of one network."""
    updates, opt_state = transformation.update(grads, state.opt_state[name], state.params[name])
    return optax.apply_updates(state.params[name], updates), opt_state
