"""Policies: which changes a training sample undergoes, by name, as configs choose them.

One policy per published system bears the system's name. A step is (probability, change); the order is that of application.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from jaxcell.data.augment.arrays import Steps
from jaxcell.data.augment.geometry import Geometry, draw_geometry, flip, random_crop, rescale, rescale_to_cells, rotate90, warp
from jaxcell.data.augment.intensity import (
    add_noise,
    blur,
    change_contrast,
    change_gamma,
    coarse_dropout,
    color_map,
    on_color,
    on_gray,
    shift_histogram,
    shift_hsv,
    shuffle_channels,
    smooth,
)
from jaxcell.data.augment.mixing import MixSteps, copy_paste, mosaic
from jaxcell.data.augment.whole import training_item
from jaxcell.types import Sample

__all__ = ["POLICIES", "Policy", "apply_steps", "cut"]


@dataclass(frozen=True)
class Policy:
    """What happens to a sample on its way to a crop.

    Attributes:
      geometry: (probability, geometry), of which at most one happens; probabilities add up to at most 1. It is drawn first and
        says how large a region the crop needs.
      mix: what is done with other crops.
      after: steps on the crop, at the end.
    """

    geometry: Sequence[tuple[float, Geometry]] = ()
    mix: MixSteps = ()
    after: Steps = ()


def apply_steps(sample: Sample, rng: np.random.Generator, steps: Steps) -> Sample:
    """Applies each step with its probability, in order."""
    for probability, step in steps:
        if rng.random() < probability:
            sample = step(sample, rng)
    return sample


def cut(sample: Sample, rng: np.random.Generator, policy: Policy, *, size: int, normalize: Callable[[np.ndarray], np.ndarray],
        reject_empty: float = 0.0) -> Sample:
    """The normalised crop of a sample as stored, with the geometry of the policy; `mix` and `after` are still to come.

    Args:
      sample: as stored.
      rng: of this sample.
      policy: whose geometry it is.
      size: side of the crop, pixels.
      normalize: region [h, w, C] -> float32; only pixels that the crop needs are given to it.
      reject_empty: see `random_crop`.
    """
    side, finish = draw_geometry(sample, rng, size, policy.geometry)
    sample = random_crop(sample, rng, size=side, reject_empty=reject_empty, pad=False)
    sample = dataclasses.replace(sample, image=normalize(sample.image))
    if finish is not None:
        sample = finish(sample, rng)
    return random_crop(sample, rng, size=size, reject_empty=reject_empty)


ORIENTATIONS: Steps = ((1.0, rotate90), (1.0, flip))
LIGHT: Steps = (
    *ORIENTATIONS,
    (0.3, change_gamma),
    (0.3, change_contrast),
    (0.1, blur),
    (0.15, partial(add_noise, deviation=(0.005, 0.03))),
)

POLICIES: Mapping[str, Policy] = {
    "none": Policy(),
    "flips": Policy(after=ORIENTATIONS),
    # For small networks and few CPU cores: cheap, and the pictures do not get harder than the real ones.
    "light": Policy(after=LIGHT),
    # For cells without a preferred direction, where there are few images.
    "free": Policy(
        geometry=((0.7, partial(warp, rotation=180.0, zoom=(0.8, 1.25), shear=8.0, amplitude=4.0, spacing=48.0)),), after=LIGHT),
    # Four pictures in one, and cells where none were: for few and sparse images. Not where the place of a cell means something.
    "mosaic": Policy(mix=((0.5, mosaic), (0.5, copy_paste)), after=LIGHT),

    # contour_proposal. Source: the paper, section 3.2.2; neurips22-cell-seg@ab6a154, neurips/augmentation/aug_plans.py "mild",
    # neurips/data/dataset.py Dataset (regions of 2048 for crops of 512). Departs: whether an image is grey is seen in its pixels,
    # not in how it is stored; the two kinds of noise are one; the crop comes before what does not change the scale.
    "mild": Policy(geometry=((0.2, rescale_to_cells),), after=(
        *ORIENTATIONS,
        (0.4, blur),
        (0.66, change_gamma),
        (0.1, add_noise),
        (0.1, on_color(shift_hsv)),
        (0.1, on_gray(partial(shift_hsv, saturation=3 / 255, value=10 / 255))),
        (0.1, on_gray(color_map)),
        (0.1, shuffle_channels),
    )),

    # Source: the paper, section 4.3 ("rotation, zooming and flipping only"); amounts of the notebook it follows (parity/mesmer):
    # rotation 180, zoom 0.75 to 1/0.75, both flips. Departs: one zoom for both axes (Keras draws two, which squashes round
    # cells by up to 1.8); targets are made of the moved labels (theirs are made first and interpolated); outside of the
    # image is 0 (theirs: its edge pixels drawn out into streaks, labels too).
    "mesmer": Policy(geometry=((1.0, partial(warp, rotation=180.0, zoom=(0.75, 1 / 0.75))),), after=((1.0, flip),)),

    # Source: the paper, section 3.2.2; amounts of neurips22-cellseg_saltfish@2e1e37e, train.py. Departs: all eight orientations
    # are equally likely; an image is shrunk at most to half the crop's side and padded by 0 (theirs to a quarter of its own, and
    # filled up with mirror images); both axes are smoothed alike (theirs: y by 0.25 to 1.5); gamma acts between 0 and 1, not
    # between the image's extremes.
    "maunet": Policy(geometry=((1.0, partial(rescale, factors=(0.25, 2.0))),), after=(
        *ORIENTATIONS,
        (0.25, partial(add_noise, deviation=(0.0, 0.1))),
        (0.25, partial(change_gamma, limits=(1.0, 2.0))),
        (0.25, partial(smooth, deviation=(1.0, 2.0))),
        (0.25, partial(shift_histogram, points=(3, 3))),
    )),

    # Source: the paper, section 4.2 (patches of 224, 448, 1000, 1500 and 2000 pixels, all shown at 224); MorphoSeg@407ab28,
    # datasets/dataset_cellseg.py RandomGenerator (turn and mirror with probability 1/2, else rotation by up to 20 degrees with
    # 1/2). Departs: patches are cut at random instead of beforehand, the larger as often as a grid of overlap 0.35 has them;
    # the undivided image is not among them; rotated pictures are interpolated (theirs: nearest); mirror and rotation do not
    # exclude each other.
    "morphoseg": Policy(geometry=(
        (0.25, partial(warp, rotation=20.0)),
        (0.14, partial(rescale, factors=(224 / 448,) * 2, least=1.0)),
        (0.028, partial(rescale, factors=(224 / 1000,) * 2, least=1.0)),
        (0.0125, partial(rescale, factors=(224 / 1500,) * 2, least=1.0)),
        (0.007, partial(rescale, factors=(224 / 2000,) * 2, least=1.0)),
    ), after=((0.5, rotate90), (0.5, flip))),
    # The same as released, for images that are cut into patches beforehand (`PatchSource`): every picture is shown whole.
    "morphoseg_released": Policy(geometry=((1.0, training_item),)),

    # Source: the thesis, section 5.2 (random flip, coarse dropout, easy elastic deformation), which gives no amounts.
    # Departs: the amounts are ours (the author's later code, IAUNet@05d5278, displaces by fractions of a pixel); no resizing of
    # whole images to 1024.
    "sparse_seunet": Policy(geometry=((1.0, partial(warp, amplitude=4.0, spacing=32.0)),),
                            after=((1.0, flip), (0.5, coarse_dropout))),
    # The same with transparent cells pasted into phase-contrast images. Source: the thesis, section 4.4.1. Departs: cells are
    # pasted while training, into real images; the thesis makes a second data set, and turns it into brightfield by a network.
    "sparse_seunet_paste": Policy(geometry=((1.0, partial(warp, rotation=180.0, zoom=(0.8, 1.25), amplitude=4.0, spacing=32.0)),),
                                  mix=((0.5, partial(copy_paste, overlaps="add", max_overlap=0.2, sigma=2.0)),),
                                  after=((1.0, flip), (0.5, coarse_dropout))),
}
"""name -> policy."""
