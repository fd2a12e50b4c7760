"""Composed images: exact labels where cells overlap, additive intensities, the same sample twice."""

from __future__ import annotations

import dataclasses
import pickle
from functools import partial

import numpy as np
import pytest
from data.cells_to_move import disc
from scipy import ndimage

from jaxcell.data.augment.mixing import Canvas
from jaxcell.data.compose import Cutout, compose
from jaxcell.data.pipeline import make_train_iterator
from jaxcell.data.sources import open_source
from jaxcell.data.sources.composed import ComposedSource
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.data.validate import validate
from jaxcell.types import Sample


def canvas(size: int = 40, *, nuclei: bool = False) -> Canvas:
    return Canvas(np.zeros((size, size, 1), np.float32), [np.zeros((size, size), np.int32)],
                  np.zeros((size, size), np.int32) if nuclei else None)


def square(side: int, level: float) -> Cutout:
    mask = np.ones((side, side), bool)
    return Cutout(np.full((side, side, 1), level, np.float32), mask, mask & disc(side, side / 2, side / 2, side / 4))


def test_intensities_add_and_both_cells_keep_the_pixels():
    picture = canvas(nuclei=True)
    pieces = compose(picture, [(square(10, 0.5), (2, 2)), (square(10, 0.25), (2, 10)), (square(10, 0.25), (7, 6))],
                     max_overlap=0.2, sigma=0)
    assert [(piece.overlap, piece.accepted) for piece in pieces] == [(0, True), (0.2, True), (0.5, False)]
    assert set(np.unique(picture.image)) == {0, 0.25, 0.5, 0.75}
    both = np.logical_and.reduce([layer > 0 for layer in picture.layers])
    assert len(picture.layers) == 2 and both.sum() == 20
    np.testing.assert_array_equal(picture.image[..., 0] == 0.75, both)
    assert [int((layer > 0).sum()) for layer in picture.layers] == [100, 100]
    assert set(np.unique(picture.nuclei)) == {0, 1, 2}


def test_cells_that_are_there_already_count():
    picture = canvas()
    picture.layers[0][:20] = 7
    picture.layers[0][20:, 30:] = -1
    pieces = compose(picture, [(square(10, 1.0), (10, 0)), (square(10, 1.0), (30, 30)), (square(10, 1.0), (25, 5))], sigma=0)
    assert [(piece.overlap, piece.accepted) for piece in pieces] == [(1, False), (1, False), (0, True)]
    assert set(np.unique(picture.layers[0])) == {-1, 0, 7, 8}


SOURCE = SyntheticSource(4, size=96, modality="phase", seed=3, overlap=0.3, radius=(7, 10), coverage=(0.2, 0.3))


@pytest.mark.parametrize("kind", ["empty", "real"])
def test_samples_are_whole_and_repeatable(kind):
    source = ComposedSource(SOURCE, 3, size=(80, 112), cells=(10, 20), canvas=kind)
    sample, again = source[1], ComposedSource(SOURCE, 9, size=(80, 112), cells=(10, 20), canvas=kind)[1]
    validate(sample)
    assert sample.image.shape == (80, 112, 1) and sample.image.dtype == np.uint8 and len(source) == 3
    for mine, other in ((sample.image, again.image), (sample.labels, again.labels), (sample.nuclei, again.nuclei)):
        np.testing.assert_array_equal(mine, other)
    assert not np.array_equal(sample.image, source[2].image)
    assert len(np.unique(sample.labels)) > 6
    inside = sample.nuclei > 0
    assert inside.any() and all((sample.labels[y, x] == sample.nuclei[y, x]).any() for y, x in np.argwhere(inside))


def test_cells_overlap_no_more_than_is_allowed():
    for share, seed in ((0.0, 0), (0.4, 1)):
        found = []
        for index in range(3):
            labels = ComposedSource(SOURCE, 3, size=96, cells=(40, 40), max_overlap=share, seed=seed)[index].labels
            found.append(((labels > 0).sum(-1) > 1).sum())
        assert (max(found) == 0) == (share == 0)


def plain(background: float, *, size: int = 64) -> Sample:
    """A disc that is brighter by 0.2 than the even background."""
    cell = disc(size, size / 2, size / 2, 9)
    image = np.where(cell, background + 0.2, background).astype(np.float32)[..., None]
    return Sample(image, cell[..., None].astype(np.int32), name="plain")


def test_what_a_cell_adds_is_what_it_is_brighter_than_its_background():
    """Discs of one grey level on a dark and on a bright background become the same picture."""
    dark, bright = (ComposedSource(Listed(plain(level)), 1, size=64, cells=(3, 3), sigma=0)[0] for level in (0.1, 0.6))
    np.testing.assert_array_equal(dark.labels, bright.labels)
    np.testing.assert_allclose(dark.image + 0.5, bright.image, atol=1e-6)
    assert dark.image[(dark.labels > 0).sum(-1) == 1].max() == pytest.approx(0.3, abs=1e-6)


def test_images_of_one_name_keep_their_own_backgrounds():
    sample = ComposedSource(Listed(plain(0.1), plain(0.6)), 1, size=96, cells=(12, 12), sigma=0, max_overlap=0, amplitude=0)[0]
    light = sample.image[..., 0] - np.median(sample.image)
    assert light[(sample.labels > 0).any(-1)].min() > -0.01 and light.max() < 0.21


def test_a_halo_comes_with_its_cell_and_fades_towards_others():
    """A bright ring around each of two discs, three pixels apart: without a halo next to nothing of it comes along."""
    left, right = disc(64, 32, 20, 9), disc(64, 32, 42, 9)
    ring = ndimage.binary_dilation(left | right, iterations=3) & ~(left | right)
    image = np.where(ring, 0.9, np.where(left | right, 0.2, 0.5)).astype(np.float32)[..., None]
    sample = Sample(image, (left + 2 * right).astype(np.int32)[..., None], name="pair")
    options = {"size": 64, "cells": (1, 1), "max_overlap": 0, "amplitude": 0, "zoom": (1.0, 1.0)}
    light = {halo: ComposedSource(Listed(sample), 8, sigma=sigma, halo=halo, **options) for halo, sigma in ((0, 1.0), (4, 1.0))}
    brightest = {halo: np.asarray([source[i].image.max() for i in range(8)]) for halo, source in light.items()}
    inside = {halo: np.asarray([source[i].image.min() for i in range(8)]) for halo, source in light.items()}
    assert (brightest[0] < 0.75).all() and (brightest[4] > 0.85).all()
    np.testing.assert_allclose(inside[4], 0.2, atol=0.02)
    for index in range(8):      # the other disc's dark pixels did not come along
        made = light[4][index]
        assert (made.image[..., 0] < 0.4).sum() <= 1.1 * (made.labels > 0).sum()


def test_cells_of_one_donor_stay_together():
    """Images whose exposure differs: a cell of one would be lost in the black of the other."""
    faint, strong = plain(0.1), dataclasses.replace(plain(0.1), image=3 * plain(0.1).image)
    options = {"size": 64, "cells": (6, 6), "sigma": 0, "max_overlap": 0, "amplitude": 0}

    def levels(sample: Sample) -> int:
        """Of how many kinds the cells' contrast is."""
        light = sample.image[..., 0] - np.median(sample.image)
        return len({round(float(np.median(light[sample.labels[..., 0] == i])), 1) for i in np.unique(sample.labels)[1:]})

    apart, mixed = (ComposedSource(Listed(faint, strong), 8, donors=donors, **options) for donors in (1, 2))
    assert {levels(sample) for sample in apart} == {1}
    assert 2 in {levels(sample) for sample in mixed}
    assert len({round(float(np.median(sample.image)), 1) for sample in apart}) == 2      # either is the donor of some


@pytest.mark.parametrize("options", [{"zoom": (0.5, 2.0), "amplitude": 0.0}, {"zoom": (0.6, 1.0), "amplitude": 8.0}], ids=str)
def test_no_cell_is_cut_by_its_own_crop(options):
    """A bar of pixels of one value, seen whole: its ends and soft edges too, at every angle and size."""
    labels = np.zeros((120, 120, 1), np.int32)
    labels[57:63, 20:100] = 1
    source = ComposedSource(Listed(), 0, sigma=2.0, cells=(60, 60), **options)
    cutouts = list(source._cutouts([Sample(np.ones((120, 120, 1), np.float32), labels)], np.random.default_rng(0)))
    for cutout in cutouts:
        rows, columns = np.nonzero(cutout.mask)
        assert (rows.min(), columns.min()) == (6, 6)
        assert (rows.max() + 7, columns.max() + 7) == cutout.mask.shape
    areas = [cutout.mask.sum() / 480 for cutout in cutouts]
    assert len(areas) == 60 and min(areas) > 0.9 * options["zoom"][0] ** 2 and max(areas) > 0.8 * options["zoom"][1] ** 2


def test_nuclei_that_are_not_known_stay_unknown():
    """The left half of the cell: of its right half the nucleus is known, also in a copy of it."""
    donor = plain(0.1)
    cell, nuclei = donor.labels[..., 0] == 1, np.zeros((64, 64), np.int32)
    nuclei[cell & (np.arange(64) < 32)], nuclei[30:34, 36:40] = -1, 1
    made = ComposedSource(Listed(dataclasses.replace(donor, nuclei=nuclei)), 1, size=96, cells=(8, 8), max_overlap=0)[0]
    cells, unknown = (made.labels > 0).any(-1), made.nuclei < 0
    assert not unknown[~cells].any() and 0.4 < unknown.sum() / cells.sum() < 0.55
    assert set(np.unique(made.nuclei)) == {-1, 0, *np.unique(made.labels)}


def test_what_a_real_image_lacks_of_the_canvas_is_its_background():
    """Of the size of the picture it is seen whole; around a smaller one there is no edge."""
    options = {"cells": (1, 1), "canvas": "real", "amplitude": 0}
    donor = plain(0.6)
    rest = ComposedSource(Listed(donor), 1, size=64, **options)[0].image == donor.image
    assert rest.mean() > 0.8
    wide = ComposedSource(Listed(donor), 1, size=(60, 200), **options)[0]
    np.testing.assert_allclose(wide.image[(wide.labels == 0).all(-1)], 0.6, atol=0.2)
    assert wide.image.min() > 0.59 and len(np.unique(wide.labels)) == 3


def labels_of(sample: Sample, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"labels": sample.labels.max(-1)}


def test_training_composes_while_it_trains(tmp_path):
    cells = {"kind": "synthetic", "modality": "phase", "count": 4, "size": 96, "seed": 3}
    spec = {"kind": "composed", "source": {"cells": cells}, "count": 5, "size": 64, "seed": 7, "cells": (4, 8)}
    source = open_source({"made": spec}, root=".", cache_gb=0.1, disk_cache=tmp_path / "cache", unreadable="skip")
    made = ComposedSource(SyntheticSource(4, modality="phase", size=96, seed=3), 5, size=64, seed=7, cells=(4, 8))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[4].image, made[4].image)
    reading = partial(make_train_iterator, source, targets=labels_of, batch_size=2, crop=64, channels=1,
                      normalize={"name": "type_range"}, seed=1)
    batches, resumed = reading(), reading()
    resumed.set_state({"batches": 2})
    (_, _, (batch, names)), (again, same) = [next(batches) for _ in range(3)], next(resumed)
    assert names == same and set(names) <= set(made.names) and batch["labels"].any()
    np.testing.assert_array_equal(batch["image"], again["image"])
    with pytest.raises(ValueError, match="of kind 'composed'.*'source'"):
        open_source({"made": {"kind": "composed", "count": 5}}, root=".", cache_gb=0.1)


class Listed:
    def __init__(self, *samples: Sample) -> None:
        self.samples, self.names = samples, [sample.name for sample in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def test_images_without_cells_and_without_annotation():
    empty = Sample(np.full((64, 64, 1), 9, np.uint8), np.zeros((64, 64, 1), np.int32), name="empty")
    assert not ComposedSource(Listed(empty), 1, size=64)[0].labels.any()
    with pytest.raises(ValueError, match="no annotation to cut cells out of"):
        ComposedSource(Listed(dataclasses.replace(empty, labels=None)), 1, size=64)[0]


@pytest.mark.parametrize("options", [{"canvas": "blue"}, {"cells": (0, 3)}, {"cells": (5, 3)}, {"max_overlap": 1.5},
                                     {"sigma": -1.0}, {"zoom": (0.0, 1.0)}, {"donors": 0}, {"zoom": (0.4, 1.0)},
                                     {"amplitude": 9.0}, {"size": 0}, {"halo": -1}], ids=str)
def test_impossible_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ComposedSource(SOURCE, 1, **options)
