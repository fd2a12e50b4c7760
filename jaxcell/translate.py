"""Networks that make images: one function of an image, and how far what they make is from the real thing."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcell import viz
from jaxcell.configuration import load_config
from jaxcell.data.normalize import fit_normalizer
from jaxcell.inference.blocks import dense_blocks, predict_maps
from jaxcell.inference.tiling import plan_tiles
from jaxcell.metrics.frechet import feature_statistics, frechet_distance
from jaxcell.models.backend import compiler_options
from jaxcell.models.encoders.inception import InceptionV3
from jaxcell.pretrained.inception import load_inception
from jaxcell.pretrained.torch import read_checkpoint
from jaxcell.start import trained_state
from jaxcell.system import System, chosen
from jaxcell.systems import build_system
from jaxcell.training.mesh import make_mesh, shard_batch
from jaxcell.training.step import make_apply
from jaxcell.types import Sample

__all__ = ["Features", "image_scorer", "load_features", "load_translator", "make_translate", "score_images"]

Translate = Callable[[Any, np.ndarray], np.ndarray]


class Features(NamedTuple):
    """What a Fréchet distance compares.

    Attributes:
      name: of the distance, "fid" only for that of Inception.
      of: image [H, W, K] in [0, 1] -> feature vectors [n, D], one of each plane or one of all together.
    """

    name: str
    of: Callable[[np.ndarray], np.ndarray]


def make_translate(system: System, mesh: Mesh, config: Any) -> Translate:
    """(variables, image [H, W, C] as stored) -> what the network makes of it, [H, W, K] float32 in [0, 1].

    The planes that are shown come first. With `config.inference.noise` features are dropped at random, by a seed that is drawn
    from the image itself: another image gets other noise, the same image always the same. `config.inference.statistics` says
    what norms take: an entry of `STATISTICS`.

    Raises:
      ValueError: the system finds cells instead of making images; unknown statistics; a tile that the network cannot take; or
        an image without the planes that are shown.
    """
    options, draw = config.inference, system.draw
    if draw is None:
        raise ValueError(f"config.system={config.system!r} finds cells and makes no images; name a run of pix2pix.")
    plan_tiles((options.tile, options.tile), tile=options.tile, margin=options.margin, divisor=system.divisor)
    apply = jax.jit(partial(chosen(STATISTICS, "inference.statistics", options.statistics), system.model, noise=options.noise),
                    compiler_options=compiler_options())

    def translate(variables: Any, image: np.ndarray) -> np.ndarray:
        if image.shape[2] < config.model.inputs:
            raise ValueError(f"an image of shape {image.shape} for a network that is shown {config.model.inputs} planes; give it "
                             "these planes, in the order of training.")
        key, numbers = jax.random.key(zlib.crc32(image.tobytes())), itertools.count()

        def network(tiles: np.ndarray) -> Mapping[str, np.ndarray]:
            shown = shard_batch({"image": tiles}, mesh)["image"]
            return {"image": draw(jax.device_get(apply(variables, shown, jax.random.fold_in(key, next(numbers)))))}

        normalize = fit_normalizer(image, dict(config.data.normalize), channels=image.shape[2])
        maps = partial(dense_blocks, tile=options.tile, margin=options.margin)
        return predict_maps(network, image, maps=maps, batch=-(-options.batch // mesh.size) * mesh.size, divisor=system.divisor,
                            normalize=normalize)["image"]

    return translate


def _apply_running(model: nn.Module, variables: Any, images: jax.Array, key: jax.Array, *, noise: bool) -> Any:
    return model.apply(variables, images, False, noise=noise, rngs={"dropout": key})


def _apply_each(model: nn.Module, variables: Any, images: jax.Array, key: jax.Array, *, noise: bool) -> Any:
    def alone(image: jax.Array, key: jax.Array) -> Any:
        outputs, _ = model.apply(variables, image[None], True, noise=noise, rngs={"dropout": key}, mutable=["batch_stats"])
        return jax.tree.map(lambda value: value[0], outputs)

    return jax.vmap(alone)(images, jax.random.split(key, len(images)))


STATISTICS: Mapping[str, Callable[..., Any]] = {"tile": _apply_each, "running": _apply_running}
"""What norms take in prediction: mean and deviation of each tile by itself, as Isola et al. and their test.py (unless it is told
--eval), which suits batches of one image; or the running averages of training, which lag behind while two networks compete."""


def load_translator(workdir: str | Path, *, checkpoint: str = "best", config: Any = None) -> Callable[[np.ndarray], np.ndarray]:
    """The trained network of a workdir as one function; see `make_translate`.

    Args:
      workdir: of the run.
      checkpoint: "best" by validation, or "latest".
      config: a changed copy of the run's config; None for the run's own.
    """
    config = load_config(workdir) if config is None else config
    system, mesh = build_system(config), make_mesh()
    translate = make_translate(system, mesh, config)
    variables = trained_state(config, system, workdir, mesh, checkpoint=checkpoint)[0].predicting
    return lambda image: translate(variables, image)


def score_images(translate: Callable[[np.ndarray], np.ndarray], samples: Iterable[Sample], *, normalize: Mapping[str, Any],
                 planes: Sequence[int] | None = None, features: Features | None = None, pictures: Path | None = None,
                 picture_count: int = 0) -> dict[str, float]:
    """How far what a network makes is from what is real.

    Args:
      translate: image as stored [H, W, C] -> [H, W, K] in [0, 1]; its last K planes are what should be made.
      samples: images of C planes.
      normalize: of `fit_normalizer`.
      planes: of the samples' images, in the order of training; None: all as they are.
      features: what a Fréchet distance compares, see `load_features`; None leaves it out.
      pictures: folder for the first `picture_count`: what is shown, what is made of it, and what is real.
      picture_count: how many of them to draw.

    Returns:
      "l1": mean absolute error over all pixels, as a share of the full range; and with features, under their name, the Fréchet
      distance between what is made and what is real. It needs thousands of planes to mean the same as elsewhere.

    Raises:
      ValueError: no samples.
    """
    total, count = 0.0, 0
    seen: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for number, sample in enumerate(samples):
        image = sample.image if planes is None else sample.image[..., list(planes)]
        made = translate(image)
        whole = fit_normalizer(image, dict(normalize), channels=image.shape[2])(image)
        shown, real = np.split(whole, [whole.shape[2] - made.shape[2]], axis=2)
        total, count = total + float(np.abs(made - real).sum()), count + real.size
        if features is not None:
            for found, side in zip(seen, (made, real), strict=True):
                found.append(features.of(side))
        if pictures is not None and number < picture_count:
            row = np.concatenate([*np.moveaxis(shown, -1, 0), *np.moveaxis(made, -1, 0), *np.moveaxis(real, -1, 0)], axis=1)
            viz.save_png(pictures / f"{sample.name}.png", np.repeat((255 * np.clip(row, 0, 1)).astype(np.uint8)[..., None], 3, 2))
    if not count:
        raise ValueError("score_images: no samples to score; the data source is empty.")
    distance = {} if features is None else {features.name: frechet_distance(*map(feature_statistics, seen))}
    return {"l1": total / count} | distance


def image_scorer(config: Any) -> Callable[..., dict[str, float]]:
    """`score_images` with what a config says: normalisation, planes, and the features of `config.train.features`.

    Raises:
      ValueError: see `load_features`.
    """
    return partial(score_images, normalize=dict(config.data.normalize), planes=tuple(config.data.planes) or None,
                   features=load_features(config.train.features, planes=config.model.outputs) if config.train.features else None)


def load_features(path: str | Path, *, planes: int) -> Features:
    """What a network sees in images, for a Fréchet distance.

    Args:
      path: pt_inception-2015-12-05-6726825d.pth, the weights that the Fréchet inception distance is defined with; or the
        workdir of a run whose network says something of every pixel. Then the features are mean and standard deviation of each
        of its dense maps over the image, and the distance has another unit: compare it within one such network only.
      planes: K, of the images to compare. Inception sees each by itself; a run's network sees them together if it was trained
        with so many, else each by itself.

    Raises:
      ValueError: other weights; a run without dense maps of the image; or a run of K' planes, neither K nor 1 nor 3.

    Source: Heusel et al. 2017; the thesis, section 5.6. A plane is repeated to the three that Inception expects.
    """
    if Path(path).is_dir():
        return Features("frechet", _seen_by_run(path, planes))
    network = InceptionV3()
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    variables = jax.device_put(load_inception(read_checkpoint(path), shapes))
    apply = jax.jit(network.apply, compiler_options=compiler_options())
    return Features("fid", lambda image: np.asarray(apply(variables, np.repeat(_apart(image), 3, axis=-1))))


def _apart(image: np.ndarray) -> np.ndarray:
    """[H, W, K] -> [K, H, W, 1]."""
    return np.moveaxis(image, -1, 0)[..., None]


def _seen_by_run(workdir: str | Path, planes: int) -> Callable[[np.ndarray], np.ndarray]:
    """Image [H, W, K] in [0, 1] -> [1 or K, D] of a trained network's dense maps; sides are cut to multiples of its divisor."""
    config = load_config(workdir)
    system, mesh = build_system(config), make_mesh()
    apply, channels, normalize = make_apply(system.model), config.data.channels, dict(config.data.normalize)
    if channels not in (planes, 1, 3):
        raise ValueError(f"config.train.features={str(workdir)!r}: its network sees {channels} planes, and the images to compare "
                         f"have {planes}. Name a run with {planes} planes, or of grey or colour images, which sees each alone.")
    variables = trained_state(config, system, workdir, mesh)[0].predicting

    def dense(outputs: Mapping[str, Any], sides: tuple[int, int]) -> list[Any]:
        return [value for value in outputs.values() if value.ndim == 4 and value.shape[1] * sides[1] == value.shape[2] * sides[0]]

    side = 2 * system.divisor
    if not dense(jax.eval_shape(apply, variables, jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)), (side, side)):
        raise ValueError(f"config.train.features={str(workdir)!r}: its network draws no dense maps of the image; name a run that "
                         "does, such as one of maunet.")

    def seen(image: np.ndarray) -> np.ndarray:
        sides = tuple(length // system.divisor * system.divisor for length in image.shape[:2])
        cut = image[:sides[0], :sides[1]]
        parts = cut[None] if channels == planes else _apart(cut)
        inputs = [fit_normalizer(part, normalize, channels=channels)(part) for part in parts]
        outputs = jax.device_get(apply(variables, jnp.asarray(np.stack(inputs), jnp.float32)))
        moments = [(value.mean((1, 2)), value.std((1, 2))) for value in dense(outputs, sides)]
        return np.concatenate([moment for pair in moments for moment in pair], axis=-1)

    return seen
