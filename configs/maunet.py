"""MAUNet (two decoders, anti-ambiguity proxy, three watersheds). Variants, with the paper's number beside ours:

resnet50 (default), wideresnet50
                      the two networks that the authors submitted: proxy and distance, every annotated image of the NeurIPS 2022
                      cell segmentation challenge, crop 512, batch 16, AdamW 6e-4 times 0.95 every 10 epochs, 999 epochs of 62
                      batches in 24 h on 2 Titan RTX.
                          python train.py --config configs/maunet.py:resnet50 --workdir runs/r50 --config.data.root=DIR \\
                              --config.pretrained=resnet50-0676ba61.pth
                          python train.py --config configs/maunet.py:wideresnet50 --workdir runs/wide --config.data.root=DIR \\
                              --config.pretrained=wide_resnet50_2-95faca4d.pth
                          python evaluate.py --workdir runs/r50
                      DIR holds `neurips2022` (Training-labeled/ and Tuning/ as published). `pretrained` names ImageNet weights of
                      torchvision, or a published MAUNet; "" starts from their initialisation.
resnet50_tta, wideresnet50_tta, two_models, two_models_tta
                      the same networks merged at prediction: the mean over the image at 1, 1.25 and 1.5 times its size, of both
                      networks (the other one's workdir stands in config.inference.partners), or both: the submission. To
                      evaluate what is trained:
                          python evaluate.py --workdir runs/r50 --config.inference.scales='(1.0, 1.25, 1.5)' \\
                              --config.inference.partners="('runs/wide',)"
                      Table 5, F1 on the challenge's validation set (101 images): our copy of the paper lacks its numbers. On the
                      hidden test set both networks with three scales reach a mean F1 of 0.6489, a median of 0.7490 (Table 7).
                                        parameters   measured
                          resnet50      39,403,021   not yet
                          wideresnet50  28,838,157   not yet
table4, table4_no_regression, table4_cr, table4_cr_logits, table4_aap
                      the ablation: 900 of the 1000 annotated images, scored on the others; ResNet50 without proxy, and of it
                      without the distance and its loss (cells are pieces of interior); with consistency of two networks (8
                      annotated and 8 other images a step, weight 1.5, 700 epochs); with that of the logits (CR*, of which the
                      paper says no more than that it goes "directly to the classification loss"; this is one reading); and with
                      the proxy. "Dice" is the mean Dice of the classes, F1 at IoU 0.5, "F1 ori" F1 without the three watersheds
                      (--config.decode.name=interior_pieces).
                          python train.py --config configs/maunet.py:table4_cr --workdir runs/cr --config.data.root=DIR \\
                              --config.pretrained=resnet50-0676ba61.pth
                                                 paper: Dice   F1 ori   F1       measured
                          table4                 0.7499        0.7310   0.8309   not yet
                          table4_no_regression   0.7458        0.7284   -        not yet
                          table4_cr              0.7443        0.7075   0.8217   not yet
                          table4_cr_logits       0.7403        0.7101   0.8243   not yet
                          table4_aap             0.7543        0.7318   0.8494   not yet
paper                 resnet50 with the paper's text where the released code departs from it: intensities in [0.01, 0.99],
                      distance from the cell's centre, focal loss of the probabilities, equation 2 for each image, skeletons
                      above 0.8.
mixed, mixed_aap, mixed_cr
                      a small network on three kinds of real images together (nuclei of bbbc038, T98G cells and budding yeast in
                      phase contrast), made to be trained on 2 CPU cores in at most 40 minutes: half of the annotated training
                      images, 800 steps; with the proxy; with the other half as images without annotation.
                          python train.py --config configs/maunet.py:mixed --workdir runs/mixed --config.data.root=../shared/data
                          python evaluate.py --workdir runs/mixed --checkpoint=latest --planes=background,interior,boundary
                      All of the yeast is one movie: trained on its first frames, scored on its last. One seed, 73 images with
                      2,981 cells (95 % interval over images); "Dice" is the mean of images and classes, as in Table 4:
                                     F1@0.5                 fluorescence  tissue   T98G    yeast   Dice     boundary alone
                          mixed      0.738 (0.676 to 0.794) 0.819         0.475    0.486   0.866   0.833    0.680
                          mixed_aap  0.726 (0.663 to 0.781) 0.809         0.444    0.473   0.878   0.816    0.638
                          mixed_cr   0.720 (0.662 to 0.779) 0.809         0.508    0.496   0.571   0.829    0.666
                            (step 0) 0.482 (0.394 to 0.569) 0.546         0.374    0.268   0.387   0.522    0.096
                      The proxy changes nothing beyond chance, nor does consistency (in Table 4 it costs 0.009), which is asked
                      for from step 400 on. From the first step on (--config.semi.start_step=0) it ruins both networks, which
                      begin at random here, not with ImageNet's weights: each learns the other's first guesses, half of the
                      background is called boundary, and what the annotated images say against it comes too late.
                      In the pictures outlines are right; T98G cells and stained nuclei that touch stay joined (merges), and the
                      walls of the yeast's chamber are taken for cells; with consistency the middle of its colonies is missed.
own                   the network of mixed_aap on your own folder of images and labels:
                          python train.py --config configs/maunet.py:own --workdir runs/own --config.data.root=DIR
                      DIR holds train/ and val/, or a manifest.csv with splits, or just images and labels (a fifth is held out).
toy                   seconds on a CPU: for tests.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_collections

from jaxcell.configuration import common_config

SCALES = (1.0, 1.25, 1.5)


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    """The config of one variant; every key can be set on the command line (`--config.a.b=c`)."""
    if variant not in VARIANTS:
        raise ValueError(f"maunet has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    config = _submitted()
    VARIANTS[variant](config)
    return config


def _folder(root: str, split: str) -> dict[str, object]:
    return {"kind": "folder", "root": root, "split": split, "modality": "", "labelled": True, "coding": "ids", "select": "",
            "repeat": 1}


def _challenge(split: str) -> dict[str, object]:
    return {"kind": "neurips2022", "root": "neurips2022", "split": split}


def _submitted() -> ml_collections.ConfigDict:
    """What the authors trained (neurips22-cellseg_saltfish@c2b85d5), with ResNet50."""
    c = common_config("maunet")   # the keys that all systems share: jaxcell/configuration.py
    c.seed = 2022

    c.data.train = {"neurips2022": _challenge("train")}
    c.data.val = {"neurips2022": _challenge("val")}
    c.data.channels = 3                 # of the network; grey images are repeated, colour images averaged to fit
    c.data.normalize = {"name": "maunet"}       # and options of that function in jaxcell/data/normalize.py
    c.data.augment = "maunet"           # a policy of jaxcell/data/augment/policies.py
    c.data.crop = 512
    c.data.batch_size = 16

    c.model.encoder = "resnet50"
    c.model.width = 64                  # channels of the encoder's stem
    c.model.features = 24               # channels of the decoders' finest level
    c.model.proxies = 1                 # anti-ambiguity proxy: 1, or 0 for none
    c.model.distance = True             # the instance-aware decoder; False: classes alone

    c.targets = ml_collections.ConfigDict()
    c.targets.divisor = 20.0            # a boundary is sqrt(area) / divisor pixels thick
    c.targets.least_interior = 16       # smaller pieces of interior are none
    c.targets.measure = "edge"          # of the distance; "centre": the paper's text
    c.targets.beta = 1.0

    c.loss = ml_collections.ConfigDict()
    c.loss.weights = {"dice": 1.0, "focal": 1.0, "distance": 1.0}       # 0: the term is not computed
    c.loss.focal = "released"           # of values squashed twice; "probabilities": the paper's text; "logits"
    c.loss.balanced = "batch"           # inside and outside are averaged over the batch; "image": the paper's equation 2
    c.loss.agreement = "pseudo_labels"  # of two networks (config.semi.scheme "cross"); "logits": CR*; and both "_without_proxy"

    c.decode = ml_collections.ConfigDict()
    c.decode.name = "three_watersheds"  # "interior_pieces": without the distance
    c.decode.background_below = 0.3     # foreground is where the background is less probable
    c.decode.interior_above = 0.7
    c.decode.least_interior = 16
    c.decode.skeleton = "relative"      # to the largest blurred distance; "absolute"
    c.decode.skeleton_threshold = 0.85
    c.decode.peak_threshold = 0.6
    c.decode.small_fraction = 0.1       # foreground in pieces below this share of the mean cell goes
    c.decode.pieces = {"interior_above": 0.5, "least": 16, "holes": 64}         # only of "interior_pieces"

    c.inference = ml_collections.ConfigDict()
    c.inference.mode = "merged"         # the mean of overlapping windows; "blocks": every pixel from one tile, which takes less
    c.inference.tile = 512
    c.inference.margin = 64             # only of "blocks"
    c.inference.block = 16_384          # decoded at once: the decoder's levels are those of the image
    c.inference.halo = 256
    c.inference.border = 3.0            # only of "overlapping"
    c.inference.batch = 4
    c.inference.overlap = 0.25          # only of "merged", and all below: share of a window that the next one covers too
    c.inference.edges = "centred"       # small images lie in the middle of a window; see EDGES (jaxcell/inference/ensemble.py)
    c.inference.merge = "outputs"       # what is averaged; see MERGES there
    c.inference.blend = "constant"      # "gaussian"
    c.inference.scales = (1.0,)         # the image's sizes that are merged
    c.inference.large = 25_000_000      # pixels of an image from which only scale 1 is used
    c.inference.partners = ()           # workdirs of other networks that are merged with this one

    c.optimizer.name = "adamw"
    c.optimizer.weight_decay = 0.01
    c.optimizer.schedule = {"name": "step_decay", "base": 6e-4, "every": 620, "factor": 0.95}

    c.train.steps = 61_938              # 999 epochs of 62 batches
    c.train.eval_every = 3100
    c.train.checkpoint_every = 620

    c.semi.augment = "maunet"
    c.semi.weight = 1.5                 # of the consistency terms
    return c


# ------------------------------------------------------------------------------------------------------ the submission, Table 5
def _wideresnet50(c: ml_collections.ConfigDict) -> None:
    c.model.encoder = "wideresnet50"


def _scales(c: ml_collections.ConfigDict) -> None:
    c.inference.scales = SCALES


def _wideresnet50_tta(c: ml_collections.ConfigDict) -> None:
    _wideresnet50(c)
    _scales(c)


def _two_models(c: ml_collections.ConfigDict) -> None:
    c.inference.partners = ("runs/wide",)


def _two_models_tta(c: ml_collections.ConfigDict) -> None:
    _two_models(c)
    _scales(c)


def _paper(c: ml_collections.ConfigDict) -> None:
    c.data.normalize = ml_collections.ConfigDict({"name": "maunet_paper"})
    c.targets.measure = "centre"
    c.loss.update({"focal": "probabilities", "balanced": "image"})
    c.decode.update({"skeleton": "absolute", "skeleton_threshold": 0.8})


# ---------------------------------------------------------------------------------------------------------------------- Table 4
def _table4(c: ml_collections.ConfigDict) -> None:
    c.data.train.neurips2022.except_every = 10
    c.data.val = ml_collections.ConfigDict({"neurips2022": _challenge("train") | {"every": 10}})
    c.model.proxies = 0
    c.optimizer.schedule.every = 560                # 10 epochs of 56 batches
    c.train.update({"steps": 55_944, "eval_every": 2800, "eval_images": 100, "checkpoint_every": 560})


def _table4_no_regression(c: ml_collections.ConfigDict) -> None:
    _table4(c)
    c.model.distance = False
    c.decode.name = "interior_pieces"


def _table4_cr(c: ml_collections.ConfigDict) -> None:
    _table4(c)
    c.data.batch_size = 8
    c.semi.update({"scheme": "cross", "batch_size": 8})
    c.semi.unlabelled.neurips2022 = {"kind": "neurips2022", "root": "neurips2022", "labelled": False}
    c.optimizer.schedule.every = 1120               # 10 epochs of 112 batches
    c.train.update({"steps": 78_400, "eval_every": 5600, "checkpoint_every": 1120})


def _table4_cr_logits(c: ml_collections.ConfigDict) -> None:
    _table4_cr(c)
    c.loss.agreement = "logits"


def _table4_aap(c: ml_collections.ConfigDict) -> None:
    _table4(c)
    c.model.proxies = 1


# ------------------------------------------------------------------------------------------------------------------ 2 CPU cores
def _small(c: ml_collections.ConfigDict) -> None:
    """ResNet-18 of width 32 and decoders of 8 channels: 3.8 M parameters."""
    c.model.update({"encoder": "resnet18", "width": 32, "features": 8})
    c.data.update({"crop": 160, "batch_size": 8, "augment": "light", "cache_gb": 2.0})
    c.inference.update({"mode": "blocks", "tile": 256, "margin": 32, "block": 4096, "halo": 256, "batch": 4})
    c.optimizer.clip_norm = 5.0
    c.optimizer.schedule = ml_collections.ConfigDict(
        {"name": "warmup_cosine", "base": 2e-3, "steps": c.train.get_oneway_ref("steps"), "warmup_steps": 50})
    c.train.update({"steps": 800, "log_every": 20, "eval_every": 400, "eval_images": 24, "checkpoint_every": 100})


def _mixed(c: ml_collections.ConfigDict) -> None:
    """Names are in the order in which validation takes the first so many. Repeats give each kind about as many crops."""
    _small(c)
    c.model.proxies = 0
    c.data.train = ml_collections.ConfigDict({
        "a_yeast": _folder("yeastvision_phase", "train") | {"limit": 7, "every": 2, "repeat": 30},
        "b_t98g": _folder("usiigaci_t98g", "train") | {"every": 2, "repeat": 20},
        "c_nuclei": _folder("bbbc038", "train") | {"every": 2}})
    c.data.val = ml_collections.ConfigDict({
        "a_yeast": _folder("yeastvision_phase", "train") | {"every": 9, "except_every": 10},
        "b_t98g": _folder("usiigaci_t98g", "val"),
        "c_nuclei": _folder("bbbc038", "val")})


def _mixed_aap(c: ml_collections.ConfigDict) -> None:
    _mixed(c)
    c.model.proxies = 1


def _mixed_cr(c: ml_collections.ConfigDict) -> None:
    _mixed(c)
    # Networks that begin at random must see what cells are before they believe each other.
    c.semi.update({"scheme": "cross", "batch_size": 8, "augment": "light", "start_step": 400})
    c.semi.unlabelled = ml_collections.ConfigDict({
        "a_yeast": _folder("yeastvision_phase", "train") | {"limit": 7, "except_every": 2, "hide_labels": True, "repeat": 40},
        "b_t98g": _folder("usiigaci_t98g", "train") | {"except_every": 2, "hide_labels": True, "repeat": 20},
        "c_nuclei": _folder("bbbc038", "train") | {"except_every": 2, "hide_labels": True}})


def _own(c: ml_collections.ConfigDict) -> None:
    _small(c)
    c.data.root = "."
    c.data.train = ml_collections.ConfigDict({"own": _folder("", "train")})
    c.data.val = ml_collections.ConfigDict({"own": _folder("", "val")})
    c.train.update({"eval_every": 200, "eval_images": 16})


def _toy(c: ml_collections.ConfigDict) -> None:
    _small(c)
    c.model.update({"encoder": "resnet6", "width": 8, "features": 4})
    c.data.train = ml_collections.ConfigDict({"synthetic": {"kind": "synthetic", "count": 8, "size": 96, "seed": 1}})
    c.data.val = ml_collections.ConfigDict({"synthetic": {"kind": "synthetic", "count": 2, "size": 96, "seed": 2}})
    c.data.update({"crop": 96, "batch_size": 4})
    c.decode.update({"skeleton": "absolute", "skeleton_threshold": 0.8, "small_fraction": 0.0})
    c.optimizer.schedule.update({"base": 3e-3, "warmup_steps": 2})
    c.inference.update({"tile": 96, "margin": 16, "halo": 32, "batch": 2})
    c.train.update({"steps": 40, "log_every": 4, "eval_every": 20, "eval_images": 2, "checkpoint_every": 5, "images": 1})


VARIANTS: dict[str, Callable[[ml_collections.ConfigDict], None]] = {
    "resnet50": lambda c: None, "wideresnet50": _wideresnet50, "resnet50_tta": _scales, "wideresnet50_tta": _wideresnet50_tta,
    "two_models": _two_models, "two_models_tta": _two_models_tta, "table4": _table4,
    "table4_no_regression": _table4_no_regression, "table4_cr": _table4_cr, "table4_cr_logits": _table4_cr_logits,
    "table4_aap": _table4_aap, "paper": _paper, "mixed": _mixed, "mixed_aap": _mixed_aap, "mixed_cr": _mixed_cr, "own": _own,
    "toy": _toy}
