"""Scores a trained run, or anybody's predictions, against annotated images.

    python evaluate.py --workdir runs/demo                                        (the run's own validation data)
    python evaluate.py --workdir runs/demo --config.decode.score_threshold=0.6    (other thresholds, other data)
    python evaluate.py --truth DIR --split=val --predictions DIR_OR_COCO_JSON     (anybody's label images or COCO file)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app
from jax.sharding import Mesh
from ml_collections import config_flags
from tqdm import tqdm

from jaxcell import viz
from jaxcell.configuration import load_config
from jaxcell.data.images import SUFFIXES, read_labels
from jaxcell.data.normalize import fit_normalizer
from jaxcell.data.sources import SOURCES, CachedSource, ConcatSource, Source
from jaxcell.data.sources.folder import FolderSource
from jaxcell.export.coco import read_coco
from jaxcell.inference.blocks import predict_image
from jaxcell.inference.overlap import predict_image_overlapping
from jaxcell.metrics.report import Report, evaluate, plot, to_json, to_table
from jaxcell.system import System
from jaxcell.systems import build_system
from jaxcell.training.checkpoint import restore_state
from jaxcell.training.mesh import make_mesh, replicated, shard_batch
from jaxcell.training.optimizer import make_optimizer
from jaxcell.training.state import init_state
from jaxcell.training.step import make_apply
from jaxcell.types import Instances, Sample

__all__ = ["load_predictor", "make_predict", "open_source", "score_predictions", "score_samples", "write_report"]

# (variables, image [H, W, C] as stored) -> Instances
Predict = Callable[[Any, np.ndarray], Instances]


def open_source(specs: Mapping[str, Mapping[str, Any]], *, root: str | Path, cache_gb: float) -> Source:
    """The sources of `config.data.train` or `.val`, joined, each kept decoded in memory as far as `cache_gb` reaches.

    Args:
      specs: name -> {"kind": an entry of SOURCES, "repeat": how often a sample counts, and the source's own arguments}.
      root: folder that relative "root", "images" and "annotations" paths start from.
      cache_gb: memory for decoded samples, shared evenly.
    """
    parts, repeats = [], []
    for name, spec in specs.items():
        options = dict(spec)
        kind, repeat = options.pop("kind"), options.pop("repeat", 1)
        if kind not in SOURCES:
            raise ValueError(f"source {name!r}: kind {kind!r} is unknown; known are {', '.join(sorted(SOURCES))}.")
        for key in {"root", "image_dir", "annotations"} & set(options):
            options[key] = Path(root) / options[key]
        parts.append(CachedSource(SOURCES[kind](**options), max_bytes=int(cache_gb * 2**30 / len(specs))))
        repeats.append(repeat)
    return ConcatSource(parts, repeats=repeats)


def make_predict(system: System, apply: Callable[[Any, jax.Array], Mapping[str, jax.Array]], mesh: Mesh, config: Any) -> Predict:
    """(variables, image as stored) -> Instances, by `config.inference` and `config.data`.

    Args:
      apply: of `make_apply`; compiled once for `config.inference.tile`, whatever the image's size.
      mesh: tiles are shared out over its devices.
    """
    options = config.inference
    batch = -(-options.batch // mesh.size) * mesh.size
    modes: dict[str, Callable[..., Instances]] = {
        "blocks": partial(predict_image, tile=options.tile, margin=options.margin, block=options.block, halo=options.halo),
        "overlapping": partial(predict_image_overlapping, crop=options.tile, stride=options.tile // 2, border=options.border,
                               nms_threshold=config.decode.nms_threshold),
    }
    if options.mode not in modes:
        raise ValueError(f"config.inference.mode={options.mode!r} is unknown; known are {', '.join(modes)}.")

    def predict(variables: Any, image: np.ndarray) -> Instances:
        def network(tiles: np.ndarray) -> Mapping[str, np.ndarray]:
            return jax.device_get(apply(variables, shard_batch({"image": tiles}, mesh)["image"]))

        normalize = fit_normalizer(image, dict(config.data.normalize), channels=config.data.channels, planes=config.data.planes)
        return modes[options.mode](network, image, decode=system.decode, batch=batch, divisor=system.divisor, normalize=normalize)

    return predict


def load_predictor(workdir: str | Path, *, checkpoint: str = "best", config: Any = None) -> Callable[[np.ndarray], Instances]:
    """The trained network of a workdir as one function: image [H, W, C] as stored -> Instances.

    Args:
      workdir: of the run.
      checkpoint: "best" by validation score, or "latest". A run that never validated has no best one; then the latest serves.
      config: a changed copy of the run's config; None for the run's own.
    """
    config = load_config(workdir) if config is None else config
    system, mesh = build_system(config), make_mesh()
    transformation, _ = make_optimizer(config.optimizer)
    shape = (1, config.data.crop, config.data.crop, config.data.channels)
    abstract = jax.eval_shape(lambda: init_state(system.model, transformation, seed=0, image_shape=shape))
    folder = Path(workdir) / {"best": "best", "latest": "checkpoints"}[checkpoint]
    if checkpoint == "best" and not any(folder.glob("*")):
        folder = Path(workdir) / "checkpoints"
    state, _ = restore_state(folder, abstract, replicated(mesh))
    predict = make_predict(system, make_apply(system.model), mesh, config)
    return partial(predict, state.variables)


def score_samples(predict: Callable[[np.ndarray], Instances], samples: Iterable[Sample], *, pictures: Path | None = None,
                  picture_count: int = 0, progress: bool = False) -> Report:
    """Predicts and scores annotated samples one after another.

    Args:
      predict: image as stored -> Instances.
      samples: with labels.
      pictures: folder for overlays of the first `picture_count` samples, truth beside prediction.
      picture_count: how many of them to draw.
    """
    def pairs() -> Iterator[tuple[str, str, Instances, Instances]]:
        for number, sample in enumerate(tqdm(samples, unit="image", disable=not progress)):
            if sample.labels is None:
                raise ValueError(f"sample {sample.name!r} has no labels; there is nothing to score it against.")
            truth, prediction = Instances.from_labels(sample.labels), predict(sample.image)
            if pictures is not None and number < picture_count:
                pictures.mkdir(parents=True, exist_ok=True)
                viz.save_png(pictures / f"{Path(sample.name).name}.png", viz.overlay(sample.image, prediction, truth=truth))
            yield sample.name, sample.modality, truth, prediction

    return evaluate(pairs())


def score_predictions(truth: Source, predictions: Path) -> Report:
    """Scores anybody's predictions: a folder of label images named like the images, or a COCO file.

    Raises:
      FileNotFoundError: an image has no prediction; names it. (An image without cells needs an empty label image.)
    """
    by_coco = read_coco(predictions) if predictions.is_file() else None

    def prediction_of(sample: Sample) -> Instances:
        stem = Path(sample.name).stem
        if by_coco is not None:
            found = {Path(name).stem: instances for name, instances in by_coco.items()}
            if stem not in found:
                raise FileNotFoundError(f"{predictions} has no image {stem!r}; an image without cells must be listed too.")
            return found[stem]
        files = [predictions / f"{stem}{ending}{suffix}" for ending in ("_labels", "_label", "_masks", "_mask", "")
                 for suffix in SUFFIXES]
        file = next((f for f in files if f.exists()), None)
        if file is None:
            raise FileNotFoundError(f"{predictions} has no label image for {stem!r}; expected {stem}_labels.tif, {stem}.png or "
                                    "the like (an image without cells needs an empty one).")
        return Instances.from_labels(read_labels(file))

    samples = (truth[i] for i in range(len(truth)))
    return evaluate((s.name, s.modality, Instances.from_labels(s.labels), prediction_of(s))
                    for s in samples if s.labels is not None)


def write_report(report: Report, out: Path) -> None:
    """Writes report.md, report.json and report.png into `out` and prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    table = to_table(report)
    (out / "report.md").write_text(table + "\n")
    (out / "report.json").write_text(to_json(report))
    plot(report, out / "report.png")
    print(table)
    print(f"written to {out}: report.md, report.json, report.png")


def run() -> None:
    """Entry point of `python evaluate.py` and `jaxcell evaluate`."""
    parser = argparse.ArgumentParser(prog="evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="of a training run")
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best")
    parser.add_argument("--truth", type=Path, help="folder of annotated images, to score --predictions against")
    parser.add_argument("--predictions", type=Path, help="folder of label images, or a COCO json")
    parser.add_argument("--split", default=None, help="of the truth's manifest")
    parser.add_argument("--modality", default=None, help="score only images whose modality contains this text")
    parser.add_argument("--out", type=Path, help="folder for the report; default <workdir>/evaluation")
    parser.add_argument("--pictures", type=int, default=12, help="overlays to draw")
    options, rest = parser.parse_known_args(sys.argv[1:])
    if (options.workdir is None) == (options.truth is None or options.predictions is None):
        parser.error("give either --workdir, or --truth with --predictions")
    if options.workdir is None:
        if rest:
            parser.error(f"unknown arguments {' '.join(rest)}")
        truth = FolderSource(options.truth, split=options.split, modality=options.modality)
        write_report(score_predictions(truth, options.predictions), options.out or Path("evaluation"))
        return
    # The run's config becomes flags: --config.decode.score_threshold=0.6 changes it, a wrong key fails and names near ones.
    flag = config_flags.DEFINE_config_dict("config", load_config(options.workdir).copy_and_resolve_references())

    def main(argv: list[str]) -> None:
        if argv[1:]:
            parser.error(f"unknown arguments {' '.join(argv[1:])}")
        config, out = flag.value, options.out or options.workdir / "evaluation"
        source = open_source(config.data.val, root=config.data.root, cache_gb=0.0)
        samples = (source[i] for i in range(len(source)))
        wanted = [s for s in samples if options.modality is None or options.modality in s.modality]
        predict = load_predictor(options.workdir, checkpoint=options.checkpoint, config=config)
        report = score_samples(predict, wanted, pictures=out / "pictures", picture_count=options.pictures, progress=True)
        write_report(report, out)

    app.run(main, argv=[sys.argv[0], *rest])
