"""The two values everything passes around: a `Sample` goes in, `Instances` come out.

Axis letters used in every docstring: B batch, H W image rows and columns, h w head grid, C channels, K classes, N proposals,
M cells (padded where a fixed shape is needed), D label layers, T contour points, O Fourier order. Coordinates are (y, x),
boxes (y0, x0, y1, x1) half-open, images channels last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

__all__ = ["Instances", "Sample"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is known about its cells.

    Attributes:
      image: [H, W, C]; the source's own dtype until the pipeline normalises it, float32 afterwards.
      labels: [H, W, D] int32, 0 is background, -1 is "ignore"; a cell has one id, unique over the layers. D is 1 unless
        cells overlap: then those that share pixels lie in different layers, so nothing is lost. None without annotation.
      nuclei: [H, W] int32, same ids as the cells where the source knows them, -1 where it does not; or None.
      pixel_size: micrometres per pixel, or None where unknown.
      name: unique within a source; it appears in every message about this sample.
      modality: "fluorescence", "phase contrast", ... as the source says; scores are also reported by it.
      group: images of one field, slide, well or movie share it; it never crosses a split.
    """

    image: np.ndarray
    labels: np.ndarray | None = None
    nuclei: np.ndarray | None = None
    pixel_size: float | None = None
    name: str = ""
    modality: str = "unknown"
    group: str = ""

    def __post_init__(self) -> None:
        if self.image.ndim != 3:
            raise ValueError(f"Sample {self.name!r}: image has shape {self.image.shape}; it must be [H, W, C]. "
                             "Add a channel axis: image[..., None].")
        if self.labels is None:
            return
        if self.labels.ndim != 3 or self.labels.shape[:2] != self.image.shape[:2]:
            raise ValueError(f"Sample {self.name!r}: labels have shape {self.labels.shape}; they must be [H, W, D] over an "
                             f"image of {self.image.shape[:2]}. Add a layer axis (labels[..., None]) or check the pairing.")
        if self.labels.dtype != np.int32:
            raise ValueError(f"Sample {self.name!r}: labels are {self.labels.dtype}; they must be int32 (16-bit labels overflow "
                             "above 65,535 cells). Convert with labels.astype(numpy.int32).")


@dataclass(frozen=True, eq=False)
class Instances:
    """The cells of one image (or of one region of it), overlaps kept.

    Attributes:
      shape: (H, W) of the image the coordinates belong to.
      boxes: [M, 4] int32 (y0, x0, y1, x1), half-open, inside the image; the frame of each mask.
      masks: M boolean arrays, `masks[i]` of shape (y1 - y0, x1 - x0).
      scores: [M] float32 in [0, 1]; 1 for annotations.
      extras: further per-cell arrays with leading axis M, such as contours [M, T, 2] or uncertainties [M, 4]. Keys of
        `POINTS` are coordinates in the image and move with `shift`.
    """

    shape: tuple[int, int]
    boxes: np.ndarray
    masks: Sequence[np.ndarray]
    scores: np.ndarray
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    POINTS = ("contours", "locations", "float_boxes")   # (not annotated: a class constant, not a dataclass field)

    def __post_init__(self) -> None:
        count = len(self.boxes)
        sizes = {"masks": len(self.masks), "scores": len(self.scores)} | {k: len(v) for k, v in self.extras.items()}
        wrong = {k: n for k, n in sizes.items() if n != count}
        if wrong or self.boxes.shape != (count, 4):
            raise ValueError(f"Instances: {count} boxes of shape {self.boxes.shape}, but {wrong or 'they'} disagree; every field "
                             "needs one entry per cell and boxes are [M, 4].")

    def __len__(self) -> int:
        return len(self.boxes)

    @staticmethod
    def empty(shape: tuple[int, int]) -> Instances:
        """No cells in an image of `shape`."""
        return Instances(shape, np.zeros((0, 4), np.int32), [], np.zeros(0, np.float32))

    @staticmethod
    def from_labels(labels: np.ndarray) -> Instances:
        """Cells of a label image [H, W] or of label layers [H, W, D], ordered by layer, then id; ids below 1 are no cells."""
        from scipy import ndimage

        labels = labels[..., None] if labels.ndim == 2 else labels
        boxes, masks = [], []
        for layer in range(labels.shape[2]):
            plane = np.maximum(labels[..., layer], 0)
            ids, dense = np.unique(plane, return_inverse=True)     # a huge id must not cost a huge table
            dense = dense.reshape(plane.shape) + (0 if len(ids) and ids[0] == 0 else 1)
            for number, where in enumerate(ndimage.find_objects(dense), start=1):
                if where is None:
                    continue
                rows, columns = where
                boxes.append((rows.start, columns.start, rows.stop, columns.stop))
                masks.append(dense[where] == number)
        shape = (int(labels.shape[0]), int(labels.shape[1]))
        return Instances(shape, np.asarray(boxes, np.int32).reshape(-1, 4), masks, np.ones(len(boxes), np.float32))

    def select(self, index: np.ndarray) -> Instances:
        """The cells at `index` (integers or a boolean mask), in that order."""
        index = np.flatnonzero(index) if np.asarray(index).dtype == bool else np.asarray(index, np.int64)
        return replace(self, boxes=self.boxes[index], masks=[self.masks[i] for i in index.tolist()], scores=self.scores[index],
                       extras={k: v[index] for k, v in self.extras.items()})

    def shift(self, offset: tuple[int, int], shape: tuple[int, int]) -> Instances:
        """The same cells in an image of `shape` whose pixel `offset` (y, x) is this image's origin; they must fit."""
        move = np.asarray(offset)
        extras = {k: v + np.resize(move, v.shape[-1]).astype(v.dtype) if k in self.POINTS else v for k, v in self.extras.items()}
        return replace(self, shape=shape, boxes=self.boxes + np.tile(move, 2).astype(np.int32), extras=extras)

    @staticmethod
    def concatenate(parts: Sequence[Instances]) -> Instances:
        """Cells of several parts of one image (same `shape` each); extras must agree unless a part is empty."""
        if not parts:
            raise ValueError("Instances.concatenate: no parts; the image's shape would be unknown. Use Instances.empty(shape).")
        full = [p for p in parts if len(p)] or [parts[0]]
        keys = set(full[0].extras)
        for part in full:
            if part.shape != full[0].shape or set(part.extras) != keys:
                raise ValueError(f"Instances.concatenate: shape {part.shape} with extras {sorted(part.extras)} does not match "
                                 f"{full[0].shape} with {sorted(keys)}; shift the parts into one image first.")
        return Instances(full[0].shape, np.concatenate([p.boxes for p in full]), [m for p in full for m in p.masks],
                         np.concatenate([p.scores for p in full]),
                         {k: np.concatenate([p.extras[k] for p in full]) for k in keys})

    def areas(self) -> np.ndarray:
        """[M] int64, pixels of each cell."""
        return np.asarray([int(m.sum()) for m in self.masks], np.int64)
