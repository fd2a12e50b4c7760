"""Single cells of a crop, and what happens where there are too many of them."""

from __future__ import annotations

import numpy as np
import pytest

from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.geometry.labels import cell_ids
from jaxcell.targets.masks import CROWD_RULES, annotated_pixels, instance_masks
from jaxcell.types import Sample


def crowded(cells=30, **settings):
    source = SyntheticSource(1, size=128, seed=3, coverage=(0.5, 0.6), radius=(6, 8), overlap=1.0, **settings)
    sample = source[0]
    assert len(cell_ids(sample.labels)) > cells
    return sample


def test_every_cell_keeps_the_pixels_under_others():
    labels = np.zeros((6, 8, 2), np.int32)
    labels[1:4, 1:5, 0], labels[2:6, 3:8, 1] = 7, 2
    found = instance_masks(labels, 4)
    np.testing.assert_array_equal(found["masks"][0], labels[..., 0] == 7)
    np.testing.assert_array_equal(found["masks"][1], labels[..., 1] == 2)
    assert not found["masks"][2:].any() and found["present"].tolist() == [True, True, False, False]


def test_more_cells_than_rows_are_never_left_out():
    labels = np.arange(1, 5, dtype=np.int32).reshape(2, 2, 1)
    assert instance_masks(labels, 4)["present"].all()
    with pytest.raises(ValueError, match="4 cells for 3 rows"):
        instance_masks(labels, 3)


def test_ignored_is_what_no_layer_knows():
    layers = np.asarray([[[0, 0], [-1, 0], [-1, 3], [-1, -1], [5, 0]]], np.int32)
    np.testing.assert_array_equal(annotated_pixels(layers), [[1, 0, 1, 0, 1]])


@pytest.mark.parametrize("rule", CROWD_RULES)
def test_a_sample_with_few_enough_cells_stays(rule):
    sample = crowded()
    assert CROWD_RULES[rule](sample, np.random.default_rng(0), 500) is sample


def test_refusing_says_what_to_do():
    with pytest.raises(ValueError, match=r"has \d+ cells.*config.model.queries"):
        CROWD_RULES["refuse"](crowded(), np.random.default_rng(0), 10)


def test_shrinking_shows_a_window_and_nothing_beside_it():
    sample = crowded(modality="brightfield")
    small = CROWD_RULES["shrink"](sample, np.random.default_rng(0), 10)
    assert small.image.shape == sample.image.shape and small.labels.shape == sample.labels.shape
    assert 0 < len(cell_ids(small.labels)) <= 10
    height, width = (np.flatnonzero(small.image.any((1 - axis, 2)))[-1] + 1 for axis in (0, 1))
    assert not small.labels[height:].any() and not small.labels[:, width:].any()
    places = [(y, x) for y in range(129 - height) for x in range(129 - width)
              if np.array_equal(sample.image[y:y + height, x:x + width], small.image[:height, :width])]
    (y, x), = places
    for name in ("labels", "nuclei"):
        whole, part = (np.asarray(vars(s)[name]) for s in (sample, small))
        np.testing.assert_array_equal(part[:height, :width], whole[y:y + height, x:x + width])


def test_shrinking_gives_up_where_a_pixel_has_too_many_cells():
    labels = np.broadcast_to(np.arange(1, 4, dtype=np.int32), (4, 4, 3)).copy()
    with pytest.raises(ValueError, match="a pixel lies in more than 2"):
        CROWD_RULES["shrink"](Sample(np.zeros((4, 4, 1)), labels, name="x"), np.random.default_rng(0), 2)
