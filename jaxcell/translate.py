"""Networks that make images: one function of an image, and how far what they make is from the real thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcell import viz
from jaxcell.configuration import load_config
from jaxcell.data.normalize import fit_normalizer
from jaxcell.inference.blocks import dense_blocks, predict_maps
from jaxcell.metrics.frechet import feature_statistics, frechet_distance
from jaxcell.models.backend import compiler_options
from jaxcell.models.encoders.inception import InceptionV3
from jaxcell.pretrained.inception import load_inception
from jaxcell.pretrained.torch import read_checkpoint
from jaxcell.start import trained_state
from jaxcell.system import System
from jaxcell.systems import build_system
from jaxcell.training.mesh import make_mesh, shard_batch
from jaxcell.training.step import make_apply
from jaxcell.types import Sample

__all__ = ["load_features", "load_translator", "make_translate", "score_images"]

Translate = Callable[[Any, np.ndarray], np.ndarray]
Features = Callable[[np.ndarray], np.ndarray]


def make_translate(system: System, apply: Callable[[Any, jax.Array], Mapping[str, jax.Array]], mesh: Mesh, config: Any
                   ) -> Translate:
    """(variables, image [H, W, C] as stored) -> what the network makes of it, [H, W, K] float32 in [0, 1].

    Raises:
      ValueError: the system finds cells instead of making images.
    """
    options, draw = config.inference, system.draw
    if draw is None:
        raise ValueError(f"config.system={config.system!r} finds cells and makes no images; name a run of pix2pix.")

    def translate(variables: Any, image: np.ndarray) -> np.ndarray:
        def network(tiles: np.ndarray) -> Mapping[str, np.ndarray]:
            return {"image": draw(jax.device_get(apply(variables, shard_batch({"image": tiles}, mesh)["image"])))}

        normalize = fit_normalizer(image, dict(config.data.normalize), channels=image.shape[2])
        maps = partial(dense_blocks, tile=options.tile, margin=options.margin)
        return predict_maps(network, image, maps=maps, batch=-(-options.batch // mesh.size) * mesh.size, divisor=system.divisor,
                            normalize=normalize)["image"]

    return translate


def load_translator(workdir: str | Path, *, checkpoint: str = "best") -> Callable[[np.ndarray], np.ndarray]:
    """The trained network of a workdir as one function; see `make_translate`.

    Args:
      workdir: of the run.
      checkpoint: "best" by validation, or "latest".
    """
    config = load_config(workdir)
    system, mesh = build_system(config), make_mesh()
    translate = make_translate(system, make_apply(system.model), mesh, config)
    variables = trained_state(config, system, workdir, mesh, checkpoint=checkpoint)[0].predicting
    return lambda image: translate(variables, image)


def score_images(translate: Callable[[np.ndarray], np.ndarray], samples: Iterable[Sample], *, normalize: Mapping[str, Any],
                 features: Features | None = None, pictures: Path | None = None, picture_count: int = 0) -> dict[str, float]:
    """How far what a network makes is from what is real.

    Args:
      translate: image as stored [H, W, C] -> [H, W, K] in [0, 1]; its last K planes are what should be made.
      samples: images of C planes.
      normalize: of `fit_normalizer`.
      features: of planes, such as `load_features` gives; None leaves the Fréchet distance out.
      pictures: folder for the first `picture_count`: what is shown, what is made of it, and what is real.
      picture_count: how many of them to draw.

    Returns:
      "l1": mean absolute error over all pixels, as a share of the full range; and with features "fid": Fréchet distance between
      the made planes and the real ones, each an image by itself. It needs thousands of planes to mean the same as elsewhere.

    Raises:
      ValueError: no samples.
    """
    total, count = 0.0, 0
    seen: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for number, sample in enumerate(samples):
        made = translate(sample.image)
        whole = fit_normalizer(sample.image, dict(normalize), channels=sample.image.shape[2])(sample.image)
        shown, real = np.split(whole, [whole.shape[2] - made.shape[2]], axis=2)
        total, count = total + float(np.abs(made - real).sum()), count + real.size
        if features is not None:
            for found, image in zip(seen, (made, real), strict=True):
                found.append(features(np.moveaxis(image, -1, 0)))
        if pictures is not None and number < picture_count:
            row = np.concatenate([*np.moveaxis(shown, -1, 0), *np.moveaxis(made, -1, 0), *np.moveaxis(real, -1, 0)], axis=1)
            viz.save_png(pictures / f"{sample.name}.png", np.repeat((255 * np.clip(row, 0, 1)).astype(np.uint8)[..., None], 3, 2))
    if not count:
        raise ValueError("score_images: no samples to score; the data source is empty.")
    distance = {} if features is None else {"fid": frechet_distance(*map(feature_statistics, seen))}
    return {"l1": total / count} | distance


def load_features(path: str | Path) -> Features:
    """What Inception-v3 sees in planes, for the Fréchet inception distance: [n, H, W] in [0, 1] -> [n, 2048].

    Args:
      path: pt_inception-2015-12-05-6726825d.pth, the weights that the distance is defined with.

    Raises:
      ValueError: other weights.

    Source: Heusel et al. 2017; the thesis, section 5.6. A plane is repeated to the three that the network expects.
    """
    network = InceptionV3()
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    variables = jax.device_put(load_inception(read_checkpoint(path), shapes))
    apply = jax.jit(network.apply, compiler_options=compiler_options())
    return lambda planes: np.asarray(apply(variables, np.repeat(planes[..., None], 3, axis=-1)))
