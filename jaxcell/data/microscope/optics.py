"""What light, lenses, dirt and cameras do to a picture, whatever is in it. Maps are [H, W] float32 unless said otherwise."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import fft

__all__ = ["blur", "clouds", "digitise", "fibres", "grain", "intensity", "lens", "noisy", "shifted", "specks", "strokes",
           "uneven", "wave", "white"]

MARGIN = 16                 # px by which waves are computed beyond the border, where the picture is mirrored
CAMERA_MAX = 4095           # largest value of a 12-bit camera, what 16-bit files mostly hold

Shape = tuple[int, int]


# ---------------------------------------------------------------- random fields and dirt
def clouds(rng: np.random.Generator, shape: Shape, scale: float) -> np.ndarray:
    """Smooth random field, about -1 to 1, with structures of `scale` pixels."""
    coarse = [int(np.ceil(side / scale)) + 2 for side in shape]
    return cv2.resize(rng.uniform(-1, 1, coarse).astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)


def white(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """White noise of deviation 1."""
    return rng.standard_normal(shape, dtype=np.float32)


def grain(noise: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth random field of mean 0 and deviation 1: white noise blurred by `sigma` pixels."""
    return blur(noise, sigma) * np.float32(2 * np.sqrt(np.pi) * sigma)


def fibres(rng: np.random.Generator, shape: Shape, *, width: float, length: float, waviness: float) -> np.ndarray:
    """Strands about -1 to 1, `width` by `length` pixels, that wind by `waviness` pixels."""
    turn = rng.uniform(0, np.pi)
    y, x = np.ogrid[:shape[0], :shape[1]]
    along = (x * np.cos(turn) + y * np.sin(turn)) / length
    across = (y * np.cos(turn) - x * np.sin(turn) + waviness * clouds(rng, shape, 3 * length)) / width
    noise = rng.uniform(-1, 1, (128, 128)).astype(np.float32)
    return cv2.remap(noise, along.astype(np.float32), across.astype(np.float32), cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)


def specks(rng: np.random.Generator, shape: Shape, *, count: int, radius: tuple[float, float]) -> np.ndarray:
    """Round debris too small to be cells; each has a height of 0.4 to 1.2."""
    dirt = np.zeros(shape, np.float32)
    places = rng.uniform(0, 1, (count, 2)) * np.asarray(shape)[::-1] * 16
    for (x, y), r, height in zip(np.rint(places).astype(int).tolist(), rng.uniform(*radius, count).tolist(),
                                 rng.uniform(0.4, 1.2, count).tolist(), strict=True):
        cv2.circle(dirt, (x, y), round(16 * r), height, -1, shift=4)
    return dirt


def strokes(rng: np.random.Generator, shape: Shape, *, count: int, length: float) -> np.ndarray:
    """Crooked crumbs and threads about `length` pixels long; each has a height of 0.3 to 1."""
    dirt = np.zeros(shape, np.float32)
    starts = rng.uniform(0, 1, (count, 1, 2)) * np.asarray(shape)[::-1]
    turns = rng.uniform(0, 2 * np.pi, (count, 1)) + np.cumsum(rng.normal(0, 0.9, (count, 5)), axis=1)
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=2) * length / 5 * rng.uniform(0.3, 1.7, (count, 1, 1))
    paths = np.rint((starts + np.cumsum(steps, axis=1)) * 16).astype(np.int32)
    heights, widths = rng.uniform(0.3, 1.0, count).tolist(), rng.integers(1, 3, count).tolist()
    for path, height, width in zip(paths, heights, widths, strict=True):
        cv2.polylines(dirt, [path], False, height, width, shift=4)
    return dirt


# ---------------------------------------------------------------- lamps, lenses and cameras
def uneven(rng: np.random.Generator, shape: Shape, strength: float) -> np.ndarray:
    """A lamp's field about 1: a slope, and stains as wide as a third of the image."""
    y, x = np.ogrid[-1:1:shape[0] * 1j, -1:1:shape[1] * 1j]
    turn = rng.uniform(0, 2 * np.pi)
    slope = 0.5 * (x * np.cos(turn) + y * np.sin(turn))
    return (1 + strength * (slope + 0.5 * clouds(rng, shape, max(shape) / 3))).astype(np.float32)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of [H, W] or [H, W, C] by `sigma` pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma)


def shifted(plane: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Moves a picture by `shift` (y, x), fractions of a pixel, as a lens moves one colour against another."""
    move = np.asarray([[1, 0, shift[1]], [0, 1, shift[0]]], np.float32)
    return cv2.warpAffine(plane, move, plane.shape[::-1], borderMode=cv2.BORDER_REPLICATE)


def noisy(rng: np.random.Generator, image: np.ndarray, *, shot: float, read: float) -> np.ndarray:
    """Photon noise grows with the root of the light; `shot` is its deviation at 1, `read` that of the camera."""
    deviation = np.sqrt(shot**2 * np.maximum(image, 0) + read**2)
    return image + deviation * rng.standard_normal(image.shape, dtype=np.float32)


def digitise(image: np.ndarray, bits: int) -> np.ndarray:
    """[0, 1] and beyond -> uint8, or uint16 with the 4096 values of a 12-bit camera."""
    if bits == 8:
        return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.rint(np.clip(image, 0, 1) * CAMERA_MAX).astype(np.uint16)


# ---------------------------------------------------------------- waves: light that passes through, of coherence and defocus
def wave(phase: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The spectrum of light behind a thin specimen, mirrored at the border.

    Args:
      phase: [H, W] path length, radians.
      loss: [H, W] share of the amplitude that is absorbed, as an exponent.

    Returns:
      [P, Q] complex64, P >= H + 32 and Q >= W + 32 of sizes that transform fast.
    """
    high, wide = (fft.next_fast_len(side + 2 * MARGIN) for side in phase.shape)
    pad = (MARGIN, high - phase.shape[0] - MARGIN, MARGIN, wide - phase.shape[1] - MARGIN)
    amplitude, angle = (cv2.copyMakeBorder(plane, *pad, cv2.BORDER_REFLECT) for plane in (np.exp(-loss), phase))
    light = np.empty((high, wide), np.complex64)
    light.real, light.imag = amplitude * np.cos(angle), amplitude * np.sin(angle)
    return fft.fft2(light, overwrite_x=True)


def lens(shape: Shape, *, sigma: float, defocus: float = 0.0, incoherence: float = 0.0) -> np.ndarray:
    """Transfer function of a lens over the frequencies of a spectrum.

    Args:
      shape: of the spectrum.
      sigma: its blur, pixels.
      defocus: wavelength times distance from focus, square pixels; the sign says on which side.
      incoherence: angle of the condenser's light; rings fade by it the more, the farther from focus.

    Returns:
      [P, Q] complex64.

    Source: Fresnel propagation, exp(-i pi defocus f^2), with the Gaussian envelope of an extended source (Goodman,
      Introduction to Fourier Optics).
    """
    rate = 2 * (np.pi * sigma) ** 2 + (np.pi * defocus * incoherence) ** 2 + 1j * np.pi * defocus
    rows, columns = (np.exp(-rate * fft.fftfreq(side) ** 2).astype(np.complex64) for side in shape)
    return rows[:, None] * columns


def intensity(spectrum: np.ndarray, transfer: np.ndarray, shape: Shape) -> np.ndarray:
    """[H, W] light that a camera sees of a spectrum through a lens."""
    light = fft.ifft2(spectrum * transfer, overwrite_x=True)[MARGIN:MARGIN + shape[0], MARGIN:MARGIN + shape[1]]
    return light.real**2 + light.imag**2
