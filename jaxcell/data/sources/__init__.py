"""Where samples come from: one literal dict. A new kind of source is one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxcell.data.sources.coco import CocoSource
from jaxcell.data.sources.combined import CachedSource, ConcatSource, Source
from jaxcell.data.sources.folder import FolderSource
from jaxcell.data.sources.synthetic import SyntheticSource

__all__ = ["SOURCES", "CachedSource", "ConcatSource", "Source"]

SOURCES: Mapping[str, Callable[..., Source]] = {
    "folder": FolderSource,
    "coco": CocoSource,
    "synthetic": SyntheticSource,
}
"""kind -> source."""
