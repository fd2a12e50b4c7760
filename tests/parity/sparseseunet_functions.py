"""Parity of SparseSEU-Net's functions: matching, losses, overlap maps, rescoring of masks, COCO's average precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from loader import Case

from jaxcell.decode.masks import RESCORINGS, confidences
from jaxcell.losses.instances import (
    OBJECTNESS_ERRORS,
    RELEASED_IOU_THRESHOLD,
    instance_losses,
    mask_dice,
    mask_iou,
    of_cells,
    resize_masks,
)
from jaxcell.losses.overlaps import pixel_weighted_focal, reweighted_focal, unguided_focal
from jaxcell.losses.pixels import binary_focal
from jaxcell.matching import assign, dice_scores, match_on_host, pair_scores
from jaxcell.metrics.masks import COCO_SIZES, RankedDetections, precision_curves, rank_detections
from jaxcell.targets.overlaps import OVERLAP_MAPS, distance_to_border, glow_around_cells, shared_pixels
from jaxcell.types import Instances

TOLERANCES: dict[str, float] = {}

Results = dict[str, np.ndarray]


def numbered(case: Case, stem: str) -> list[np.ndarray]:
    """The inputs stem0, stem1, ... in order."""
    count = sum(name.removeprefix(stem).isdigit() for name in case.inputs if name.startswith(stem))
    return [case.inputs[f"{stem}{i}"] for i in range(count)]


def assignment(case: Case) -> Results:
    out: Results = {}
    for number, scores in enumerate(numbered(case, "score")):
        queries = assign(scores[None], np.ones((1, scores.shape[1]), bool))[0]
        columns = np.flatnonzero(queries >= 0)
        rows = queries[columns]
        order = np.argsort(rows)
        out |= {f"rows{number}": rows[order], f"cols{number}": columns[order], f"total{number}": scores[rows, columns].sum()}
    return out


def in_order_of_queries(queries: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(queries, cells) of each image, as the reference lists its pairs."""
    cells = [np.flatnonzero(row >= 0)[np.argsort(row[row >= 0])] for row in queries]
    return [(row[index], index) for row, index in zip(queries, cells, strict=True)]


def matching_losses(case: Case) -> Results:
    c, masks, labels = case.constructor, numbered(case, "masks"), numbered(case, "labels")
    most = max(map(len, masks))
    target = np.stack([np.pad(part, ((0, most - len(part)), (0, 0), (0, 0))) for part in masks])
    kind = np.stack([np.pad(part, (0, most - len(part))) for part in labels])
    present = np.arange(most) < np.asarray([[len(part)] for part in masks])
    logits, scores, objectness = (jnp.asarray(case.inputs[name]) for name in ("pred_masks", "pred_logits", "pred_scores"))
    resized = resize_masks(target, logits.shape[2:])
    annotated = jnp.ones((len(masks), *logits.shape[2:]))
    dice = dice_scores(jax.nn.sigmoid(logits), resized)
    confidence = jnp.take_along_axis(jax.nn.sigmoid(scores), jnp.asarray(kind)[:, None], axis=2)
    cost = pair_scores(dice, confidence, weight=c["lambda"])
    queries = match_on_host(cost, present)

    def terms(column: int, matched: jax.Array, **settings: object) -> dict[str, jax.Array]:
        return instance_losses(scores[..., column], logits, objectness[..., 0], resized, present, annotated, matched,
                               alpha=c["focal_alpha"], gamma=c["focal_gamma"], **settings)  # type: ignore[arg-type]

    # A query is told its cell's class and none of the others, each of which is a focal loss of its own.
    of_classes = [terms(k, jnp.where(kind == k, queries, -1))["scores"] for k in range(c["num_classes"])]
    losses = terms(0, queries) | {"scores": sum(of_classes)}
    named = {"ce": "scores", "objectness": "objectness", "dice": "dice", "mask": "masks"}
    weights = {"ce": "labels", "objectness": "objectness", "dice": "dice", "mask": "bce"}

    def of_pairs(values: jax.Array) -> np.ndarray:
        return np.concatenate([np.asarray(row)[cells] for row, (_, cells) in
                               zip(values, in_order_of_queries(np.asarray(queries)), strict=True)])

    def of_batch(values: jax.Array) -> np.ndarray:
        """[B, N, M] -> every image's queries beside the cells of the whole batch, which the reference holds in one row."""
        return np.asarray(values)

    own = of_cells(logits, queries)
    whole = jnp.asarray(np.concatenate([np.asarray(part)[:len(m)] for part, m in zip(resized, masks, strict=True)]))
    beside = jnp.broadcast_to(whole, (len(masks), *whole.shape))
    kinds = jnp.broadcast_to(jnp.asarray(np.concatenate(labels))[None, None], (len(masks), 1, len(whole)))
    all_dice = dice_scores(jax.nn.sigmoid(logits), beside)
    out = {"dice_score": of_batch(all_dice), "resized_targets": np.asarray(whole),
           "cost": of_batch(pair_scores(all_dice, jnp.take_along_axis(jax.nn.sigmoid(scores), kinds, axis=2),
                                        weight=c["lambda"])),
           "dice_per_pair": of_pairs(mask_dice(own, resized, annotated)),
           "iou_target": of_pairs(mask_iou(own, resized, annotated)),
           "iou_target_released": of_pairs(mask_iou(own, resized, annotated, threshold=RELEASED_IOU_THRESHOLD))}
    for name, key in named.items():
        out[f"loss_{name}"] = np.asarray(losses[key])
        out[f"loss_{name}_weighted"] = c["weights"][weights[name]] * np.asarray(losses[key])
    for name, error in (("raw", "squared_logit"), ("sigmoid", "squared")):
        out[f"objectness_mse_{name}"] = np.asarray(terms(0, queries, objectness_error=OBJECTNESS_ERRORS[error])["objectness"])
    for number, (rows, cells) in enumerate(in_order_of_queries(np.asarray(queries))):
        out |= {f"src{number}": rows, f"tgt{number}": cells}
    return out


def overlap_focal(case: Case) -> Results:
    settings = {"alpha": case.constructor["alpha"], "gamma": case.constructor["gamma"]}
    logits, target, likelihood = (case.inputs[name].astype(np.float32) for name in ("logits", "target", "map"))
    focal = unguided_focal(logits, target, likelihood, **settings)
    reweighted = reweighted_focal(logits, target, likelihood, **settings)
    weighted = pixel_weighted_focal(logits, target, likelihood, **settings)
    gradient = jax.grad(lambda x: reweighted_focal(x, target, likelihood, **settings).mean())(logits)
    results = {"focal": focal, "focal_mean": focal.mean(), "focal_mean_fvcore": binary_focal(logits, target, **settings).mean(),
               "eq_4_5": reweighted, "eq_4_5_mean": reweighted.mean(), "eq_5_1": weighted.mean(), "eq_5_1_pixel": weighted,
               "eq_4_5_mean_grad": gradient}
    return {name: np.asarray(value) for name, value in results.items()}


def overlap_maps(case: Case) -> Results:
    cells, nuclei = case.inputs["cells"] > 0, case.inputs["nuclei"] > 0
    shared = shared_pixels(cells)
    return {name: make(cells, nuclei) for name, make in OVERLAP_MAPS.items()} | {
        "border_distance_first": distance_to_border(cells[0]), "overlap": shared, "instance_overlap": cells & shared,
        "released_glow": glow_around_cells(cells)}


def rescoring(case: Case) -> Results:
    masks, scores, objectness = (case.inputs[name] for name in ("masks", "scores", "objectness"))
    threshold = case.constructor["mask_threshold"]
    maskness, over_all = (RESCORINGS[name](masks, threshold) for name in ("foreground", "all_pixels"))
    area = (masks > threshold).sum((1, 2))
    return {"maskness": maskness, "rescored": confidences(scores, None, maskness), "maskness_all_pixels": over_all,
            "rescored_all_pixels": confidences(scores, None, over_all),
            "score_with_objectness": confidences(scores, objectness, maskness), "area": area,
            "maskness_no_eps_is_nan": (area == 0) & (maskness == 0)}


def unpacked(rows: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Packed bits [n, ...] -> [n, H, W] bool."""
    return np.unpackbits(rows, axis=1)[:, :shape[0] * shape[1]].reshape(-1, *shape) > 0


def instances_of(masks: np.ndarray, scores: np.ndarray) -> Instances:
    """Whole masks [n, H, W] as cells of the image's frame."""
    frame = np.tile(np.asarray([0, 0, *masks.shape[1:]], np.int32), (len(masks), 1))
    return Instances((masks.shape[1], masks.shape[2]), frame, list(masks), scores)


def ranked_images(case: Case, kind: int, limit: int) -> list[RankedDetections]:
    shape = case.constructor["height"], case.constructor["width"]
    images = []
    for number in range(len(numbered(case, "gt"))):
        truth, found = (unpacked(case.inputs[f"{side}{number}"], shape) for side in ("gt", "dt"))
        wanted, given = (case.inputs[f"{side}_class{number}"] == kind for side in ("gt", "dt"))
        images.append(rank_detections(
            instances_of(truth[wanted], np.ones(wanted.sum(), np.float32)),
            instances_of(found[given], case.inputs[f"dt_score{number}"][given]),
            thresholds=np.linspace(0.5, 0.95, 10), sizes=COCO_SIZES, limit=limit,
            crowd=case.inputs[f"gt_crowd{number}"][wanted] > 0))
    return images


def over_classes(values: list[np.ndarray]) -> np.ndarray:
    """The mean over classes, and whatever else is left, of what is defined; -1 where nothing is."""
    defined = np.asarray(values)[np.isfinite(values)]
    return defined.mean() if defined.size else np.float64(-1)


def coco_ap(case: Case) -> Results:
    limits, out = case.constructor["max_dets"], {}
    for most in (max(limits), 1000):
        images = [ranked_images(case, kind, most) for kind in case.constructor["categories"]]
        curves, recalls = zip(*(precision_curves(part, limit=most) for part in images), strict=True)
        precisions = [c[0].mean(-1) for c in curves]
        six = [over_classes(precisions), *(over_classes([p[t] for p in precisions]) for t in (0, 5)),
               *(over_classes([c[a].mean(-1) for c in curves]) for a in (1, 2, 3))]
        if most == 1000:
            out["ap_1000"] = np.asarray(six)
            continue
        by_limit = [over_classes([precision_curves(part, limit=n)[1][0] for part in images]) for n in limits]
        by_size = [over_classes([r[a] for r in recalls]) for a in (1, 2, 3)]
        out["stats"] = np.asarray([*six, *by_limit, *by_size])
        out["precision_all_100"] = np.nan_to_num(np.stack([c[0, :, ::10] for c in curves], axis=-1), nan=-1)
        out["recall_all_100"] = np.nan_to_num(np.stack([r[0] for r in recalls], axis=-1), nan=-1)
    return out


ADAPTERS = {
    "sparseseunet/fn_assignment": assignment,
    "sparseseunet/fn_coco_ap": coco_ap,
    "sparseseunet/fn_matching_losses": matching_losses,
    "sparseseunet/fn_overlap_focal": overlap_focal,
    "sparseseunet/fn_overlap_maps": overlap_maps,
    "sparseseunet/fn_rescoring": rescoring,
}
