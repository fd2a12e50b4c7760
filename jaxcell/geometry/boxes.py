"""Axis-aligned boxes (y0, x0, y1, x1), on numpy and jax arrays alike."""

from __future__ import annotations

from typing import Any

__all__ = ["box_area", "boxes_from_contours", "paired_giou", "paired_iou", "pairwise_iou", "valid_boxes"]


def boxes_from_contours(contours: Any) -> Any:
    """The extremes of each contour's points: [..., T, 2] -> [..., 4].

    Source: FZJ-INM1-BDA/neurips22-cell-seg@ab6a154, neurips/nn/cpn_model.py `contours2boxes`.
    """
    xp = contours.__array_namespace__()
    # Points by their index, not `min`: its gradient asks again which points equal the extreme. A compiler that computes them a
    # second time, rounded otherwise, finds none, and none of none is NaN.
    extremes = [xp.take_along_axis(contours, index(contours, axis=-2)[..., None, :], axis=-2)[..., 0, :]
                for index in (xp.argmin, xp.argmax)]
    return xp.concat(extremes, axis=-1)


def box_area(boxes: Any) -> Any:
    """Area of boxes [..., 4] -> [...]; a box whose sides are swapped counts by its signed sides."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def valid_boxes(boxes: Any, *, min_size: float) -> Any:
    """Which boxes [..., 4] are at least `min_size` high and wide: [...] bool.

    Source: torchvision, ops/boxes.py `remove_small_boxes`.
    """
    return (boxes[..., 2] - boxes[..., 0] >= min_size) & (boxes[..., 3] - boxes[..., 1] >= min_size)


def paired_iou(a: Any, b: Any) -> Any:
    """Intersection over union of boxes a[i] and b[i]; 0 where the union is empty.

    Args:
      a: [..., 4].
      b: [..., 4]; leading axes broadcast against those of `a`.

    Returns:
      [...] in [0, 1].
    """
    intersection, union = _overlap(a, b)
    return _ratio(intersection, union)


def paired_giou(a: Any, b: Any) -> Any:
    """Generalised IoU of boxes a[i] and b[i]: IoU minus the share of their common hull that neither covers.

    Args:
      a: [..., 4].
      b: [..., 4].

    Returns:
      [...] in [-1, 1]; 0 where the hull is empty.

    Source: Rezatofighi et al. 2019, "Generalized Intersection over Union", algorithm 1.
    """
    xp = a.__array_namespace__()
    intersection, union = _overlap(a, b)
    low, high = xp.minimum(a[..., :2], b[..., :2]), xp.maximum(a[..., 2:], b[..., 2:])
    hull = box_area(xp.concat([low, high], axis=-1))
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def pairwise_iou(a: Any, b: Any) -> Any:
    """IoU of every box of `a` [N, 4] with every box of `b` [M, 4]: [N, M]."""
    return paired_iou(a[:, None, :], b[None, :, :])


def _overlap(a: Any, b: Any) -> tuple[Any, Any]:
    """Areas of intersection and union."""
    xp = a.__array_namespace__()
    low, high = xp.maximum(a[..., :2], b[..., :2]), xp.minimum(a[..., 2:], b[..., 2:])
    sides = high - low
    sides = xp.where(sides < 0, xp.zeros_like(sides), sides)   # not maximum: boxes that just touch keep their full gradient
    intersection = sides[..., 0] * sides[..., 1]
    return intersection, box_area(a) + box_area(b) - intersection


def _ratio(part: Any, whole: Any) -> Any:
    """part / whole, 0 where whole is not positive; the inner `where` keeps the gradient finite there too."""
    xp = part.__array_namespace__()
    valid = whole > 0
    return xp.where(valid, part / xp.where(valid, whole, xp.ones_like(whole)), xp.zeros_like(part))
