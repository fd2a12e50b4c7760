"""What a system is to the machinery: a network and four functions. Training and inference know nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from jaxcell.types import Instances, Sample

__all__ = ["System"]

Arrays = Mapping[str, Any]


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
      load: (published state dict, variables) -> variables: the authors' own checkpoints in this network's places.
    """

    model: nn.Module
    targets: Callable[[Sample, np.random.Generator], dict[str, np.ndarray]]
    loss: Callable[[Arrays, Arrays], dict[str, Any]]
    decode: Callable[[Mapping[str, np.ndarray]], Instances]
    divisor: int
    load: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], dict[str, Any]] | None = None
