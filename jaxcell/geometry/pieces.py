"""Connected pieces of a mask."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["large_pieces"]


def large_pieces(mask: np.ndarray, least: int) -> np.ndarray:
    """The pieces (4 neighbours) of at least `least` pixels; [H, W] bool -> the same.

    Source: scikit-image before 0.26, morphology.remove_small_objects; since then objects of exactly that size go too.
    """
    if least <= 1:
        return mask
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    large = stats[:, cv2.CC_STAT_AREA] >= least
    large[0] = False
    return large[pieces]
