"""Every policy on every kind of sample: the crop that comes out is what training expects, and the same for the same seed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from data.cells_to_move import scene

from jaxcell.data.augment import POLICIES, Policy, apply_mix, apply_steps, cut, random_crop, rescale
from jaxcell.types import Sample


def square(channels: int, labels: np.ndarray | None, *, size: int = 48) -> Sample:
    image = np.random.default_rng(0).random((size, size, channels), dtype=np.float32)
    return Sample((255 * image).astype(np.uint8), labels, name="square")


def samples(channels: int) -> dict[str, Sample]:
    none = np.zeros((48, 48, 1), np.int32)
    overlapping = scene(channels)
    return {
        "no labels": square(channels, None), "no cells": square(channels, none),
        "one cell covering all": square(channels, none + 5),
        "overlapping": Sample((255 * overlapping.image).astype(np.uint8), overlapping.labels, nuclei=overlapping.nuclei),
        "one pixel": square(channels, np.full((1, 1, 1), 9, np.int32), size=1), "all to ignore": square(channels, none - 1),
        "narrow": Sample(np.zeros((7, 90, channels), np.uint8), np.ones((7, 90, 1), np.int32)),
    }


def fraction(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255


def crop_of(sample: Sample, policy: Policy, seed: int, *, size: int = 40) -> Sample:
    """The crop as data/pipeline.py makes it."""
    rng = np.random.default_rng(seed)
    crop = cut(sample, rng, policy, size=size, normalize=fraction)
    crop = apply_mix(crop, rng, policy.mix, lambda rng: cut(sample, rng, policy, size=size, normalize=fraction))
    return apply_steps(crop, rng, policy.after)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_on_every_kind_of_sample(name, channels):
    for kind, sample in samples(channels).items():
        for seed in range(4):
            crop, again = (crop_of(sample, POLICIES[name], seed) for _ in range(2))
            assert crop.image.shape == (40, 40, channels) and crop.image.dtype == np.float32, kind
            assert crop.image.min() >= 0 and crop.image.max() <= 1, kind
            np.testing.assert_array_equal(again.image, crop.image)
            if sample.labels is None:
                assert crop.labels is None
                continue
            np.testing.assert_array_equal(again.labels, crop.labels)
            assert crop.labels.shape[:2] == (40, 40) and crop.labels.dtype == np.int32
            if not POLICIES[name].mix:
                assert set(np.unique(crop.labels)) <= {0, *np.unique(sample.labels)}, kind
            if sample.nuclei is not None:
                seen = crop.nuclei > 0
                assert (crop.labels[seen] == crop.nuclei[seen][:, None]).any(axis=-1).mean() > 0.7 if seen.any() else True


@pytest.mark.parametrize("name", POLICIES)
def test_policies_change_pictures_and_can_be_sent_to_workers(name):
    policy = pickle.loads(pickle.dumps(POLICIES[name]))
    crops = {crop_of(scene(), policy, seed).image.tobytes() for seed in range(20)}
    assert len(crops) > 10
    assert sum(p for p, _ in policy.geometry) <= 1 and all(0 < p <= 1 for p, _ in (*policy.geometry, *policy.mix, *policy.after))


def test_only_the_pixels_that_the_crop_needs_are_normalised():
    sample, seen = Sample(np.zeros((600, 600, 1), np.uint8), np.ones((600, 600, 1), np.int32)), []

    def normalize(image: np.ndarray) -> np.ndarray:
        seen.append(image.shape[0])
        return fraction(image)

    policy = Policy(geometry=((0.5, lambda s, rng, size: rescale(s, rng, size, factors=(0.25, 0.25))),))
    for seed in range(200):
        cut(sample, np.random.default_rng(seed), policy, size=32, normalize=normalize)
    assert set(seen) == {32, 128} and 70 < seen.count(32) < 130


def test_empty_regions_are_rejected_before_and_after_geometry():
    labels = np.zeros((200, 200, 1), np.int32)
    labels[:60, :60] = 1
    sample = Sample(np.zeros((200, 200, 1), np.uint8), labels)
    for policy in (POLICIES["none"], POLICIES["maunet"]):
        share = {}
        for reject in (0.0, 1.0):
            crops = [cut(sample, np.random.default_rng(seed), policy, size=40, normalize=fraction, reject_empty=reject)
                     for seed in range(150)]
            share[reject] = np.mean([crop.labels.any() for crop in crops])
        assert share[1.0] > share[0.0] + 0.2


def test_steps_are_taken_with_their_probability():
    steps = ((0.25, lambda sample, rng: Sample(1 - sample.image)),)
    black = Sample(np.zeros((1, 1, 1), np.float32))
    rng = np.random.default_rng(0)
    assert 0.2 < np.mean([apply_steps(black, rng, steps).image[0, 0, 0] for _ in range(1000)]) < 0.3


def test_padding_is_zero_and_background_whatever_the_normalisation():
    sample = Sample(np.zeros((8, 8, 1), np.uint8), np.ones((8, 8, 1), np.int32))
    crop = cut(sample, np.random.default_rng(0), POLICIES["none"], size=16, normalize=lambda image: fraction(image) + 1)
    assert (crop.image[:8, :8] == 1).all() and crop.image.sum() == 64 and crop.labels.sum() == 64
    assert random_crop(crop, np.random.default_rng(0), size=16).image.shape == (16, 16, 1)
