"""A teacher for images without annotation: its predictions become the student's targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcell.system import Teaching
from jaxcell.training.mesh import local_rows, shard_batch
from jaxcell.types import Sample

__all__ = ["make_teacher"]

Arrays = Mapping[str, np.ndarray]

TEACH = 2       # what a random stream is for: its second number, after the seed


def make_teacher(teaching: Teaching, apply: Callable[[Any, jax.Array], Mapping[str, jax.Array]], mesh: Mesh, *, seed: int
                 ) -> Callable[[Any, Arrays, Arrays, Sequence[str], int], dict[str, np.ndarray]]:
    """A function that adds images without annotation, with the teacher's targets, to an annotated batch.

    Args:
      teaching: of the system.
      apply: (variables, image [B, H, W, C]) -> outputs, compiled.
      mesh: the teacher predicts on all its devices.
      seed: of the targets' random numbers, which are a function of it, the step and the image's place in the batch.

    Returns:
      (the teacher's variables, annotated batch, batch with the key "image", its names, step) -> the two as one batch, on
      the host; both are this process's share.

    Source: Liu et al., "Unbiased teacher v2", CVPR 2022 (Listen2Student); the system's rule says what is learned from whom.
    """

    def teach(variables: Any, annotated: Arrays, unlabelled: Arrays, names: Sequence[str], step: int) -> dict[str, np.ndarray]:
        images = unlabelled["image"]
        predicted = apply(variables, shard_batch({"image": images}, mesh)["image"])
        outputs = {key: local_rows(value) for key, value in predicted.items()}
        first = jax.process_index() * len(images)
        taught = [
            teaching.targets({key: value[i] for key, value in outputs.items()}, Sample(images[i], name=name),
                             np.random.default_rng((seed, TEACH, step, first + i)))
            for i, name in enumerate(names)]
        joined = {key: np.concatenate([annotated[key], np.stack([row[key] for row in taught])]) for key in taught[0]}
        return joined | {"image": np.concatenate([annotated["image"], images])}

    return teach
