"""Data sets of composed images for `jaxcell synthesize`, which writes a folder that `train.py` reads as it is.

A command that was interrupted goes on when it is given again. Variants:

thesis100, thesis1000 (default)
                      100 and 1000 images of 1024 pixels as in the sparse_seunet thesis, section 5.5: cells of annotated phase
                      contrast, added up with edges blurred by sigma 20 and at most a fifth of a cell on others, turned into two
                      planes of brightfield by pix2pix.
                          jaxcell synthesize --config configs/synthesis.py:thesis100 --out data/synthetic100 \\
                              --config.data.root=DIR --config.translator=runs/pix2pix
                      DIR holds `annotated`, a folder of images with labels whose first plane is phase contrast. The thesis'
                      Tables 5.4 to 5.6 have what training on them is worth: cytoplasm F1 0.9304 and 0.9305 (original 0.9266),
                      nuclei 0.9062 and 0.9247 (0.9152), overlaps 0.1607 and 0.2412 (0.1073). Measured: not yet.
t98g                  crowded T98G cells out of sparse ones, in phase contrast:
                          jaxcell synthesize --config configs/synthesis.py:t98g --out runs/crowded \\
                              --config.data.root=../shared/data
own                   100 images of 512 pixels of the cells of your own folder, which holds images with labels:
                          jaxcell synthesize --config configs/synthesis.py:own --out made --config.data.root=DIR
                      A fifth of DIR is held out, as in training. To train on what was made, and validate on that fifth:
                          python train.py --config configs/contour_proposal.py:own --workdir runs/made --config.data.root=. \\
                              --config.data.train.own.root=made --config.data.val.own.root=DIR
pairs                 1000 images of eight synthetic ones in phase contrast, turned into brightfield by a run of
                      configs/pix2pix.py:synthetic; what they are worth: configs/sparse_seunet.py, `original`.
                          jaxcell synthesize --config configs/synthesis.py:pairs --out runs/composed/made1000 \\
                              --config.translator=runs/pairs
toy                   seconds on a CPU: for tests.
"""

from __future__ import annotations

import ml_collections

VARIANTS = ("thesis1000", "thesis100", "t98g", "own", "pairs", "toy")


def get_config(variant: str = "thesis1000") -> ml_collections.ConfigDict:
    """The config of one variant; every key can be set on the command line (`--config.a.b=c`)."""
    if variant not in VARIANTS:
        raise ValueError(f"synthesis has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    config = _thesis()
    {"thesis1000": lambda c: None, "thesis100": _hundred, "t98g": _t98g, "own": _own,
     "pairs": _pairs, "toy": _toy}[variant](config)
    return config


def _thesis() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.translator = ""                   # workdir of a run of pix2pix; "": images stay as they are composed
    c.layout = "qupath"                 # of the folder, which holds nuclei too; one of `jaxcell data convert --help`
    c.count = {"train": 1000, "val": 0, "test": 0}      # images of each split

    c.data = ml_collections.ConfigDict()
    c.data.root = "data"                # the folder that holds the sources below
    c.data.source = {"annotated": {"kind": "folder", "root": "annotated", "split": "train"}}
    c.data.cache_gb = 4.0               # memory for decoded images
    c.data.unreadable = "refuse"        # "skip": images that cannot be read are left out and counted
    c.data.workers = 0                  # processes that compose, 0: this one; the translator runs in this one alone

    c.compose = ml_collections.ConfigDict()     # options of `ComposedSource`
    c.compose.size = 1024
    c.compose.cells = (10, 40)
    c.compose.max_overlap = 0.2
    c.compose.sigma = 20.0              # pixels; for cells of some 200 pixels
    c.compose.canvas = "empty"          # "real": an annotated image, to which cells are added
    c.compose.planes = (0,)             # of the annotated images
    c.compose.zoom = (0.8, 1.25)
    c.compose.amplitude = 4.0           # of the elastic deformation, pixels
    c.compose.halo = 0                  # pixels around a cell that come with it, before the soft edge: of bright phase contrast
    c.compose.donors = 8                # annotated images that the cells of one come from; 1 where exposure differs
    return c


def _hundred(c: ml_collections.ConfigDict) -> None:
    c.count.train = 100


def _t98g(c: ml_collections.ConfigDict) -> None:
    c.data.source = ml_collections.ConfigDict({"t98g": {"kind": "folder", "root": "usiigaci_t98g", "split": "train"}})
    c.layout = "folder"
    c.count.train = 50
    c.compose.update({"size": 512, "cells": (20, 60), "sigma": 2.0, "canvas": "real"})


def _own(c: ml_collections.ConfigDict) -> None:
    c.data.root = "."
    c.data.source = ml_collections.ConfigDict({"own": {"kind": "folder", "root": "", "split": "train"}})
    c.layout = "folder"
    c.count.train = 100
    c.compose.update({"size": 512, "cells": (20, 60), "sigma": 2.0, "canvas": "real", "planes": ()})


def _pairs(c: ml_collections.ConfigDict) -> None:
    # The eight annotated images of configs/sparse_seunet.py:original, seen in phase contrast.
    pairs = {"kind": "synthetic", "modality": "pair", "count": 8, "size": 256, "seed": 1, "overlap": 0.6, "microscope": 3}
    c.data.source = ml_collections.ConfigDict({"pairs": pairs})
    c.count.update({"train": 1000})
    # For cells of some 15 pixels with a halo, without which they are drawn without the fringes of brightfield.
    c.compose.update({"size": 256, "cells": (30, 90), "sigma": 2.0, "halo": 3, "amplitude": 1.0})


def _toy(c: ml_collections.ConfigDict) -> None:
    _pairs(c)
    c.data.source.pairs.update({"count": 3, "size": 96})
    c.count.update({"train": 2, "val": 1})
    c.compose.update({"size": 64, "cells": (4, 8)})
