"""What two masks share, from their crops alone."""

from __future__ import annotations

import numpy as np

__all__ = ["shared_pixels"]


def shared_pixels(box: np.ndarray, mask: np.ndarray, other_box: np.ndarray, other_mask: np.ndarray) -> int:
    """Pixels that two masks have in common.

    Args:
      box: [4] (y0, x0, y1, x1), the frame of the first.
      mask: [y1 - y0, x1 - x0] bool.
      other_box: [4], of the second.
      other_mask: its pixels.
    """
    (y0, x0), (y1, x1) = np.maximum(box[:2], other_box[:2]).tolist(), np.minimum(box[2:], other_box[2:]).tolist()
    if y1 <= y0 or x1 <= x0:
        return 0
    parts = (part[y0 - frame[0]:y1 - frame[0], x0 - frame[1]:x1 - frame[1]]
             for part, frame in ((mask, box), (other_mask, other_box)))
    return int(np.count_nonzero(np.logical_and(*parts)))
