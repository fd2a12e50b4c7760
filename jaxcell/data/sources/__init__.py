"""Where samples come from: one literal dict. A new kind of source is one file here and one line below."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxcell.data.cache import DiskCache, state_of_files
from jaxcell.data.sources.bbbc038 import Bbbc038Source
from jaxcell.data.sources.bbbc039 import Bbbc039Source
from jaxcell.data.sources.cellpose import CellposeSource
from jaxcell.data.sources.coco import CocoSource
from jaxcell.data.sources.combined import (
    CachedSource,
    CheckedSource,
    ConcatSource,
    DiskCachedSource,
    SelectedSource,
    Source,
    UnlabelledSource,
    readable_samples,
)
from jaxcell.data.sources.composed import ComposedSource
from jaxcell.data.sources.folder import FolderSource
from jaxcell.data.sources.livecell import LiveCellSource
from jaxcell.data.sources.neurips2022 import Neurips2022Source
from jaxcell.data.sources.nt2 import Nt2Source
from jaxcell.data.sources.omnipose import OmniposeSource
from jaxcell.data.sources.patches import PatchSource
from jaxcell.data.sources.sartorius import SartoriusSource
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.data.sources.tfds import TfdsSource

__all__ = ["SOURCES", "CachedSource", "ConcatSource", "Source", "open_source"]

SOURCES: Mapping[str, Callable[..., Source]] = {
    "folder": FolderSource,
    "coco": CocoSource,
    "synthetic": SyntheticSource,
    "composed": ComposedSource,
    "tfds": TfdsSource,
    "bbbc038": Bbbc038Source,
    "bbbc039": Bbbc039Source,
    "cellpose": CellposeSource,
    "livecell": LiveCellSource,
    "neurips2022": Neurips2022Source,
    "nt2": Nt2Source,
    "omnipose": OmniposeSource,
    "sartorius": SartoriusSource,
}
"""kind -> source."""

PATHS = {"root", "image_dir", "annotations"}        # arguments of sources that count from config.data.root


def open_source(specs: Mapping[str, Mapping[str, Any]], *, root: str | Path, cache_gb: float, disk_cache: str | Path = "",
                disk_cache_gb: float = 20.0, unreadable: str = "refuse") -> Source:
    """Several sources joined, each kept decoded in memory as far as its share of `cache_gb` reaches.

    Args:
      specs: name -> {"kind": an entry of SOURCES, and that source's own arguments}; of every kind also "repeat": how often a
        sample counts, "every": n takes each n-th sample, "except_every": n the others, "hide_labels": as if without annotation,
        "cut": the arguments of `PatchSource`, which cuts the images into patches. "source" of the kind "composed" is again a
        name -> spec of sources; they are cached instead of what is composed on disk, and both in memory.
      root: folder that relative "root", "image_dir" and "annotations" start from.
      cache_gb: memory for decoded samples, shared evenly. Each worker process may fill as much again.
      disk_cache: folder for decoded samples, "" for none; see `DiskCache`. It pays where the samples exceed the memory, or
        are slow to decode: large compressed images, polygons.
      disk_cache_gb: most that the folder may hold.
      unreadable: a sample that cannot be read or that `validate` refuses is an error when it is drawn ("refuse"), or is left
        out and named ("skip"), for which all samples are read once, here.

    Raises:
      ValueError: no source, an unknown kind, an argument that the kind does not have, or another value of `unreadable`.
    """
    if unreadable not in ("refuse", "skip"):
        raise ValueError(f"config.data.unreadable={unreadable!r} is unknown; it is one of refuse, skip.")
    parts, repeats = [], []
    for name, spec in specs.items():
        options = dict(spec)
        kind, repeat = options.pop("kind"), options.pop("repeat", 1)
        every, others, hide_labels = options.pop("every", 1), options.pop("except_every", 0), options.pop("hide_labels", False)
        cut, share = options.pop("cut", None), cache_gb / len(specs)
        if kind not in SOURCES:
            raise ValueError(f"source {name!r}: kind {kind!r} is unknown; known are {', '.join(sorted(SOURCES))}.")
        if composed := kind == "composed" and "source" in options:
            share /= 2
            options["source"] = open_source(options["source"], root=root, cache_gb=share, disk_cache=disk_cache,
                                            disk_cache_gb=disk_cache_gb, unreadable=unreadable)
        paths = {key: Path(root) / options[key] for key in sorted(PATHS & set(options))}
        try:
            source: Source = CheckedSource(SOURCES[kind](**options | paths))
        except TypeError as error:
            raise ValueError(f"source {name!r} of kind {kind!r}: {error}; see jaxcell/data/sources/{kind}.py.") from error
        if disk_cache and not composed:
            origin = json.dumps([kind, options | {key: str(path.absolute()) for key, path in paths.items()}], default=str)
            state = state_of_files(paths, leave_out=Path(disk_cache))
            cache = DiskCache(disk_cache, max_bytes=int(disk_cache_gb * 2**30), source=origin, state=state)
            source = DiskCachedSource(source, cache)
        if unreadable == "skip" and not composed:
            source = readable_samples(source, label=name)
        if every > 1 or others:
            numbers = range(len(source))
            source = SelectedSource(source, [i for i in numbers if i % every == 0 and not (others and i % others == 0)])
        if hide_labels:
            source = UnlabelledSource(source)
        source = CachedSource(source, max_bytes=int(share * 2**30))
        parts.append(source if cut is None else _cut(source, dict(cut), name))
        repeats.append(repeat)
    return ConcatSource(parts, repeats=repeats)


def _cut(source: Source, options: dict[str, Any], name: str) -> Source:
    try:
        return PatchSource(source, **options)
    except TypeError as error:
        raise ValueError(f"source {name!r}: cut: {error}; see jaxcell/data/sources/patches.py.") from error
