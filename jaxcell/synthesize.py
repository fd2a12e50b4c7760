"""Makes a data set of composed images, as `train.py` reads it: exact masks of whole cells, also where they overlap, and nuclei.

    jaxcell synthesize --config configs/synthesis.py:t98g --out DIR --config.data.root=../shared/data

Cells of annotated images are cut out, changed and pasted into new ones (jaxcell/data/sources/composed.py) by
`config.data.workers` processes. With `config.translator`, the workdir of a run of pix2pix, what is composed is phase contrast and
what is written are the planes that the network makes of it. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from jaxcell.configuration import read_command_line, save_config
from jaxcell.data.cache import decode_sample, encode_sample
from jaxcell.data.pipeline import read_ahead
from jaxcell.data.sources import Source, open_source
from jaxcell.data.sources.composed import ComposedSource
from jaxcell.export.layouts import LAYOUTS, OVERLAPS, Written, convert
from jaxcell.training.lock import only_run_in
from jaxcell.training.log import quiet_libraries
from jaxcell.translate import load_translator
from jaxcell.types import Sample

__all__ = ["composed_parts", "run", "synthesize"]


def composed_parts(config: ml_collections.ConfigDict) -> dict[str, Source]:
    """Split -> composed images, of `config`; each split is drawn by itself, of the same annotated images.

    Raises:
      ValueError: an impossible option.
    """
    data, compose = config.data, config.compose
    source = open_source(data.source, root=data.root, cache_gb=data.cache_gb, unreadable=data.unreadable)
    parts: dict[str, Source] = {}
    for number, (split, count) in enumerate(sorted(config.count.items())):
        if count:
            parts[split] = ComposedSource(
                source, count, size=compose.size, seed=(config.seed, number), cells=tuple(compose.cells), canvas=compose.canvas,
                max_overlap=compose.max_overlap, sigma=compose.sigma, planes=tuple(compose.planes), zoom=tuple(compose.zoom),
                amplitude=compose.amplitude, donors=compose.donors, halo=compose.halo)
    return parts


def synthesize(config: ml_collections.ConfigDict, out: str | Path) -> Written:
    """Writes the data set that a config describes into a new folder, in the layout `config.layout`.

    Until all of it is there, every image that is composed is kept in `OUT.part`: after an interruption the same call goes on with
    those that are missing, and the folder becomes the same (while the annotated images and the translator stay the same).

    Args:
      config: of configs/synthesis.py.
      out: folder to make; it must not exist, or be empty.

    Raises:
      ValueError: an impossible option, a folder that is not empty, `OUT.part` of another config or of a process that still runs.
      RuntimeError: its first line says which image cannot be composed, and why.
    """
    out = Path(out).absolute()
    part = out.with_name(out.name + ".part")
    _check_layout(config)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists and is not empty; nothing is overwritten. Name another folder.")
    parts, kept = composed_parts(config), part / "samples"
    translate = load_translator(config.translator) if config.translator else None
    kept.mkdir(parents=True, exist_ok=True)
    with only_run_in(part):
        save_config(config, part, continues=any(kept.iterdir()))
        for unfinished in (part / "data", part / "data.part"):
            shutil.rmtree(unfinished, ignore_errors=True)       # left by a process that was killed
        _compose(parts, kept, translate=translate, workers=config.data.workers)
        stored = {split: _KeptSource(kept, source.names) for split, source in parts.items()}
        written = convert(stored, part / "data", kind=config.layout, progress=True)
        (part / "data").replace(out)
        shutil.rmtree(part)
    return written


def _check_layout(config: ml_collections.ConfigDict) -> None:
    """What the layout cannot hold is said before anything is composed."""
    if config.layout not in LAYOUTS:
        raise ValueError(f"config.layout={config.layout!r} is unknown; it is one of {', '.join(LAYOUTS)}.")
    layout, counts = LAYOUTS[config.layout], config.count.to_dict()
    if min(counts.values(), default=0) < 0 or not any(counts.values()):
        raise ValueError(f"config.count={counts}; each is a number of images, 0 or more, and one of them at least 1.")
    if OVERLAPS not in layout.holds and (config.compose.max_overlap or config.compose.canvas == "real"):
        fitting = ", ".join(name for name, other in LAYOUTS.items() if OVERLAPS in other.holds)
        raise ValueError(f"config.layout={config.layout!r} gives each pixel to one cell, and composed cells overlap. Choose one "
                         f"of {fitting}; `jaxcell data convert` makes other layouts of that.")
    names = [layout.splits[split] for split, count in counts.items() if count]
    if len(set(names)) < len(names):
        raise ValueError(f"config.layout={config.layout!r} calls the splits of config.count={counts} {', '.join(names)}; two "
                         "cannot be one. Set one of the counts to 0.")


class _KeptSource:
    """Samples in files."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        return decode_sample(_file(self._folder, self.names[index]).read_bytes())


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.sample"


def _is_whole(path: Path) -> bool:
    """Whether an image was kept, and can be read: a machine that lost its power leaves empty files behind."""
    try:
        decode_sample(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True


def _compose(parts: Mapping[str, Source], folder: Path, *, translate: Callable[[np.ndarray], np.ndarray] | None, workers: int
             ) -> None:
    """Writes a file for every sample that has none: workers compose, this process translates and writes."""
    missing = {split: [i for i, name in enumerate(source.names) if not _is_whole(_file(folder, name))]
               for split, source in parts.items()}
    total = sum(map(len, parts.values()))
    with tqdm(total=total, initial=total - sum(map(len, missing.values())), desc="composing", unit="image") as bar:
        for split, source in parts.items():
            for sample in read_ahead(source, missing[split], workers=workers):
                made = sample if translate is None else _translated(sample, translate)
                unfinished = folder / "unfinished"
                unfinished.write_bytes(b"".join(encode_sample(made)))
                unfinished.replace(_file(folder, sample.name))
                bar.update()


def _translated(sample: Sample, translate: Callable[[np.ndarray], np.ndarray]) -> Sample:
    """The sample with the image that a network makes of its own: [H, W, C] as stored -> [H, W, K] in [0, 1]."""
    image = np.rint(255 * np.clip(translate(sample.image), 0, 1)).astype(np.uint8)
    return replace(sample, image=image, modality="brightfield (made by pix2pix)")


def run() -> None:
    """Entry point of `jaxcell synthesize`: reads sys.argv.

    Raises:
      ValueError: a config file or a key that does not exist.
    """
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, "configs/synthesis.py[:variant]", flag_values=values)
    out = flags.DEFINE_string("out", None, "New folder for the data set.", flag_values=values)
    if not read_command_line(values, usage="jaxcell synthesize --config FILE[:VARIANT] --out DIR [--config.a.b=c ...]",
                             text=str(__doc__), required=("config", "out")):
        return
    quiet_libraries()
    written = synthesize(config.value, str(out.value))
    print(f"{written.images} images, {written.cells} cells -> {out.value} ({LAYOUTS[config.value.layout].text})")
    for what, count in written.lost.items():
        print(f"  not kept: {what}: {count}")
