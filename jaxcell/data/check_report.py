"""The report of a check as text for the terminal and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcell.data.check import SEVERITIES, UNUSABLE, Finding, Report
from jaxcell.data.facts import SampleFacts

__all__ = ["summarize", "to_json", "to_text"]

NAMED = 5               # samples named in a line of text; the JSON file names all
SIDE_BY_SIDE = 3        # parts whose facts stand beside one another
KEY = 26                # characters of the first column


def summarize(samples: Sequence[SampleFacts], *, unusable: int = 0) -> dict[str, list[str]]:
    """Fact -> its lines of text, for one part; `unusable` images are counted beside the samples."""
    cells = [s.cells for s in samples if s.cells is not None]
    table = {"images": [f"{len(samples) + unusable:,}" + (f" ({unusable:,} unusable)" if unusable else "")],
             "with labels": [f"{len(cells):,}"]}
    if not samples:
        return table
    images = [s.image for s in samples]
    table |= {
        "height x width": _middle_first([(i.shape[0] * i.shape[1], f"{i.shape[0]} x {i.shape[1]}") for i in images]),
        "type": _counted(i.dtype for i in images),
        "planes": _counted(str(i.shape[2]) for i in images),
        "values (1, 50, 99 %)": [_numbers(np.median([i.percentiles[1:4] for i in images], axis=0))],
        "values (least, most)": [_numbers([min(i.percentiles[0] for i in images), max(i.percentiles[-1] for i in images)])],
    }
    if spans := [s.normalized for s in samples if s.normalized is not None]:
        table["normalised (1, 99.9 %)"] = [_numbers(np.median(spans, axis=0))]
    if cells:
        areas, extents = (np.concatenate(parts) for parts in ([c.areas for c in cells], [c.extents for c in cells]))
        counts = [len(c) for c in cells]
        table |= {"cells": [f"{sum(counts):,}"], "cells of an image": [_spread(counts)]}
        if len(areas):
            table |= {"area, px": [_spread(areas)], "longer side, px": [_spread(extents)]}
    table |= {"modality": _counted(s.modality for s in samples),
              "groups": [f"{len({s.group for s in samples}):,}"],
              "pixel size, um": _counted("unknown" if s.pixel_size is None else f"{s.pixel_size:g}" for s in samples)}
    return table


def _middle_first(sizes: Sequence[tuple[int, str]]) -> list[str]:
    ranked = sorted(sizes)
    least, middle, most = ranked[0][1], ranked[len(ranked) // 2][1], ranked[-1][1]
    return [least] if least == most else [f"{middle} (median)", f"{least} to {most}"]


def _counted(values: Iterable[str]) -> list[str]:
    counts = Counter(values).most_common()
    shown = [f"{value}: {n:,}" if len(counts) > 1 else value for value, n in counts[:NAMED]]
    return shown + ([f"and {len(counts) - NAMED} more"] if len(counts) > NAMED else [])


def _spread(values: Any) -> str:
    least, middle, most = np.percentile(values, [0, 50, 100])
    return f"{middle:,.0f} (median), {least:,.0f} to {most:,.0f}"


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" for value in values)


def to_text(report: Report, *, width: int = 120) -> str:
    """The facts of the parts side by side, then the findings."""
    tables = _tables(report)
    lines: list[str] = []
    for start in range(0, len(tables), SIDE_BY_SIDE):
        lines += [""] * bool(start) + _side_by_side(dict(list(tables.items())[start:start + SIDE_BY_SIDE]), width)
    counts = Counter(f.severity for f in report.findings)
    lines += ["", ", ".join(f"{counts[s]} {s}{'s' * (counts[s] != 1)}" for s in SEVERITIES)]
    for finding in report.findings:
        head = f"{finding.severity.upper()} {_headline(finding, report)}"
        lines += ["", *textwrap.wrap(head, width, subsequent_indent="    "),
                  *textwrap.wrap(f"-> {finding.action}", width, initial_indent="    ", subsequent_indent="       ")]
    return "\n".join(lines)


def _tables(report: Report) -> dict[str, dict[str, list[str]]]:
    return {part: summarize(samples, unusable=_unusable(report, part)) for part, samples in report.parts.items()}


def _unusable(report: Report, part: str) -> int:
    return sum(len(f.images) for f in report.findings if f.rule == UNUSABLE and f.part == part)


def _side_by_side(tables: Mapping[str, Mapping[str, Sequence[str]]], width: int) -> list[str]:
    """Lines with one column for each part."""
    column = (width - KEY) // len(tables) - 2
    lines = [*_row("", [[part] for part in tables], column)] if any(tables) else []
    for key in dict.fromkeys(key for table in tables.values() for key in table):
        lines += _row(key, [table.get(key, [""]) for table in tables.values()], column)
    return lines


def _row(key: str, cells: Sequence[Sequence[str]], column: int) -> Iterator[str]:
    wrapped = [[line for text in cell for line in textwrap.wrap(text, column) or [""]] for cell in cells]
    for number in range(max(map(len, wrapped), default=0)):
        texts = [cell[number] if number < len(cell) else "" for cell in wrapped]
        yield f"{key if number == 0 else '':{KEY}}{'  '.join(text.ljust(column) for text in texts)}".rstrip()


def _headline(finding: Finding, report: Report) -> str:
    samples = report.parts.get(finding.part, ())
    head = f"{finding.part}: {finding.rule}" if finding.part else finding.rule
    if not finding.images:
        return head
    total = sum(len(s.cells) for s in samples if s.cells is not None)
    of_cells = f"{finding.cells:,} of {total:,} cells in " if finding.cells is not None else ""
    images = max(len(samples) + _unusable(report, finding.part), len(finding.images))
    of_images = f" of {images:,}" if finding.part in report.parts else ""
    more = ", ..." if len(finding.images) > NAMED else ""
    return (f"{head}: {of_cells}{len(finding.images):,}{of_images} image{'s' * (images != 1)}: "
            f"{', '.join(finding.images[:NAMED])}{more}")


def to_json(report: Report) -> str:
    """Everything as JSON: "parts" (the table of `to_text`), "findings" (all samples named), "samples" (main facts of each)."""
    return json.dumps({
        "parts": _tables(report),
        "findings": [{"severity": f.severity, "rule": f.rule, "part": f.part, "count": len(f.images), "cells": f.cells,
                      "images": list(f.images), "action": f.action} for f in report.findings],
        "samples": [_plain(part, sample) for part, samples in report.parts.items() for sample in samples],
    }, indent=1)


def _plain(part: str, sample: SampleFacts) -> dict[str, Any]:
    cells, image = sample.cells, sample.image
    return {"part": part, "name": sample.name, "modality": sample.modality, "group": sample.group,
            "pixel_size": sample.pixel_size, "shape": image.shape, "dtype": image.dtype, "percentiles": image.percentiles,
            "saturated": image.saturated, "refusal": sample.refusal,
            "cells": None if cells is None else len(cells),
            "median_area": None if cells is None or not len(cells) else float(np.median(cells.areas)),
            "fit": None if cells is None else cells.fit}
