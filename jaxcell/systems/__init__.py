"""The systems that jaxcell has: one literal dict. A new one is one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxcell.system import System
from jaxcell.systems import contour_proposal, maunet, mesmer, morphoseg, pix2pix, sparse_seunet

__all__ = ["SYSTEMS", "build_system"]

SYSTEMS: dict[str, Callable[[Any], System]] = {
    "contour_proposal": contour_proposal.build,
    "maunet": maunet.build,
    "mesmer": mesmer.build,
    "morphoseg": morphoseg.build,
    "pix2pix": pix2pix.build,
    "sparse_seunet": sparse_seunet.build,
}


def build_system(config: Any) -> System:
    """Assembles `config.system`.

    Raises:
      ValueError: no such system; lists those that exist.
    """
    if config.system not in SYSTEMS:
        raise ValueError(f"config.system={config.system!r} is unknown; known systems are {', '.join(sorted(SYSTEMS))}.")
    return SYSTEMS[config.system](config)
