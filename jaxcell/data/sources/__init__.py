"""Where samples come from: one literal dict. A new kind of source is one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxcell.data.sources.coco import CocoSource
from jaxcell.data.sources.combined import CachedSource, ConcatSource, Source
from jaxcell.data.sources.folder import FolderSource
from jaxcell.data.sources.synthetic import SyntheticSource

__all__ = ["SOURCES", "CachedSource", "ConcatSource", "Source", "open_source"]

SOURCES: Mapping[str, Callable[..., Source]] = {
    "folder": FolderSource,
    "coco": CocoSource,
    "synthetic": SyntheticSource,
}
"""kind -> source."""


def open_source(specs: Mapping[str, Mapping[str, Any]], *, root: str | Path, cache_gb: float) -> Source:
    """Several sources joined, each kept decoded in memory as far as its share of `cache_gb` reaches.

    Args:
      specs: name -> {"kind": an entry of SOURCES, "repeat": how often a sample counts, and that source's own arguments}.
      root: folder that relative "root", "image_dir" and "annotations" start from.
      cache_gb: memory for decoded samples, shared evenly. Each worker process may fill as much again.

    Raises:
      ValueError: no source, an unknown kind, or an argument that the kind does not have.
    """
    parts, repeats = [], []
    for name, spec in specs.items():
        options = dict(spec)
        kind, repeat = options.pop("kind"), options.pop("repeat", 1)
        if kind not in SOURCES:
            raise ValueError(f"source {name!r}: kind {kind!r} is unknown; known are {', '.join(sorted(SOURCES))}.")
        for key in {"root", "image_dir", "annotations"} & set(options):
            options[key] = Path(root) / options[key]
        try:
            source = SOURCES[kind](**options)
        except TypeError as error:
            raise ValueError(f"source {name!r} of kind {kind!r}: {error}; see jaxcell/data/sources/{kind}.py.") from error
        parts.append(CachedSource(source, max_bytes=int(cache_gb * 2**30 / len(specs))))
        repeats.append(repeat)
    return ConcatSource(parts, repeats=repeats)
