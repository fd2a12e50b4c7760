"""Formulas of intensity changes, over any array namespace: data workers and the device compute the same.

Images are [..., H, W, C] in [0, 1] and stay so. Where values lie beyond (standardised images) the formulas take the range that
holds them and [0, 1] for what [0, 1] is else, and values stay in that. A parameter is a number, or an array that broadcasts
against the image, such as [B, 1, 1, 1] for one value an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["add_scaled", "hole_boxes", "raise_to", "stretch", "value_range", "within"]

Array = Any     # of numpy or jax


def value_range(image: Array) -> tuple[Array, Array]:
    """Least and largest value, [..., 1, 1, 1] each, of the smallest range that holds [0, 1] and an image's values."""
    xp, axes = image.__array_namespace__(), (-3, -2, -1)
    return (xp.minimum(xp.min(image, axis=axes, keepdims=True), 0), xp.maximum(xp.max(image, axis=axes, keepdims=True), 1))


def raise_to(image: Array, power: Array | float) -> Array:
    """Gamma: image ** power."""
    low, high = value_range(image)
    return low + (high - low) ** (1 - power) * (image - low) ** power


def stretch(image: Array, factor: Array | float, offset: Array | float) -> Array:
    """Contrast and brightness: (image - mean) * factor + mean + offset, clipped; the mean is each image's own."""
    xp = image.__array_namespace__()
    low, high = value_range(image)
    mean = xp.mean(image, axis=(-3, -2, -1), keepdims=True)
    return xp.clip(image * factor + (mean * (1 - factor) + offset * (high - low)), low, high)


def add_scaled(image: Array, noise: Array, strength: Array | float) -> Array:
    """image + strength * noise, clipped."""
    low, high = value_range(image)
    return image.__array_namespace__().clip(image + strength * (high - low) * noise, low, high)


def hole_boxes(draws: Array, shape: tuple[int, int], sides: tuple[float, float]) -> Array:
    """Rectangles inside of an image, any place equally likely.

    Args:
      draws: [n, 4], uniform in [0, 1).
      shape: (H, W).
      sides: smallest and largest side as a share of the image's; 1 pixel at least.

    Returns:
      [n, 4] int32 boxes (y0, x0, y1, x1).
    """
    xp = draws.__array_namespace__()
    whole = np.asarray(shape)
    extents = xp.maximum(xp.rint((sides[0] + (sides[1] - sides[0]) * draws[:, :2]) * whole), 1)
    corners = xp.floor(draws[:, 2:] * (whole - extents + 1))
    return xp.concat([corners, corners + extents], axis=1).astype(np.int32)


def within(boxes: Array, shape: tuple[int, int]) -> Array:
    """[H, W] bool: which pixels lie in any of the boxes [n, 4] (y0, x0, y1, x1)."""
    xp = boxes.__array_namespace__()
    rows, columns = xp.arange(shape[0])[:, None], xp.arange(shape[1])[:, None]
    in_rows = (rows >= boxes[:, 0]) & (rows < boxes[:, 2])
    in_columns = (columns >= boxes[:, 1]) & (columns < boxes[:, 3])
    return (in_rows[:, None] & in_columns[None]).any(axis=-1)
