"""How a scene of cells looks: one renderer per modality.

A renderer takes (rng, shape, cells): a generator for all that is random, (H, W), and cells as `shapes.place_cells` gives them.
It returns an image [H, W, C] float32 of about [0, 1], noise included. Ranges of contrast, blur, noise and dirt were chosen by
eye and by statistics beside real images: see benchmarks/synthetic_gallery.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from jaxcell.data.microscope import optics
from jaxcell.data.microscope.optics import Shape, blur, grain, lens, noisy, uneven, white
from jaxcell.data.microscope.shapes import Cell

__all__ = ["RENDERERS", "STAINS", "stained"]

# ---------------------------------------------------------------- fluorescence
def fluorescence(rng: np.random.Generator, shape: Shape, cells: list[Cell]) -> np.ndarray:
    """Dye in the nucleus and, fainter, in the body of each cell, some out of focus, over dark ground; [H, W, 1]."""
    sharp, far = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    exposure, body = rng.uniform(0.2, 0.65), rng.uniform(0.25, 0.6)
    radius, spread = _mean_radius(cells), rng.uniform(0.05, 0.25)
    texture = _chromatin(rng, white(rng, shape), radius)
    depth = rng.uniform(0, 0.15) * (rng.random() < 0.3)
    for cell in cells:
        dose = exposure * rng.lognormal(0, spread) * (radius / cell.radius) ** 0.7 * (1.5 if rng.random() < 0.03 else 1.0)
        within = np.minimum(0.3 + 1.2 * cell.nucleus, 1) * (cell.nucleus > 0)
        dye = body * (0.3 + 0.7 * cell.delay / cell.delay.max()) * cell.mask + (1 - body) * within * texture[cell.window]
        (far if rng.random() < depth else sharp)[cell.window] += dose * dye
    sharp += exposure * rng.uniform(0.1, 0.7) * optics.specks(rng, shape, count=rng.poisson(sharp.size / 9000), radius=(0.3, 1.6))
    light = blur(sharp, rng.uniform(0.6, 1.3))
    if depth:
        light += 0.8 * blur(far, rng.uniform(2.0, 3.5))
    light += rng.uniform(0.02, 0.15) * blur(light, 10.0)
    light = light * uneven(rng, shape, rng.uniform(0, 0.4)) + rng.uniform(0.01, 0.08) * uneven(rng, shape, 0.3)
    return noisy(rng, light, shot=rng.uniform(0.008, 0.035), read=rng.uniform(0.002, 0.007))[..., None]


def _mean_radius(cells: list[Cell]) -> float:
    return float(np.mean([cell.radius for cell in cells])) if cells else 10.0


def _chromatin(rng: np.random.Generator, noise: np.ndarray, radius: float) -> np.ndarray:
    """Grain, and in some cell types bright clumps, about 1; in proportion to cells of `radius`."""
    fine, coarse = grain(noise, max(0.7, radius / 12)), grain(noise, max(1.2, radius / 6))
    clumps = rng.choice((0.0, 0.0, 0.0, 0.5)) * np.maximum(coarse - 0.8, 0)
    return 1 + rng.uniform(0.04, 0.16) * fine + rng.uniform(0.03, 0.1) * coarse + clumps


# ---------------------------------------------------------------- stained
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class _Stain:
    """Red, green, blue of the lamp (with what dyes everything alike), and optical densities of what lies in its light."""

    lamp: Colour
    nuclear: Colour             # the dye of nuclei where it is dense
    counter: Colour             # of the bodies of cells, and of nuclei where they are pale
    ground: Colour              # of what lies between cells
    strength: tuple[float, float]       # range of the amount of dye in an image's nuclei
    fringe: float                       # deviation of the shift of red and blue by the lens, pixels


STAINS: Mapping[str, _Stain] = {
    "violet": _Stain((0.72, 0.645, 0.825), (0.46, 1.00, 0.07), (0.30, 0.50, 0.05), (0.05, 0.08, 0.015), (0.7, 1.6), 0.12),
    "white": _Stain((0.87, 0.88, 0.905), (0.52, 0.95, 0.32), (0.17, 0.75, 0.10), (0.06, 0.05, 0.06), (0.8, 1.6), 0.2),
    "pink": _Stain((0.88, 0.82, 0.87), (0.65, 0.90, 0.40), (0.10, 0.60, 0.17), (0.08, 0.45, 0.14), (0.6, 1.2), 0.12),
    "grey": _Stain((0.905, 0.905, 0.905), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (0.01, 0.01, 0.01), (0.9, 1.2), 0.0),
}
"""stain -> its colours: haematoxylin on violet or white ground, with eosin, and Papanicolaou's in grey."""


def stained(rng: np.random.Generator, shape: Shape, cells: list[Cell], *, stain: str) -> np.ndarray:
    """Nuclei that take the dark dye in a tissue that takes the pale one, part of it out of focus; [H, W, 3].

    `stain` is a key of `STAINS`. Source: optical densities of the dyes add up (Beer and Lambert).
    """
    colours, noise = STAINS[stain], white(rng, shape)
    sharp, far, bodies = (np.zeros(shape, np.float32) for _ in range(3))
    texture = np.clip(_chromatin(rng, noise, _mean_radius(cells)), 0.2, 1.8)
    granules = np.maximum(grain(noise, 0.9) - 0.8, 0)
    mottled = 1 + 0.15 * grain(noise, 3.0) + 0.3 * granules
    strength, depth, body = rng.uniform(*colours.strength), rng.uniform(0, 0.35), rng.uniform(0.15, 0.35)
    for cell in cells:
        dense = rng.random()
        solid = (0.5 + 0.6 * cell.nucleus) * np.sqrt(texture[cell.window])
        pale = 0.4 * texture[cell.window] ** 2 + 0.4 * granules[cell.window] + 0.5 * np.exp(-5 * cell.nucleus)
        dye = strength * rng.lognormal(0, 0.25) * (cell.nucleus > 0) * (dense * solid + (1 - dense) * pale)
        (far if rng.random() < depth else sharp)[cell.window] += dye
        bodies[cell.window] += body * rng.uniform(0.5, 1.6) * cell.mask * mottled[cell.window]
    sharp += rng.uniform(0.2, 1.0) * optics.specks(rng, shape, count=rng.poisson(sharp.size / 12000), radius=(0.4, 1.8))
    focus = rng.uniform(0.7, 1.5) if stain != "grey" else 0.7
    dyes = colours.nuclear, colours.counter, colours.ground
    layers = blur(sharp, focus) + blur(far, rng.uniform(1.6, 3.0)), blur(bodies, focus), _ground(rng, shape)
    lamp, fringe = uneven(rng, shape, rng.uniform(0, 0.06)), rng.normal(0, colours.fringe, 2)
    densities = [sum(dye[k] * layer for dye, layer in zip(dyes, layers, strict=True)) for k in range(3)]
    planes = [level * lamp * np.exp(-density) for level, density in zip(colours.lamp, densities, strict=True)]
    image = np.stack([optics.shifted(planes[0], fringe), planes[1], optics.shifted(planes[2], -fringe)], axis=2)
    return noisy(rng, image, shot=rng.uniform(0.004, 0.012), read=0.003)


def _ground(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Strands and patches of tissue between cells, 0 to about 2."""
    strands = optics.fibres(rng, shape, width=rng.uniform(3.0, 8.0), length=rng.uniform(10, 40), waviness=rng.uniform(20, 60))
    patches = optics.clouds(rng, shape, rng.uniform(20, 60))
    return np.maximum(0.7 + 0.3 * strands + 0.2 * grain(white(rng, shape), 1.2), 0) * np.maximum(0.6 + patches, 0.1)


# ---------------------------------------------------------------- unstained: cells that only delay the light
# `microscope` is the seed of lens, focus, lamp and exposure; None: those of the image are drawn with it.
def brightfield(rng: np.random.Generator, shape: Shape, cells: list[Cell], *, microscope: int | None = None) -> np.ndarray:
    """Two focal planes, one on either side of the cells, where bright and dark fringes change places; [H, W, 2]."""
    return _brightfield(rng, _setting(rng, microscope), optics.wave(*_specimen(rng, shape, cells)), shape)


def phase(rng: np.random.Generator, shape: Shape, cells: list[Cell], *, microscope: int | None = None) -> np.ndarray:
    """Positive phase contrast: cells dark, with a bright halo, and thick ones bright inside; [H, W, 1].

    Source: Zernike, How I discovered phase contrast, Science 1955; the ring's halo as a low-pass after Yin et al., Understanding
      the phase contrast optics, Medical Image Analysis 2012, here without their assumption of a small delay.
    """
    return _phase(rng, _setting(rng, microscope), optics.wave(*_specimen(rng, shape, cells)), shape)


def pair(rng: np.random.Generator, shape: Shape, cells: list[Cell], *, microscope: int | None = None) -> np.ndarray:
    """One specimen thrice: phase contrast and the two planes of brightfield; [H, W, 3]."""
    light = optics.wave(*_specimen(rng, shape, cells))
    return np.concatenate([_phase(rng, _setting(rng, microscope), light, shape),
                           _brightfield(rng, _setting(rng, microscope), light, shape)], axis=2)


def dic(rng: np.random.Generator, shape: Shape, cells: list[Cell], *, microscope: int | None = None) -> np.ndarray:
    """Differential interference contrast: slopes of the delay along one direction, as if lit from a side; [H, W, 1].

    Source: two copies of the wave, a shear apart, interfere under a bias: sin((slope * shear + bias) / 2)^2 (Nomarski).
    """
    (delay, loss), setting = _specimen(rng, shape, cells), _setting(rng, microscope)
    turn, shear, bias = setting.uniform(0, 2 * np.pi), setting.uniform(0.5, 1.2), setting.uniform(0.5, 1.3)
    rise, run = np.gradient(blur(delay, setting.uniform(0.7, 1.2)))
    slope = shear * (run * np.cos(turn) + rise * np.sin(turn))
    image = np.exp(-2 * loss) * (1 - np.cos(slope + bias)) / 2
    return _exposed(rng, setting, image, ground=(1 - np.cos(bias)) / 2, usual=2.0, uneven_by=0.05)


def _setting(rng: np.random.Generator, microscope: int | None) -> np.random.Generator:
    return rng if microscope is None else np.random.default_rng(microscope)


def _specimen(rng: np.random.Generator, shape: Shape, cells: list[Cell]) -> tuple[np.ndarray, np.ndarray]:
    """(delay of the light in radians, loss of amplitude), of cells with what they hold, and of debris."""
    delay, dots = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    noise = white(rng, shape)
    mottles, mottling = grain(noise, rng.uniform(1.0, 2.5)), rng.uniform(0.005, 0.03)
    paleness, crowd = rng.uniform(0.1, 0.5), 0.022 * rng.uniform(0, 1) ** 2
    for cell in cells:
        delay[cell.window] += cell.delay * (1 + mottling * mottles[cell.window] - paleness * cell.nucleus)
        _organelles(rng, dots, cell, crowd=crowd)
    delay += rng.uniform(0, 0.035) * mottles * (delay > 0) + rng.uniform(0.2, 0.7) * blur(dots, 0.6)
    dirt = optics.strokes(rng, shape, count=rng.poisson(rng.uniform(0, 1) ** 2 * delay.size / 900), length=rng.uniform(4, 12))
    delay += rng.uniform(0.05, 0.4) * blur(dirt, 0.8) + rng.uniform(0, 0.006) * grain(noise, 1.5)
    return blur(delay, 0.7), 0.01 * np.abs(delay)


def _organelles(rng: np.random.Generator, dots: np.ndarray, cell: Cell, *, crowd: float) -> None:
    """Small dots about the nucleus, `crowd` of them per pixel of the cell, and nucleoli within where they can be resolved."""
    top, left = cell.box[:2]
    y, x = np.unravel_index(np.argmax(cell.nucleus), cell.mask.shape)
    count, size = rng.poisson(crowd * np.pi * cell.radius**2), 0.08 * cell.radius
    within = int(rng.integers(1, 5)) if size > 1 else 0
    places = np.concatenate([rng.normal(0, 0.35, (count, 2)), rng.uniform(-0.2, 0.2, (within, 2))]) * cell.radius + (y, x)
    sizes = np.concatenate([rng.uniform(0.3, 1.2, count), rng.uniform(0.4, 1.0, within) * size])
    inside: np.ndarray = np.all((places >= 0) & (places < cell.mask.shape), axis=1)
    inside[inside] = cell.mask[tuple(places[inside].astype(int).T)]
    vesicles = (rng.random(len(sizes)) < 0.04) & (sizes < 1.2) & (size > 1)
    heights = np.minimum(sizes, 1) * np.where(vesicles, 6, 1)
    for (row, column), r, height in zip(places[inside].tolist(), sizes[inside].tolist(), heights[inside].tolist(), strict=True):
        cv2.circle(dots, (round(16 * (column + left)), round(16 * (row + top))), round(16 * r), height, -1, shift=4)


def _phase(rng: np.random.Generator, setting: np.random.Generator, light: np.ndarray, shape: Shape) -> np.ndarray:
    """The plate before the ring turns and dims the light that the specimen left almost straight."""
    objective = lens(light.shape, sigma=setting.uniform(0.5, 0.9), defocus=setting.uniform(-1.5, 1.5))
    near, wide, share = setting.uniform(2.2, 4.0), setting.uniform(8.0, 16.0), setting.uniform(0.75, 0.95)
    straight = share * lens(light.shape, sigma=near) + (1 - share) * lens(light.shape, sigma=wide)
    plate = -1j * setting.uniform(0.22, 0.42)
    image = optics.intensity(light, objective * (1 + (plate - 1) * straight), shape) / abs(plate) ** 2
    return _exposed(rng, setting, image, ground=1.0, usual=5.0, uneven_by=0.2)


def _brightfield(rng: np.random.Generator, setting: np.random.Generator, light: np.ndarray, shape: Shape) -> np.ndarray:
    sigma, distance, incoherence = setting.uniform(0.6, 0.9), setting.uniform(8.0, 25.0), setting.uniform(0.03, 0.1)
    lenses = [lens(light.shape, sigma=sigma, defocus=side * distance * setting.uniform(0.6, 1.3), incoherence=incoherence)
              for side in (-1, 1)]
    image = np.stack([optics.intensity(light, each, shape) for each in lenses], axis=2)
    return _exposed(rng, setting, image, ground=1.0, usual=1.3, uneven_by=0.04)


def _exposed(rng: np.random.Generator, setting: np.random.Generator, image: np.ndarray, *, ground: float, usual: float,
             uneven_by: float) -> np.ndarray:
    """[H, W, C] of [H, W] or [H, W, C]: light of the ground at a middle grey unless bright cells would saturate, and noise.

    Where the microscope is not the image's own, its exposure cannot be either: it is for cells `usual` times as bright as ground.
    """
    image = image[..., None] if image.ndim == 2 else image
    brightest = float(np.quantile(image[::4, ::4], 0.995)) / ground if setting is rng else usual
    gain = min(setting.uniform(0.35, 0.6), setting.uniform(0.85, 1.1) / brightest) / ground
    lamp = uneven(setting, image.shape[:2], setting.uniform(0, uneven_by))[..., None]
    return noisy(rng, gain * lamp * image, shot=setting.uniform(0.003, 0.015), read=setting.uniform(0.001, 0.004))


RENDERERS: Mapping[str, Callable[..., np.ndarray]] = {
    "fluorescence": fluorescence,
    "brightfield": brightfield,
    "phase": phase,
    "dic": dic,
    "pair": pair,
}
"""kind -> renderer (rng, shape, cells); "stained" takes a stain as well and stands alone."""

WITH_MICROSCOPE = ("brightfield", "phase", "dic", "pair")
"""Kinds whose renderer takes a `microscope`."""
