"""Normalisers against numpy's own percentiles, and the rules by which planes become channels."""

from __future__ import annotations

import numpy as np
import pytest

from jaxcell.data.normalize import (
    NORMALIZERS,
    challenge_cstm,
    challenge_mix,
    challenge_prov,
    clip_bright,
    equalise_locally,
    fit_normalizer,
    maunet,
    maunet_eight_bits,
    maunet_paper,
    percentile,
    select_planes,
    standardise,
    to_channels,
    type_range,
)

RNG = np.random.default_rng(0)
IMAGES = {
    "uint8": RNG.integers(0, 90, (40, 50, 1), np.uint8), "uint16": RNG.integers(300, 9000, (40, 50, 1), np.uint16),
    "rgb": RNG.integers(0, 256, (40, 50, 3), np.uint8), "int32": RNG.integers(-5, 9000, (40, 50, 1), np.int32),
    "float32": RNG.gamma(2, 100, (40, 50, 3)).astype(np.float32), "large uint16": RNG.integers(0, 5000, (300, 300, 1), np.uint16),
}


@pytest.mark.parametrize("name", IMAGES)
def test_percentile_is_numpys(name):
    image = IMAGES[name]
    low, high = np.percentile(image, (2.5, 97))
    expected = np.clip((image.astype(np.float64) - low) / (high - low), 0, 1)
    result = percentile(image, lower=2.5, upper=97)(image)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_percentile_per_channel():
    image = np.stack([np.arange(100.0), 10 * np.arange(100.0)], axis=-1)[None]
    result = percentile(image, lower=0, upper=100, per_channel=True)(image)
    np.testing.assert_allclose(result[..., 0], result[..., 1], atol=1e-6)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("name", IMAGES)
def test_every_normaliser_treats_a_region_as_in_the_whole(name, normalizer):
    image = IMAGES[name]
    apply = NORMALIZERS[normalizer](image)
    whole = apply(image)
    low, high = (-99, 99) if normalizer == "standardise" else (0, 1)
    assert whole.dtype == np.float32 and whole.shape == image.shape and whole.min() >= low and whole.max() <= high
    region = slice(3, 9), slice(10, 17)
    np.testing.assert_allclose(apply(image[region]), whole[region], atol=1e-6)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("value, dtype", [(0, np.uint8), (7, np.uint8), (300, np.uint16), (0.0, np.float32), (400.0, np.float32)])
def test_constant_images_stay_finite(normalizer, value, dtype):
    image = np.full((6, 6, 1), value, dtype)
    result = NORMALIZERS[normalizer](image)(image)
    assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1


def test_challenge_rules_by_hand():
    bright = np.full((4, 4, 3), 230, np.uint8)
    bright[0, 0] = 200
    assert 255 * challenge_cstm(bright)(bright)[1, 1, 0] == pytest.approx(230)             # bright: no gamma
    assert 255 * challenge_mix(bright)(bright)[1, 1, 0] == 255                             # bright and even: prov
    dark = np.full((4, 4, 1), 20, np.uint8)
    gamma = 0.6 + 0.4 * (1 - (np.cos(20 / 17) + 1) / 2)
    assert 255 * challenge_cstm(dark)(dark)[0, 0, 0] == pytest.approx(np.rint(255 * (20 / 255) ** gamma))
    half = np.array([[0, 0], [100, 200]], np.uint8)[..., None]
    np.testing.assert_array_equal(np.rint(255 * challenge_prov(half, lower=0, upper=100)(half))[..., 0], [[0, 0], [0, 255]])
    cstm, prov = challenge_cstm(half)(half), challenge_prov(half)(half)
    np.testing.assert_allclose(challenge_mix(half, alpha=0.5)(half) * 255, np.trunc(255 * (cstm + prov) / 2 + 1e-4), atol=1e-3)


def test_floats_up_to_one_are_fractions_unless_as_the_authors_do():
    image = np.linspace(0.3, 1, 16, dtype=np.float32).reshape(4, 4, 1)
    np.testing.assert_allclose(challenge_cstm(image)(image), np.rint(image * 255) / 255, atol=1e-6)
    assert challenge_cstm(image, fractions=False)(image).max() < 0.04


def test_type_range():
    image = np.array([[[0], [65535]]], np.uint16)
    np.testing.assert_array_equal(type_range(image)(image), [[[0], [1]]])


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_refused(normalizer, value):
    image = np.ones((5, 8, 2), np.float32)
    image[2, 3, 0] = value
    with pytest.raises(ValueError, match=r"1 of the image's 40 values are not finite.*must be.*nan_to_num"):
        fit_normalizer(image, {"name": normalizer}, channels=1, planes=(0,))
    fit_normalizer(image, {"name": normalizer}, channels=1, planes=(1,))     # a plane that nobody takes may hold anything


def test_yes_and_no_are_black_and_white():
    mask = RNG.random((6, 7, 1)) > 0.5
    np.testing.assert_array_equal(select_planes(mask, 1), np.where(mask, np.uint8(255), np.uint8(0)))
    for name in NORMALIZERS.keys() - {"standardise"}:
        white, black = (0.99, 0.01) if name == "maunet_paper" else (1, 0)
        result = fit_normalizer(mask, {"name": name}, channels=1)(mask)
        np.testing.assert_allclose(result, np.where(mask, white, black), rtol=1e-6)


def test_percentiles_out_of_order_are_refused():
    image = np.ones((1, 2, 1), np.float32)
    with pytest.raises(ValueError, match="lower=5.*upper=2"):
        percentile(image, lower=5, upper=2)


def test_channels():
    gray, color = np.full((2, 2, 1), 0.5, np.float32), np.full((2, 2, 3), (1, 0, 0), np.float32)
    np.testing.assert_array_equal(to_channels(gray, 3), np.full((2, 2, 3), 0.5))
    np.testing.assert_allclose(to_channels(color, 1), np.full((2, 2, 1), 0.299), atol=1e-6)
    np.testing.assert_array_equal(to_channels(np.full((1, 1, 3), 200, np.uint8), 1), [[[200]]])
    assert to_channels(color, 3) is color
    stack = np.zeros((2, 2, 5), np.uint16)
    with pytest.raises(ValueError, match=r"5 planes does not fit a network of 3 channels.*--config\.data\.planes=\(0,\)"):
        select_planes(stack, 3)
    assert select_planes(stack, 5).shape == (2, 2, 5)
    assert select_planes(stack, 3, planes=(4,)).shape == (2, 2, 1)
    with pytest.raises(ValueError, match=r"config\.data\.planes=\(5,\).*0 to 4.*--config\.data\.planes=\(0,\)"):
        select_planes(stack, 3, planes=(5,))
    with pytest.raises(ValueError, match="no rule"):
        to_channels(stack, 3)


def test_fit_normalizer_measures_gray_before_it_becomes_color_and_ignores_alpha():
    gray = np.clip(RNG.normal(12, 4, (40, 50, 1)), 0, 255).astype(np.uint8)
    settings = {"name": "cstm-mix"}
    expected = to_channels(challenge_mix(gray)(gray), 3)
    np.testing.assert_array_equal(fit_normalizer(gray, settings, channels=3)(gray), expected)
    assert np.abs(challenge_mix(to_channels(gray, 3))(to_channels(gray, 3)) - expected).max() > 0.1
    color = IMAGES["rgb"]
    clear = np.dstack([color, np.zeros_like(color[..., :1])])
    np.testing.assert_array_equal(fit_normalizer(clear, {"name": "percentile"}, channels=3)(clear), percentile(color)(color))
    with pytest.raises(ValueError, match="'percentil' is unknown.*percentile"):
        fit_normalizer(gray, {"name": "percentil"}, channels=3)


def test_few_bright_pixels_on_an_even_background_stay_visible():
    image = np.zeros((100, 100, 1), np.uint8)
    image[50, 50] = 200
    curve = NORMALIZERS["percentile"](image)
    assert curve(image).max() == 1.0
    assert curve(image)[0, 0] == 0.0


def test_standardise_by_hand():
    image = np.asarray([[[1, 5], [3, 5]]], np.uint8)
    np.testing.assert_allclose(standardise(image)(image), [[[-1, 0], [1, 0]]], atol=1e-6)
    np.testing.assert_allclose(standardise(image)(image[:, 1:]), [[[1, 0]]], atol=1e-6)


def test_clip_bright_leaves_zeros_out_of_its_percentile():
    image = np.asarray([[[0, 0], [0, 0], [10, 0], [20, 0], [90, 0]]], np.uint16)
    np.testing.assert_array_equal(clip_bright(image, percentile=50)(image)[0, :, 0], (0, 0, 10, 20, 20))
    assert not clip_bright(image)(image)[..., 1].any()


def test_equalise_locally():
    image = np.random.default_rng(0).integers(0, 9, (64, 64, 2)).astype(np.uint8)
    image[:, 32:, 0] += 200
    image[..., 1] = 7
    equal = equalise_locally(image, kernel=16)
    assert equal.dtype == np.float32 and equal.shape == image.shape and not equal[..., 1].any()
    assert equal.min() >= 0 and equal.max() <= 1
    # Noise on a level of its own stands out (on the brightest one half of it is clipped).
    assert equal[:, :24, 0].std() > 1.5 * image[:, :24, 0].std() / 208


def test_maunet_eight_bits_are_the_reference_channel_by_channel():
    for image in (IMAGES["rgb"], IMAGES["uint16"], IMAGES["large uint16"], IMAGES["float32"]):
        found = maunet_eight_bits(image)(image)
        for channel, grey in zip(np.moveaxis(image, -1, 0), np.moveaxis(found, -1, 0), strict=True):
            low, high = np.percentile(channel[channel != 0], (1, 99))
            expected = (np.clip(channel, low, high).astype(np.float64) - low) / (high - low) * 255
            assert np.abs(grey - np.trunc(expected)).max() <= (image.dtype.kind == "f")      # (sums of float32 round otherwise)


def test_maunet_scales_by_the_largest_of_all_channels():
    image = np.stack([np.arange(10, 110), np.full(100, 300), np.zeros(100)], axis=-1).astype(np.uint16)[None]
    maximum, extent = (maunet(image, scale=scale)(image) for scale in ("maximum", "range"))
    assert maximum.max() == 1 and maximum[0, 0, 1] == np.float32(44 / 255) and not maximum[..., 2].any()
    np.testing.assert_array_equal(maximum, extent)      # some pixel is 0
    flat = np.full((3, 4, 1), 77, np.uint8)
    assert (maunet(flat)(flat) == 1).all() and not maunet(flat, scale="range")(flat).any()
    with pytest.raises(ValueError, match="scale='minimum'"):
        maunet(flat, scale="minimum")


def test_maunet_paper_keeps_a_distance_from_both_ends():
    image = np.arange(1, 1001, dtype=np.uint16).reshape(20, 50, 1)
    result = maunet_paper(image)(image)
    assert result.min() == np.float32(0.01) and result.max() == pytest.approx(0.99) and len(np.unique(result)) > 900


def test_percentiles_from_a_histogram_are_numpys_to_the_last_digit():
    for seed in range(200):
        image = np.random.default_rng(seed).integers(0, 3000, (17, 13, 1)).astype(np.uint16)
        low, high = np.percentile(image[image != 0], (1, 99))
        expected = np.trunc((np.clip(image, low, high) - low) / (high - low) * 255)
        np.testing.assert_array_equal(maunet_eight_bits(image)(image), expected)
