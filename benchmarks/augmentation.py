"""How many images a second one core augments, per policy, and what every transform costs.

    python benchmarks/augmentation.py [--crops=256,512] [--policies=light,mild] [--side=2048] [--gray]

CPU time of this process with OpenCV on one thread, best of several rounds; other programs disturb it little. The path is the
pipeline's own: cut, normalise, geometry, mix, steps. The row "none" is what cutting and normalising alone take.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np

from jaxcell.data import augment
from jaxcell.data.augment import POLICIES, Policy, apply_mix, apply_steps, cut
from jaxcell.data.normalize import Curve, fit_normalizer
from jaxcell.types import Sample

TRANSFORMS: dict[str, Policy] = {
    "flip": Policy(after=((1.0, augment.flip),)),
    "rotate90": Policy(after=((1.0, augment.rotate90),)),
    "warp: rotation and zoom": Policy(geometry=POLICIES["mesmer"].geometry),
    "warp: elastic": Policy(geometry=POLICIES["sparse_seunet"].geometry),
    "rescale 0.25 to 2": Policy(geometry=POLICIES["maunet"].geometry),
    "rescale_to_cells": Policy(geometry=((1.0, augment.rescale_to_cells),)),
    "blur": Policy(after=((1.0, augment.blur),)),
    "smooth": Policy(after=((1.0, augment.smooth),)),
    "change_gamma": Policy(after=((1.0, augment.change_gamma),)),
    "change_contrast": Policy(after=((1.0, augment.change_contrast),)),
    "shift_histogram": Policy(after=((1.0, augment.shift_histogram),)),
    "add_noise": Policy(after=((1.0, augment.add_noise),)),
    "coarse_dropout": Policy(after=((1.0, augment.coarse_dropout),)),
    "shift_hsv": Policy(after=((1.0, augment.shift_hsv),)),
    "color_map": Policy(after=((1.0, augment.color_map),)),
    "shuffle_channels": Policy(after=((1.0, augment.shuffle_channels),)),
    "mosaic": Policy(mix=((1.0, augment.mosaic),)),
    "copy_paste": Policy(mix=((1.0, augment.copy_paste),)),
}


def main() -> None:
    arguments = _parser().parse_args()
    cv2.setNumThreads(1)
    crops = [int(crop) for crop in arguments.crops.split(",")]
    sample = scene(arguments.side, gray=arguments.gray)
    normalize = fit_normalizer(sample.image, {"name": "percentile"}, channels=3)
    chosen = {name: POLICIES[name] for name in (arguments.policies.split(",") if arguments.policies else POLICIES)}
    print(f"{'Grey' if arguments.gray else 'Colour'} images of {arguments.side} x {arguments.side}, 8 bits, 3 channels.\n")
    print("| policy | " + " | ".join(f"{c}: images/s per core | ms" for c in crops) + " |")
    print("| --- |" + " ---: | ---: |" * len(crops))
    for name, policy in chosen.items():
        seconds = [measure(policy, sample, normalize, crop, arguments.rounds) for crop in crops]
        print(f"| {name} | " + " | ".join(f"{1 / s:.0f} | {1e3 * s:.2f}" for s in seconds) + " |", flush=True)
    if not arguments.transforms:
        return
    print("\n| transform | " + " | ".join(f"{c}: ms" for c in crops) + " |\n| --- |" + " ---: |" * len(crops))
    plain = [measure(Policy(), sample, normalize, crop, arguments.rounds) for crop in crops]
    for name, policy in TRANSFORMS.items():
        seconds = [measure(policy, sample, normalize, crop, arguments.rounds) for crop in crops]
        print(f"| {name} | " + " | ".join(f"{1e3 * (s - p):.2f}" for s, p in zip(seconds, plain, strict=True)) + " |", flush=True)


def measure(policy: Policy, sample: Sample, normalize: Curve, crop: int, rounds: int, *, count: int = 40) -> float:
    """CPU seconds of one example, best of `rounds`."""
    return min(_seconds(lambda rng: _example(policy, sample, normalize, crop, rng), count) for _ in range(rounds))


def _example(policy: Policy, sample: Sample, normalize: Curve, crop: int, rng: np.random.Generator) -> Sample:
    def draw(rng: np.random.Generator) -> Sample:
        return cut(sample, rng, policy, size=crop, normalize=normalize)

    return apply_steps(apply_mix(draw(rng), rng, policy.mix, draw), rng, policy.after)


def _seconds(example: Callable[[np.random.Generator], Sample], count: int) -> float:
    rng = np.random.default_rng(0)
    example(rng)
    start = time.process_time()
    for _ in range(count):
        example(rng)
    return (time.process_time() - start) / count


def scene(side: int, *, gray: bool) -> Sample:
    """Discs of 16 to 40 pixels on noise, touching no border."""
    rng, labels = np.random.default_rng(0), np.zeros((side, side), np.int32)
    for number, (y, x) in enumerate(np.ndindex(side // 64, side // 64), start=1):
        cv2.circle(labels, (64 * x + 32, 64 * y + 32), int(rng.integers(8, 20)), number, -1)
    plane = np.clip(120 * (labels > 0) + rng.normal(60, 20, labels.shape), 0, 255)
    image = np.stack([plane, plane if gray else plane / 2, plane], axis=-1).astype(np.uint8)
    return Sample(image, labels[..., None], name="scene")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", default="256,512")
    parser.add_argument("--policies", default="", help="names, with commas; all without")
    parser.add_argument("--side", type=int, default=2048, help="of the stored image")
    parser.add_argument("--gray", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-transforms", dest="transforms", action="store_false", help="policies only")
    return parser


if __name__ == "__main__":
    main()
