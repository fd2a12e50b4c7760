"""Which of a cell's further values belong in files."""

from __future__ import annotations

import numpy as np

from jaxcell.types import Instances

__all__ = ["cell_fields"]

INTERNAL = ("nms_weights",)     # how one proposal was chosen among its rivals: of use to merge tiles, of none to a reader


def cell_fields(instances: Instances) -> dict[str, np.ndarray]:
    """The extras that are numbers of a cell: of one or two axes, neither coordinates nor internal to prediction."""
    return {key: values for key, values in instances.extras.items()
            if values.ndim <= 2 and values.dtype.kind in "iuf" and key not in (*Instances.POINTS, *INTERNAL)}
