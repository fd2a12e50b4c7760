"""Reads JSON files, whatever may be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["read_json"]


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON, or nested beyond what can be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such JSON file; check the path.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened ({error.strerror}); check its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}. Check that the file is whole and is what its name says.") from error
