"""Reads the CSV files that data sets come with: manifests and lists of run lengths."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["Row", "decode_runs", "read_table"]

Row = dict[str, str]


def read_table(path: Path, *, columns: Sequence[str]) -> list[tuple[int, Row]]:
    """The rows of a CSV file with a header.

    Args:
      path: the file; UTF-8, values separated by commas.
      columns: columns that it must have.

    Returns:
      (line number, column -> value without surrounding spaces) of each row; absent values are "".

    Raises:
      FileNotFoundError: no such file.
      ValueError: not UTF-8, not separated by commas, columns missing, a row that is too long, or no row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; complete the folder.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened ({error.strerror}); check its permissions.") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
        header = [name.strip() for name in reader.fieldnames or ()]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; a CSV file was expected. Save it anew as CSV.") from error
    _check_header(path, header, columns)
    if not rows:
        raise ValueError(f"{path}: has a header and no row; one row for each image is needed.")
    for number, row in rows:
        if any(row.pop(None, ())):      # csv's key for what lies beyond the header
            raise ValueError(f"{path}, line {number}: has more than {len(header)} values; put a value that holds a comma in "
                             "quotes.")
    return [(number, {key.strip(): (value or "").strip() for key, value in row.items()}) for number, row in rows]


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    if twice := sorted({column for column in header if column and header.count(column) > 1}):
        raise ValueError(f"{path}: has several columns {', '.join(twice)}; remove or rename all but one.")
    missing = [column for column in columns if column not in header]
    if not missing:
        return
    if len(header) == 1 and (other := [name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if mark in header[0]]):
        raise ValueError(f"{path}: its values are separated by {other[0]}; they must be by commas. Save it so.")
    raise ValueError(f"{path}: has no column {', '.join(missing)}; its columns are {', '.join(header) or 'absent'}. The first "
                     "line must be a header.")


def decode_runs(runs: str, shape: tuple[int, int], *, order: str, where: str) -> np.ndarray:
    """The mask of a text of run lengths "start length start length ...", pixels counted from 1.

    Args:
      runs: the text.
      shape: (H, W) of the image.
      order: "C" counts along rows first (Sartorius), "F" along columns first (BBBC038).
      where: what to name in messages.

    Returns:
      [H, W] bool.

    Raises:
      ValueError: no whole numbers in pairs, or pixels outside the image.
    """
    try:
        numbers = np.asarray(runs.split(), np.int64).reshape(-1, 2)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {runs[:40]!r} are no run lengths; pairs of a start and a length are needed. Get the file "
                         "anew.") from error
    flat = np.zeros(shape[0] * shape[1], bool)
    for start, length in numbers.tolist():
        if start < 1 or length < 1 or start - 1 + length > flat.size:
            raise ValueError(f"{where}: a run covers the pixels {start} to {start - 1 + length}, but the image has 1 to "
                             f"{flat.size}. Check that the table belongs to these images.")
        flat[start - 1:start - 1 + length] = True
    return flat.reshape(shape, order="C" if order == "C" else "F")
