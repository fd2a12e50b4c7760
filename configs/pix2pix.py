"""pix2pix: brightfield planes made of phase contrast, to train other systems with. It makes images, not cells. Variants:

paper (default)       the sparse_seunet thesis, section 4.4.2: nine levels, 1 plane to 2, crops of 512, AdamW 2e-4 (0.5, 0.999),
                      mean absolute error times 100 beside the adversarial loss, images of 1024 in four parts.
                          python train.py --config configs/pix2pix.py --workdir runs/pix2pix --config.data.root=DIR
                      DIR holds `pairs`: a folder of images of three planes, phase contrast first, registered. Labels are not
                      needed. The thesis gives neither the number of epochs nor a number for what came out. Measured: not yet.
synthetic             a small generator on exact synthetic pairs, made to be trained on 2 CPU cores in at most 40 minutes:
                          python train.py --config configs/pix2pix.py:synthetic --workdir runs/pairs
                          python evaluate.py --workdir runs/pairs --checkpoint=latest \\
                              --config.train.features=runs/overlaps_watershed
                      8000 steps of one image in 13 min on one core; 8 images that it never saw, by the same microscope. Before
                      (with --config.train.stop_step=1) and after: mean absolute error 0.069 and 0.013 of the range, Fréchet
                      distance in what configs/sparse_seunet.py:overlaps_watershed sees (Inception's weights were not at hand)
                      26.7 and 0.212 (with --config.inference.statistics=running 0.012 and 0.237). Pictures looked at: cells,
                      their inside, fringes and both focal planes are right; noise and the finest fringes are not drawn.
                      One image a batch and norms of each tile, as in the reference: with four a batch every other image came out
                      blank. Repeated pixels instead of transposed convolutions, which left a grid. Each image by a microscope of
                      its own (without "microscope") it ended at 0.062: nothing says how that one's focus and exposure were set.
toy                   seconds on a CPU: for tests.
"""

from __future__ import annotations

import ml_collections

from jaxcell.configuration import common_config

VARIANTS = ("paper", "synthetic", "toy")


def get_config(variant: str = "paper") -> ml_collections.ConfigDict:
    """The config of one variant; every key can be set on the command line (`--config.a.b=c`)."""
    if variant not in VARIANTS:
        raise ValueError(f"pix2pix has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    config = _paper()
    {"paper": lambda c: None, "synthetic": _synthetic, "toy": _toy}[variant](config)
    return config


def _folder(root: str, split: str) -> dict[str, object]:
    return {"kind": "folder", "root": root, "split": split}


def _pairs(count: int, seed: int, size: int) -> dict[str, object]:
    return {"kind": "synthetic", "modality": "pair", "count": count, "size": size, "seed": seed, "overlap": 0.6, "microscope": 3}


def _paper() -> ml_collections.ConfigDict:
    c = common_config("pix2pix")   # the keys that all systems share: jaxcell/configuration.py

    c.data.train = {"pairs": _folder("pairs", "train")}
    c.data.val = {"pairs": _folder("pairs", "val")}
    c.data.channels = 3                 # what is shown and what is to be drawn, in this order
    c.data.normalize = {"name": "type_range"}   # and options of that function in jaxcell/data/normalize.py
    c.data.augment = "flips"            # a policy of jaxcell/data/augment/policies.py
    c.data.crop = 512
    c.data.batch_size = 1

    c.model.inputs = 1                  # planes that are shown
    c.model.outputs = 2                 # planes that are drawn
    c.model.levels = 9                  # times that the image is halved: crop and tile are multiples of 2 ** levels
    c.model.width = 64
    c.model.dropout = 0.5
    c.model.upsampling = "transposed"   # as the reference; "nearest": repeated pixels and a convolution, which draw no grid
    c.model.judge_width = 64            # of the discriminator
    c.model.judge_strided = 3           # its layers that halve the image: 3 judge patches of 70 pixels

    c.loss = ml_collections.ConfigDict()
    c.loss.adversarial = "vanilla"      # or "lsgan"
    c.loss.distance = "l1"              # of the drawn planes from the real ones; "l2"
    c.loss.weight = 100.0               # of the distance, beside 1 for the adversarial loss

    c.decode = ml_collections.ConfigDict()      # there are no cells

    c.inference = ml_collections.ConfigDict()
    c.inference.mode = "blocks"
    c.inference.tile = 512
    c.inference.margin = 0              # the thesis' parts do not overlap; a tile of 1024 with a margin of 256 hides their seams
    c.inference.batch = 1
    c.inference.statistics = "tile"     # of norms: of each tile by itself; "running": averages of training
    c.inference.noise = True            # drop features in prediction too, as the thesis; only networks of 6 levels and more do

    c.optimizer.name = "adamw"
    c.optimizer.weight_decay = 0.01
    c.optimizer.b1 = 0.5
    c.optimizer.b2 = 0.999
    c.optimizer.schedule = {"name": "constant", "base": 2e-4}

    # pt_inception-2015-12-05-6726825d.pth: report the Fréchet inception distance; a workdir: one in what that network sees
    c.train.features = ""
    c.train.steps = 200_000
    c.train.eval_every = 5000
    c.train.eval_images = 32
    c.train.checkpoint_every = 1000
    return c


def _synthetic(c: ml_collections.ConfigDict) -> None:
    c.data.train = ml_collections.ConfigDict({"pairs": _pairs(256, 1, 256)})
    c.data.val = ml_collections.ConfigDict({"pairs": _pairs(8, 2, 256)})
    c.model.update({"levels": 6, "width": 16, "judge_width": 16, "upsampling": "nearest"})
    c.optimizer.schedule = ml_collections.ConfigDict(
        {"name": "warmup_cosine", "base": 2e-4, "steps": c.train.get_oneway_ref("steps")})
    c.data.update({"crop": 128, "cache_gb": 1.0})
    c.inference.update({"tile": 256, "margin": 0, "batch": 2})
    c.train.update({"steps": 8000, "log_every": 100, "eval_every": 1000, "eval_images": 8, "checkpoint_every": 500, "images": 2})


def _toy(c: ml_collections.ConfigDict) -> None:
    _synthetic(c)
    c.data.train = ml_collections.ConfigDict({"pairs": _pairs(8, 1, 64)})
    c.data.val = ml_collections.ConfigDict({"pairs": _pairs(2, 2, 64)})
    c.model.update({"levels": 5, "width": 4, "judge_width": 4})
    c.data.update({"crop": 64, "batch_size": 4})
    c.inference.update({"tile": 64, "batch": 2})
    c.optimizer.schedule.update({"base": 2e-3})
    c.train.update({"steps": 40, "log_every": 4, "eval_every": 20, "eval_images": 2, "checkpoint_every": 5, "images": 1})
