"""Cells drawn by code, for the tests of metrics."""

import numpy as np

from jaxcell.types import Instances


def squares(*boxes, shape=(40, 40)):
    """Instances that are filled boxes (they may overlap)."""
    boxes = np.asarray(boxes, np.int32).reshape(-1, 4)
    masks = [np.ones((y1 - y0, x1 - x0), bool) for y0, x0, y1, x1 in boxes.tolist()]
    return Instances(shape, boxes, masks, np.ones(len(boxes), np.float32))


def random_cells(rng, count, shape=(40, 48), largest=14):
    """Overlapping random blobs with holes, boxes not always tight."""
    boxes, masks = [], []
    for _ in range(count):
        h, w = rng.integers(2, largest, 2)
        y, x = rng.integers(0, shape[0] - h), rng.integers(0, shape[1] - w)
        mask = rng.random((h, w)) < 0.8
        mask[0, 0] = True
        boxes.append((y, x, y + h, x + w))
        masks.append(mask)
    return Instances(shape, np.asarray(boxes, np.int32).reshape(-1, 4), masks, rng.random(count).astype(np.float32))


def jittered(rng, cells, step=2):
    """The same cells, moved a little, some of them lost."""
    move = rng.integers(-step, step + 1, (len(cells), 2))
    low = np.clip(cells.boxes[:, :2] + move, 0, np.asarray(cells.shape) - (cells.boxes[:, 2:] - cells.boxes[:, :2]))
    boxes = np.concatenate([low, low + cells.boxes[:, 2:] - cells.boxes[:, :2]], 1).astype(np.int32)
    return Instances(cells.shape, boxes, cells.masks, cells.scores).select(rng.random(len(cells)) < 0.8)


def dense(cells):
    """[M, H, W] bool."""
    out = np.zeros((len(cells), *cells.shape), bool)
    for canvas, (y0, x0, y1, x1), mask in zip(out, cells.boxes, cells.masks, strict=True):
        canvas[y0:y1, x0:x1] = mask
    return out
