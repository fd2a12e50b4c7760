"""Parity of the released tiled inference."""

from __future__ import annotations

import numpy as np
from loader import Case

from jaxcell.decode.contours import nms_weights
from jaxcell.inference.overlap import inside_border, merge_tiles, tile_slices, windowed_nms
from jaxcell.types import Instances

TOLERANCES: dict[str, float] = {}
TILED_SLICES = "slices_<i> (size, crop, stride)"


def boxes_yx(boxes: np.ndarray) -> np.ndarray:
    """(x0, y0, x1, y1) <-> (y0, x0, y1, x1)."""
    return boxes[:, [1, 0, 3, 2]]


def tiled_inference(case: Case) -> dict[str, np.ndarray]:
    c, given = case.constructor, case.inputs
    shape, border = (int(c["size (h,w)"][0]), int(c["size (h,w)"][1])), c["window_removal_pad"]
    tiles, grid = tile_slices(shape, crop=tuple(c["crop_size"]), stride=tuple(c["strides"]))
    weights = nms_weights(given["tile_scores"], given["tile_uncertainty_raw"], kind="tile")
    parts, kept = [], np.zeros(len(weights), np.uint8)
    for number, (y0, x0, y1, x1) in enumerate(tiles):
        rows = np.flatnonzero(given["tile_of_detection"] == number)
        boxes = boxes_yx(given["tile_boxes"][rows])
        contours = given["tile_contours"][rows][..., ::-1]
        row, column = divmod(number, grid[1])
        inner = (row > 0, column > 0, row < grid[0] - 1, column < grid[1] - 1)
        kept[rows] = inside_border(boxes, (y1 - y0, x1 - x0), border=border, inner=inner)
        whole = np.concatenate([np.floor(boxes[:, :2]), np.floor(boxes[:, 2:]) + 1], axis=1).astype(np.int32)
        parts.append(Instances((y1 - y0, x1 - x0), whole, [np.ones((b - t, r - a), bool) for t, a, b, r in whole],
                               given["tile_scores"][rows],
                               {"float_boxes": boxes, "contours": contours, "nms_weights": weights[rows],
                                "uncertainty": given["tile_uncertainty_raw"][rows]}))
    merged = merge_tiles(parts, tiles, grid, shape, border=border, nms_threshold=c["nms_thresh"])
    windows = c["tiled_nms"]
    keep = windowed_nms(boxes_yx(given["tiled_nms_boxes"]), given["tiled_nms_scores"], iou_threshold=windows["iou"],
                        shape=tuple(windows["size"]), crop=tuple(windows["crop_size"]), stride=tuple(windows["strides"]))
    slices = {f"slices_{i}": np.asarray(tile_slices(tuple(size), crop=tuple(crop), stride=tuple(stride))[0], np.int32)
              for i, (size, crop, stride) in enumerate(c[TILED_SLICES])}
    return {"tiles": np.asarray(tiles, np.int32), "tiles_per_axis": np.asarray(grid, np.int32), "border_keep": kept,
            "contours": merged.extras["contours"][..., ::-1], "scores": merged.scores,
            "boxes": boxes_yx(merged.extras["float_boxes"]), "uncertainty_raw": merged.extras["uncertainty"],
            "weights": merged.extras["nms_weights"], "tiled_nms_keep": keep, **slices}


ADAPTERS = {"cpn/tiled_inference": tiled_inference}
