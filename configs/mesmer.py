"""Mesmer (panoptic feature pyramid, deep watershed). Variants, with the paper's number beside ours:

resnet50, densenet201, efficientnetb7
                      the paper's Table 1 on LIVECell: heads inner distance and pixelwise, batch 2, Adam 5e-4 with every array's
                      gradient clipped to 1e-3, 50 epochs.
                          python train.py --config configs/mesmer.py:resnet50 --workdir runs/mesmer --config.data.root=DIR \\
                              --config.pretrained=resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5
                          python evaluate.py --workdir runs/mesmer --sizes livecell
                      DIR holds `livecell` (images/ and annotations/ as published). `pretrained` names ImageNet weights of
                      keras.applications, or a published network; "" starts from Keras' initialisation.
                                        parameters   paper: average pixel IoU   paper: F1   measured
                          resnet50      25,557,008   0.4979                     0.6647      not yet
                          densenet201   20,447,440   0.5518                     0.7111      not yet
                          efficientnetb7 66,271,783  0.5087                     0.6743      not yet
                      (Parameters with running statistics, for one channel, as Keras counts them. The paper does not say on which
                      images, nor whether its F1 is DeepCell's or the mean over IoU 0.5 to 0.95.)
                      Images keep their 520x704 pixels: crops of 512, predicted as one tile of 704 (padded, every side must divide
                      by 32).
                      One cell type (Figure 6: best A172, lowest BV2; no numbers in the text) and a part of the images:
                          --config.data.train.livecell.cell_type=A172 --config.data.train.livecell.percent=50
                      percent is 2, 4, 5, 25, 50 or 100; scale --config.train.steps with it (50 epochs are 25 steps an image).
resized               resnet50 with every image resized to 512x512 first, scored there, as the paper does. Measured: not yet.
resnet50_HEADS        Figure 5, heads on 5 % of LIVECell; HEADS is one of inner_pixelwise, inner_outer_pixelwise,
                      inner_fgbg_pixelwise, inner_outer_fgbg_pixelwise, inner_outer, inner_fgbg, outer_pixelwise, outer_fgbg,
                      outer_fgbg_pixelwise. Markers come from the inner distance, else the outer; cells grow in the interior of
                      pixelwise, else of fgbg, else in the outer distance. Paper: inner distance with pixelwise is best and
                      significantly better than all without inner distance; outer distance and fgbg beside them do not help.
                      (Numbers stand in the figure alone.) Measured: not yet.
t98g                  a small network on real phase contrast (usiigaci_t98g), made to be trained on 2 CPU cores in 40 minutes:
                          python train.py --config configs/mesmer.py:t98g --workdir runs/t98g \\
                              --config.data.root=../shared/data --minutes=40
                          python evaluate.py --workdir runs/t98g --checkpoint=latest
                      Measured (2400 steps in 34 min 30 s beside other work; 4 images, 273 cells, 305 predicted): F1@0.5 0.851,
                      F1@0.5:0.95 0.432, Jaccard-AP@0.5 0.741; pixel IoU 0.701 (mean of the images 0.665), Dice 0.824; error
                      types: 216 correct at IoU 0.6, 36 missed, 70 gained, 6 merges, 3 splits, 3 catastrophes. One image of
                      the four, of crossing spindles and debris, has F1 0.726, the others 0.85 to 0.93: outlines are right,
                      debris is taken for cells, and long cells that cross are joined or cut.
t98g_HEADS            the heads of Figure 5 on the same data, all with the same smaller budget, one seed, 4 images (in brackets
                      the 95 % interval over these):
                          python train.py --config configs/mesmer.py:t98g_inner_pixelwise --workdir runs/inner \\
                              --config.data.root=../shared/data --config.train.steps=600 --config.data.crop=192
                                                        F1@0.5                pixel IoU
                          inner_pixelwise               0.725 (0.61 to 0.83)  0.663
                          inner_outer_pixelwise         0.689 (0.52 to 0.84)  0.642
                          inner_fgbg_pixelwise          0.703 (0.55 to 0.83)  0.661
                          inner_outer_fgbg_pixelwise    0.677 (0.50 to 0.84)  0.685
                          inner_fgbg                    0.653 (0.50 to 0.79)  0.633
                          inner_outer                   0.715 (0.57 to 0.85)  0.638
                          outer_pixelwise               0.699 (0.62 to 0.79)  0.634
                          outer_fgbg                    0.636 (0.53 to 0.73)  0.633
                          outer_fgbg_pixelwise          0.759 (0.66 to 0.85)  0.668
                      All intervals overlap: at this budget nothing can be said for or against the paper's
                      ranking. Without pixelwise both kinds of distance lose about 0.06 beside fgbg. The outer distance alone as
                      interior needs a threshold near 0: at the 0.3 of the others cells keep their cores (F1@0.5 0.144); 0.05 was
                      chosen on these very images. With 350 steps the inner distance has not left 0 yet and there are no cells.
own                   the network of t98g on your own folder of images and labels:
                          python train.py --config configs/mesmer.py:own --workdir runs/own --config.data.root=DIR
                      DIR holds train/ and val/, or a manifest.csv with splits, or just images and labels (a fifth is held out).
toy                   seconds on a CPU: for tests.
"""

from __future__ import annotations

import ml_collections
from ml_collections import config_dict

from jaxcell.configuration import common_config

HEADS = {
    "inner_pixelwise": ("inner_distance", "pixelwise"),
    "inner_outer_pixelwise": ("inner_distance", "outer_distance", "pixelwise"),
    "inner_fgbg_pixelwise": ("inner_distance", "fgbg", "pixelwise"),
    "inner_outer_fgbg_pixelwise": ("inner_distance", "outer_distance", "fgbg", "pixelwise"),
    "inner_outer": ("inner_distance", "outer_distance"),
    "inner_fgbg": ("inner_distance", "fgbg"),
    "outer_pixelwise": ("outer_distance", "pixelwise"),
    "outer_fgbg": ("outer_distance", "fgbg"),
    "outer_fgbg_pixelwise": ("outer_distance", "fgbg", "pixelwise"),
}
VARIANTS = ("resnet50", "densenet201", "efficientnetb7", "resized", "t98g", "own", "toy",
            *(f"{base}_{heads}" for base in ("resnet50", "t98g") for heads in HEADS))


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    """The config of one variant; every key can be set on the command line (`--config.a.b=c`)."""
    if variant not in VARIANTS:
        raise ValueError(f"mesmer has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    config = _paper()
    base, _, heads = variant.partition("_")
    if heads:
        base = {"resnet50": "five_percent"}.get(base, base)
    {
        "resnet50": lambda c: None, "densenet201": _densenet201, "efficientnetb7": _efficientnetb7, "resized": _resized,
        "five_percent": _five_percent, "t98g": _t98g, "own": _own, "toy": _toy,
    }[base](config)
    if heads:
        _heads(config, HEADS[heads])
    return config


def _folder(root: str, split: str) -> dict[str, object]:
    return {"kind": "folder", "root": root, "split": split, "modality": "", "labelled": True, "coding": "ids", "select": "",
            "repeat": 1}


def _livecell(split: str) -> dict[str, object]:
    return {"kind": "livecell", "root": "livecell", "split": split, "cell_type": config_dict.placeholder(str), "percent": 100}


def _paper() -> ml_collections.ConfigDict:
    """Table 1 with ResNet50."""
    c = common_config("mesmer")   # the keys that all systems share: jaxcell/configuration.py

    c.data.train = {"livecell": _livecell("train")}
    c.data.val = {"livecell": _livecell("val")}
    c.data.channels = 1                 # of the network: 1, or 2 for nuclei and membranes
    c.data.normalize = {"name": "standardise"}  # and options of that function in jaxcell/data/normalize.py
    c.data.augment = "mesmer"           # a policy of jaxcell/data/augment/policies.py
    c.data.crop = 512
    c.data.batch_size = 2

    c.model.encoder = "resnet50"
    c.model.width = 64
    c.model.levels = (3, 4, 5)          # of the encoder in the pyramid; the first says how fine it is
    c.model.features = 256
    c.model.depthwise = True            # the pyramid's 3x3 convolution, as the paper says; False: the released code's default
    c.model.heads = ("inner_distance", "pixelwise")
    c.model.head_features = (64, 128)
    c.model.resize = "bilinear"
    c.model.scale = 1.0                 # factor on the image; EfficientNets expect 0 to 255
    c.model.normalize = "none"          # what the network itself does to the crop or tile that it sees, such as "whole_image"
    c.model.location = True

    c.targets = ml_collections.ConfigDict()
    c.targets.alpha = "auto"            # 1 / sqrt(area), or a number
    c.targets.beta = 1.0
    c.targets.erosion = 0               # pixels taken off the cells before distances and fgbg
    c.targets.dilation = 1              # pixels by which the edges of pixelwise grow outwards

    c.loss = ml_collections.ConfigDict()
    c.loss.weights = {"inner_distance": 1.0, "outer_distance": 1.0, "fgbg": 0.01, "pixelwise": 0.01}

    c.decode = ml_collections.ConfigDict()
    c.decode.markers = "inner_distance"     # the head whose peaks begin cells
    c.decode.interior = "pixelwise"         # the head in which they grow
    c.decode.maxima = "h_maxima"            # or "peak_local_max"
    c.decode.radius = 2
    c.decode.maxima_threshold = 0.1
    c.decode.maxima_smoothing = 0.0
    c.decode.interior_threshold = 0.3
    c.decode.interior_smoothing = 2.0
    c.decode.expansion = 0
    c.decode.erosion = 0
    c.decode.small_objects = 15
    c.decode.holes = 15

    c.inference = ml_collections.ConfigDict()
    c.inference.mode = "blocks"
    c.inference.tile = 704
    c.inference.margin = 64
    c.inference.block = 2048
    c.inference.halo = 256
    c.inference.border = 3.0            # only of the mode "overlapping"
    c.inference.batch = 2

    c.optimizer.name = "adam"
    c.optimizer.l2 = 0.0
    c.optimizer.clip_each_norm = 1e-3   # of each array by itself; 0: not
    c.optimizer.schedule = {"name": "constant", "base": 5e-4}

    c.train.steps = 79_700              # 50 epochs of 3188 images
    c.train.eval_every = 1594
    c.train.checkpoint_every = 797
    return c


def _densenet201(c: ml_collections.ConfigDict) -> None:
    c.model.encoder = "densenet201"


def _efficientnetb7(c: ml_collections.ConfigDict) -> None:
    c.model.update({"encoder": "efficientnetb7", "scale": 255.0})
    c.data.normalize = ml_collections.ConfigDict({"name": "type_range"})    # the network normalises by itself


def _resized(c: ml_collections.ConfigDict) -> None:
    c.data.train.livecell.size = c.data.val.livecell.size = (512, 512)
    c.inference.update({"tile": 512, "margin": 64})


def _five_percent(c: ml_collections.ConfigDict) -> None:
    c.data.train.livecell.percent = c.data.val.livecell.percent = 5
    c.train.update({"steps": 4000, "eval_every": 800, "checkpoint_every": 400})     # 50 epochs of 160 images


def _heads(c: ml_collections.ConfigDict, heads: tuple[str, ...]) -> None:
    c.model.heads = heads
    c.decode.markers = next(head for head in ("inner_distance", "outer_distance") if head in heads)
    c.decode.interior = next(head for head in ("pixelwise", "fgbg", "outer_distance") if head in heads)
    if c.decode.interior == "outer_distance":
        c.decode.interior_threshold = 0.05      # of a distance that is 1 in a cell's middle; 0.3, of a probability, keeps cores


def _t98g(c: ml_collections.ConfigDict) -> None:
    """A network for 2 CPU cores: ResNet of 26 layers and width 32."""
    c.model.update({"encoder": "resnet26", "width": 32, "features": 64, "depthwise": False, "head_features": (32, 32)})
    c.data.train = ml_collections.ConfigDict({"t98g": _folder("usiigaci_t98g", "train")})
    c.data.val = ml_collections.ConfigDict({"t98g": _folder("usiigaci_t98g", "val")})
    c.data.normalize = ml_collections.ConfigDict({"name": "percentile", "lower": 1.0, "upper": 99.8})
    c.data.update({"crop": 256, "batch_size": 4, "cache_gb": 2.0})
    c.inference.update({"tile": 512, "margin": 64, "block": 1536, "halo": 256, "batch": 2})
    c.decode.small_objects = 100        # the smallest cell of this data has 500 pixels
    c.optimizer.schedule = ml_collections.ConfigDict(
        {"name": "warmup_cosine", "base": 1e-3, "steps": c.train.get_oneway_ref("steps"), "warmup_steps": 50})
    c.train.update({"steps": 2400, "log_every": 20, "eval_every": 800, "eval_images": 4, "checkpoint_every": 200, "images": 4})


def _own(c: ml_collections.ConfigDict) -> None:
    _t98g(c)
    c.data.root = "."
    c.data.train = ml_collections.ConfigDict({"own": _folder("", "train")})
    c.data.val = ml_collections.ConfigDict({"own": _folder("", "val")})
    c.decode.small_objects = 15
    c.train.update({"eval_every": 200, "eval_images": 16})


def _toy(c: ml_collections.ConfigDict) -> None:
    _t98g(c)
    c.model.update({"width": 8, "features": 16, "head_features": (16, 16)})
    c.data.train = ml_collections.ConfigDict({"synthetic": {"kind": "synthetic", "count": 8, "size": 96, "seed": 1}})
    c.data.val = ml_collections.ConfigDict({"synthetic": {"kind": "synthetic", "count": 2, "size": 96, "seed": 2}})
    c.data.update({"crop": 96, "batch_size": 4, "channels": 3, "augment": "light"})
    c.decode.update({"small_objects": 15, "interior_smoothing": 1.0})
    c.optimizer.schedule.update({"base": 3e-3, "warmup_steps": 2})
    c.inference.update({"tile": 96, "margin": 16, "block": 256, "halo": 32, "batch": 2})
    c.train.update({"steps": 40, "log_every": 4, "eval_every": 20, "eval_images": 2, "checkpoint_every": 5, "images": 1})
