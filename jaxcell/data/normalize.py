"""Intensities of any image -> float32 in [0, 1], and its planes -> the channels a network takes.

Each normaliser works in two steps, because statistics belong to the whole image and never to a tile or crop of it:
`apply = NORMALIZERS[name](image)` looks at the whole image and returns a function of pixels; `apply(region)` is [0, 1], save for
"standardise", whose values are deviations from the image's mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from skimage.exposure import equalize_adapthist

__all__ = ["NORMALIZERS", "challenge_cstm", "challenge_mix", "challenge_prov", "clip_bright", "equalise_locally",
           "fit_normalizer", "maunet", "maunet_eight_bits", "maunet_paper", "percentile", "select_planes", "standardise",
           "to_channels", "type_range"]

Curve = Callable[[np.ndarray], np.ndarray]     # pixelwise, any shape -> the same shape

LUMINANCE = (0.299, 0.587, 0.114)              # ITU-R BT.601, red green blue


def percentile(image: np.ndarray, *, lower: float = 1.0, upper: float = 99.8, per_channel: bool = False) -> Curve:
    """Stretches [lower, upper] percentile to [0, 1] and clips.

    Args:
      image: [H, W, C] whole image of any dtype.
      lower: percentile that becomes 0.
      upper: percentile that becomes 1.
      per_channel: each channel has its own percentiles, else all share one pair.

    Returns:
      region [..., C] -> float32 in [0, 1]; all 0 where the percentiles coincide.

    Raises:
      ValueError: percentiles out of order.
    """
    if not 0 <= lower < upper <= 100:
        raise ValueError(f"percentile: lower={lower}, upper={upper}; 0 <= lower < upper <= 100 is needed.")
    if not per_channel:
        return _pixelwise(_stretch(*_range(image, lower, upper)))
    curves = [_pixelwise(_stretch(*_range(image[..., c], lower, upper))) for c in range(image.shape[-1])]
    return lambda region: np.stack([curve(region[..., c]) for c, curve in enumerate(curves)], axis=-1)


def type_range(image: np.ndarray) -> Curve:
    """Divides integers by the largest of their type; floats are taken as fractions and clipped.

    Args:
      image: [H, W, C] whole image; only its dtype matters.

    Returns:
      region -> float32 in [0, 1].
    """
    return _pixelwise(_stretch(0.0, float(np.iinfo(image.dtype).max) if image.dtype.kind in "iu" else 1.0))


def standardise(image: np.ndarray) -> Curve:
    """(value - mean) / (deviation + 1e-7) of each channel.

    Args:
      image: [H, W, C] whole image of any dtype.

    Returns:
      region [..., C] -> float32, of mean 0 and population deviation 1 over the whole image; 0 where it is constant.

    Source: deepcell-toolbox@e8c1277ee424, processing.py normalize. The paper says "batch-wise"; the released statistics are those
      of an image and channel.
    """
    mean = image.mean((0, 1), dtype=np.float64)
    # Rounding must not turn a constant image into the multiple of 1e-7 that it is off.
    deviation = np.where(image.max((0, 1)) > image.min((0, 1)), image.std((0, 1), dtype=np.float64), np.inf) + 1e-7
    return lambda region: ((region - mean) / deviation).astype(np.float32)


def clip_bright(image: np.ndarray, *, percentile: float = 99.9) -> Curve:
    """Lowers what is brighter than a percentile of the channel's values other than 0 to that percentile.

    Args:
      image: [H, W, C] whole image of any dtype.
      percentile: in [0, 100].

    Returns:
      region [..., C] -> float32 in the image's own unit; a channel of zeros stays.

    Source: deepcell-toolbox@e8c1277ee424, processing.py percentile_threshold: before `equalise_locally` in Mesmer's release.
    """
    bright = [channel[channel != 0] for channel in np.moveaxis(image, -1, 0)]
    tops = np.asarray([np.percentile(values, percentile) if values.size else 0.0 for values in bright])
    return lambda region: np.minimum(region, tops).astype(np.float32)


def equalise_locally(image: np.ndarray, *, kernel: int | None = None) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of each channel (clip limit 0.01, 256 bins).

    It depends on where a pixel lies, so it is none of `NORMALIZERS` and takes whole images only: use it when a data set is made.

    Args:
      image: [H, W, C] of any dtype.
      kernel: side of the neighbourhoods, pixels; None takes an eighth of each of the image's sides. Mesmer's release has 128.

    Returns:
      [H, W, C] float32 in [0, 1]; a constant channel is 0.

    Source: deepcell-toolbox@e8c1277ee424, processing.py histogram_normalization.
    """
    return np.stack([_equalised(channel.astype(np.float32), kernel) for channel in np.moveaxis(image, -1, 0)], axis=-1)


def _equalised(channel: np.ndarray, kernel: int | None) -> np.ndarray:
    low, high = channel.min(), channel.max()
    return equalize_adapthist((channel - low) / (high - low), kernel_size=kernel) if high > low else np.zeros_like(channel)


def challenge_cstm(image: np.ndarray, *, gamma_spread: float = 17.0, lower_gamma_bound: float = 0.6, percentile: float = 99.88,
                   float_percentile: float = 99.95, fractions: bool = True) -> Curve:
    """8 bits by a percentile stretch, then a gamma that lightens dark images.

    Args:
      image: [H, W, C] whole image of any dtype; 8-bit images are not stretched.
      gamma_spread: images whose 8-bit mean is below pi times this are lightened.
      lower_gamma_bound: gamma at mean 0.
      percentile: integers are stretched from 100 minus this to this.
      float_percentile: the same for floats that exceed 255; smaller ones are rounded.
      fractions: floats up to 1 are fractions of full scale.

    Returns:
      region -> float32 in [0, 1], multiples of 1/255.

    Source: neurips22-cell-seg@ab6a154, docker/neurips/data/dataset.py normalize_img ("cstm").
    Departs: `fractions`; the authors' code (False) divides such floats by 255, which leaves a black image.
    """
    return _over_255(_cstm(image, gamma_spread, lower_gamma_bound, percentile, float_percentile, fractions))


def challenge_prov(image: np.ndarray, *, lower: float = 1.0, upper: float = 99.0) -> Curve:
    """8 bits from the percentiles of the values that are not 0, all channels together, rounded down.

    Args:
      image: [H, W, C] whole image of any dtype.
      lower: percentile that becomes 0.
      upper: percentile that becomes 255.

    Returns:
      region -> float32 in [0, 1], multiples of 1/255.

    Source: neurips22-cell-seg@ab6a154, docker/neurips/data/dataset.py normalize_channel ("prov").
    Departs: a constant image above 255 is clipped, not wrapped; an image of zeros stays so (the authors' code fails).
    """
    return _over_255(_prov(image, lower, upper))


def challenge_mix(image: np.ndarray, *, gamma_spread: float = 17.0, lower_gamma_bound: float = 0.6, percentile: float = 99.88,
                  float_percentile: float = 99.95, fractions: bool = True, lower: float = 1.0, upper: float = 99.0,
                  alpha: float | None = None) -> Curve:
    """The challenge's choice for prediction: `alpha * challenge_prov + (1 - alpha) * challenge_cstm`, rounded down to 8 bits.

    Args:
      image: [H, W, C] whole image of any dtype; one channel is grey, more are colour.
      gamma_spread: as in `challenge_cstm`, like the four that follow.
      lower_gamma_bound: see there.
      percentile: see there.
      float_percentile: see there.
      fractions: see there.
      lower: as in `challenge_prov`.
      upper: as in `challenge_prov`.
      alpha: share of prov. None decides as the authors do: 1 for colour images whose third channel is bright and even (mean
        above 200, deviation below 20), 0.5 for grey images that stay dark and flat (mean below 45, deviation below 33), else 0.

    Returns:
      region -> float32 in [0, 1], multiples of 1/255.

    Source: neurips22-cell-seg@ab6a154, docker/neurips/data/dataset.py multi_norm ("cstm-mix"; "rand-mix" draws alpha).
    """
    cstm = _cstm(image, gamma_spread, lower_gamma_bound, percentile, float_percentile, fractions)
    prov = _prov(image, lower, upper)
    share = _prov_share(image, cstm) if alpha is None else alpha
    return _over_255(lambda values: np.trunc(share * prov(values) + (1 - share) * cstm(values)))


def maunet(image: np.ndarray, *, lower: float = 1.0, upper: float = 99.0, scale: str = "maximum") -> Curve:
    """`maunet_eight_bits` as a part of the image's largest value.

    Args:
      image: [H, W, C] whole image of any dtype.
      lower: percentile that becomes 0.
      upper: percentile that becomes 255.
      scale: how 8 bits become [0, 1]: "maximum" divides by the largest value of all channels (the released prediction), "range"
        takes their least to 0 and their largest to 1 (the released training). They differ only where no pixel is 0.

    Returns:
      region [..., C] -> float32 in [0, 1].

    Raises:
      ValueError: another `scale`.

    Source: Woof6/neurips22-cellseg_saltfish@c2b85d5, predict.py and train.py.
    Departs: an image of zeros stays so; the released code divides by 0.
    """
    if scale not in ("maximum", "range"):
        raise ValueError(f"maunet: scale={scale!r} is unknown; known are maximum, range.")
    curves = _eight_bit_curves(image, lower, upper)
    levels = [curve(_distinct(image[..., c])) for c, curve in enumerate(curves)]
    low = min(float(values.min()) for values in levels) if scale == "range" else 0.0
    span = max(float(values.max()) for values in levels) - low
    return lambda region: np.clip((_each_channel(curves, region) - np.float32(low)) / np.float32(span or 1), 0, 1)


def maunet_eight_bits(image: np.ndarray, *, lower: float = 1.0, upper: float = 99.0) -> Curve:
    """8 bits from the percentiles of each channel's values that are not 0, rounded down.

    Args:
      image: [H, W, C] whole image of any dtype.
      lower: percentile that becomes 0.
      upper: percentile that becomes 255.

    Returns:
      region [..., C] -> float32, whole numbers from 0 to 255. A channel whose percentiles differ by at most 0.001 is taken
      modulo 256.

    Source: Woof6/neurips22-cellseg_saltfish@c2b85d5, data_preprocess.py and predict.py normalize_channel.
    """
    curves = _eight_bit_curves(image, lower, upper)
    return lambda region: _each_channel(curves, region)


def maunet_paper(image: np.ndarray, *, lower: float = 1.0, upper: float = 99.0, low: float = 0.01, high: float = 0.99) -> Curve:
    """Each channel's percentiles of the values that are not 0 become 0.01 and 0.99, without a detour over 8 bits.

    Args:
      image: [H, W, C] whole image of any dtype.
      lower: percentile that becomes `low`.
      upper: percentile that becomes `high`.
      low: least value of the result.
      high: largest value of the result.

    Returns:
      region [..., C] -> float32 in [low, high]; a constant channel is `low`.

    Source: MAUNet paper, section 2.1, which says no more than the range.
    """
    ranges = [_range(channel, lower, upper, skip_zero=True) for channel in np.moveaxis(image, -1, 0)]
    curves = [_pixelwise(_stretch(*ends)) for ends in ranges]
    return lambda region: np.float32(low) + np.float32(high - low) * _each_channel(curves, region)


NORMALIZERS: Mapping[str, Callable[..., Curve]] = {
    "percentile": percentile,
    "type_range": type_range,
    "standardise": standardise,
    "cstm": challenge_cstm,
    "prov": challenge_prov,
    "cstm-mix": challenge_mix,
    "maunet": maunet,
    "maunet_paper": maunet_paper,
}
"""name -> (whole image, options) -> (region -> float32; in [0, 1] but for "standardise")."""


def fit_normalizer(image: np.ndarray, settings: Mapping[str, Any], *, channels: int, planes: Sequence[int] | None = None
                   ) -> Curve:
    """All that happens to intensities between the file and the network, fitted to a whole image.

    Args:
      image: [H, W, C] whole image as read.
      settings: "name" (a key of `NORMALIZERS`) and that function's options.
      channels: of the network.
      planes: which planes of the image to take, or None for all (see `select_planes`).

    Returns:
      region [h, w, C] of the image as read -> [h, w, channels] float32, in the named function's range.

    Raises:
      ValueError: unknown name, planes that do not fit, or values that are not finite.
    """
    options = dict(settings)
    name = options.pop("name", None)
    if name not in NORMALIZERS:
        raise ValueError(f"normaliser {name!r} is unknown; `name` must be one of {', '.join(NORMALIZERS)}.")
    chosen = select_planes(image, channels, planes=planes)
    # One such value would spoil the statistics, or pass unseen through the network: a window of it has no cells then.
    if chosen.dtype.kind == "f" and (bad := chosen.size - np.count_nonzero(np.isfinite(chosen))):
        raise ValueError(f"{bad} of the image's {chosen.size} values are not finite (NaN or infinity), and every value must be. "
                         "Replace them in the file, for example with numpy.nan_to_num.")
    curve = NORMALIZERS[name](chosen, **options)
    # Grey becomes colour after its statistics were taken: the challenge's rules for grey and for colour images differ.
    return lambda region: to_channels(curve(select_planes(region, channels, planes=planes)), channels)


def select_planes(image: np.ndarray, channels: int, *, planes: Sequence[int] | None = None) -> np.ndarray:
    """The planes of an image that count, before intensities are measured: an alpha channel must not enter the statistics.

    Args:
      image: [H, W, C].
      channels: channels of the network, for which 1 or 3 planes can be adapted later by `to_channels`.
      planes: indices of the planes to take; None takes all, of red green blue alpha the first three.

    Returns:
      [H, W, c] with c = channels, 1 or 3; yes and no become 255 and 0 (uint8), other types stay.

    Raises:
      ValueError: a plane that the image lacks, or planes that cannot be told apart without a choice.
    """
    available = image.shape[2]
    if image.dtype == bool:
        image = image.astype(np.uint8) * np.uint8(255)
    if planes is not None:
        if any(not 0 <= p < available for p in planes):
            raise ValueError(f"config.data.planes={tuple(planes)}, but the image has planes 0 to {available - 1}. Set it to "
                             "those wanted, on the command line for example --config.data.planes=(0,).")
        image = image[..., list(planes)]
    elif available == 4 and channels in (1, 3):
        image = image[..., :3]
    if image.shape[2] not in (channels, 1, 3) or (image.shape[2] != channels and channels not in (1, 3)):
        raise ValueError(f"an image with {image.shape[2]} planes does not fit a network of {channels} channels. Choose among "
                         f"planes 0 to {available - 1} with config.data.planes, on the command line for example "
                         "--config.data.planes=(0,).")
    return image


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Adapts channels: grey is repeated, colour becomes its luminance.

    Args:
      image: [H, W, C].
      channels: wanted.

    Returns:
      [H, W, channels] of the same dtype.

    Raises:
      ValueError: no rule leads from C to `channels`.
    """
    available = image.shape[2]
    if available == channels:
        return image
    if available == 1 and channels == 3:
        return np.repeat(image, channels, axis=2)
    if available == 3 and channels == 1:
        grey = image @ np.asarray(LUMINANCE, np.float32)
        return (grey if image.dtype.kind == "f" else np.rint(grey)).astype(image.dtype)[..., None]
    raise ValueError(f"no rule makes {channels} channels of {available}. Choose planes with config.data.planes, on the "
                     "command line for example --config.data.planes=(0,).")


# ---------------------------------------------------------------- the challenge's 8-bit conversions, values 0 to 255
def _cstm(image: np.ndarray, gamma_spread: float, lower_gamma_bound: float, percentile: float, float_percentile: float,
          fractions: bool) -> Curve:
    low, high = 0.0, 255.0
    if image.dtype.kind == "f":
        largest = float(image.max())
        if largest <= 1 and fractions:
            high = 1.0
        elif largest >= 256:
            low, high = _percentiles(image, 100 - float_percentile, float_percentile)
    elif image.dtype.itemsize > 1:
        low, high = _percentiles(image, 100 - percentile, percentile)
    stretch = _stretch(low, high)

    def eight_bits(values: np.ndarray) -> np.ndarray:
        return np.rint(stretch(values) * 255)

    mean, _ = _mean_and_deviation(image, eight_bits)
    if mean >= math.pi * gamma_spread:
        return eight_bits
    gamma = lower_gamma_bound + (1 - lower_gamma_bound) * (1 - math.cos(mean / gamma_spread)) / 2
    return lambda values: np.rint((eight_bits(values) / 255) ** gamma * 255)


def _prov(image: np.ndarray, lower: float, upper: float) -> Curve:
    low, high = _percentiles(image, lower, upper, skip_zero=True)
    if high - low <= 0.001:
        return lambda values: np.trunc(np.clip(values, 0, 255))
    stretch = _stretch(low, high)
    return lambda values: np.trunc(stretch(values) * 255)


def _eight_bit_curves(image: np.ndarray, lower: float, upper: float) -> list[Curve]:
    """One function for each channel."""
    return [_pixelwise(_eight_bits(*_percentiles(channel, lower, upper, skip_zero=True)))
            for channel in np.moveaxis(image, -1, 0)]


def _eight_bits(low: float, high: float) -> Curve:
    if high - low <= 0.001:
        return lambda values: np.mod(np.trunc(values), 256)
    stretch = _stretch(low, high)
    return lambda values: np.trunc(stretch(values) * 255)


def _prov_share(image: np.ndarray, cstm: Curve) -> float:
    if image.shape[-1] >= 3:
        blue = image[..., 2]
        return 1.0 if blue.mean() > 200 and blue.std() < 20 else 0.0
    mean, deviation = _mean_and_deviation(image, cstm)
    return 0.5 if mean < 45 and deviation < 33 else 0.0


# ---------------------------------------------------------------- pixelwise functions and statistics of whole images
def _stretch(low: float, high: float) -> Curve:
    if high <= low:
        return np.zeros_like
    return lambda values: (np.clip(values, low, high) - low) / (high - low)


def _over_255(curve: Curve) -> Curve:
    return _pixelwise(lambda values: curve(values) / 255)


def _each_channel(curves: Sequence[Curve], region: np.ndarray) -> np.ndarray:
    """Channel c of the region by `curves[c]`."""
    return np.stack([curve(region[..., c]) for c, curve in enumerate(curves)], axis=-1)


def _distinct(channel: np.ndarray) -> np.ndarray:
    """The values that occur in a channel, or all where they cannot be listed."""
    return np.flatnonzero(_histogram(channel)).astype(channel.dtype) if _levels(channel) else channel


def _pixelwise(curve: Curve) -> Curve:
    """`curve` of any region as float32; a table serves where there are more pixels than grey levels."""
    def apply(region: np.ndarray) -> np.ndarray:
        levels = _levels(region)
        if 0 < levels < region.size:
            return curve(np.arange(levels, dtype=np.float64)).astype(np.float32)[region]
        return curve(region.astype(np.float32 if region.dtype.kind == "f" else np.float64)).astype(np.float32)
    return apply


def _levels(image: np.ndarray) -> int:
    """Number of grey levels where they can be listed, else 0."""
    return {"|u1": 256, "<u2": 65536}.get(image.dtype.str, 0)


def _histogram(image: np.ndarray) -> np.ndarray:
    counts = np.zeros(_levels(image), np.int64)
    rows = max(1, (1 << 22) // max(1, image[:1].size))     # bincount works on 64-bit copies: a part of the image at a time
    for start in range(0, len(image), rows):
        counts += np.bincount(image[start:start + rows].ravel(), minlength=len(counts))
    return counts


def _range(image: np.ndarray, lower: float, upper: float, *, skip_zero: bool = False) -> tuple[float, float]:
    """The two percentiles; minimum and maximum where they coincide: a few bright cells on an even background must not vanish."""
    low, high = _percentiles(image, lower, upper, skip_zero=skip_zero)
    return (low, high) if high > low else (float(image.min()), float(image.max()))


def _percentiles(image: np.ndarray, lower: float, upper: float, *, skip_zero: bool = False) -> tuple[float, float]:
    """Two percentiles with linear interpolation (numpy's default), from the histogram where there is one; (0, 0) of nothing."""
    if not _levels(image):
        values = image[image != 0] if skip_zero else image
        low, high = np.percentile(values, [lower, upper]).tolist() if values.size else (0.0, 0.0)
        return low, high
    counts = _histogram(image)
    if skip_zero:
        counts[0] = 0
    below = np.cumsum(counts)
    if below[-1] == 0:
        return 0.0, 0.0
    ranks = np.asarray([lower, upper]) / 100 * (below[-1] - 1)
    first, second = (np.searchsorted(below, np.minimum(np.floor(ranks) + i, below[-1] - 1), side="right") for i in (0, 1))
    share, step = ranks % 1, second - first
    # From the nearer end, as numpy does: the last digit decides where values are cut off to whole numbers.
    low, high = np.where(share < 0.5, first + step * share, second - step * (1 - share)).tolist()
    return low, high


def _mean_and_deviation(image: np.ndarray, curve: Curve) -> tuple[float, float]:
    """Of curve(image)."""
    if not _levels(image):
        values = curve(image)
        return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    values, counts = curve(np.arange(_levels(image), dtype=np.float64)), _histogram(image)
    mean = float(values @ counts / counts.sum())
    return mean, math.sqrt(float((values - mean) ** 2 @ counts / counts.sum()))
