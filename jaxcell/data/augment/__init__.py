"""Random changes of a training sample: pure functions (sample, rng, options) -> sample, and policies made of them.

Images are float32 in [0, 1] and stay so; standardised ones keep to their own range. Geometry moves the image and all label layers
together; labels are only ever picked, never blended, and keep their ids, -1 ("ignore") included. The way to a crop: `cut`
(region, normalisation, geometry), `apply_mix` (other samples), `apply_steps` (mirrors, intensities).
"""

from jaxcell.data.augment.arrays import Augmentation, Steps
from jaxcell.data.augment.geometry import Geometry, flip, in_place, random_crop, rescale, rescale_to_cells, rotate90, warp
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
from jaxcell.data.augment.mixing import Draw, Mix, MixSteps, apply_mix, copy_paste, mosaic, soft_edges
from jaxcell.data.augment.policies import POLICIES, Policy, apply_steps, cut
from jaxcell.data.augment.whole import rotate_nearest, training_item, turn_and_mirror, zoom_to_square

__all__ = ["POLICIES", "Augmentation", "Draw", "Geometry", "Mix", "MixSteps", "Policy", "Steps", "add_noise", "apply_mix",
           "apply_steps", "blur", "change_contrast", "change_gamma", "coarse_dropout", "color_map", "copy_paste", "cut", "flip",
           "in_place", "mosaic", "on_color", "on_gray", "random_crop", "rescale", "rescale_to_cells", "rotate90",
           "rotate_nearest", "shift_histogram", "shift_hsv", "shuffle_channels", "smooth", "soft_edges", "training_item",
           "turn_and_mirror", "warp", "zoom_to_square"]
