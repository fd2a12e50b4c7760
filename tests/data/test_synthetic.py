"""The synthetic microscope: scenes are what was asked for, pictures show them, and every run draws the same ones."""

from __future__ import annotations

import hashlib
import itertools
import pickle

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.draw import polygon2mask

from jaxcell.data.microscope.optics import intensity, lens, wave
from jaxcell.data.microscope.shapes import SHAPES, Cell, fill, place_cells
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.types import Sample

CHANNELS = {"fluorescence": 1, "stained": 3, "brightfield": 2, "phase": 1, "dic": 1, "pair": 3}
MIXED = ("fluorescence", "brightfield stained tissue", "brightfield", "phase contrast", "DIC")
CROWDED = {"radius": (10, 14), "coverage": (0.4, 0.5), "clustering": 0.7}


def scene(form: str, index: int = 0, *, overlap: float = 0.6, shape: tuple[int, int] = (128, 160)) -> list[Cell]:
    return place_cells(np.random.default_rng(index), shape, form=form, radius=12, coverage=0.45, clustering=0.7, overlap=overlap)


def digest(sample: Sample) -> str:
    return hashlib.sha256(sample.image.tobytes() + sample.labels.tobytes() + sample.nuclei.tobytes()).hexdigest()


def near_and_far(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Pixels within 3 of an outline of a cell, and those more than 8 from any cell."""
    covered = (sample.labels > 0).any(axis=-1).astype(np.uint8)
    grown = cv2.dilate(covered, np.ones((7, 7), np.uint8))
    return (grown > cv2.erode(covered, np.ones((7, 7), np.uint8))), cv2.dilate(covered, np.ones((17, 17), np.uint8)) == 0


# ---------------------------------------------------------------- scenes
@pytest.mark.parametrize("form", SHAPES)
def test_a_cell_that_was_not_pressed_is_labelled_as_its_whole_outline(form):
    seen = np.zeros((128, 160), int)
    whole = 0
    for cell in scene(form, overlap=1.0):
        placed = np.zeros(seen.shape, bool)
        placed[cell.window] = cell.mask
        # (with room about the image: OpenCV rounds lines otherwise where it must clip them)
        canvas = fill(cell.outline, cell.ends, (328, 360), origin=(-100, -100))
        pieces, _ = ndimage.label(canvas[100:-100, 100:-100])
        expected = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
        assert not cell.pressed
        np.testing.assert_array_equal(placed, expected)
        seen += placed
        whole += 1
    assert whole > 5 and (seen > 1).any()


def test_outlines_are_filled_as_polygons_are():
    for cell in scene("round", overlap=1.0):
        expected = polygon2mask((128, 160), cell.outline)
        found = fill(cell.outline, cell.ends, (128, 160)) > 0
        assert not (expected & ~found).any()                       # OpenCV adds the pixels that the line itself runs through
        assert not (found & ~ndimage.binary_dilation(expected)).any()


@pytest.mark.parametrize("form", SHAPES)
def test_pressed_cells_share_no_pixel_but_touch(form):
    cells = scene(form, index=1, overlap=0.0)
    seen = np.zeros((128, 160), int)
    for cell in cells:
        seen[cell.window] += cell.mask
    assert seen.max() == 1 and any(cell.pressed for cell in cells)
    source = SyntheticSource(4, size=128, seed=1, shape=form, overlap=0.0, **CROWDED)
    assert all(sample.labels.shape[2] == 1 for sample in source)
    plane = np.concatenate([sample.labels[..., 0] for sample in source])
    assert ((plane[:, 1:] != plane[:, :-1]) & (plane[:, 1:] > 0) & (plane[:, :-1] > 0)).any()


@pytest.mark.parametrize("form", SHAPES)
def test_cells_are_in_one_piece_and_hold_their_nuclei(form):
    for index in range(4):
        for cell in scene(form, index):
            assert ndimage.label(cell.mask)[1] == 1 and np.count_nonzero(cell.mask) >= 25
            assert cell.mask[[0, -1]].any(axis=1).all() and cell.mask[:, [0, -1]].any(axis=0).all()      # the box is tight
            assert not (cell.nucleus[~cell.mask] > 0).any() and not cell.delay[~cell.mask].any()
            assert (cell.delay[cell.mask] >= 0).all() and cell.delay.max() > 0 and cell.nucleus.max() <= 1


@pytest.mark.parametrize("form", SHAPES)
def test_no_cell_of_a_scene_is_lost_in_its_labels(form):
    source = SyntheticSource(4, size=128, seed=5, modality="phase", shape=form, overlap=0.6, **CROWDED)
    layered = 0
    for index, sample in enumerate(source):
        rng = np.random.default_rng((5, index))
        cells = place_cells(rng, (128, 128), form=form, radius=rng.uniform(*CROWDED["radius"]),
                            coverage=rng.uniform(*CROWDED["coverage"]), clustering=CROWDED["clustering"], overlap=0.6)
        assert len(cells) > 1
        for number, cell in enumerate(cells, start=1):
            mask = np.zeros((128, 128), bool)
            mask[cell.window] = cell.mask
            np.testing.assert_array_equal((sample.labels == number).any(axis=-1), mask)
        assert sample.labels.max() == len(cells)
        layered += sample.labels.shape[2] > 1
    assert layered


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("kind", ["fluorescence", "phase"])
def test_nuclei_carry_the_id_of_the_cell_they_lie_in(form, kind):
    found = 0
    for sample in SyntheticSource(3, size=128, seed=2, modality=kind, shape=form, overlap=0.6, **CROWDED):
        assert sample.nuclei.dtype == np.int32
        inside = sample.nuclei > 0
        assert (sample.labels == sample.nuclei[..., None]).any(axis=-1)[inside].all()
        ids, nuclei = np.unique(sample.labels)[1:], np.unique(sample.nuclei)[1:]
        found += len(nuclei) / len(ids) / 3
        if (kind, form) == ("fluorescence", "round"):       # a dye of nuclei: they are the cells
            np.testing.assert_array_equal(inside, (sample.labels > 0).any(axis=-1))
        else:
            assert inside.mean() < 0.6 * (sample.labels > 0).any(axis=-1).mean()
    assert found > 0.7


# ---------------------------------------------------------------- pictures
@pytest.mark.parametrize("kind", [*CHANNELS, "mixed"])
def test_samples_depend_on_seed_index_and_options_alone(kind):
    source = SyntheticSource(20, size=(64, 80), seed=3, modality=kind, shape="mixed")
    again = pickle.loads(pickle.dumps(SyntheticSource(33, size=(64, 80), seed=3, modality=kind, shape="mixed")))
    for index in (16, 0, 7, 3):
        assert digest(source[index]) == digest(again[index]) == digest(source[index])
    assert len({digest(sample) for sample in source}) == 20
    assert digest(SyntheticSource(1, size=(64, 80), seed=4, modality=kind, shape="mixed")[0]) != digest(source[0])
    assert len(set(source.names)) == 20 and source[-1].name == source.names[19]


@pytest.mark.parametrize("form", [*SHAPES, "mixed"])
@pytest.mark.parametrize("kind", [*CHANNELS, "mixed"])
def test_every_kind_of_every_shape_is_a_picture_of_its_cells(kind, form):
    ratios = []
    for index, sample in enumerate(SyntheticSource(5, size=(96, 128), seed=1, modality=kind, shape=form, radius=(9, 12))):
        modality = MIXED[index % 5] if kind == "mixed" else sample.modality
        channels = {"brightfield stained tissue": 3}.get(modality, 1) if kind == "mixed" else CHANNELS[kind]
        assert (sample.image.shape, sample.image.dtype, sample.modality) == ((96, 128, channels), np.uint8, modality)
        clipped = ((sample.image == 0) | (sample.image == 255)).mean()
        assert clipped < 0.2 and sample.image.std() > 1
        near, far = near_and_far(sample)
        for plane in np.moveaxis(sample.image.astype(np.float32), -1, 0):
            steepness = np.hypot(*np.gradient(cv2.GaussianBlur(plane, (0, 0), 1)))
            ratios.append(steepness[near].mean() / max(steepness[far].mean(), 0.1) if far.sum() > 50 else np.nan)
    assert np.nanmedian(ratios) > 1.5        # outlines show in each plane, of pairs in all three


def test_sixteen_bits_are_those_of_a_camera():
    for kind in CHANNELS:
        image = SyntheticSource(1, size=64, modality=kind, bits=16)[0].image
        assert image.dtype == np.uint16 and 255 < image.max() <= 4095


def test_nuclei_can_be_seen():
    for sample in SyntheticSource(4, size=128, seed=2, modality="fluorescence", shape="irregular", radius=(20, 25), overlap=0.0):
        body = (sample.labels[..., 0] > 0) & (sample.nuclei == 0)
        assert sample.image[sample.nuclei > 0].mean() > 1.2 * sample.image[body].mean()
    for sample in SyntheticSource(4, size=128, seed=2, modality="stained", shape="irregular", radius=(20, 25), overlap=0.0):
        body = (sample.labels[..., 0] > 0) & (sample.nuclei == 0)
        assert sample.image[sample.nuclei > 0].mean() < 0.9 * sample.image[body].mean()


def test_phase_contrast_has_dark_cells_with_bright_halos():
    for sample in SyntheticSource(6, size=128, seed=4, modality="phase", shape="elongated", radius=(5, 7), coverage=(0.1, 0.2)):
        plane, covered = sample.image[..., 0].astype(float), (sample.labels > 0).any(axis=-1)
        around = ndimage.binary_dilation(covered, iterations=3) & ~ndimage.binary_dilation(covered, iterations=1)
        ground = np.median(plane[near_and_far(sample)[1]])
        assert plane[covered].mean() < ground < plane[around].mean()


def test_fringes_of_brightfield_change_places_between_the_planes():
    source = SyntheticSource(8, size=128, seed=4, modality="brightfield", radius=(6, 8), coverage=(0.1, 0.2))
    assert np.median([np.corrcoef(sample.image[near_and_far(sample)[0]].T)[0, 1] for sample in source]) < -0.3


@pytest.mark.parametrize("kind", ["brightfield", "phase", "dic", "pair"])
def test_one_microscope_takes_all_images_alike(kind):
    """Exposure is that of the microscope, also in images of another seed; what lies under it is not."""
    def taken(microscope):
        return [SyntheticSource(4, size=96, modality=kind, seed=seed, coverage=(0.1, 0.1), microscope=microscope)[index].image
                for seed in (1, 2) for index in range(4)]

    def spread(images):
        return np.ptp([np.median(image, axis=(0, 1)) for image in images], axis=0)

    alike, other = taken(3), taken(4)
    assert spread(alike).max() <= 2 < spread(taken(None)).min()
    assert min(np.abs(a.astype(int) - b).mean() for a, b in itertools.combinations(alike, 2)) > 2       # other cells
    assert min(np.abs(a.astype(int) - b).mean() for a, b in zip(alike, other, strict=True)) > 2         # other optics


def test_pairs_are_the_brightfield_of_the_same_microscope():
    options = {"size": 96, "seed": 3, "microscope": 5}
    pair, brightfield = (SyntheticSource(1, modality=kind, **options)[0] for kind in ("pair", "brightfield"))
    np.testing.assert_array_equal(pair.labels, brightfield.labels)
    noise = pair.image[..., 1:].astype(int) - brightfield.image
    assert np.abs(noise).mean() < 3 and np.abs(noise.mean()) < 0.1


def test_dic_is_bright_on_one_side_of_a_cell_and_dark_on_the_other():
    shares = []
    for sample in SyntheticSource(8, size=128, seed=4, modality="dic", radius=(8, 12), coverage=(0.1, 0.2)):
        near, far = near_and_far(sample)
        contrast = sample.image[..., 0][near] - np.median(sample.image[..., 0][far])
        shares.append(abs(contrast.mean()) / np.abs(contrast).mean())
    assert np.median(shares) < 0.2          # (0.47 in phase contrast, 1 in fluorescence)


def test_defocus_follows_the_equation_of_intensity_transport():
    y, x = np.mgrid[:64, :80] - 30.0
    phase = (0.05 * np.exp(-(y**2 + (x - 10) ** 2) / 72)).astype(np.float32)
    spectrum = wave(phase, np.zeros_like(phase))
    expected = -2.0 / (2 * np.pi) * ndimage.laplace(phase)          # dI = -(wavelength distance / 2 pi) laplacian of the phase
    for side in (-1, 1):
        found = intensity(spectrum, lens(spectrum.shape, sigma=0.0, defocus=side * 2.0), phase.shape) - 1
        np.testing.assert_allclose(found, side * expected, atol=0.08 * np.abs(expected).max())
    in_focus = intensity(spectrum, lens(spectrum.shape, sigma=0.0), phase.shape)
    np.testing.assert_allclose(in_focus, 1, atol=1e-5)              # a phase alone cannot be seen in focus


# ---------------------------------------------------------------- mistakes
@pytest.mark.parametrize(("options", "message"), [
    ({"modality": "dark"}, "modality='dark' is unknown; it is one of fluorescence, stained, brightfield, phase, dic, pair,"),
    ({"shape": "square"}, "shape='square' is unknown; it is one of round, elongated, irregular, neurites, mixed"),
    ({"stain": "green"}, "stain='green' is unknown; it is one of violet, white, pink, grey, mixed"),
    ({"radius": (0, 5)}, r"radius=\(0, 5\) is impossible"), ({"radius": (9, 5)}, r"radius=\(9, 5\)"),
    ({"radius": (9, 300)}, r"radius=\(9, 300\)"), ({"radius": (9, float("nan"))}, "radius="),
    ({"coverage": (0.1, 1.5)}, r"coverage=\(0.1, 1.5\) is impossible.*\[0, 1\]"), ({"coverage": (-0.1, 0.5)}, "coverage="),
    ({"clustering": 2}, "clustering=2"), ({"overlap": -0.5}, "overlap=-0.5"), ({"size": 8}, "size=8"), ({"bits": 12}, "bits=12"),
    ({"seed": -1}, "seed=-1"), ({"count": 0}, "count=0"),
    ({"microscope": 3}, "microscope=3 is impossible.*modality=fluorescence"),
    ({"modality": "dic", "microscope": -1}, "microscope=-1"),
])
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticSource(**{"count": 1, **options})
