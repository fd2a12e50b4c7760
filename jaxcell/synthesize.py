"""Makes a data set of composed images, as `train.py` reads it: exact masks of whole cells, also where they overlap, and nuclei.

    jaxcell synthesize --config configs/synthesis.py:t98g --out DIR --config.data.root=../shared/data

Cells of annotated images are cut out, changed and pasted into new ones (jaxcell/data/sources/composed.py). With `config.translator`, the
workdir of a run of pix2pix, what is composed is phase contrast and what is written are the planes that the network makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from jaxcell.configuration import read_command_line
from jaxcell.data.sources import Source, open_source
from jaxcell.data.sources.composed import ComposedSource
from jaxcell.export.layouts import LAYOUTS, Written, convert
from jaxcell.training.log import quiet_libraries
from jaxcell.translate import load_translator
from jaxcell.types import Sample

__all__ = ["TranslatedSource", "composed_parts", "run", "synthesize"]


class TranslatedSource:
    """The samples of another source with other images: what a network makes of theirs. Labels stay."""

    def __init__(self, source: Source, translate: Callable[[np.ndarray], np.ndarray]) -> None:
        """Nothing is read before a sample is asked for.

        Args:
          source: of samples.
          translate: image as stored [H, W, C] -> [H, W, K] in [0, 1].
        """
        self._source, self._translate = source, translate
        self.names: Sequence[str] = source.names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        sample = self._source[index]
        image = np.rint(255 * np.clip(self._translate(sample.image), 0, 1)).astype(np.uint8)
        return replace(sample, image=image, modality="brightfield (made by pix2pix)")


def composed_parts(config: ml_collections.ConfigDict) -> dict[str, Source]:
    """Split -> composed images, of `config`; each split is drawn by itself, of the same annotated images.

    Raises:
      ValueError: an impossible option, or a translator that is no run of pix2pix.
    """
    data, compose = config.data, config.compose
    source = open_source(data.source, root=data.root, cache_gb=data.cache_gb, unreadable=data.unreadable)
    translate = load_translator(config.translator) if config.translator else None
    parts: dict[str, Source] = {}
    for number, (split, count) in enumerate(sorted(config.count.items())):
        if not count:
            continue
        part: Source = ComposedSource(
            source, count, size=compose.size, seed=(config.seed, number), cells=tuple(compose.cells), canvas=compose.canvas,
            max_overlap=compose.max_overlap, sigma=compose.sigma, planes=tuple(compose.planes), zoom=tuple(compose.zoom),
            amplitude=compose.amplitude)
        parts[split] = part if translate is None else TranslatedSource(part, translate)
    return parts


def synthesize(config: ml_collections.ConfigDict, out: str | Path) -> Written:
    """Writes the data set that a config describes into a new folder, in the layout `config.layout`."""
    return convert(composed_parts(config), out, kind=config.layout, progress=True)


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
