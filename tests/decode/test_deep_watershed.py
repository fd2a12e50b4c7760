"""Deep watershed against scikit-image's plain calls, pixel by pixel, on maps that are easy, flat, rough, full and empty."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.measure import label, regionprops
from skimage.morphology import dilation, disk, footprint_rectangle
from skimage.morphology import h_maxima as plain_h_maxima
from skimage.segmentation import find_boundaries, relabel_sequential, watershed

from jaxcell.decode import watershed as module
from jaxcell.decode.components import euler_numbers, fill_holes, instances_from_labels, relabel, remove_small
from jaxcell.decode.deep_watershed import deep_watershed
from jaxcell.decode.watershed import h_maxima, seeded_watershed
from jaxcell.geometry.boundaries import erode_labels, inner_boundary
from jaxcell.targets.distance import inner_distance
from jaxcell.targets.pixels import pixelwise


def bumps(rng, *, shape=(70, 90), sigma=3.0, step=0.0):
    """A smooth random map in [0, 1]; with a `step` it is rounded, so that it has plateaus."""
    image = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    image = ((image - image.min()) / np.ptp(image)).astype(np.float32)
    return image if not step else (np.round(image / np.float32(step)) * np.float32(step)).astype(np.float32)


def maps(rng):
    """(inner, interior) by name."""
    truth = np.zeros((70, 90), np.int32)
    for number, (y, x) in enumerate(rng.integers(8, 62, (12, 2)), start=1):
        truth[y - 6:y + 7, x - 6:x + 7][disk(6) > 0] = number
    whole = np.full((40, 50), 7, np.int32)
    return {
        "smooth": (bumps(rng), bumps(rng)),
        "fine": (bumps(rng, sigma=1), bumps(rng, sigma=1)),
        "noise": (bumps(rng, sigma=0.3), bumps(rng, sigma=0.3)),
        "plateaus": (bumps(rng, step=0.05), bumps(rng, step=0.05)),
        "wide plateaus": (bumps(rng, step=0.25), bumps(rng, step=0.25)),
        "floor of zeros": (np.maximum(bumps(rng) - 0.5, 0), np.maximum(bumps(rng) - 0.5, 0)),
        "negative": (bumps(rng) - 2, bumps(rng)),
        "targets": (inner_distance(truth), pixelwise(truth)[..., 1]),
        "one cell covers all": (inner_distance(whole), np.ones(whole.shape, np.float32)),
        "empty": (np.zeros((30, 20), np.float32), np.zeros((30, 20), np.float32)),
        "constant": (np.full((30, 20), 0.7, np.float32), np.full((30, 20), 0.7, np.float32)),
        "one row": (bumps(rng, shape=(1, 60), sigma=(0, 2)), bumps(rng, shape=(1, 60), sigma=(0, 2))),
        "one pixel": (np.ones((1, 1), np.float32), np.ones((1, 1), np.float32)),
    }


NAMES = tuple(maps(np.random.default_rng(0)))


def plain_holes(labels, size):
    out = labels.copy()
    for prop in regionprops(labels):
        if prop.euler_number < 1:
            patch = out[prop.slice]
            pieces, count = ndimage.label(patch != prop.label)
            for piece in range(1, count + 1):
                if (pieces == piece).sum() < size:
                    patch[pieces == piece] = prop.label
    return out


def plain_deep_watershed(inner, interior, *, radius, maxima_threshold, interior_threshold, maxima_smoothing, interior_smoothing,
                         expansion, erosion, small_objects, holes, maxima, exclude_border):
    """The reference's calls in its order."""
    interior = ndimage.gaussian_filter(interior, interior_smoothing)
    inner = ndimage.gaussian_filter(inner, maxima_smoothing)
    if expansion:
        interior = dilation(interior, footprint_rectangle((2 * expansion + 1, 2 * expansion + 1)))
    if maxima == "h_maxima":
        peaks = plain_h_maxima(inner, maxima_threshold, footprint=disk(radius))
    else:
        peaks = np.zeros(inner.shape, bool)
        found = peak_local_max(inner, min_distance=radius, threshold_abs=maxima_threshold, exclude_border=exclude_border)
        peaks[tuple(found.T)] = True
    labels = watershed(-interior, label(peaks), mask=interior > interior_threshold)
    for _ in range(erosion):
        labels[find_boundaries(labels, mode="inner")] = 0
    for number in np.unique(labels):
        if number and (labels == number).sum() < small_objects:
            labels[labels == number] = 0
    labels = plain_holes(labels, holes) if holes else labels
    return relabel_sequential(labels)[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("radius", (1, 2, 5))
def test_h_maxima_equals_reconstruction(name, radius):
    for seed in range(3):
        image = maps(np.random.default_rng(seed))[name][0]
        for height in (0.02, 0.1, 0.25, 0.6):
            expected = plain_h_maxima(image, height, footprint=disk(radius)) > 0
            np.testing.assert_array_equal(h_maxima(image, height, radius=radius), expected)


def test_h_maxima_falls_back_to_reconstruction(monkeypatch):
    rng = np.random.default_rng(0)
    image = np.maximum(bumps(rng, sigma=1), np.float32(0.35))
    expected = h_maxima(image, 0.2, radius=3)
    monkeypatch.setattr(module, "_LEAST", 1)
    monkeypatch.setattr(module, "_BUDGET", 0)
    called = []
    monkeypatch.setattr(module, "reconstruction", lambda *a, f=module.reconstruction, **k: called.append(1) or f(*a, **k))
    np.testing.assert_array_equal(h_maxima(image, 0.2, radius=3), expected)
    assert called and expected.any()


def test_prominence_is_no_level():
    row = np.asarray([[0, 0.9, 0.7, 0.85, 0, 0.3, 0]], np.float32)
    assert h_maxima(row, 0.1, radius=1).nonzero()[1].tolist() == [1, 3, 5]
    assert h_maxima(row, 0.2, radius=1).nonzero()[1].tolist() == [1, 5]
    assert h_maxima(row, 0.1, radius=2).nonzero()[1].tolist() == [1]      # steps over the valleys
    assert not h_maxima(row, 0.95, radius=1).any()
    with pytest.raises(ValueError, match="height=0"):
        h_maxima(row, 0.0, radius=1)


@pytest.mark.parametrize("name", NAMES)
def test_seeded_watershed_equals_scikit_image(name, monkeypatch):
    monkeypatch.setattr(module, "_TILE", 24)     # several groups of pieces in a small image
    for seed in range(3):
        rng = np.random.default_rng(seed)
        landscape = -maps(rng)[name][1]
        for level, share in ((-0.4, 0.02), (-0.6, 0.1), (-0.45, 0.3), (2.0, 0.01), (-5.0, 0.1)):
            markers = ndimage.label(rng.random(landscape.shape) < share, np.ones((3, 3)))[0]
            mask = landscape < level
            np.testing.assert_array_equal(seeded_watershed(landscape, markers, mask), watershed(landscape, markers, mask=mask))


MESMER = {"radius": 2, "maxima_threshold": 0.075, "interior_threshold": 0.2, "interior_smoothing": 2.0, "small_objects": 15,
          "holes": 15}
SETTINGS = ({}, MESMER, MESMER | {"maxima": "peak_local_max", "exclude_border": True, "radius": 4},
            MESMER | {"erosion": 1, "holes": 40, "maxima_smoothing": 1.0}, MESMER | {"expansion": 2, "interior_smoothing": 0.5},
            MESMER | {"interior_threshold": 0.5, "interior_smoothing": 0.0, "erosion": 2, "small_objects": 3})
DEFAULTS = {"radius": 10, "maxima_threshold": 0.1, "interior_threshold": 0.01, "maxima_smoothing": 0.0, "interior_smoothing": 1.0,
            "expansion": 0, "erosion": 0, "small_objects": 0, "holes": 0, "maxima": "h_maxima", "exclude_border": False}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_deep_watershed_equals_the_plain_calls(name, settings):
    for seed in range(2):
        inner, interior = maps(np.random.default_rng(seed))[name]
        labels = deep_watershed(inner, interior, **settings)
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, plain_deep_watershed(inner, interior, **(DEFAULTS | settings)))


def test_one_cell_covering_all_and_none():
    inner, interior = maps(np.random.default_rng(0))["one cell covers all"]
    assert (deep_watershed(inner, interior, **MESMER) == 1).all()
    assert not deep_watershed(np.zeros((9, 9)), np.zeros((9, 9)), **MESMER).any()


def test_holes_as_euler_numbers_find_them():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = relabel((rng.integers(0, 4, (30, 40)) * (rng.random((30, 40)) < 0.9)).astype(np.int32))
        labels = np.kron(labels, np.ones((2, 2), np.int32)) if seed % 2 else labels
        expected = {prop.label: prop.euler_number for prop in regionprops(labels)}
        assert {k: int(euler_numbers(labels)[k]) for k in expected} == expected
        for size in (1, 3, 9, 200):
            np.testing.assert_array_equal(fill_holes(labels, size), plain_holes(labels, size))
    ring = np.pad(np.full((5, 5), 3, np.int32), 2)
    ring[3:6, 3:6] = 0
    assert euler_numbers(ring).tolist() == [0, 0, 0, 0] and fill_holes(ring, 9)[4, 4] == 0 and fill_holes(ring, 10)[4, 4] == 3
    assert not fill_holes(np.zeros((3, 3), np.int32), 5).any()


def test_small_cells_go_and_numbers_close_up():
    labels = np.asarray([[0, 5, 5, 0], [2, 0, 0, 5], [2, 0, 9, 0]], np.int32)
    np.testing.assert_array_equal(relabel(remove_small(labels, 2)), [[0, 2, 2, 0], [1, 0, 0, 2], [1, 0, 0, 0]])


def test_boundaries_equal_scikit_image():
    for seed in range(5):
        labels = np.random.default_rng(seed).integers(0, 3, (20, 31)).astype(np.int32)
        labels = np.kron(labels, np.ones((4, 4), np.int32))
        np.testing.assert_array_equal(inner_boundary(labels), find_boundaries(labels, mode="inner"))
        eroded = erode_labels(labels, 1)
        np.testing.assert_array_equal(eroded, np.where(find_boundaries(labels, mode="inner"), 0, labels))
        assert erode_labels(labels, 0) is not labels and not erode_labels(labels, 99).any() or (labels == labels[0, 0]).all()


def test_instances_carry_the_mean_of_the_map():
    labels = np.asarray([[0, 4, 4, 0], [2, 0, 4, 0]], np.int32)
    score = np.asarray([[0.1, 0.5, 0.7, 0.1], [0.25, 0.1, 0.9, 0.1]], np.float32)
    found = instances_from_labels(labels, score)
    assert found.boxes.tolist() == [[1, 0, 2, 1], [0, 1, 2, 3]] and found.masks[1].tolist() == [[True, True], [False, True]]
    np.testing.assert_allclose(found.scores, (0.25, 0.7), rtol=1e-6)
    assert len(instances_from_labels(np.zeros((3, 4), np.int32), np.zeros((3, 4)))) == 0


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="maxima='peaks' is unknown; known are h_maxima, peak_local_max"):
        deep_watershed(np.zeros((4, 4)), np.zeros((4, 4)), maxima="peaks")
    with pytest.raises(ValueError, match=r"inner has shape \(4, 4\) and interior \(4, 5\)"):
        deep_watershed(np.zeros((4, 4)), np.zeros((4, 5)))
