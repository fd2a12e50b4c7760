"""What a network may do to the image before its first convolution: normalise it, and tell every pixel where it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["append_location", "divide_by_maximum", "prepend_coordinates", "standardise", "standardise_windows"]


def append_location(image: jax.Array) -> jax.Array:
    """Appends the row and the column of every pixel, each from 0 at the first to 1 at the last.

    Args:
      image: [B, H, W, C].

    Returns:
      [B, H, W, C + 2]: the image, row / (H - 1), column / (W - 1).

    Source: vanvalenlab/deepcell-tf@f1839a4, deepcell/layers/location.py Location2D.
    """
    rows, columns = (jnp.arange(size, dtype=image.dtype) / max(size - 1, 1) for size in image.shape[1:3])
    place = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)
    return jnp.concatenate([image, jnp.broadcast_to(place, (*image.shape[:3], 2))], axis=-1)


def prepend_coordinates(x: jax.Array) -> jax.Array:
    """Puts the row and the column of every pixel in front, each from -1 at the first to 1 at the last.

    Args:
      x: [B, H, W, C].

    Returns:
      [B, H, W, 2 + C]: 2 * row / (H - 1) - 1, 2 * column / (W - 1) - 1, x.

    Source: hustvl/SparseInst@a899015, sparseinst/decoder.py.
    Departs: there the column comes first.
    """
    rows, columns = (jnp.linspace(-1, 1, size).astype(x.dtype) for size in x.shape[1:3])
    place = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)
    return jnp.concatenate([jnp.broadcast_to(place, (*x.shape[:3], 2)), x], axis=-1)


def standardise(image: jax.Array) -> jax.Array:
    """(x - mean) / (deviation + 1e-7), of every image and channel by itself.

    Args:
      image: [B, H, W, C], any unit.

    Returns:
      The same shape; mean 0, population deviation 1.

    Source: vanvalenlab/deepcell-tf@f1839a4, deepcell/layers/normalization.py, norm_method "whole_image".
    """
    mean, deviation = (f(image, axis=(1, 2), keepdims=True) for f in (jnp.mean, jnp.std))
    return (image - mean) / (deviation + 1e-7)


def standardise_windows(image: jax.Array, *, size: int = 61) -> jax.Array:
    """The image less its mean in a window, divided by the deviation of that difference in a window.

    Args:
      image: [B, H, W, C], any unit.
      size: side of the windows, pixels; past the border they see zeros.

    Returns:
      The same shape.

    Source: as `standardise`, norm_method "std".
    """
    difference = image - _window_mean(image, size)
    variance = _window_mean(jnp.square(difference), size) - jnp.square(_window_mean(difference, size))
    return difference / (jnp.sqrt(variance) + 1e-7)


def divide_by_maximum(image: jax.Array, *, size: int = 61) -> jax.Array:
    """The batch divided by its largest value, less its mean in a window.

    Args:
      image: [B, H, W, C], any unit.
      size: side of the windows, pixels; past the border they see zeros.

    Returns:
      The same shape.

    Source: as `standardise`, norm_method "max".
    """
    scaled = image / jnp.max(image)
    return scaled - _window_mean(scaled, size)


def _window_mean(x: jax.Array, size: int) -> jax.Array:
    """Mean of the size x size window around each pixel, zeros outside."""
    for axis in (1, 2):
        window = tuple(size if i == axis else 1 for i in range(x.ndim))
        x = jax.lax.reduce_window(x / size, 0.0, jax.lax.add, window, (1,) * x.ndim, "SAME")
    return x
