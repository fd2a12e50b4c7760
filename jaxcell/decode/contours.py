"""From the dense outputs of the contour proposal network to cells: threshold, contours, refinement, NMS, masks."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from scipy.special import expit

from jaxcell.geometry.boxes import boxes_from_contours, pairwise_iou
from jaxcell.geometry.fourier import (
    absolute_locations,
    contours_from_fourier,
    scale_contours,
    scale_fourier,
    uniform_sampling,
)
from jaxcell.geometry.refinement import clip_contours, refine_contours
from jaxcell.types import Instances

__all__ = ["decode_contours", "nms", "nms_weights", "propose", "rasterize"]

_CHUNK = 2048   # proposals refined at a time: their work space, not their number, bounds the memory


def decode_contours(
    outputs: Mapping[str, np.ndarray], *, score_threshold: float, samples: int, iterations: int, nms_threshold: float,
    nms_weight: str = "certainty", certainty_threshold: float | None = None, max_proposals: int | None = None,
    shape: tuple[int, int] | None = None,
) -> Instances:
    """Cells of one region from the network's dense outputs.

    Args:
      outputs: see `propose`.
      score_threshold: proposals need a larger score, in [0, 1].
      samples: contour points T.
      iterations: refinement iterations; 0 for none.
      nms_threshold: of two proposals whose boxes have a larger IoU the one of lower weight goes.
      nms_weight: "score", "certainty" or "tile", see `nms_weights`.
      certainty_threshold: see `propose`.
      max_proposals: see `propose`.
      shape: see `propose`.

    Returns:
      Instances by falling weight, with the extras contours [M, T, 2], float_boxes [M, 4] (of the contours, unrounded),
      locations [M, 2], nms_weights [M] and, with an uncertainty head, uncertainties [M, 4]: in [0, 1], of the sides of a box
      (y0, x0, y1, x1). The head's logits are in `propose`.

    Source: the paper, section 2.3; FZJ-INM1-BDA/neurips22-cell-seg@ab6a154, neurips/nn/cpn_model.py `CPN.forward`.
    """
    found = propose(outputs, score_threshold=score_threshold, samples=samples, iterations=iterations,
                    certainty_threshold=certainty_threshold, max_proposals=max_proposals, shape=shape)
    weights = nms_weights(found["scores"], found.get("uncertainty"), kind=nms_weight)
    keep = nms(_solid(found, _image_shape(outputs, shape)), weights, iou_threshold=nms_threshold)
    extras = {name: found[name][keep] for name in ("contours", "float_boxes", "locations")} | {"nms_weights": weights[keep]}
    if "uncertainty" in found:
        extras["uncertainties"] = expit(found["uncertainty"][keep])
    size = _image_shape(outputs, shape)
    boxes, masks = rasterize(extras["contours"], size)
    return Instances(size, boxes, masks, found["scores"][keep], extras)


def propose(
    outputs: Mapping[str, np.ndarray], *, score_threshold: float, samples: int, iterations: int,
    certainty_threshold: float | None = None, max_proposals: int | None = None, shape: tuple[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """Every proposal of one region, before NMS.

    Args:
      outputs: without a batch axis: scores [h, w, 1] logits, locations [h, w, 2], fourier [h, w, 4 * O] and, where the network
        has them, refinement [H, W, 2 * K] and uncertainty [h, w, 4] logits.
      score_threshold: proposals need a larger score, in [0, 1].
      samples: contour points T, spread evenly over [0, 1] with both ends.
      iterations: refinement iterations; 0 for none.
      certainty_threshold: proposals need a mean uncertainty below 1 minus this.
      max_proposals: keep only so many, those of highest score; the default keeps all.
      shape: (H, W) of the region; needed only without a refinement map.

    Returns:
      Proposals by the row-major order of their head-grid pixel: scores [N], locations [N, 2], fourier [N, O, 4], contours
      [N, T, 2] (refined, inside the image), float_boxes [N, 4], and uncertainty [N, 4] logits where the network has them. All
      but scores and logits are in image pixels.

    Raises:
      ValueError: if the image's size is unknown or contradictory, if a certainty is asked of a network without uncertainties,
        or if a score is not finite: a network that has diverged must not report an image without cells.
    """
    size = _image_shape(outputs, shape)
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold={score_threshold}; scores lie in [0, 1]: use for example 0.5.")
    if bad := outputs["scores"].size - np.count_nonzero(np.isfinite(outputs["scores"])):
        raise ValueError(f"propose: {bad} of {outputs['scores'].size} scores are not finite; the network has diverged. Use an "
                         "earlier checkpoint.")
    grid = outputs["scores"].shape[:2]
    scale = size[0] / grid[0], size[1] / grid[1]
    scores = expit(outputs["scores"].reshape(-1))
    chosen = scores > score_threshold
    if certainty_threshold is not None:
        if "uncertainty" not in outputs:
            raise ValueError(f"propose: certainty_threshold={certainty_threshold} needs the output 'uncertainty', but there are "
                             f"only {sorted(outputs)}; leave the threshold None.")
        chosen &= expit(outputs["uncertainty"].reshape(-1, 4)).mean(axis=-1) < 1 - certainty_threshold
    pixels = np.flatnonzero(chosen)
    if max_proposals is not None and len(pixels) > max_proposals:
        pixels = np.sort(pixels[np.argsort(-scores[pixels], kind="stable")[:max_proposals]])

    order = outputs["fourier"].shape[-1] // 4
    locations = scale_contours(absolute_locations(outputs["locations"]).reshape(-1, 2)[pixels], scale)
    fourier = scale_fourier(outputs["fourier"].reshape(-1, order, 4)[pixels], scale)
    contours = _contours(fourier, locations, uniform_sampling(samples), outputs.get("refinement"), size, iterations)
    found = {"scores": scores[pixels], "locations": locations, "fourier": fourier, "contours": contours,
             "float_boxes": boxes_from_contours(contours)}
    if "uncertainty" in outputs:
        found["uncertainty"] = outputs["uncertainty"].reshape(-1, 4)[pixels]
    return found


def _contours(fourier: np.ndarray, locations: np.ndarray, sampling: np.ndarray, field: np.ndarray | None, size: tuple[int, int],
              iterations: int) -> np.ndarray:
    """Refined contours [N, T, 2] inside the image."""
    result = np.empty((len(fourier), len(sampling), 2), np.float32)
    for start in range(0, len(fourier), _CHUNK):
        part = slice(start, start + _CHUNK)
        contours = contours_from_fourier(fourier[part], locations[part], sampling)
        if field is not None and iterations:
            contours = refine_contours(contours, sampling, field, iterations=iterations)[-1]
        result[part] = clip_contours(contours, size)
    return result


def _solid(found: Mapping[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Boxes [N, 4] for `nms`: of contours thinner than a pixel, whose boxes may have no area and so no IoU, their pixels'."""
    boxes = found["float_boxes"]
    thin = (boxes[:, 2:] - boxes[:, :2] < 1).any(axis=1)
    if not thin.any():
        return boxes
    boxes = boxes.copy()
    boxes[thin] = rasterize(found["contours"][thin], size)[0]
    return boxes


def _image_shape(outputs: Mapping[str, np.ndarray], shape: tuple[int, int] | None) -> tuple[int, int]:
    """(H, W) of the region: that of the refinement map, or the one given."""
    if "refinement" not in outputs:
        if shape is None:
            raise ValueError("propose: without the output 'refinement' the image's size is unknown; pass shape=(H, W).")
        return shape
    height, width = outputs["refinement"].shape[:2]
    if shape is not None and shape != (height, width):
        raise ValueError(f"propose: shape={shape} contradicts the refinement map of {(height, width)}; leave shape None.")
    return height, width


def nms_weights(scores: np.ndarray, uncertainty: np.ndarray | None, *, kind: str) -> np.ndarray:
    """What decides which of two overlapping proposals stays.

    Args:
      scores: [N] in [0, 1].
      uncertainty: [N, 4] logits, or None where the network has no such head.
      kind: "score": the score; "certainty": times 1 - mean(sigmoid(uncertainty)), the paper's; "tile": times
        1 - sigmoid(mean(uncertainty)), what the released tiled inference computes.

    Returns:
      [N] weights in [0, 1].

    Raises:
      ValueError: for another kind, or one that needs an uncertainty that is not there.

    Source: the paper, section 2.3; FZJ-INM1-BDA/neurips22-cell-seg@ab6a154, neurips/nn/inference.py `apply_rep_voting` (tile).
    """
    if kind not in ("score", "certainty", "tile"):
        raise ValueError(f"nms_weights: {kind!r} is not a kind; use 'score', 'certainty' or 'tile'.")
    if kind == "score":
        return scores
    if uncertainty is None:
        raise ValueError(f"nms_weights: {kind!r} needs the output 'uncertainty', which this network lacks; use 'score'.")
    doubt = expit(uncertainty).mean(axis=-1) if kind == "certainty" else expit(uncertainty.mean(axis=-1))
    return scores * (1 - doubt)


def nms(boxes: np.ndarray, weights: np.ndarray, *, iou_threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression: a box goes when a kept box of larger weight has a larger IoU with it than allowed.

    Args:
      boxes: [N, 4] (y0, x0, y1, x1), area (y1 - y0) (x1 - x0).
      weights: [N]; of equal ones the lower index comes first.
      iou_threshold: in [0, 1]; only a larger IoU suppresses.

    Returns:
      [M] int64, the kept indices by falling weight.

    Raises:
      ValueError: if the threshold is not in [0, 1].
    """
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"nms: iou_threshold is {iou_threshold}; an IoU lies in [0, 1].")
    if not len(boxes):
        return np.zeros(0, np.int64)
    # A kept box is compared only with boxes whose centre is near enough along the axis on which the boxes spread most.
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    axis = int(np.argmax(np.ptp(centers, axis=0)))
    centers = centers[:, axis]
    reach = _reach(boxes[:, axis + 2] - boxes[:, axis], iou_threshold)
    line = np.argsort(centers)
    place = np.empty(len(line), np.int64)
    place[line] = np.arange(len(line))
    first = np.searchsorted(centers[line], centers - reach, side="left").tolist()
    last = np.searchsorted(centers[line], centers + reach, side="right").tolist()
    along, alive, kept = boxes[line], np.ones(len(boxes), bool), []
    for index in np.argsort(-weights, kind="stable").tolist():
        if alive[place[index]]:
            kept.append(index)
            near = slice(first[index], last[index])
            alive[near] &= pairwise_iou(boxes[index:index + 1], along[near])[0] <= iou_threshold
    return np.asarray(kept, np.int64)


def _reach(sides: np.ndarray, iou_threshold: float) -> np.ndarray:
    """How far along one axis the centre of a box with IoU > t can lie from that of a box of this side.

    The overlap along the axis exceeds t times the longer side, so sides a and b differ by a factor below 1 / t and the centres
    by less than (a + b) / 2 - t max(a, b), which is largest at b = a or at b = a / t.
    """
    touching = (sides + sides.max()) / 2
    if iou_threshold > 0:
        touching = np.minimum(touching, sides * max(1 - iou_threshold, (1 / iou_threshold - 1) / 2))
    return touching * 1.001 + 1e-3     # room for rounding


def rasterize(contours: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Filled masks of contours, the pixels on the contour included, so that none is empty.

    Args:
      contours: [M, T, 2] points (y, x); rounded half to even and moved into the image. Where a contour crosses itself the
        inside is by OpenCV's even-odd rule.
      shape: (H, W) of the image.

    Returns:
      boxes [M, 4] int32, half-open, and M boolean masks of their sizes.

    Raises:
      ValueError: if a point is not finite.

    Source: celldetection 0.4.0, data/cpn.py `contours2labels`, `render_contour`.
    """
    if not np.isfinite(contours).all():
        bad = int(np.flatnonzero(~np.isfinite(contours).all(axis=(1, 2)))[0])
        raise ValueError(f"rasterize: contour {bad} of {len(contours)} has a point that is not finite; the network has diverged. "
                         "Use an earlier checkpoint.")
    points = clip_contours(np.rint(contours), shape).astype(np.int32)
    low = points.min(axis=1)
    boxes = np.concatenate([low, points.max(axis=1) + 1], axis=-1).astype(np.int32)
    crops = np.ascontiguousarray((points - low[:, None])[..., ::-1])     # OpenCV's points are (x, y)
    masks = []
    for crop, size in zip(crops, (boxes[:, 2:] - boxes[:, :2]).tolist(), strict=True):
        mask = np.zeros(size, np.uint8)
        cv2.drawContours(mask, [crop], 0, 1, thickness=-1)
        masks.append(mask.view(bool))
    return boxes, masks
