"""Scores a trained run, or anybody's predictions, against annotated images.

    python evaluate.py --workdir runs/demo                                        (the run's own validation data)
    python evaluate.py --workdir runs/demo --config.decode.score_threshold=0.6    (other thresholds, other data)
    python evaluate.py --workdir runs/demo --analyse                              (where precision is lost: masks, or ranking)
    python evaluate.py --workdir runs/demo --planes=overlap:0.3,cytoplasm         (pixels of a class, where the network has heads)
    python evaluate.py --truth DIR --split=val --predictions DIR_OR_COCO_JSON     (anybody's label images or COCO file, or what
                                                                                   `jaxcell predict` wrote)
"""

from __future__ import annotations

import argparse
import json
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxcell import viz
from jaxcell.configuration import load_changed_config, load_config
from jaxcell.data.annotations.json_file import read_json
from jaxcell.data.images import ANNOTATION_ENDINGS, SUFFIXES, stem_of
from jaxcell.data.labels import read_labels
from jaxcell.data.normalize import fit_normalizer
from jaxcell.data.sources import Source, open_source
from jaxcell.data.sources.coco import CocoSource, coco_files, images_beside
from jaxcell.data.sources.folder import FolderSource
from jaxcell.export.coco import read_coco
from jaxcell.inference.blocks import BlockMaps, dense_blocks, predict_image, predict_maps
from jaxcell.inference.ensemble import check_merging, mean_outputs, merged_blocks, step_of_overlap
from jaxcell.inference.overlap import predict_image_overlapping
from jaxcell.inference.tiling import Window, plan_tiles
from jaxcell.inference.windows import predict_image_by_windows
from jaxcell.metrics.analysis import ANALYSES
from jaxcell.metrics.masks import COCO_SIZES, LIVECELL_DETECTIONS, LIVECELL_SIZES
from jaxcell.metrics.matching import drop_ignored
from jaxcell.metrics.report import Report, evaluate, plot, to_json, to_table
from jaxcell.metrics.semantic import ClassCounts, class_counts
from jaxcell.start import trained_state
from jaxcell.system import Planes, System
from jaxcell.systems import build_system
from jaxcell.targets.masks import annotated_pixels
from jaxcell.training.compile_cache import use_compile_cache
from jaxcell.training.log import quiet_libraries
from jaxcell.training.mesh import make_mesh, shard_batch, unused_accelerators
from jaxcell.training.step import make_apply
from jaxcell.translate import image_scorer, load_translator
from jaxcell.types import Instances, Sample

__all__ = ["coco_names", "iterate", "load_planes", "load_predictor", "make_planes", "make_predict", "open_truth", "score_planes",
           "score_predictions", "score_samples", "write_planes", "write_report"]

# (variables, image [H, W, C] as stored), and optionally uncertainty= an array [H, W] to be filled -> Instances
Predict = Callable[..., Instances]
Network = Callable[[jax.Array], Mapping[str, jax.Array]]
# (truth, prediction) -> changed prediction
Analyses = Mapping[str, Callable[[Instances, Instances], Instances]]


def make_predict(system: System, apply: Callable[[Any, jax.Array], Mapping[str, jax.Array]], mesh: Mesh, config: Any, *,
                 partners: Sequence[Network] = ()) -> Predict:
    """(variables, image as stored, uncertainty=None) -> Instances, by `config.inference` and `config.data`.

    `uncertainty` is an array [H, W] of floats that is filled with the system's uncertainty of each pixel (`System.uncertainty`).

    Args:
      apply: of `make_apply`; compiled once for `config.inference.tile`, whatever the image's size.
      mesh: tiles are shared out over its devices.
      partners: further networks, images -> outputs with the same keys; the mean of all is decoded.

    Raises:
      ValueError: an unknown mode, a tile that the network cannot take, or a system that makes images.
    """
    if system.draw is not None:
        raise ValueError(f"config.system={config.system!r} makes images, not cells; make them with `jaxcell synthesize`, and "
                         "segment by another system.")
    options = config.inference
    batch = -(-options.batch // mesh.size) * mesh.size
    makers = _map_makers(options)

    def by_maps(mode: str) -> Callable[..., Instances]:
        return partial(predict_image, maps=makers[mode](), block=options.block, halo=options.halo)

    modes: dict[str, Callable[[], Callable[..., Instances]]] = {
        **{mode: partial(by_maps, mode) for mode in makers},
        "overlapping": lambda: partial(predict_image_overlapping, crop=options.tile, stride=options.tile // 2,
                                       border=options.border, nms_threshold=config.decode.nms_threshold),
        "windows": lambda: partial(predict_image_by_windows, tile=options.tile, margin=options.margin),
    }
    if options.mode not in modes:
        raise ValueError(f"config.inference.mode={options.mode!r} is unknown; known are {', '.join(modes)}.")
    segment = modes[options.mode]()
    _check_sizes(options, batch, system.divisor)    # training calls this before its first step, hours before it predicts

    def predict(variables: Any, image: np.ndarray, uncertainty: np.ndarray | None = None) -> Instances:
        image = image[..., None] if image.ndim == 2 else image
        network = _mean_of_networks([partial(apply, variables), *partners], mesh)
        normalize = fit_normalizer(image, dict(config.data.normalize), channels=config.data.channels,
                                   planes=tuple(config.data.planes) or None)
        run = segment if uncertainty is None else partial(segment, watch=_painter(system, config.system, uncertainty))
        return run(network, image, decode=system.decode, batch=batch, divisor=system.divisor, normalize=normalize)

    return predict


def _check_sizes(options: Any, batch: int, divisor: int) -> None:
    """What a mode's functions would refuse at the first image, whatever that is."""
    if options.mode in ("merged", "sliding"):
        step = step_of_overlap(options.tile, options.overlap) if options.mode == "merged" else options.step
        check_merging(window=options.tile, step=step, edges=options.edges, merge=options.merge, blend=options.blend,
                      scales=options.scales, batch=batch, divisor=divisor)
    else:
        margin = 0 if options.mode == "overlapping" else options.margin
        plan_tiles((options.tile, options.tile), tile=options.tile, margin=margin, divisor=divisor)


def _mean_of_networks(networks: Sequence[Network], mesh: Mesh) -> Callable[[np.ndarray], Mapping[str, jax.Array]]:
    """Images on the host -> the mean of the networks' outputs on the devices: the caller copies it when it has begun the next."""
    def outputs(tiles: np.ndarray) -> Mapping[str, jax.Array]:
        images = shard_batch({"image": tiles}, mesh)["image"]
        return mean_outputs([network(images) for network in networks])

    return outputs


def _map_makers(options: Any, *, merge: str | None = None) -> dict[str, Callable[[], BlockMaps]]:
    """The values of `config.inference.mode` for networks of dense maps, and what makes the maps of blocks in each.

    "merged" and "sliding" are the same but for how the step is given: as a share of the window, or in pixels. `merge` stands in
    for the config's.
    """
    def windows(step: int) -> BlockMaps:
        return partial(merged_blocks, window=options.tile, step=step, edges=options.edges, merge=merge or options.merge,
                       blend=options.blend, scales=tuple(options.scales), large=options.large)

    return {"blocks": lambda: partial(dense_blocks, tile=options.tile, margin=options.margin),
            "merged": lambda: windows(step_of_overlap(options.tile, options.overlap)),
            "sliding": lambda: windows(options.step)}


def _painter(system: System, name: str, canvas: np.ndarray) -> Callable[[Window, Mapping[str, np.ndarray]], None]:
    """Paints the uncertainty of every block that it is shown, without its halo."""
    draw = system.uncertainty
    if draw is None:
        raise ValueError(f"the system {name} says of no pixel how unsure it is; only a system that does has a map of it. Leave "
                         "the map out.")

    def paint(window: Window, maps: Mapping[str, np.ndarray]) -> None:
        (top, left, _, _), (y0, x0, y1, x1) = window.frame, window.core
        canvas[y0:y1, x0:x1] = draw(maps)[y0 - top:y1 - top, x0 - left:x1 - left]

    return paint


def load_predictor(workdir: str | Path, *, checkpoint: str = "best", config: Any = None) -> Callable[..., Instances]:
    """The trained network of a workdir as one function: image [H, W, C] or [H, W] as stored -> Instances.

    Given `uncertainty=` an array [H, W] of floats too, it fills that with how unsure the network is of each pixel, where the
    system says so (morphoseg).

    Args:
      workdir: of the run.
      checkpoint: "best" by validation score, or "latest". A run that never validated has no best one; then the latest serves.
      config: a changed copy of the run's config; None for the run's own. In the modes "merged" and "sliding"
        `config.inference.partners` names the workdirs of further runs, whose networks predict together with this one's.
    """
    quiet_libraries()
    config = load_config(workdir) if config is None else config
    if problem := unused_accelerators():
        print(f"WARNING: predicting on the CPU: {problem}", file=sys.stderr)
    return _restored_with_partners(make_predict, config, workdir, checkpoint)


def _restored_with_partners(make: Callable[..., Callable[..., Any]], config: Any, workdir: str | Path, checkpoint: str
                            ) -> Callable[..., Any]:
    """What `make_predict` or `make_planes` gives for the trained networks of a workdir and its partners."""
    mesh = make_mesh()
    system, apply, variables = _restored(config, workdir, mesh, checkpoint)
    partners = [_restored(_fitting(load_config(other), config, other), other, mesh, checkpoint)
                for other in _partners(config.inference)]
    return partial(make(system, apply, mesh, config, partners=[partial(run, trained) for _, run, trained in partners]), variables)


def _fitting(partner: Any, config: Any, workdir: str) -> Any:
    """The config of a partner, whose network is shown the images of the first one's."""
    seen = {key: (partner.data[key], config.data[key]) for key in ("normalize", "channels", "planes")}
    seen["system"] = (partner.system, config.system)
    if other := [f"{key}: {theirs} instead of {ours}" for key, (theirs, ours) in seen.items() if theirs != ours]:
        raise ValueError(f"config.inference.partners: {workdir} was trained with {'; '.join(other)}, so that its network would "
                         "see other images than it knows. Name runs that see images alike.")
    return partner


def _partners(options: Any) -> tuple[str, ...]:
    """The workdirs of `config.inference.partners`, which only configs of these modes have."""
    return tuple(options.partners) if options.mode in ("merged", "sliding") else ()


def _restored(config: Any, workdir: str | Path, mesh: Mesh, checkpoint: str
              ) -> tuple[System, Callable[[Any, jax.Array], Mapping[str, jax.Array]], Any]:
    """(system, its network compiled, trained variables) of a workdir."""
    system = build_system(config)
    state, path = trained_state(config, system, workdir, mesh, checkpoint=checkpoint)
    print(f"{config.system} from {path}, step {int(state.step)}; decode: {dict(config.decode)}", flush=True)
    return system, make_apply(system.model), state.predicting


def score_samples(predict: Callable[[np.ndarray], Instances], samples: Iterable[Sample], *, pictures: Path | None = None,
                  picture_count: int = 0, progress: bool = False, sizes: Mapping[str, tuple[float, float]] = COCO_SIZES,
                  limits: Sequence[int] = LIVECELL_DETECTIONS, analyses: Analyses | None = None) -> Report:
    """Predicts and scores annotated samples one after another.

    Args:
      predict: image as stored -> Instances.
      samples: with labels.
      pictures: folder for overlays of the first `picture_count` samples, truth beside prediction.
      picture_count: how many of them to draw.
      progress: show a progress bar.
      sizes: bands of area for COCO AP.
      limits: predictions per image for COCO AP.
      analyses: see `metrics.report.evaluate`.

    Raises:
      ValueError: a sample without labels.
    """
    return _score(((sample, predict(sample.image)) for sample in samples), pictures=pictures, picture_count=picture_count,
                  progress=progress, sizes=sizes, limits=limits, analyses=analyses)


def score_predictions(truth: Source, predictions: Path, *, names: Mapping[int, str] | None = None, modality: str = "",
                      pictures: Path | None = None, picture_count: int = 0,
                      sizes: Mapping[str, tuple[float, float]] = COCO_SIZES, limits: Sequence[int] = LIVECELL_DETECTIONS,
                      analyses: Analyses | None = None) -> Report:
    """Scores anybody's predictions: a folder of label images named like the images, or a COCO file.

    A folder's `predictions.json`, which `jaxcell predict` writes, stands for its label images: those hold neither scores nor the
    pixels that cells share. Not where it does not fit: it cannot be read, or lacks an image that has a label image there. Which
    of the two is scored is printed.

    Args:
      truth: annotated samples.
      predictions: folder, or COCO json (a whole file or a list of results).
      names: image id -> file name, for a list of results.
      modality: only samples whose modality contains this.
      pictures: see `score_samples`, like those that follow.
      picture_count: see there.
      sizes: see there.
      limits: see there.
      analyses: see there.

    Raises:
      FileNotFoundError: an image has no prediction; names it. (An image without cells needs an empty label image.)
      ValueError: a prediction of another size than its image, or a COCO file that cannot be used.
    """
    coco = predictions / "predictions.json" if predictions.is_dir() else predictions
    stored = _read_beside_labels(coco, truth.names) if predictions.is_dir() else read_coco(coco, names=names)
    stems = Counter(map(stem_of, truth.names))
    find = None if stored is None else _finder(coco, stored, stems, results=names or {})

    def prediction_of(sample: Sample) -> Instances:
        stem = stem_of(sample.name)
        if find is not None:
            file, prediction = coco, find(sample)
        elif stems[stem] > 1:
            raise ValueError(f"{predictions}: {stems[stem]} images of the truth are called {stem!r}, and a folder of label "
                             "images does not tell them apart. Rename all but one, or score a COCO file, which has whole names.")
        elif label_image := _label_image(predictions, stem):
            file, prediction = label_image, Instances.from_labels(read_labels(label_image))
        else:
            raise FileNotFoundError(f"{predictions} has no label image for {stem!r}; expected {stem}_labels.tif, {stem}.png or "
                                    "the like (an image without cells needs an empty one).")
        if prediction.shape != sample.image.shape[:2]:
            raise ValueError(f"{file}: its prediction for {sample.name!r} covers {prediction.shape} pixels (H, W), but the image "
                             f"has {sample.image.shape[:2]}. Check that the two belong together.")
        return prediction

    return _score(((sample, prediction_of(sample)) for sample in iterate(truth, modality=modality)), pictures=pictures,
                  picture_count=picture_count, progress=True, sizes=sizes, limits=limits, analyses=analyses)


def _read_beside_labels(file: Path, wanted: Sequence[str]) -> dict[str, Instances] | None:
    """The cells of the COCO file in a folder of label images, None if it is absent or does not fit; says which are scored."""
    if not file.exists():
        return None
    try:
        stored = read_coco(file)
        there = set(map(stem_of, stored))
        lacking = [stem for stem in map(stem_of, wanted) if stem not in there and _label_image(file.parent, stem)]
        problem = f"it has no image {lacking[0]!r}, which has a label image" if lacking else ""
    except ValueError as error:
        problem = str(error)
    if problem:
        print(f"scoring the label images of {file.parent}, not its {file.name}: {problem}")
        return None
    print(f"scoring {file}, which has every cell whole and its score, not the label images beside it (to score those, move it "
          "elsewhere)")
    return stored


def _finder(file: Path, stored: Mapping[str, Instances], stems: Mapping[str, int], *, results: Mapping[int, str]
            ) -> Callable[[Sample], Instances]:
    """Sample -> its cells in a COCO file: by its whole name, else by the stem, which ends differ in, where there is one alike.

    A list of results cannot say that an image has no cell: those of `results` (image id -> file name) that it lacks have none.
    """
    alike: dict[str, list[str]] = {}
    for name in stored:
        alike.setdefault(stem_of(name), []).append(name)
    is_list = isinstance(read_json(file), list)

    def find(sample: Sample) -> Instances:
        if sample.name in stored:
            return stored[sample.name]
        if is_list and sample.name in results.values():
            return Instances.empty((sample.image.shape[0], sample.image.shape[1]))
        stem = stem_of(sample.name)
        found = alike.get(stem, [])
        if len(found) > 1 or found and stems[stem] > 1:
            raise ValueError(f"{file}: several images are called {stem!r}, and none is {sample.name!r}; folders and endings do "
                             "not tell images apart here. Give them their whole names.")
        if not found:
            raise FileNotFoundError(f"{file} has no image {stem!r}; an image without cells must be listed too.")
        return stored[found[0]]

    return find


def _label_image(folder: Path, stem: str) -> Path | None:
    files = [folder / f"{stem}{ending}{suffix}" for ending in (*ANNOTATION_ENDINGS, "") for suffix in SUFFIXES]
    return next((f for f in files if f.exists()), None)


def make_planes(system: System, apply: Callable[[Any, jax.Array], Mapping[str, jax.Array]], mesh: Mesh, config: Any, *,
                partners: Sequence[Network] = ()) -> Callable[[Any, np.ndarray], dict[str, np.ndarray]]:
    """(variables, image as stored) -> probabilities [H, W] of the planes that the network draws, by name; see `make_predict`.

    In the modes "merged" and "sliding" of `config.inference` they are the mean of the windows', else each pixel's comes from one
    tile.

    Raises:
      ValueError: it draws none.
    """
    options, planes = config.inference, system.planes
    if planes is None:
        raise ValueError(f"config.system={config.system!r} with this config draws no planes such as cytoplasm or overlap; choose "
                         "a network with such heads, or leave --planes out.")
    makers = _map_makers(options, merge="outputs")      # which are probabilities already
    maps = makers[options.mode if options.mode in makers else "blocks"]()

    def predict(variables: Any, image: np.ndarray) -> dict[str, np.ndarray]:
        image = image[..., None] if image.ndim == 2 else image

        network = _mean_of_networks([partial(apply, variables), *partners], mesh)
        normalize = fit_normalizer(image, dict(config.data.normalize), channels=config.data.channels,
                                   planes=tuple(config.data.planes) or None)
        found = predict_maps(lambda tiles: planes.drawn(jax.device_get(network(tiles))), image, maps=maps, divisor=system.divisor,
                             batch=-(-options.batch // mesh.size) * mesh.size, normalize=normalize)
        return {name: value[..., 0] for name, value in found.items()}

    return predict


def score_planes(predict: Callable[[np.ndarray], Mapping[str, np.ndarray]], samples: Iterable[Sample], *,
                 truth: Callable[[Sample, tuple[str, ...]], Mapping[str, np.ndarray]], thresholds: Mapping[str, float]
                 ) -> dict[str, list[ClassCounts]]:
    """Pixels of each class, counted in every sample; those that the annotation says to ignore count nowhere, nor
    for a class those of which it does not know that class.

    Args:
      predict: image as stored -> probabilities [H, W] by name.
      samples: with labels, and with nuclei where these are asked for.
      truth: see `jaxcell.system.Planes`.
      thresholds: name -> probability above which a pixel is of the class.

    Raises:
      ValueError: a name that the network does not draw or that no target has, no sample, or one without labels.
    """
    counts: dict[str, list[ClassCounts]] = {name: [] for name in thresholds}
    for sample in samples:
        found = predict(sample.image)
        if sample.labels is None or (absent := set(thresholds) - set(found)):
            what = "has no labels" if sample.labels is None else f"is to be scored for {', '.join(sorted(absent))}, but the " \
                   f"network draws {', '.join(found)}"
            raise ValueError(f"sample {sample.name!r} {what}.")
        true, counted = truth(sample, tuple(thresholds)), annotated_pixels(sample.labels) > 0
        for name, threshold in thresholds.items():
            plane = true[name][..., 0]
            counts[name].append(class_counts(plane > 0, found[name] > threshold, counted & (plane >= 0)))
    if not all(counts.values()) or not counts:
        raise ValueError("score_planes: no samples or no planes to score; the data source is empty.")
    return counts


def iterate(source: Source, *, modality: str = "") -> Iterator[Sample]:
    """The samples of a source in order, one in memory at a time; only those whose modality contains `modality`."""
    return (sample for sample in map(source.__getitem__, range(len(source))) if modality in sample.modality)


def _score(pairs: Iterable[tuple[Sample, Instances]], *, pictures: Path | None, picture_count: int, progress: bool,
           sizes: Mapping[str, tuple[float, float]], limits: Sequence[int], analyses: Analyses | None) -> Report:
    def scored() -> Iterator[tuple[str, str, Instances, Instances]]:
        for number, (sample, prediction) in enumerate(tqdm(pairs, unit="image", disable=not progress)):
            if sample.labels is None:
                raise ValueError(f"sample {sample.name!r} has no labels; there is nothing to score it against. Leave it out.")
            truth, prediction = Instances.from_labels(sample.labels), drop_ignored(prediction, sample.labels)
            if pictures is not None and number < picture_count:
                pictures.mkdir(parents=True, exist_ok=True)
                viz.save_png(pictures / f"{Path(sample.name).name}.png", viz.overlay(sample.image, prediction, truth=truth))
            yield sample.name, sample.modality, truth, prediction

    return evaluate(scored(), sizes=sizes, limits=limits, analyses=analyses)


def write_report(report: Report, out: Path) -> None:
    """Writes report.md, report.json and report.png into `out` and prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    table = to_table(report)
    (out / "report.md").write_text(table + "\n")
    (out / "report.json").write_text(to_json(report))
    plot(report, out / "report.png")
    print(table)
    print(f"written to {out}: report.md, report.json, report.png")


SIZES = {"coco": COCO_SIZES, "livecell": LIVECELL_SIZES}


def run() -> None:
    """Entry point of `python evaluate.py` and `jaxcell evaluate`."""
    parser = argparse.ArgumentParser(prog="jaxcell evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
                                     epilog="With --workdir every key of the run's config can be changed: --config.a.b=c")
    parser.add_argument("--workdir", type=Path, help="of a training run")
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best")
    parser.add_argument("--truth", type=Path, help="annotated images: a folder, a COCO json, or a folder that holds one")
    parser.add_argument("--images", type=Path, help="folder of a COCO --truth's images; default: images/ beside it, or its own")
    parser.add_argument("--predictions", type=Path, help="to score against --truth: a folder of label images or of "
                        "`jaxcell predict`, or a COCO json")
    parser.add_argument("--split", default=None, help="of the truth's manifest or folder, such as val; not of a COCO file")
    parser.add_argument("--modality", default="", help="score only images whose modality contains this text")
    parser.add_argument("--out", type=Path, help="folder for the report; default <workdir>/evaluation or ./evaluation")
    parser.add_argument("--pictures", type=int, default=12, help="overlays to draw")
    parser.add_argument("--sizes", choices=tuple(SIZES), default="coco", help="bands of area for COCO AP")
    parser.add_argument("--detections", type=_detections, default=",".join(map(str, LIVECELL_DETECTIONS)),
                        help="most predictions per image for COCO AP and AR (maxDets), default %(default)s")
    parser.add_argument("--analyse", action="store_true",
                        help="also score predictions with the true cells' masks, and only those that match a true cell")
    parser.add_argument("--planes", default="", help="also score these planes of the network, such as cytoplasm,overlap:0.3: "
                                                     "name, and threshold of the probability (0.5)")
    options, rest = parser.parse_known_args(sys.argv[1:])
    quiet_libraries()
    use_compile_cache()
    if (options.workdir is None) == (options.predictions is None) or (options.predictions and not options.truth):
        parser.error("give either --workdir (scores that network), or --predictions with --truth (scores those files)")
    if options.split and not options.truth:
        parser.error("--split belongs to --truth; the validation data of a run are config.data.val")
    if options.planes and not options.workdir:
        parser.error("--planes needs --workdir: only a network draws planes")
    if options.predictions and rest:
        parser.error(f"unknown arguments {' '.join(rest)}")
    analyses = ANALYSES if options.analyse else None
    truth = open_truth(options.truth, images=options.images, split=options.split) if options.truth else None
    out = options.out or (options.workdir or Path()) / "evaluation"
    if options.predictions:
        assert truth is not None
        report = score_predictions(truth, options.predictions, names=coco_names(options.truth), modality=options.modality,
                                   pictures=out / "pictures", picture_count=options.pictures, sizes=SIZES[options.sizes],
                                   limits=options.detections, analyses=analyses)
    else:
        config = load_changed_config(options.workdir, rest)
        source = truth if truth is not None else open_source(config.data.val, root=config.data.root, cache_gb=0.0,
                                                             unreadable=config.data.unreadable)
        if build_system(config).draw is not None:
            write_distances(image_scorer(config)(
                load_translator(options.workdir, checkpoint=options.checkpoint, config=config),
                iterate(source, modality=options.modality), pictures=out / "pictures", picture_count=options.pictures), out)
            return
        predict = load_predictor(options.workdir, checkpoint=options.checkpoint, config=config)
        report = score_samples(predict, iterate(source, modality=options.modality), pictures=out / "pictures",
                               picture_count=options.pictures, progress=True, sizes=SIZES[options.sizes],
                               limits=options.detections, analyses=analyses)
        if options.planes:
            draw, planes = load_planes(options.workdir, checkpoint=options.checkpoint, config=config)
            write_planes(score_planes(draw, iterate(source, modality=options.modality), truth=planes.truth,
                                      thresholds=_thresholds(options.planes)), out)
    write_report(report, out)


def _detections(text: str) -> tuple[int, ...]:
    """"10,100" -> (10, 100)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers above 0 with commas between them, such as 10,100")
    return tuple(map(int, parts))


def write_distances(scores: Mapping[str, float], out: Path) -> None:
    """Writes images.json into `out`, how far made images are from real ones, and prints it; see `score_images`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "images.json").write_text(json.dumps(scores, indent=1) + "\n")
    print(", ".join(f"{name} {value:.5g}" for name, value in scores.items()))
    print(f"written to {out}: images.json, pictures")


def load_planes(workdir: Path, *, checkpoint: str, config: Any
                ) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], Planes]:
    """The trained network of a workdir as one function: image as stored -> probabilities [H, W] of its planes by name; and these.

    Args:
      workdir: of the run.
      checkpoint: "best" or "latest", see `load_predictor`.
      config: the run's, or a changed copy.
    """
    predict = _restored_with_partners(make_planes, config, workdir, checkpoint)     # (refuses a network without planes)
    planes = build_system(config).planes
    assert planes is not None
    return predict, planes


def _thresholds(text: str) -> dict[str, float]:
    """"cytoplasm,overlap:0.3" -> {"cytoplasm": 0.5, "overlap": 0.3}."""
    parts = (part.partition(":") for part in text.split(","))
    return {name: float(threshold or 0.5) for name, _, threshold in parts}


def write_planes(counts: Mapping[str, Sequence[ClassCounts]], out: Path) -> None:
    """Writes planes.json into `out` and prints of each class and of their mean what `plane_scores` gives."""
    out.mkdir(parents=True, exist_ok=True)
    scores = plane_scores(counts)
    (out / "planes.json").write_text(json.dumps({name: {key: value if value == value else None for key, value in row.items()}
                                                 for name, row in scores.items()}, indent=1) + "\n")
    for name, row in scores.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in row.items()))


def plane_scores(counts: Mapping[str, Sequence[ClassCounts]]) -> dict[str, dict[str, float]]:
    """Scores of classes from their counts in every image.

    Returns:
      class, and "mean of classes" where there are several -> accuracy, precision, recall, F1 and IoU over all pixels together,
      and "mean Dice", the mean of the images' F1 (those without such pixels in truth and prediction left out). NaN where a
      score is undefined.
    """
    scores = {}
    for name, images in counts.items():
        dice = np.asarray([part.f1 for part in images])
        scores[name] = reduce(operator.add, images).scores() | {"mean Dice": _mean_of_defined(dice)}
    if len(scores) > 1:
        rows = list(scores.values())
        scores["mean of classes"] = {key: _mean_of_defined(np.asarray([row[key] for row in rows])) for key in rows[0]}
    return scores


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def open_truth(path: Path, *, images: Path | None, split: str | None) -> Source:
    """Annotated samples from a folder of images and label files, or from a COCO file and its images.

    Args:
      path: the folder, the COCO file, or a folder with one COCO file (see `coco_files`).
      images: folder of a COCO file's images; None looks where `images_beside` says.
      split: of a folder.

    Raises:
      FileNotFoundError: no such path, or images are missing.
      ValueError: a split of a COCO file, several COCO files, or a truth that cannot be used.
    """
    if not path.exists():
        raise FileNotFoundError(f"--truth={path}: no such folder or COCO file; check the path (relative ones count from "
                                f"{Path.cwd()}).")
    file = _coco_file(path)
    if file is None:
        return FolderSource(path, split=split, labelled=True)
    if split:
        raise ValueError(f"--split={split}: {file} is a COCO file, which has no splits. Leave --split out, or name the COCO file "
                         "of that split as --truth.")
    try:
        return CocoSource(file, images or images_beside(file))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} Name it with --images.") from error


def coco_names(path: Path) -> dict[int, str] | None:
    """image id -> file name of a COCO file, or of the one that a folder holds; None for a folder of label files."""
    file = _coco_file(path)
    return None if file is None else {i["id"]: i["file_name"] for i in read_json(file)["images"]}


def _coco_file(path: Path) -> Path | None:
    files = coco_files(path) if path.is_dir() else [path]
    if len(files) > 1:
        raise ValueError(f"--truth={path}: holds several COCO files ({', '.join(f.name for f in files)}); name one of them.")
    return files[0] if files else None
