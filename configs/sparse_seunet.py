"""SparseSEU-Net and SEU-Net (bachelor thesis of Y. Prytula, 2023). Variants, with the thesis' number beside ours:

The thesis' data ("exhaustive": 28 brightfield fields of 1080x1080 with two focal planes, cells, nuclei and overlaps) were not
published. DIR holds your own as `exhaustive`, in any layout of docs/data.md, cells that overlap in label layers.
    python train.py --config configs/sparse_seunet.py:multi --workdir runs/multi --config.data.root=DIR
    python evaluate.py --workdir runs/multi

semantic_1head, semantic_nuclei, semantic_2head, semantic_3head, semantic_4head
                      Tables 5.1 (cytoplasm) and 5.2 (nuclei): decoupled decoders for cytoplasm (nuclei in Table 5.2's base),
                      + nuclei; cytoplasm, border, background; all four. AdamW 1e-5 / 1e-5, crops of 512, 4 a batch, 1000 epochs;
                      prediction is the mean of windows of 512 every 256, in `evaluate.py --planes=...` too (section 5.2).
                                          thesis: cytoplasm F1   IoU      nuclei F1   IoU      measured
                          semantic_1head          0.9061         0.8300   -           -        not yet
                          semantic_nuclei         -              -        0.8834      0.7911   not yet
                          semantic_2head          0.9266         0.8613   0.8950      0.8101   not yet
                          semantic_3head          0.9268         0.8636   -           -        not yet
                          semantic_4head          0.9282         0.8661   0.9152      0.8437   not yet
                      By a watershed semantic_4head gives cells: "SEU-Net + wtshd" of Table 5.7, AP 27.6, AP50 43.2, AP75 31.1,
                      AP of small 0.5, medium 17.9, large 57.6. Measured: not yet.
overlap_plain, overlap_v0, overlap_v1, overlap_v2, overlap_v3, overlap_v4, overlap_weighted
                      Table 5.3: decoders for cytoplasm and overlap, the loss of the overlap guided by a map (section 4.3; the
                      last one by equation 5.1 and v4, of which the thesis says that it did not improve). Threshold 0.3.
                      Departs: equation 4.5 itself (--config.loss.overlap=reweighted) takes y (1 - P) for the target, in which
                      the maps v2, v3 and v4, 1 in every overlap, leave no overlap: a decoder learns to find none.
                                          thesis: overlap F1   IoU      precision   recall   measured
                          overlap_plain           0.1073       0.0567   0.3352      0.0639   not yet
                          overlap_v0              0.1884       0.1040   0.1855      0.1914   not yet
                          overlap_v1              0.1843       0.1015   0.1549      0.2274   not yet
                          overlap_v2              0.2001       0.1112   0.2168      0.1858   not yet
                          overlap_v3              0.2219       0.1248   0.1865      0.2737   not yet
                          overlap_v4              0.2490       0.1422   0.2177      0.2908   not yet
single, multi, single_overlap, single_overlap_map, multi_objectness, multi_grouped, multi_grouped_soft, released
                      Tables 5.7, 5.9 and 5.10: 100 sparse masks from branches on the last level or on all; branches that see an
                      overlap decoder too, without and with its map v4; IoU-aware objectness (section 5.7.3, without a table).
                      AdamW 1e-5, then 5e-5 / 0.005, 2 images a batch, 4 batches an update, 2000 epochs.
                                              thesis: AP     AP50   AP75   small   medium   large   measured
                          single                      39.6   75.8   34.1   12.7    42.8     39.5    not yet
                          single_overlap              38.0   74.7   35.2    7.6    42.5     23.6    not yet
                          single_overlap_map          38.8   76.9   35.4    9.2    42.7     29.1    not yet
                          multi                       44.3   74.6   46.8   16.0    48.3     36.0    not yet
                          multi_objectness         near 25                                          not yet
                      Grouped maps (4 groups) are SparseInst's, with sigmoid and with softmax; the thesis has no number.
                      `released` is the author's later configuration: softmax, a hidden layer, AdamW 1e-4 / 0.05, cosine to 1e-6.
                      Departs: weight decay is 0.005 from the start; images are not resized to 512 as a whole but cut.
livecell              Table 5.8: `single` on 2 % of LIVECell, 400 epochs; crops with more than 90 cells are made smaller.
                      thesis: AP 21.8, AP50 44.7, AP75 22.3, small 26.5, medium 18.2, large 39.8. Measured: not yet.
baby_yeast, baby_yeast_watershed
                      small networks for 2 CPU cores on real overlapping yeast (five focal planes as channels): sparse masks with
                      an overlap decoder, and the thesis' baseline of semantic maps and a watershed.
                          python train.py --config configs/sparse_seunet.py:baby_yeast --workdir runs/baby_yeast \\
                              --config.data.root=../shared/data --config.loss.overlap=reweighted --minutes=40
                          python evaluate.py --workdir runs/baby_yeast --checkpoint=latest
                      (Measured before the decoder for overlaps had a loss that it learns from, hence that option.)
                      Cells of one trap at four times train it; scored are that trap later, an empty one, and another one: 3
                      images, 6 cells. 1200 steps in 20 min on one core: F1@0.5 0.600, AP 0.132, AP50 0.505 (all cells are
                      small in COCO's sense), overlap F1 0.106: of the known trap 3 of 4 cells, with splinters, of the other
                      none. It knows by heart what it was trained with: all 16 cells found, overlapping ones whole (with
                      --truth=../shared/data/baby_yeast --split=train --modality=budding, which adds the later time: F1@0.5
                      0.950, AP 0.760, 20 cells). Pasted cells (--config.data.augment=sparse_seunet_paste) did not help:
                      F1@0.5 0.154. The baseline (10 min): F1@0.5 0.400, AP 0.269, AP50 0.337, overlap F1 0: two round cells
                      of the known trap, outlined better than by the sparse masks, and no bud.
overlaps, overlaps_watershed
                      the same on synthetic brightfield cells of which many overlap, in images of 64 pixels (commands as above,
                      no data needed). 128 images that training never saw, 633 cells, all small in COCO's sense:
                                               steps, one core        F1@0.5   AP      AP50    AP75    overlap F1
                          overlaps             4000, 30 min            0.847   0.518   0.770   0.542   0.290
                          with all masks (1)   the same                0.808   0.540   0.797   0.564   0.178
                          overlaps_watershed   2000, 10 min            0.984   0.818   0.970   0.912   0
                      (1) --config.decode.duplicate_share=1.0: splinters beside cells that were found count as cells too.
                      On this budget the masks by queries are far behind a watershed, and still learning (all masks, F1@0.5 0.627
                      after 1000 steps, 0.702, 0.788, 0.812); only they have pixels in two cells. Looked at: pairs that share
                      pixels come out whole, others lose the shared part to one of the two.
original, original_100, original_1000
                      Tables 5.4 to 5.6 in small: all decoders, of eight annotated synthetic brightfield images alone, and with
                      100 and 1000 images composed of the same eight in phase contrast (configs/synthesis.py:pairs) and
                      turned into brightfield by configs/pix2pix.py:synthetic, whose pairs are not annotated. Half of what a
                      network sees is composed.
                          jaxcell synthesize --config configs/synthesis.py:pairs --out runs/composed/made100 \\
                              --config.translator=runs/pairs --config.count.train=100
                          python train.py --config configs/sparse_seunet.py:original_100 --workdir runs/original_100 \\
                              --config.data.root=runs/composed
                          python evaluate.py --workdir runs/original_100 --checkpoint=latest \\
                              --planes=cytoplasm,nuclei,overlap:0.5
                      500 steps in 13 min on one core, 32 images that training never saw, one seed, F1 (the thesis'):
                                               cytoplasm         nuclei            overlap           cells, F1@0.5
                          original             0.989 (0.9266)    0.849 (0.9152)    0.422 (0.1073)    0.950
                          original_100         0.984 (0.9304)    0.812 (0.9062)    0.362 (0.1607)    0.953
                          original_1000        0.984 (0.9305)    0.798 (0.9247)    0.352 (0.2412)    0.947
                      Eight images of one microscope are enough here, and made ones as good for cells, worse for what lies within
                      them. Of two (--config.data.train.original.count=2 with repeat=50 and 500, and
                      --config.data.source.pairs.count=2 of the synthesis) it is another matter:
                          original             0.724             0.329             0.180             0.796
                            --config.seed=1    0.871             0.438             0.327             0.829
                          original_100         0.983             0.799             0.291             0.941
                          original_1000        0.982             0.791             0.301             0.948
                      Looked at: composed cells have their fringes only with their halo (--config.compose.halo=0 of the synthesis
                      gave 0.965, 0.787, 0.309, 0.926 with 100 of eight), and no noise. (Overlaps at 0.5, for config.loss.alpha is
                      0.9 here; the thesis' is 0.3.)
own                   the network of `overlaps` on your own folder:
                          python train.py --config configs/sparse_seunet.py:own --workdir runs/own --config.data.root=DIR
                      DIR holds train/ and val/, or a manifest.csv with splits, or just images and labels (a fifth is held out).
                      Where crops hold more cells than config.model.queries, --config.targets.crowd=shrink makes them smaller.
toy                   seconds on a CPU: for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ml_collections
from ml_collections import config_dict

from jaxcell.configuration import common_config

FOUR = ("cytoplasm", "nuclei", "border", "background")


def get_config(variant: str = "multi") -> ml_collections.ConfigDict:
    """The config of one variant; every key can be set on the command line (`--config.a.b=c`)."""
    if variant not in VARIANTS:
        raise ValueError(f"sparse_seunet has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    config = _thesis()
    VARIANTS[variant](config)
    return config


def _folder(root: str, split: str, modality: str = "") -> dict[str, object]:
    return {"kind": "folder", "root": root, "split": split, "modality": modality, "labelled": True, "coding": "ids", "select": "",
            "repeat": 1}


def _thesis() -> ml_collections.ConfigDict:
    """Table 5.10, multi-level."""
    c = common_config("sparse_seunet")   # the keys that all systems share: jaxcell/configuration.py

    c.data.train = {"exhaustive": _folder("exhaustive", "train")}
    c.data.val = {"exhaustive": _folder("exhaustive", "val")}
    c.data.channels = 2                 # of the network: the lower and the higher focal plane
    c.data.normalize = {"name": "standardise"}  # and options of that function in jaxcell/data/normalize.py
    c.data.augment = "sparse_seunet"    # a policy of jaxcell/data/augment/policies.py
    c.data.crop = 512
    c.data.batch_size = 2

    c.model.width = 64                  # channels of every level
    c.model.levels = 5
    c.model.depth = 4                   # convolutions of each level, of encoder, decoders and branches
    c.model.windows = (1, 2, 4, 8, 16)  # of the averages on every skip; sides divide by the largest * 2 ** (levels - 1)
    c.model.pyramid_features = 16       # channels of each of them
    c.model.heads = ()                  # decoupled decoders: cytoplasm, nuclei, border, background, overlap
    c.model.condition = ""              # the head whose decoder instance and mask branch see too; "": none
    c.model.branches = "multi"          # instance and mask branch on every level; "single": the last; "none": no instances
    c.model.branch_norm = "batch"       # "none": as in SparseInst
    c.model.instance_features = 256
    c.model.mask_features = 128
    c.model.kernel_features = 0         # channels of a 1x1 convolution behind the mask branch; 0: none
    c.model.queries = 100               # N, the most cells of a crop or tile
    c.model.activation = "sigmoid"      # of instance activation maps; the released code: "softmax"
    c.model.groups = 1                  # maps of each instance
    c.model.head_depth = 0              # hidden layers of the head; the released code: 1
    c.model.objectness = False          # foretell the IoU of each mask

    c.targets = ml_collections.ConfigDict()
    c.targets.max_cells = 100           # of a crop, at most as many as queries
    c.targets.crowd = "refuse"          # a crop with more cells ends the run; "shrink": it is made smaller
    c.targets.overlap_map = "v4"

    c.loss = ml_collections.ConfigDict()
    c.loss.weights = {"scores": 2.0, "masks": 5.0, "dice": 5.0, "objectness": 2.0, "cytoplasm": 1.0, "nuclei": 1.0, "border": 1.0,
                      "background": 1.0, "overlap": 1.0}
    c.loss.matcher = "host"             # "device": array operations instead of scipy in a callback
    c.loss.dice_weight = 0.8            # lambda of the matching
    c.loss.alpha = 0.25                 # of focal losses
    c.loss.gamma = 2.0
    c.loss.iou_threshold = 0.5          # of probabilities, for the IoU that objectness foretells
    c.loss.objectness_error = "squared"
    c.loss.overlap = "focal"            # "guided": section 4.3; "reweighted": equation 4.5; "pixel_weighted": equation 5.1

    c.decode = ml_collections.ConfigDict()
    c.decode.mask_threshold = 0.5       # of masks, and of the maps before a watershed
    c.decode.score_threshold = 0.05
    c.decode.rescoring = "foreground"   # scores times the mean probability within the mask; "none": not
    c.decode.objectness = False         # whether the foretold IoU counts in the score
    c.decode.least_pixels = 1
    c.decode.duplicate_iou = 1.0        # of two masks that agree more than this the less sure one goes; 1.0: all stay
    c.decode.duplicate_share = 1.0      # so it does that shares more than this part of the smaller mask: splinters; 1.0: all stay
    c.decode.markers = "middle"         # of the watershed; "nuclei": of the head of that name
    c.decode.prominence = 1.0
    c.decode.radius = 2
    c.decode.smoothing = 1.0

    c.inference = ml_collections.ConfigDict()
    c.inference.mode = "windows"        # each tile by itself; for semantic networks "merged": the mean of overlapping windows, or
    c.inference.tile = 512              # "blocks": every pixel from one tile
    c.inference.margin = 128            # not of "merged"; at least the size of the largest cell
    c.inference.block = 2048            # this and the next only of "merged" and "blocks"
    c.inference.halo = 256
    c.inference.border = 3.0            # only of the mode "overlapping"
    c.inference.batch = 2
    c.inference.overlap = 0.5           # only of "merged", and all below: share of a window that the next one covers too
    c.inference.edges = "aligned"       # an entry of EDGES (jaxcell/inference/ensemble.py)
    c.inference.merge = "planes"        # what is averaged: probabilities
    c.inference.blend = "constant"      # "gaussian"
    c.inference.scales = (1.0,)         # the image's sizes that are merged
    c.inference.large = 25_000_000      # pixels of an image from which only scale 1 is used
    c.inference.partners = ()           # workdirs of other networks that are merged with this one

    c.optimizer.name = "adamw"
    c.optimizer.weight_decay = 0.005
    c.optimizer.accumulate = 4          # batches of one update
    # 1e-5, later 5e-5; the thesis does not say when.
    c.optimizer.schedule = {"name": "warmup_multistep", "base": 1e-5, "milestones": (9000,), "gamma": 5.0, "warmup_steps": 0,
                            "warmup_factor": 1.0}

    c.train.steps = 18_000              # 2000 epochs of 18 images
    c.train.eval_every = 900
    c.train.eval_images = 5
    c.train.checkpoint_every = 450
    c.train.images = 5                  # validation images drawn at each evaluation
    return c


def _semantic(c: ml_collections.ConfigDict, *, heads: tuple[str, ...]) -> None:
    c.model.update({"heads": heads, "branches": "none"})
    c.data.batch_size = 4
    c.optimizer.update({"weight_decay": 1e-5, "accumulate": 1})
    c.optimizer.schedule = ml_collections.ConfigDict({"name": "constant", "base": 1e-5})
    c.decode.least_pixels = 15
    c.inference.mode = "merged"
    c.train.steps = 4500                # 1000 epochs of 18 images


def _overlap(c: ml_collections.ConfigDict, *, loss: str, overlap_map: str = "v4") -> None:
    _semantic(c, heads=("cytoplasm", "overlap"))
    c.loss.overlap, c.targets.overlap_map = loss, overlap_map


def _branches(c: ml_collections.ConfigDict, *, branches: str) -> None:
    c.model.branches = branches


def _single_overlap(c: ml_collections.ConfigDict, *, loss: str) -> None:
    c.model.update({"branches": "single", "heads": ("overlap",), "condition": "overlap"})
    c.loss.overlap = loss


def _objectness(c: ml_collections.ConfigDict) -> None:
    c.model.objectness = c.decode.objectness = True


def _grouped(c: ml_collections.ConfigDict, *, activation: str) -> None:
    c.model.update({"groups": 4, "activation": activation, "head_depth": 1})


def _released(c: ml_collections.ConfigDict) -> None:
    c.model.update({"activation": "softmax", "head_depth": 1, "objectness": True})
    c.decode.mask_threshold = 0.1
    c.optimizer.update({"weight_decay": 0.05, "accumulate": 1})
    c.optimizer.schedule = ml_collections.ConfigDict(
        {"name": "warmup_cosine", "base": 1e-4, "steps": c.train.get_oneway_ref("steps"), "warmup_steps": 0, "end": 1e-6})
    c.train.steps = 9009                # 1001 epochs of 18 images


def _livecell(c: ml_collections.ConfigDict) -> None:
    def source(split: str) -> dict[str, object]:
        return {"kind": "livecell", "root": "livecell", "split": split, "cell_type": config_dict.placeholder(str), "percent": 2}

    c.model.branches = "single"
    c.data.train = ml_collections.ConfigDict({"livecell": source("train")})
    c.data.val = ml_collections.ConfigDict({"livecell": source("val")})
    c.data.channels = 1
    c.targets.update({"max_cells": 90, "crowd": "shrink"})
    c.inference.update({"tile": 256, "margin": 0, "batch": 4})     # more than 100 cells do not fit into a larger tile
    c.train.steps = 12_800              # 400 epochs of 64 images


def _small(c: ml_collections.ConfigDict) -> None:
    """A network for 2 CPU cores: three levels of 16 channels, and an overlap decoder that the branches see."""
    c.model.update({"width": 16, "levels": 3, "depth": 2, "windows": (1, 2, 4, 8), "pyramid_features": 4, "instance_features": 48,
                    "mask_features": 32, "queries": 40, "heads": ("overlap",), "condition": "overlap"})
    c.targets.max_cells = 40
    c.decode.update({"score_threshold": 0.3, "least_pixels": 15, "duplicate_iou": 0.7, "duplicate_share": 0.7})
    c.data.cache_gb = 2.0
    c.data.normalize = ml_collections.ConfigDict({"name": "percentile", "lower": 1.0, "upper": 99.8, "per_channel": True})
    c.optimizer = ml_collections.ConfigDict({
        "name": "adamw", "weight_decay": 0.005, "clip_norm": 5.0, "clip_each_norm": 0.0, "accumulate": 1,
        "schedule": {"name": "warmup_cosine", "base": 1e-3, "steps": c.train.get_oneway_ref("steps"), "warmup_steps": 50}})


def _to_watershed(c: ml_collections.ConfigDict, *, heads: tuple[str, ...]) -> None:
    c.model.update({"heads": heads, "condition": "", "branches": "none"})
    c.inference.update({"mode": "blocks", "margin": 32})


def _baby_yeast(c: ml_collections.ConfigDict) -> None:
    _small(c)
    train, val = (_folder("baby_yeast", split, "budding yeast") for split in ("train", "val"))
    c.data.train = ml_collections.ConfigDict({"baby_yeast": train | {"except_every": 8}})
    c.data.val = ml_collections.ConfigDict({"later": train | {"every": 8}, "other_trap": val})
    c.data.update({"channels": 5, "augment": "free", "crop": 96, "batch_size": 4, "reject_empty": 0.9})
    c.model.queries = c.targets.max_cells = 16
    c.inference.update({"tile": 128, "margin": 32, "block": 512, "halo": 64, "batch": 1})
    c.train.update({"steps": 1200, "log_every": 20, "eval_every": 400, "eval_images": 3, "checkpoint_every": 200, "images": 3})


def _brightfield(c: ml_collections.ConfigDict) -> None:
    _small(c)
    c.data.update({"augment": "flips", "crop": 128, "batch_size": 4})
    c.inference.update({"tile": 128, "margin": 32, "block": 512, "halo": 64, "batch": 4})
    c.train.update({"steps": 1500, "log_every": 20, "eval_every": 500, "eval_images": 32, "checkpoint_every": 200, "images": 4})


def _overlaps(c: ml_collections.ConfigDict) -> None:
    """Small images: masks by queries take many steps to learn, and these cost a quarter of those of twice the side."""
    _brightfield(c)

    def source(count: int, seed: int) -> dict[str, object]:
        return {"kind": "synthetic", "modality": "brightfield", "count": count, "size": 64, "seed": seed, "shape": "round",
                "radius": (6.0, 9.0), "coverage": (0.15, 0.45), "clustering": 0.7, "overlap": 0.8}

    c.data.train = ml_collections.ConfigDict({"synthetic": source(2048, 1)})
    c.data.val = ml_collections.ConfigDict({"synthetic": source(128, 2)})
    c.data.crop = 64
    c.inference.update({"tile": 64, "margin": 16})
    c.train.update({"steps": 4000, "log_every": 50, "eval_every": 1000, "eval_images": 64, "checkpoint_every": 500})


def _overlaps_watershed(c: ml_collections.ConfigDict) -> None:
    _overlaps(c)
    _to_watershed(c, heads=FOUR)
    c.inference.margin = 16
    c.train.steps = 2000                # after 1000 F1@0.5 is 0.978, then 0.984


def _original(c: ml_collections.ConfigDict, *, composed: str = "", repeat: int = 1) -> None:
    """All decoders, of eight annotated images; and of as many that `jaxcell synthesize` composed of the same eight.

    An epoch has the annotated ones `repeat` times: they are not to be lost among those.
    """
    _brightfield(c)
    _to_watershed(c, heads=(*FOUR, "overlap"))

    def source(count: int, seed: int) -> dict[str, object]:
        return {"kind": "synthetic", "modality": "brightfield", "count": count, "size": 256, "seed": seed, "overlap": 0.6,
                "microscope": 3}

    made = {"composed": _folder(composed, "train")} if composed else {}
    c.data.train = ml_collections.ConfigDict({"original": source(8, 1) | {"repeat": repeat}, **made})
    c.data.val = ml_collections.ConfigDict({"original": source(32, 2)})
    c.loss.alpha = 0.9                  # one pixel of 250 lies in an overlap
    c.train.update({"steps": 500, "eval_every": 500})


def _own(c: ml_collections.ConfigDict) -> None:
    _brightfield(c)
    c.data.root = "."
    c.data.train = ml_collections.ConfigDict({"own": _folder("", "train")})
    c.data.val = ml_collections.ConfigDict({"own": _folder("", "val")})
    c.data.channels = 1
    # The network learns where in a crop its queries look: in larger tiles than these it finds less.
    c.inference.update({"tile": c.data.get_oneway_ref("crop"), "margin": c.data.get_oneway_ref("crop") // 4})
    c.train.update({"eval_every": 200, "eval_images": 16})


def _toy(c: ml_collections.ConfigDict) -> None:
    _small(c)
    c.model.update({"width": 16, "levels": 2, "instance_features": 16, "mask_features": 16})
    c.data.train = ml_collections.ConfigDict({"synthetic": {"kind": "synthetic", "count": 8, "size": 96, "seed": 1}})
    c.data.val = ml_collections.ConfigDict({"synthetic": {"kind": "synthetic", "count": 2, "size": 96, "seed": 2}})
    c.data.update({"crop": 96, "batch_size": 4, "channels": 3, "augment": "flips"})
    c.decode.duplicate_iou = c.decode.duplicate_share = 1.0
    c.optimizer.schedule.update({"base": 3e-3, "warmup_steps": 2})
    c.inference.update({"tile": 96, "margin": 32, "block": 256, "halo": 32, "batch": 2})
    c.train.update({"steps": 40, "log_every": 4, "eval_every": 20, "eval_images": 2, "checkpoint_every": 5, "images": 1})


def _then(*parts: Callable[[ml_collections.ConfigDict], None]) -> Callable[[ml_collections.ConfigDict], None]:
    def change(c: ml_collections.ConfigDict) -> None:
        for part in parts:
            part(c)

    return change


VARIANTS: dict[str, Callable[[ml_collections.ConfigDict], None]] = {
    "semantic_1head": partial(_semantic, heads=FOUR[:1]),
    "semantic_nuclei": partial(_semantic, heads=("nuclei",)),
    "semantic_2head": partial(_semantic, heads=FOUR[:2]),
    "semantic_3head": partial(_semantic, heads=("cytoplasm", "border", "background")),
    "semantic_4head": partial(_semantic, heads=FOUR),
    "overlap_plain": partial(_overlap, loss="focal"),
    **{f"overlap_{name}": partial(_overlap, loss="guided", overlap_map=name) for name in ("v0", "v1", "v2", "v3", "v4")},
    "overlap_weighted": partial(_overlap, loss="pixel_weighted"),
    "single": partial(_branches, branches="single"),
    "multi": partial(_branches, branches="multi"),
    "single_overlap": partial(_single_overlap, loss="focal"),
    "single_overlap_map": partial(_single_overlap, loss="guided"),
    "multi_objectness": _objectness,
    "multi_grouped": partial(_grouped, activation="sigmoid"),
    "multi_grouped_soft": partial(_grouped, activation="softmax"),
    "released": _released,
    "livecell": _livecell,
    "baby_yeast": _baby_yeast,
    "baby_yeast_watershed": _then(_baby_yeast, partial(_to_watershed, heads=("cytoplasm", "border", "background"))),
    "overlaps": _overlaps,
    "overlaps_watershed": _overlaps_watershed,
    "original": _original,
    "original_100": partial(_original, composed="made100", repeat=12),
    "original_1000": partial(_original, composed="made1000", repeat=125),
    "own": _own,
    "toy": _toy,
}
