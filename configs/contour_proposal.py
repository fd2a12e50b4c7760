"""Contour proposal networks. Variants, with the paper's number beside ours:

synthetic (default)   a small network on cells drawn by code: `make demo`.
                      Measured: F1@0.5 0.953 on 32 unseen synthetic images, 4 min 13 s with the installation, beside other work.
bbbc038               the same small network on real nuclei (BBBC038), made to be trained on 2 CPU cores in 40 minutes:
                          python train.py --config configs/contour_proposal.py:bbbc038 --workdir runs/bbbc038 \\
                              --config.data.root=../shared/data --minutes=40
                          python evaluate.py --workdir runs/bbbc038 --checkpoint=latest
                      Measured: 38 min; F1@0.5 0.916 on the 56 fluorescence images of the validation split, 0.874 on all 68
                      (README, "Real data"; StarDist on the fluorescence images: 0.901).
bbbc038_tenth         the same on every tenth annotated image of BBBC038, crops of 160, 600 steps; to compare with
bbbc038_listen        Listen2Student: a tenth of the images annotated, from step 300 on the others without their annotation:
                          python train.py --config configs/contour_proposal.py:bbbc038_listen --workdir runs/listen0 \\
                              --config.data.root=../shared/data --config.seed=0
                          python evaluate.py --workdir runs/listen0 --checkpoint=latest
                      Measured: F1@0.5 on all 68 validation images, seeds 0 to 2: 0.833, 0.833, 0.838 without, 0.839, 0.829, 0.845
                      with; no gain beyond chance (docs/training.md). Paper, full size: 0.8981 without, 0.8961 with.
own                   the same network on your own folder of images and labels:
                          python train.py --config configs/contour_proposal.py:own --workdir runs/own --config.data.root=DIR
                      DIR holds train/ and val/, or a manifest.csv with splits, or just images and labels (a fifth is held out).
neurips2022           the uncertainty-aware CPN as its authors ran it: ResNeXt-101 32x8d U-Net, 228,242,999 parameters, crop 512,
                      batch 10 a GPU, 225 epochs in 17 h on several nodes of 4 A100. Paper: F1@0.5 0.8986 on the hidden
                      validation set of the NeurIPS 2022 cell segmentation challenge (Table 4); that set is not public, so
                      there is no measured number beside it.
neurips2022_paper     the same with the paper's text where the released code departs from it (target 1 for foreground scores,
                      weight 1 for every term of eq. 5 but 1.5 for the contours, no location and box terms).
u22, resnet50_fpn     the original CPN of the celldetection package 0.4.9, U-Net 22 (31,568,089 parameters) and ResNet-50 FPN. The
                      package publishes no training recipe: optimizer and data are the challenge's, crops 256, batch 8.
toy                   seconds on a CPU: for tests.
"""

from __future__ import annotations

import ml_collections

from jaxcell.configuration import common_config

VARIANTS = ("synthetic", "bbbc038", "bbbc038_tenth", "bbbc038_listen", "own", "neurips2022", "neurips2022_paper", "u22",
            "resnet50_fpn", "toy")


def get_config(variant: str = "synthetic") -> ml_collections.ConfigDict:
    """The config of one variant; every key can be set on the command line (`--config.a.b=c`)."""
    if variant not in VARIANTS:
        raise ValueError(f"contour_proposal has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    config = _challenge()
    {
        "synthetic": _synthetic, "bbbc038": _bbbc038, "bbbc038_tenth": _bbbc038_tenth, "bbbc038_listen": _bbbc038_listen,
        "own": _own, "neurips2022": lambda c: None, "neurips2022_paper": _paper, "u22": _u22, "resnet50_fpn": _resnet50_fpn,
        "toy": _toy,
    }[variant](config)
    return config


def _folder(root: str, split: str) -> dict[str, object]:
    return {"kind": "folder", "root": root, "split": split, "modality": "", "labelled": True, "coding": "ids", "select": "",
            "repeat": 1}


def _challenge() -> ml_collections.ConfigDict:
    """What the authors ran (neurips22-cell-seg@ab6a154), first generation."""
    c = common_config("contour_proposal")   # the keys that all systems share: jaxcell/configuration.py

    c.data.train = {"bbbc038": _folder("bbbc038", "train"), "bbbc039": _folder("bbbc039", "train")}
    c.data.val = {"bbbc038": _folder("bbbc038", "val")}
    c.data.channels = 3                 # of the network; grey images are repeated, colour images averaged to fit
    c.data.normalize = {"name": "cstm-mix"}     # and options of that function in jaxcell/data/normalize.py
    c.data.augment = "mild"             # a policy of jaxcell/data/augment/policies.py
    c.data.crop = 512
    c.data.batch_size = 10

    c.model.encoder = "resnext101_32x8d"
    c.model.width = 64
    c.model.pooling = "pyramid"
    c.model.decoder = "residual_unet"
    c.model.decoder_norm = "group"
    c.model.decoder_act = "leaky_relu"
    c.model.decoder_init = "fan_out_normal"
    c.model.order = 25
    c.model.buckets = 6
    c.model.margin = 3.0
    c.model.uncertainty = True
    c.model.contour_features = ("decoder.1",)
    c.model.score_features = ("decoder.1", "encoder.1")
    c.model.refinement_features = ("decoder.0", "encoder.0")
    c.model.fuse = "reduce"
    c.model.head_kernel = 7
    c.model.head_features = 0           # hidden channels of the heads; 0: as many as their input has
    c.model.dropout = 0.1
    c.model.resize = "outputs"
    c.model.mean = (0.485, 0.456, 0.406)
    c.model.std = (0.229, 0.224, 0.225)

    c.targets = ml_collections.ConfigDict()
    c.targets.samples = 224
    c.targets.max_iterations = 4
    c.targets.max_background_distance = 0.75
    c.targets.min_foreground_distance = 0.75
    c.targets.distance = "foreground"
    c.targets.min_area = 5
    c.targets.closed_outlines = False
    c.targets.max_cells = 1024
    c.targets.max_foreground = 4096

    c.loss = ml_collections.ConfigDict()
    c.loss.weights = {"scores": 1.0, "fourier": 1.0, "locations": 1.0, "contours": 1.5, "refinement": 1.0, "boxes": 0.88,
                      "iou": 1.0, "uncertainty": 1.0}       # 0: the term is not computed
    c.loss.background_weight = 2.0
    c.loss.box_confidence = True        # False: target 1 for every foreground score (eq. 1 of the paper)
    c.loss.order_weighting = True
    c.loss.min_box_size = 1.0
    c.loss.refinement = "last"
    c.loss.iou_kind = "giou"
    c.loss.uncertainty_factor = 7.0
    c.loss.teacher = {"foreground_score": 0.9, "background_score": 0.1, "uncertainty_margin": 0.1, "student_uncertainty": 0.5,
                      "certain": 0.0}   # when a student listens (config.semi)

    c.decode = ml_collections.ConfigDict()
    c.decode.score_threshold = 0.891415
    c.decode.nms_threshold = 0.3141592653589793
    c.decode.nms_weight = "certainty"
    c.decode.certainty_threshold = 0.0  # least mean certainty of a cell; 0: any
    c.decode.max_proposals = 100_000    # of one block, those of highest score: bounds the memory of a hopeless prediction

    c.inference = ml_collections.ConfigDict()
    c.inference.mode = "blocks"         # "overlapping": the reference's own tiling
    c.inference.tile = 768
    c.inference.margin = 192
    c.inference.block = 1536
    c.inference.halo = 192
    c.inference.border = 3.0            # only of "overlapping": cells this near to an inner tile side are dropped
    c.inference.batch = 4

    c.optimizer.name = "adam"
    c.optimizer.l2 = 2e-5
    # The authors draw the rate from N(0.0008, 0.0001) and scale it by sqrt(batch / 64); gamma 0.1 is what their script applies,
    # at milestones that it counts in examples while it steps in batches: late or never. These milestones are ours.
    c.optimizer.schedule = {"name": "warmup_multistep", "base": 8e-4 * (10 / 64) ** 0.5, "milestones": (200_000, 225_000),
                            "gamma": 0.1, "warmup_steps": 1000, "warmup_factor": 0.001}

    c.train.steps = 250_000
    c.train.eval_every = 5000
    c.train.checkpoint_every = 2500
    return c


def _paper(c: ml_collections.ConfigDict) -> None:
    c.loss.box_confidence = False
    c.loss.weights.boxes = 0.0
    c.loss.weights.locations = 0.0
    c.optimizer.schedule.gamma = 0.666


def _package(c: ml_collections.ConfigDict) -> None:
    """celldetection 0.4.9: the original CPN."""
    c.model.update({"width": 64, "pooling": "none", "decoder_norm": "batch", "decoder_act": "relu", "order": 6, "buckets": 1,
                    "decoder_init": "fan_in_uniform",
                    "uncertainty": False, "contour_features": ("decoder.1",), "score_features": ("decoder.1",),
                    "refinement_features": ("decoder.0",), "resize": "features", "mean": (0.0,), "std": (1.0,)})
    c.loss.update({"box_confidence": False, "refinement": "sum", "background_weight": 1.0})
    c.loss.weights.update({"contours": 3.0, "boxes": 0.0, "uncertainty": 0.0})
    c.targets.update({"distance": "object", "min_area": 1, "samples": 64})
    c.decode.update({"score_threshold": 0.9, "nms_threshold": 0.2, "nms_weight": "score"})
    c.data.crop, c.data.batch_size = 256, 8
    c.inference.update({"tile": 512, "margin": 96, "block": 1280, "halo": 160})


def _u22(c: ml_collections.ConfigDict) -> None:
    _package(c)
    c.model.update({"encoder": "unet22", "decoder": "unet"})


def _resnet50_fpn(c: ml_collections.ConfigDict) -> None:
    _package(c)
    c.model.update({"encoder": "resnet50", "decoder": "fpn"})


def _small(c: ml_collections.ConfigDict) -> None:
    """A network for 2 CPU cores: ResNet-18 of width 32, heads at stride 2, 3.5 M parameters."""
    c.model.update({"encoder": "resnet18", "width": 32, "pooling": "none", "decoder": "unet", "decoder_norm": "batch",
                    "decoder_act": "relu", "order": 8, "buckets": 4, "margin": 3.0, "contour_features": ("decoder.0",),
                    "score_features": ("decoder.0",), "refinement_features": ("decoder.0",), "head_kernel": 3})
    c.targets.update({"samples": 48, "max_cells": 256, "max_foreground": 512, "max_iterations": 2, "min_area": 5,
                      "max_background_distance": 0.5, "min_foreground_distance": 0.6, "distance": "object",
                      "closed_outlines": True})
    c.decode.update({"score_threshold": 0.5, "nms_threshold": 0.35})
    c.data.update({"crop": 256, "batch_size": 8, "augment": "light", "cache_gb": 2.0})
    c.data.normalize.update({"name": "percentile", "lower": 1.0, "upper": 99.8})
    c.inference.update({"tile": 256, "margin": 32, "block": 1024, "halo": 128, "batch": 2})
    c.optimizer = ml_collections.ConfigDict({
        "name": "adamw", "weight_decay": 1e-4, "clip_norm": 5.0, "clip_each_norm": 0.0, "accumulate": 1,
        "schedule": {"name": "warmup_cosine", "base": 2e-3, "steps": c.train.get_oneway_ref("steps"), "warmup_steps": 100}})


def _bbbc038(c: ml_collections.ConfigDict) -> None:
    _small(c)
    c.data.train = ml_collections.ConfigDict({"bbbc038": _folder("bbbc038", "train")})
    c.decode.score_threshold = 0.65     # chosen on training images: see README, "Real data"
    c.train.update({"steps": 2200, "log_every": 20, "eval_every": 1100, "eval_images": 24, "checkpoint_every": 200})


def _bbbc038_tenth(c: ml_collections.ConfigDict) -> None:
    _bbbc038(c)
    c.data.train.bbbc038.every = 10
    c.data.crop = 160
    c.train.update({"steps": 600, "eval_every": 600, "average_decay": 0.99})


def _bbbc038_listen(c: ml_collections.ConfigDict) -> None:
    _bbbc038_tenth(c)
    c.semi.update({"scheme": "listen2student", "batch_size": 8, "augment": "light", "start_step": 300})
    c.semi.unlabelled.bbbc038 = _folder("bbbc038", "train") | {"except_every": 10, "hide_labels": True}


def _own(c: ml_collections.ConfigDict) -> None:
    _bbbc038(c)
    c.data.root = "."
    c.data.train = ml_collections.ConfigDict({"own": _folder("", "train")})
    c.data.val = ml_collections.ConfigDict({"own": _folder("", "val")})
    c.train.update({"eval_every": 200, "eval_images": 16})


def _synthetic(c: ml_collections.ConfigDict) -> None:
    _small(c)
    c.model.update({"width": 16, "order": 6})
    c.data.train = ml_collections.ConfigDict({"synthetic": {"kind": "synthetic", "count": 256, "size": 192, "seed": 1}})
    c.data.val = ml_collections.ConfigDict({"synthetic": {"kind": "synthetic", "count": 32, "size": 256, "seed": 2}})
    c.data.update({"crop": 128, "batch_size": 8})
    c.optimizer.schedule.base = 3e-3
    c.inference.update({"tile": 256, "margin": 32, "block": 768, "halo": 96})
    c.train.update({"steps": 800, "log_every": 20, "eval_every": 400, "eval_images": 8, "checkpoint_every": 200})


def _toy(c: ml_collections.ConfigDict) -> None:
    _synthetic(c)
    c.model.update({"width": 8, "order": 6, "dropout": 0.0})
    c.targets.update({"samples": 24, "max_cells": 64, "max_foreground": 512})
    c.data.train.synthetic.update({"count": 8, "size": 96})
    c.data.val.synthetic.update({"count": 2, "size": 96})
    c.data.update({"crop": 96, "batch_size": 4})
    c.optimizer.schedule.warmup_steps = 2
    c.inference.update({"tile": 96, "margin": 16, "block": 256, "halo": 32, "batch": 2})
    c.train.update({"steps": 40, "log_every": 4, "eval_every": 20, "eval_images": 2, "checkpoint_every": 5, "images": 1})
