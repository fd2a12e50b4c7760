"""Local refinement: contour points follow a displacement field read at the pixel they lie in, on numpy and jax alike."""

from __future__ import annotations

from typing import Any

__all__ = ["bucket_weights", "clip_contours", "refine_contours"]


def bucket_weights(sampling: Any, buckets: int) -> tuple[Any, Any]:
    """Which displacement fields a contour point reads, and how much of each.

    The contour's parameter is cut into `buckets` equal parts with a displacement field each; a point mixes the fields of
    the nearest parts linearly, so that the displacement is continuous along the contour (and over its seam).

    Args:
      sampling: [..., T] parameters in [0, 1].
      buckets: number of fields K >= 1.

    Returns:
      index [3, ..., T] int32 in [0, K) and weight [3, ..., T], which sum to 1 over the first axis; that axis is 1 long if K is 1.

    Source: celldetection 0.4.9, ops/cpn.py `resolve_refinement_buckets`.
    """
    xp = sampling.__array_namespace__()
    if buckets == 1:
        return xp.zeros((1, *sampling.shape), dtype=xp.int32), xp.ones((1, *sampling.shape), dtype=sampling.dtype)
    position = sampling * buckets
    index = xp.stack([xp.floor(position) + step for step in (-1, 0, 1)])
    weight = xp.maximum(1 - xp.abs(index + 0.5 - position), xp.zeros_like(index))
    return (index % buckets).astype(xp.int32), weight


def refine_contours(contours: Any, sampling: Any, field: Any, *, iterations: int) -> Any:
    """Contours after each refinement iteration, for one image.

    An iteration rounds a point to its pixel (half to even, kept inside the image) and adds the displacement read there to
    the rounded point. Rounding has no gradient, so the last displacement alone receives one. The result may leave the image:
    see `clip_contours`.

    Args:
      contours: [N, T, 2] points (y, x) in pixels of `field`.
      sampling: [T] or [N, T] parameters of the points, in [0, 1].
      field: [H, W, 2 * K] displacements (y, x) for each of K buckets, pixels.
      iterations: how often, >= 1.

    Returns:
      [iterations, N, T, 2].

    Raises:
      ValueError: if `iterations` is below 1.

    Source: Upschulte et al. 2022, "Contour proposal networks for biomedical instance segmentation"; celldetection 0.4.9,
      models/cpn.py `local_refinement`.
    """
    if iterations < 1:
        raise ValueError(f"refine_contours: iterations is {iterations}; it must be at least 1. To leave contours unrefined, "
                         "do not call it.")
    xp = contours.__array_namespace__()
    height, width, channels = field.shape
    buckets = channels // 2
    bucket, weight = bucket_weights(sampling, buckets)
    share = xp.sum(xp.where(bucket[..., None] == xp.arange(buckets), weight[..., None], 0), axis=0)   # [T, K] or [N, T, K]
    vectors = xp.reshape(field, (height * width, channels))
    results = []
    for _ in range(iterations):
        pixels = clip_contours(xp.round(contours), (height, width))
        whole = pixels.astype(xp.int32)
        read = vectors[whole[..., 0] * width + whole[..., 1]]   # [N, T, 2 * K]: a pixel's buckets lie side by side
        contours = pixels
        for k in range(buckets):   # a loop fuses; as a matrix product TF32 would move the points
            contours = contours + read[..., 2 * k:2 * k + 2] * share[..., k, None]
        results.append(contours)
    return xp.stack(results)


def clip_contours(contours: Any, shape: tuple[int, int]) -> Any:
    """Points [..., 2] moved into [0, H - 1] x [0, W - 1]; no gradient passes where a point was outside."""
    xp = contours.__array_namespace__()
    low = xp.zeros(2, dtype=contours.dtype)
    high = xp.asarray((shape[0] - 1, shape[1] - 1), dtype=contours.dtype)
    return xp.clip(contours, low, high)
