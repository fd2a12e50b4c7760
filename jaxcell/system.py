"""What a system is to the machinery: a network and four functions. Training and inference know nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from jaxcell.types import Instances, Sample

__all__ = ["Adversary", "Planes", "StatefulLoss", "System", "Teaching", "chosen"]

Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Teaching:
    """How a student network learns from the predictions of a teacher, for systems that can.

    Attributes:
      targets: host; (the teacher's outputs for one image, or None for an annotated sample; Sample; rng) -> what
        `System.targets` gives and what `loss` needs to know of the teacher. An image without annotation gets the teacher's
        cells as labels.
      loss: (outputs, batch) -> dict of weighted scalar terms, for batches of annotated and of taught images together.
    """

    targets: Callable[[Arrays | None, Sample, np.random.Generator], dict[str, np.ndarray]]
    loss: Callable[[Arrays, Arrays], dict[str, Any]]


@dataclass(frozen=True)
class StatefulLoss:
    """A loss that carries arrays from one step to the next, such as queues of earlier outputs, or changes with the step.

    The arrays live in the train state: they are saved, restored, and left alone by a step whose update is skipped.

    Attributes:
      start: () -> the arrays before the first step, any tree of them.
      loss: (outputs, batch, arrays, step, rng) -> (scalar to minimise, dict of scalar terms for the log, new arrays); under jit,
        with `step` the number of steps before.
    """

    start: Callable[[], Any]
    loss: Callable[[Arrays, Arrays, Any, Any, Any], tuple[Any, dict[str, Any], Any]]


@dataclass(frozen=True)
class Adversary:
    """A second network that learns to tell what the first one makes from what is real, while the first learns to mislead it.

    Attributes:
      model: (image [B, H, W, C], train) -> logits of any shape with that leading axis, above 0 for real.
      shown: (maps, batch) -> the image that it judges; maps are the outputs of the first network, or the batch, whose targets
        have the same names.
      loss: (logits, truth) -> what the verdicts cost, element by element; truth is 1 for real and 0 for made.
    """

    model: nn.Module
    shown: Callable[[Arrays, Arrays], Any]
    loss: Callable[[Any, float], Any]


@dataclass(frozen=True)
class Planes:
    """What a network says of pixels, whatever cell they belong to, and what is true of them: one word for both.

    Attributes:
      drawn: host; (outputs, with any leading axes) -> probabilities [..., H, W, 1] by name.
      truth: host; (annotated sample, some of these names) -> [H, W, 1] float32, 0 or 1, by name; -1 where it is
        not known.
    """

    drawn: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    truth: Callable[[Sample, tuple[str, ...]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class System:
    """One published system, assembled (`jaxcell/systems/<name>.py:build`).

    Attributes:
      model: `model.apply(variables, image [B, H, W, C], train)` gives a dict of named arrays; same keys in train and eval.
      targets: host; (Sample, rng) -> dict of fixed-shape arrays that, with `image`, become the batch. The sample is cropped
        and normalised already; `rng` is the sample's own generator.
      loss: (outputs, batch) -> dict of weighted scalar terms; the step sums them.
      decode: host; outputs of one region (no batch axis, numpy) -> Instances in that region's pixels.
      divisor: input sides must be multiples of this.
      teaching: how it learns from a teacher's predictions, or None.
      consistency: (outputs, another network's outputs) -> dict of weighted scalar terms that ask the first to agree with the
        second on images without annotation, or None.
      planes: for networks that say what lies where besides finding cells, or None.
      load: (published state dict, variables) -> variables: the authors' own checkpoints in this network's places.
      objective: what training minimises where `loss`, a function of outputs and batch alone, is not enough; or None.
      uncertainty: host; outputs of one region, as `decode` gets them -> [h, w] float32, how unsure the network is of each pixel
        (higher is less sure; what the unit is, the system says), or None.
      adversary: a second network that training sets against the first, or None.
      draw: host; (outputs, with any leading axes) -> image [..., H, W, C] in [0, 1], for systems that make images; their
        `decode` refuses, and their model takes `noise`, a bool. None for systems that find cells.
    """

    model: nn.Module
    targets: Callable[[Sample, np.random.Generator], dict[str, np.ndarray]]
    loss: Callable[[Arrays, Arrays], dict[str, Any]]
    decode: Callable[[Mapping[str, np.ndarray]], Instances]
    divisor: int
    teaching: Teaching | None = None
    consistency: Callable[[Arrays, Arrays], dict[str, Any]] | None = None
    planes: Planes | None = None
    load: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], dict[str, Any]] | None = None
    objective: StatefulLoss | None = None
    uncertainty: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None
    adversary: Adversary | None = None
    draw: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None


def chosen(table: Mapping[str, Any], key: str, name: str) -> Any:
    """The entry of a table of parts that a config names.

    Args:
      table: name -> part.
      key: of the config, for the error.
      name: its value.

    Raises:
      ValueError: no such entry; lists those that exist.
    """
    if name not in table:
        raise ValueError(f"config.{key}={name!r} is unknown; known are {', '.join(sorted(table))}.")
    return table[name]
