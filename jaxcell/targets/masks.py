"""The cells of a crop one by one, each with all of its pixels, also those under other cells; padded to a fixed number.

A network with N queries can answer for N cells at most. What happens to a crop that has more is a rule (`CROWD_RULES`), never an
accident: it is refused, or what the network sees is made smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from jaxcell.geometry.labels import cell_ids
from jaxcell.types import Instances, Sample

__all__ = ["CROWD_RULES", "annotated_pixels", "instance_masks", "refuse_crowd", "shrink_to_fit"]

SHRINK = 0.85       # side of a window that is tried after one that holds too many cells


def instance_masks(labels: np.ndarray, most: int) -> dict[str, np.ndarray]:
    """The cells' masks, by rising layer, then id.

    Args:
      labels: [H, W, D] int32 label layers.
      most: M.

    Returns:
      masks [M, H, W] uint8, 1 inside the cell, zeros in rows beyond the last cell; present [M] bool, the rows that hold a cell.

    Raises:
      ValueError: there are more cells than rows.
    """
    cells = Instances.from_labels(labels)
    if len(cells) > most:
        raise ValueError(f"instance_masks: {len(cells)} cells for {most} rows; no cell may be left out silently. Use smaller "
                         "crops, a network with more queries, or the rule 'shrink'.")
    masks = np.zeros((most, *cells.shape), np.uint8)
    for row, ((y0, x0, y1, x1), mask) in enumerate(zip(cells.boxes.tolist(), cells.masks, strict=True)):
        masks[row, y0:y1, x0:x1] = mask
    return {"masks": masks, "present": np.arange(most) < len(cells)}


def annotated_pixels(labels: np.ndarray) -> np.ndarray:
    """1 where the annotation says what is there; 0 where a layer says "ignore" (-1) and no other has a cell.

    Args:
      labels: [H, W, D] int32.

    Returns:
      [H, W] float32.
    """
    known = (labels.min(axis=-1) >= 0) | (labels.max(axis=-1) > 0)
    return known.astype(np.float32)


def refuse_crowd(sample: Sample, rng: np.random.Generator, most: int) -> Sample:
    """The sample itself.

    Raises:
      ValueError: it has more than `most` cells.
    """
    assert sample.labels is not None
    count = len(cell_ids(sample.labels))
    if count > most:
        raise ValueError(f"sample {sample.name!r}: this crop has {count} cells, and the network answers for {most} at most. Set "
                         f"config.model.queries above {count}, config.data.crop smaller, or config.targets.crowd=shrink.")
    return sample


def shrink_to_fit(sample: Sample, rng: np.random.Generator, most: int) -> Sample:
    """The largest window tried that has at most `most` cells, in the upper left corner of a sample of the old size.

    Windows are drawn evenly, each side 0.85 of the one before; around them image and labels are 0, as around an image that is
    smaller than a crop. A sample with few enough cells stays as it is.

    Args:
      sample: with labels; its image is what the network shall see.
      rng: of this sample.
      most: cells.

    Raises:
      ValueError: a single pixel lies in more cells than that.
    """
    assert sample.labels is not None
    height, width = sample.labels.shape[:2]
    sides = np.asarray([height, width])
    window: tuple[slice, slice] = slice(height), slice(width)
    while len(cell_ids(sample.labels[window])) > most:
        if sides.max() == 1:
            raise ValueError(f"sample {sample.name!r}: a pixel lies in more than {most} cells; use a network with more queries.")
        sides = np.maximum((SHRINK * sides).astype(int), 1)
        y, x = (int(rng.integers(size - side + 1)) for size, side in zip((height, width), sides.tolist(), strict=True))
        window = slice(y, y + int(sides[0])), slice(x, x + int(sides[1]))

    def alone(array: np.ndarray) -> np.ndarray:
        result = np.zeros_like(array)
        result[:sides[0], :sides[1]] = array[window]
        return result

    if sides.tolist() == [height, width]:
        return sample
    return replace(sample, image=alone(sample.image), labels=alone(sample.labels),
                   nuclei=None if sample.nuclei is None else alone(sample.nuclei))


CROWD_RULES: Mapping[str, Callable[[Sample, np.random.Generator, int], Sample]] = {
    "refuse": refuse_crowd, "shrink": shrink_to_fit}
"""name -> (sample, rng, most cells) -> sample with at most so many. A system that changes the image must return it too."""
