"""Parity of morphoseg's functions: patches, the training item, sliding inference, metrics."""

from __future__ import annotations

import re

import numpy as np
from loader import Case
from scipy import signal

from jaxcell.data.augment import rotate_nearest, turn_and_mirror, zoom_to_square
from jaxcell.data.normalize import type_range
from jaxcell.data.sources.patches import PatchSource, patch_grid
from jaxcell.decode.classes import class_map, softmax
from jaxcell.inference.ensemble import merged_blocks, plan_windows
from jaxcell.metrics.regions import RegionCounts, morphoseg_scores, region_counts
from jaxcell.types import Sample

TOLERANCES: dict[str, float] = {}

Results = dict[str, np.ndarray]


def union_of_ellipses(rows: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[H, W] bool; rows are (cy, cx, ry, rx)."""
    y, x = np.ogrid[:shape[0], :shape[1]]
    mask = np.zeros(shape, bool)
    for cy, cx, ry, rx in rows.astype(np.int64).tolist():
        mask |= (y - cy) ** 2 * rx ** 2 + (x - cx) ** 2 * ry ** 2 <= rx ** 2 * ry ** 2
    return mask


def picture(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(image [H, W] uint8, mask [H, W] bool) of a case, from the words of its file: what the loader leaves to us is the mask."""
    entry = case.meta["inputs"]["image"]
    mask = union_of_ellipses(case.inputs["ellipses"], tuple(entry["shape"]))
    change = re.match(r"floor\(([\d.]+)\*u\+([\d.]+)\*mask\)", entry["transform"])
    if change is None:
        return case.inputs["image"].astype(np.uint8), mask
    values = np.floor(np.float32(change[1]) * case.inputs["image"] + np.float32(change[2]) * mask.astype(np.float32))
    for first, last, value in re.findall(r"rows (\d+)\.\.(\d+) (?:set )?to (\d+)", entry["transform"]):
        values[int(first):int(last) + 1] = int(value)
    return values.astype(np.uint8), mask


class OneImage:
    """A source of one sample."""

    def __init__(self, sample: Sample) -> None:
        self.names, self._sample = [sample.name], sample

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return self._sample


def patches(case: Case) -> Results:
    c, (image, mask) = case.constructor, picture(case)
    grid = patch_grid(mask.shape, sizes=c["sizes"], overlap=c["overlap"], cutting="released")
    source = PatchSource(OneImage(Sample(image[..., None], mask[..., None].astype(np.int32), name="x")), sizes=c["sizes"],
                         overlap=c["overlap"], output=c["output"], cutting="released")
    grid = grid[np.lexsort(grid.T[::-1])]
    row = {tuple(place): number for number, place in enumerate(grid.tolist())}
    shown = {row[p.size, p.top, p.left]: sample for p, sample in zip(source.patches, source, strict=True) if p.size}
    foreground = np.asarray([shown[i].labels.sum() if i in shown else 0 for i in range(len(grid))])
    picked = case.outputs["picked"]      # which patches were recorded in full
    return {"grid": grid, "kept": np.isin(np.arange(len(grid)), list(shown)), "foreground": foreground, "picked": picked,
            "patch_images": np.stack([shown[i].image[..., 0] for i in picked.tolist()]),
            "patch_labels": np.stack([shown[i].labels[..., 0] for i in picked.tolist()])}


def training_item(case: Case) -> Results:
    c, (image, mask) = case.constructor, picture(case)
    image = image[..., None]
    sample = Sample(type_range(image)(image), mask[..., None].astype(np.int32))
    turned = turn_and_mirror(sample, turns=c["rot_flip"]["k"], axis=c["rot_flip"]["axis"])
    items = {"plain": sample, "rot_flip": turned, "rotate": rotate_nearest(sample, angle=c["rotate"]["angle"])}
    out: Results = {}
    for name, item in items.items():
        shown = zoom_to_square(item, size=c["output"])
        assert shown.labels is not None
        out |= {f"{name}_image": shown.image.transpose(2, 0, 1), f"{name}_label": shown.labels[..., 0]}
    return out


def sliding_inference(case: Case) -> Results:
    c, (image, mask) = case.constructor, picture(case)
    (weight,) = case.parameters().values()

    def network(images: np.ndarray) -> Results:
        """As `constructor["network"]` says."""
        x = images[..., 0].astype(np.float64) / 255 - 0.5
        logits = [[signal.correlate(one, kernel[0], mode="same") for kernel in weight.astype(np.float64)] for one in x]
        return {"logits": np.moveaxis(np.asarray(logits), 1, -1)}

    window, step = c["window"], c["window"] - c["overlap"]
    options = {"window": window, "step": step, "edges": "padded"}
    ((_, maps),) = merged_blocks(network, image[..., None], **options, merge="labels", block=max(image.shape), halo=0, batch=2,
                                 divisor=1)
    prediction = class_map(maps["logits"], threshold=0.999)
    scores = morphoseg_scores(mask, prediction > 0)
    height, width = image.shape
    windows = [(y, x, min(y1, height) - y, min(x1, width) - x) for y, x, y1, x1 in plan_windows(image.shape, **options)]
    return {"average": softmax(maps["logits"])[..., 1], "prediction": prediction, "windows": np.asarray(windows),
            "scores": np.asarray([scores.dsc, scores.hd95, scores.iou])}


def metrics(case: Case) -> Results:
    pairs = [(label > 0, found > 0) for label, found in zip(case.inputs["labels"], case.inputs["predictions"], strict=True)]
    thresholds = case.constructor["iou_thresholds"]
    each = [morphoseg_scores(*pair, thresholds=thresholds) for pair in pairs]
    total = RegionCounts.of_rows(np.sum([region_counts(*pair, thresholds=thresholds).row() for pair in pairs], axis=0))
    means = [total.released_dsc / total.images, total.released_hd95 / total.images, *total.released_fractions]
    return {"per_image": np.asarray([[s.dsc, s.hd95, s.iou, *s.passed, s.ap] for s in each]),
            "mean": np.asarray([*means, total.released_fractions.mean()])}


ADAPTERS = {
    "morphoseg/patch_grid": patches,
    "morphoseg/training_item": training_item,
    "morphoseg/sliding_inference": sliding_inference,
    "morphoseg/metrics": metrics,
}
