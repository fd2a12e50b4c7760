"""COCO's run lengths and polygons as crops, never at the size of the image.

pycocotools draws the polygons, because COCO's scores are defined by its pixels; what it draws, and run lengths that a file
holds, become crops here, where it would make whole images. Large coordinates make it write beyond its memory, so they are
refused before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from jaxcell.data.annotations.crops import EMPTY, Crop

__all__ = ["check_polygon", "counts_of_texts", "crop_of_runs", "polygon_runs", "runs_of_counts"]

LARGEST = 1e6           # pixels a side; pycocotools keeps five times a coordinate as a 32-bit integer
LONGEST = 2**20         # pixels of one outline: drawing it takes 80 bytes a pixel
MOST_PIXELS = 2**31     # of an image: pycocotools counts them in 32 bits
MOST_DIGITS = 8         # characters of a number: 40 bits


def runs_of_counts(counts: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Where the runs of a mask start and stop.

    Args:
      counts: [n] int64, lengths of runs of 0 and 1 in turns, 0 first.
      shape: (H, W).

    Returns:
      [R, 2] int64, half-open, in pixels counted down the columns; none is empty.

    Raises:
      ValueError: the lengths do not add up to the image.
    """
    size = shape[0] * shape[1]
    if not counts.size or counts.min() < 0 or counts.max() > size or counts.sum() != size:
        raise ValueError(f"has damaged run lengths: they must add up to {shape[0]} x {shape[1]} pixels. Export it anew.")
    runs = np.cumsum(counts)[:len(counts) // 2 * 2].reshape(-1, 2)
    return runs[runs[:, 0] < runs[:, 1]]


def counts_of_texts(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The run lengths of masks in COCO's compressed form.

    A character holds 5 bits of a number, lowest first, from 48 on; its sixth bit says that more follow. From the fourth number
    on the difference to the one two before is stored.

    Returns:
      [n] int64, the numbers of all masks one after the other, and [M] int64, how many each has.

    Raises:
      ValueError: other characters, or an unfinished or overlong number.
    """
    codes = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    if not len(ends) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("has damaged compressed run lengths. Export it anew.")
    digits = np.diff(ends, prepend=-1)
    if digits.max() > MOST_DIGITS:
        raise ValueError("has damaged compressed run lengths. Export it anew.")
    place = np.arange(len(codes)) - np.repeat(ends - digits + 1, digits)
    numbers = np.add.reduceat((codes & 31) << (5 * place), ends - digits + 1)
    numbers -= ((codes[ends] & 16) != 0) * (np.int64(1) << (5 * digits))
    lengths = np.diff(np.searchsorted(ends, np.cumsum([len(text) for text in texts])), prepend=0)
    index = np.arange(len(numbers)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    for chain, count in ((index % 2 == 1, lengths // 2), ((index % 2 == 0) & (index > 0), (lengths - 1) // 2)):
        sums = np.concatenate([[0], np.cumsum(numbers[chain])])
        numbers[chain] = sums[1:] - np.repeat(sums[np.cumsum(count) - count], count)    # each mask starts anew
    return numbers, lengths


def check_polygon(polygon: np.ndarray) -> None:
    """Refuses a polygon, [2 P] float64, that pycocotools could not draw within its numbers and our memory."""
    low, high = polygon.min(), polygon.max()
    if not (low > -LARGEST and high < LARGEST):
        strange = polygon[~(np.abs(polygon) < LARGEST)][0]
        raise ValueError(f"has coordinates that are no places in an image, such as {strange}. Mend or remove it.")
    if polygon.size * (high - low) > LONGEST and np.abs(np.diff(polygon.reshape(-1, 2), axis=0)).sum() > LONGEST:
        raise ValueError(f"has an outline of more than {LONGEST} pixels, which no cell has. Mend or remove it.")


def polygon_runs(cells: Sequence[Sequence[np.ndarray]], shape: tuple[int, int]) -> list[np.ndarray]:
    """The runs of cells of one or more polygons each, joined; exactly the pixels of pycocotools.

    Args:
      cells: a cell's polygons are [2 P] float64, x and y in turns, P >= 3, and pass `check_polygon`. What lies outside the image
        is cut off.
      shape: (H, W).

    Returns:
      For every cell [R, 2] as of `runs_of_counts`.
    """
    if not cells:
        return []
    drawn = iter(coco_mask.frPyObjects([polygon for cell in cells for polygon in cell], *shape))
    parts = [[next(drawn) for _ in cell] for cell in cells]
    texts = [(codes[0] if len(codes) == 1 else coco_mask.merge(codes))["counts"] for codes in parts]
    counts, lengths = counts_of_texts(texts)
    owner = np.repeat(np.arange(len(texts)), lengths)
    index = np.arange(len(counts)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    stops = np.cumsum(counts) - owner * (shape[0] * shape[1])       # every mask's counts add up to the image
    ones = index % 2 == 1
    runs = np.stack([stops[ones] - counts[ones], stops[ones]], axis=1)
    return np.split(runs, np.cumsum(lengths // 2)[:-1])


def crop_of_runs(runs: np.ndarray, height: int) -> Crop:
    """The crop of a mask from where its runs start and stop, [R, 2], in an image of `height` rows."""
    if not len(runs):
        return EMPTY
    (left, top), (right, bottom) = np.divmod(runs[:, 0], height), np.divmod(runs[:, 1] - 1, height)
    x0, x1 = int(left[0]), int(right[-1]) + 1
    y0, y1 = (int(top.min()), int(bottom.max()) + 1) if (left == right).all() else (0, height)
    starts = (left - x0) * (y1 - y0) + top - y0
    changes = np.zeros((x1 - x0) * (y1 - y0) + 1, np.int8)
    changes[starts] += 1                                # no two runs start, or stop, at one place
    changes[starts + runs[:, 1] - runs[:, 0]] -= 1
    return (y0, x0, y1, x1), np.cumsum(changes[:-1], dtype=np.int8).reshape(x1 - x0, y1 - y0).T.astype(bool)
