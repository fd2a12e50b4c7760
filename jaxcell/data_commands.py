"""`jaxcell data check | view | convert`: what is in a data set, what it looks like, and other programs' layouts."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from jaxcell import viz
from jaxcell.configuration import readable_flag_errors
from jaxcell.data.check import check_sources, exit_status
from jaxcell.data.check_report import to_json, to_text
from jaxcell.data.labels import CODINGS
from jaxcell.data.normalize import select_planes
from jaxcell.data.sources import SOURCES, Source, open_source
from jaxcell.data.sources.coco import coco_files, images_beside
from jaxcell.data.sources.combined import CheckedSource, SelectedSource
from jaxcell.data.sources.folder import FolderSource, name_folders, rename_splits, unread_images
from jaxcell.export.layouts import LAYOUTS, convert
from jaxcell.types import Instances, Sample

__all__ = ["COMMANDS", "data", "open_config", "open_folder"]

SPLITS = ("train", "val", "test", "unlabelled")
LABELLED = ("train", "val")
Opened = Mapping[str, Source | ValueError | FileNotFoundError]

EPILOG = """TARGET is a folder of images, a COCO file, or a config (configs/FILE.py[:VARIANT], then also --config.a.b=c).
Of a folder, --kind says what it is where that is not a folder of images with labels or a manifest.csv."""


# ---------------------------------------------------------------- what is looked at
@runtime_checkable
class _Divided(Source, Protocol):
    """A source that knows the split of each sample."""

    @property
    def splits(self) -> Sequence[str]:
        """Of each sample; "" where it has none."""


@dataclass(frozen=True)
class _Target:
    """Sources by "split" or "split/name", and what a config says about them; `augmented` makes training examples."""

    parts: Opened
    options: Mapping[str, Any] = field(default_factory=dict)        # of `check_sources`
    augmented: Callable[[], Iterator[viz.Tile]] | None = None


def open_folder(path: str | Path, *, kind: str | None = None, splits: Sequence[str] = (), images: str | Path | None = None,
                divide: bool = False, coding: str | None = None, select: str = "") -> Opened:
    """The sources of a folder or COCO file, by split.

    Args:
      path: a folder, or a COCO file.
      kind: a key of `SOURCES` that takes a folder; None: "coco" for a JSON file and for a folder without manifest whose JSON
        files are COCO's, else "folder".
      splits: those wanted; none: all that are there.
      images: folder of the images of COCO files; None: the subfolder `images` beside the file, else the file's own folder.
      divide: divide a folder without splits into "train" and "val" as training would.
      coding: what the values of label images of a folder of images mean; None: "ids". See `FolderSource`.
      select: what of its image files to take, such as "C=DAPI,Z=max".

    Returns:
      split ("" where there is none) -> source, or the error with which it refused to open.

    Raises:
      FileNotFoundError: no such path.
      ValueError: a kind that is unknown or takes no folder, a split that is not there, or options that the kind does not have.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or file; check the path (relative ones count from {Path.cwd()}).")
    files = [path] if path.suffix.lower() == ".json" else coco_files(path) if kind in (None, "coco") else []
    is_coco = bool(files) and kind in (None, "coco")
    if kind not in (None, *SOURCES):
        raise ValueError(f"--kind={kind}: is unknown; it is one of {', '.join(SOURCES)}.")
    if (coding or select) and (is_coco or kind not in (None, "folder")):
        raise ValueError(f"{path}: --coding and --select are for folders of images, but this is of kind "
                         f"{'coco' if is_coco else kind}. Leave them out, or name the folder of the images with --kind=folder.")
    if is_coco:
        return _open_coco(files, splits, images)
    if kind not in (None, "folder"):
        return _open_kind(str(kind), path, splits)
    return _open_images(partial(FolderSource, path, coding=coding or "ids", select=select), path, splits, divide=divide)


def _open_coco(files: Sequence[Path], splits: Sequence[str], images: str | Path | None) -> Opened:
    found: dict[str, Path] = {}
    for file in files:
        split = next((s for s in SPLITS if s in file.stem.lower()), "")
        if split in found:
            raise ValueError(f"{file}: seems to hold the same split as {found[split].name}; name one of the files.")
        found[split] = file
    _check_splits(splits, found, files[0].parent)
    return {split: _opened(partial(SOURCES["coco"], file, images or images_beside(file)))
            for split, file in found.items() if split in (splits or found)}


def _open_kind(kind: str, path: Path, splits: Sequence[str]) -> Opened:
    """A public data set: all splits that are there, or those wanted."""
    try:
        if splits:
            return {split: _opened(partial(SOURCES[kind], path, split=split)) for split in splits}
        whole = _opened(partial(SOURCES[kind], path))
        if not isinstance(whole, _Divided):
            return {"": whole}
        return {split: _select(whole, split) for split in dict.fromkeys(whole.splits)}
    except TypeError as error:
        raise ValueError(f"--kind={kind}: cannot be opened from a folder alone ({error}). Write a config.") from error


def _select(source: _Divided, split: str) -> Source:
    return SelectedSource(source, [i for i, other in enumerate(source.splits) if other == split])


def _open_images(open_it: Callable[..., FolderSource], path: Path, splits: Sequence[str], *, divide: bool) -> Opened:
    present = dict.fromkeys(split for split in SPLITS if (path / split).is_dir())
    if (path / "manifest.csv").exists() or not present:
        whole = _opened(open_it)
        if not isinstance(whole, FolderSource):
            return {"": whole}
        present = dict.fromkeys(whole.splits)
        if any(present):
            _check_splits(splits, present, path)
            return {split: _opened(partial(open_it, split=split)) if split else _select(whole, split)
                    for split in (splits or present)}
        if not (splits or (divide and len(whole) > 1)):
            return {"": whole}
        present = dict.fromkeys(LABELLED)
    _check_splits(splits, present, path)
    return {split: _opened(partial(open_it, split=split)) for split in (splits or present)}


def _check_splits(wanted: Sequence[str], present: Mapping[str, Any], path: Path) -> None:
    if missing := [split for split in wanted if split not in present]:
        raise ValueError(f"{path}: has no split {missing[0]!r}; it has {', '.join(filter(None, present)) or 'none'}."
                         f"{rename_splits(path)}")


def _opened(open_it: Callable[[], Source]) -> Source | ValueError | FileNotFoundError:
    try:
        return open_it()
    except (ValueError, FileNotFoundError) as error:
        return error


# ---------------------------------------------------------------- configs
def open_config(target: str, arguments: Sequence[str]) -> _Target:
    """The sources of a config, what `check_sources` should know about the network, and its training examples.

    Args:
      target: FILE.py[:VARIANT].
      arguments: overrides, `--config.a.b=c`.

    Raises:
      ValueError: a file or key that does not exist, or an argument that is no override.
    """
    config, data = _read_config(target, arguments)
    parts = {f"{split}/{name}": _opened(partial(open_source, {name: {**spec, "repeat": 1}}, root=data.root, cache_gb=0.0))
             for split in SPLITS if split in data for name, spec in data[split].items()}
    targets = config.targets if "targets" in config else {}
    limits = {key: targets[key] for key in ("min_area", "max_cells") if key in targets}
    planes = tuple(data.planes) or None
    folders: dict[Path, list[str]] = defaultdict(list)
    for spec in (dict(spec) for split in SPLITS if split in data for spec in data[split].values()):
        if spec["kind"] == "folder" and "root" in spec:
            folders[Path(data.root) / spec["root"]].append(spec.get("split") or "")
    options = {"normalize": dict(data.normalize), "channels": data.channels, "planes": planes, "crop": data.crop,
               "labelled": LABELLED, "skip_unreadable": data.unreadable == "skip", "folders": folders, **limits}

    def augmented() -> Iterator[viz.Tile]:
        import jax  # takes seconds, which the other commands need not wait for; grain imports it too

        from jaxcell.data.pipeline import make_train_iterator
        from jaxcell.training.device_augment import device_augmentation

        source = open_source(data.train, root=data.root, cache_gb=0.0, unreadable=data.unreadable)
        # Batches of one, because layers differ in number: example i is that of training all the same.
        batches = make_train_iterator(source, targets=_labels_as_targets, batch_size=1, crop=data.crop, augment=data.augment,
                                      normalize=dict(data.normalize), channels=data.channels, planes=planes,
                                      reject_empty=data.reject_empty, epoch_fraction=data.epoch_fraction, seed=config.seed)
        change = device_augmentation(data.device_augment)
        for number, (batch, names) in enumerate(batches):
            image = batch["image"] if change is None else np.asarray(change(batch["image"], jax.random.key(number)))
            labels = batch["labels"][0] if batch["annotated"][0] else None
            yield _tile(Sample(image[0], labels, name=names[0]))

    return _Target(parts, options, augmented)


def _read_config(target: str, arguments: Sequence[str]) -> tuple[ml_collections.ConfigDict, ml_collections.ConfigDict]:
    """The config, and of it `data`."""
    if not (file := Path(target.partition(":")[0])).is_file():
        raise FileNotFoundError(f"{file}: no such config file; check the path (relative ones count from {Path.cwd()}).")
    values = flags.FlagValues()
    line = ["jaxcell data", f"--config={target}", *arguments]
    # ml_collections looks for overrides in the process's own arguments unless it is given others.
    config = config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=line)
    with readable_flag_errors():
        rest = values(line)[1:]
        loaded, data = config.value, config.value.data      # (a file that could not be loaded shows only when it is used)
    if rest:
        raise ValueError(f"arguments that are not understood: {' '.join(rest)}; see --help.")
    return loaded, data


def _labels_as_targets(sample: Sample, rng: np.random.Generator) -> dict[str, np.ndarray]:
    labels = np.zeros((*sample.image.shape[:2], 1), np.int32) if sample.labels is None else sample.labels
    return {"labels": labels, "annotated": np.asarray(sample.labels is not None)}


# ---------------------------------------------------------------- commands
def check(argv: list[str]) -> int:
    """Reads every image of a data set and says what is in it, what is wrong, and what will be done about it.

    Exit status: 0 without errors (--strict: nor warnings), 1 with, 2 if the command could not do its work.
    """
    parser = _parser("check", check.__doc__)
    parser.add_argument("--json", type=Path, help="write everything to this file, all samples named")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options, rest = parser.parse_known_args(argv)
    target = _open(parser, options, rest, divide=True)
    report = check_sources(target.parts, progress=not options.quiet, **target.options)
    print(to_text(report))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(to_json(report), encoding="utf-8")
    return exit_status(report, strict=options.strict)


def view(argv: list[str]) -> int:
    """Draws images of a data set with the outlines of their cells on one sheet."""
    parser = _parser("view", view.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--count", type=int, default=24, help="images on the sheet, evenly spaced; default %(default)s")
    parser.add_argument("--size", type=int, default=256, help="pixels of the longer side of each; default %(default)s")
    parser.add_argument("--augmented", action="store_true", help="of a config: the first crops of training, as the network "
                        "sees them")
    options, rest = parser.parse_known_args(argv)
    if options.count < 1 or options.size < 16:
        parser.error("--count must be at least 1 and --size at least 16")
    target = _open(parser, options, rest)
    if options.augmented and target.augmented is None:
        parser.error("--augmented needs a config, which says how images are augmented")
    if options.augmented and target.augmented is not None:
        tiles = (tile for tile, _ in zip(target.augmented(), range(options.count), strict=False))
        sheet = viz.contact_sheet(tiles, size=options.size, stretch=False)
    else:
        sheet = viz.contact_sheet(_stored_tiles(target, options.count), size=options.size)
    viz.save_png(options.out, sheet)
    print(f"written to {options.out}")
    return 0


def _stored_tiles(target: _Target, count: int) -> Iterator[viz.Tile]:
    places = [(part, source, i) for part, source in _readable(target.parts).items() for i in range(len(source))]
    planes = target.options.get("planes")
    for index in np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)).tolist():
        part, source, i = places[index]
        sample = source[i]
        image = sample.image if planes is None else select_planes(sample.image, target.options["channels"], planes=planes)
        yield _tile(Sample(image, sample.labels, name=sample.name, modality=sample.modality), part)


def _tile(sample: Sample, part: str = "") -> viz.Tile:
    cells = None if sample.labels is None else Instances.from_labels(sample.labels)
    count = "no labels" if cells is None else f"{len(cells)} cell{'s' * (len(cells) != 1)}"
    height, width, planes = sample.image.shape
    facts = [count, f"{height} x {width}" + (f" x {planes}" if planes > 1 else ""), part]
    lines = [sample.name, ", ".join(filter(None, facts))] + ([sample.modality] if sample.modality != "unknown" else [])
    return viz.Tile(sample.image, cells, lines)


def convert_layout(argv: list[str]) -> int:
    """Writes a data set in another layout. What that cannot hold is refused or counted; nothing is overwritten."""
    layouts = "\n".join(f"  {name:10}{layout.text}" for name, layout in LAYOUTS.items())
    parser = _parser("convert", convert_layout.__doc__, epilog=f"layouts:\n{layouts}")
    parser.add_argument("--to", required=True, choices=tuple(LAYOUTS), help="layout to write")
    parser.add_argument("--out", required=True, type=Path, help="new folder for it")
    parser.add_argument("--overlaps", choices=("refuse", "top", "grow"), default="refuse", help="pixels of several cells where "
                        "the layout gives each to one: that of the largest number (top), or shared out by growing")
    parser.add_argument("--ignored", choices=("refuse", "background"), default="refuse", help="pixels to be ignored where the "
                        "layout cannot mark them")
    parser.add_argument("--unlabelled", choices=("refuse", "skip"), default="refuse", help="images without labels where the "
                        "layout has no place for them")
    options, rest = parser.parse_known_args(argv)
    if _is_config(options.target):
        parser.error("a config joins several sources; convert the folder of each")
    renamed = [split.partition("=")[::2] for split in options.split]
    options.split = [old for old, _ in renamed]
    target = _open(parser, options, rest)
    names = {old: new or old for old, new in renamed}
    parts = {names.get(split, split): source for split, source in _readable(target.parts).items()}
    written = convert(parts, options.out, kind=options.to, overlaps=options.overlaps, ignored=options.ignored,
                      unlabelled=options.unlabelled, progress=True)
    print(f"{written.images} images, {written.cells} cells -> {options.out}")
    for what, count in written.lost.items():
        print(f"  not kept: {what}: {count}")
    for folder, splits in target.options.get("folders", {}).items():
        if unread := unread_images(folder, splits):
            print(f"  not read: {name_folders(unread, folder)}.{rename_splits(folder)}")
    return 0


def _readable(parts: Opened) -> dict[str, Source]:
    """The parts, which refuse what training would; or the error of the first that could not be opened, raised."""
    for source in parts.values():
        if isinstance(source, Exception):
            raise source
    return {split: CheckedSource(source) for split, source in parts.items() if not isinstance(source, Exception)}


def _parser(name: str, text: str | None, *, epilog: str = "") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"jaxcell data {name}", description=text, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="\n\n".join(filter(None, [EPILOG, epilog])))
    parser.add_argument("target", metavar="TARGET", help="folder, COCO file or config")
    parser.add_argument("--kind", help=f"of a folder: {', '.join(SOURCES)}")
    parser.add_argument("--split", action="append", default=[], help="only this split; may be given several times" +
                        (", and with a new name (--split test2=test)" if name == "convert" else ""))
    parser.add_argument("--images", type=Path, help="folder of a COCO file's images; default: images/ beside it, or its own")
    parser.add_argument("--coding", choices=tuple(CODINGS), help="of a folder's label images: one number a cell (ids, the "
                        "default), one colour a cell (rgb), or foreground and background (binary)")
    parser.add_argument("--select", default="", help="of a folder's image files with more axes than an image: index, channel "
                        "name or projection, such as T=0,C=DAPI,Z=max")
    return parser


def _open(parser: argparse.ArgumentParser, options: argparse.Namespace, rest: list[str], *, divide: bool = False) -> _Target:
    if _is_config(options.target):
        if options.kind or options.split or options.images or options.coding or options.select:
            parser.error("--kind, --split, --images, --coding and --select belong to a folder; a config names its sources itself "
                         "(--config.data.train.own.coding)")
        return open_config(options.target, rest)
    if rest:
        parser.error(f"unknown arguments {' '.join(rest)}")
    parts = open_folder(options.target, kind=options.kind, splits=options.split, images=options.images, divide=divide,
                        coding=options.coding, select=options.select)
    if not any(isinstance(source, FolderSource) for source in parts.values()):
        return _Target(parts)
    return _Target(parts, {"folders": {Path(options.target): list(parts)}, "some_labelled": ("", *LABELLED)})


def _is_config(target: str) -> bool:
    return Path(target.partition(":")[0]).suffix == ".py"


COMMANDS: dict[str, Callable[[list[str]], int]] = {"check": check, "view": view, "convert": convert_layout}


def data(argv: list[str]) -> int:
    """Entry point of `jaxcell data`."""
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    texts = "\n".join(f"  {name:9}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items())
    print(f"usage: jaxcell data {{{','.join(COMMANDS)}}} ...   (each with --help)\n\n{texts}")
    if argv and argv[0] not in ("-h", "--help"):
        raise ValueError(f"{argv[0]!r} is not a command; known are {', '.join(COMMANDS)}.")
    return 0 if argv else 2
