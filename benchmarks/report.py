"""What every benchmark says about its machine, how it sums up times, how its tables are written."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Row", "machine", "markdown", "middle", "spread", "write"]

Row = dict[str, Any]


def machine(packages: Sequence[str]) -> Row:
    """Processor, cores, load and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"processor": processor, "cores": os.cpu_count(), "load before": round(os.getloadavg()[0], 2),
            "python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def middle(seconds: Sequence[float]) -> float:
    """Median in milliseconds."""
    return 1e3 * float(np.median(seconds))


def spread(seconds: Sequence[float]) -> str:
    """Quartiles in milliseconds."""
    return "-".join(_cell(1e3 * float(q)) for q in np.percentile(seconds, (25, 75)))


def markdown(rows: Sequence[Row]) -> str:
    """A table with every key of a row as a column."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    words = [any(isinstance(row.get(key), str) for row in rows) for key in keys]
    lines = [f"| {' | '.join(keys)} |", f"| {' | '.join('---' if text else '---:' for text in words)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(_cell(row.get(key, '')) for key in keys)} |" for row in rows)])


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def write(out: Path, tables: Mapping[str, Sequence[Row]], about: Mapping[str, Any]) -> None:
    """Writes the tables as `out`.md and `out`.json."""
    sections = [f"## {title}\n\n{markdown(rows)}" for title, rows in tables.items() if rows]
    text = "\n\n".join([*sections, ", ".join(f"{key} {value}" for key, value in about.items())]) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(text)
    out.with_suffix(".json").write_text(json.dumps({"about": dict(about), "tables": dict(tables)}, indent=2))
