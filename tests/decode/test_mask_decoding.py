"""Masks become cells: thresholds, ranking, duplicates; and the watershed of semantic planes."""

from __future__ import annotations

import numpy as np
import pytest

from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.decode.masks import RESCORINGS, decode_masks, suppress_duplicates
from jaxcell.decode.semantic_watershed import decode_planes
from jaxcell.metrics.matching import match
from jaxcell.targets.masks import instance_masks
from jaxcell.targets.planes import semantic_planes
from jaxcell.types import Instances

SURE = 8.0


def perfect(labels, queries=40):
    """What a network without mistakes answers: queries of no cell are unsure and draw something anyway."""
    found = instance_masks(labels, queries)
    masks = np.where(found["masks"] > 0, SURE, -SURE).astype(np.float32)
    masks[~found["present"]] = 1.0
    return {"masks": masks, "scores": np.where(found["present"], SURE, -SURE).astype(np.float32),
            "objectness": np.zeros(queries, np.float32)}


def sample(index=0, **settings):
    return SyntheticSource(4, size=96, seed=5, coverage=(0.3, 0.4), clustering=0.8, overlap=1.0, **settings)[index]


def test_overlapping_cells_come_back_whole():
    labels = sample().labels
    assert labels.shape[2] > 1
    truth, found = Instances.from_labels(labels), decode_masks(perfect(labels))
    assert match(truth, found, thresholds=(1.0,)).f1[0] == 1.0
    assert (found.scores > 0.99).all()


def test_scores_are_those_of_the_formula_and_fall():
    rng = np.random.default_rng(0)
    outputs = {"masks": rng.standard_normal((6, 9, 7)).astype(np.float32), "scores": rng.standard_normal(6).astype(np.float32),
               "objectness": rng.standard_normal(6).astype(np.float32)}
    p, c, o = (1 / (1 + np.exp(-outputs[k].astype(np.float64))) for k in ("masks", "scores", "objectness"))
    mean = np.asarray([m[m > 0.3].mean() for m in p])
    kept = c > 0.4
    found = decode_masks(outputs, mask_threshold=0.3, score_threshold=0.4)
    np.testing.assert_allclose(found.scores, np.sort((c * mean)[kept])[::-1], rtol=1e-5)
    first = np.flatnonzero(kept)[np.argmax((c * mean)[kept])]
    y0, x0, y1, x1 = found.boxes[0]
    np.testing.assert_array_equal(found.masks[0], (p[first] > 0.3)[y0:y1, x0:x1])
    both = decode_masks(outputs, mask_threshold=0.3, score_threshold=0.4, objectness=True, rescoring="all_pixels")
    kept = np.sqrt(c * o) > 0.4
    np.testing.assert_allclose(both.scores, np.sort((np.sqrt(c * o) * p.mean((1, 2)))[kept])[::-1], rtol=1e-5)


def test_a_mask_without_pixels_is_no_cell():
    outputs = {"masks": np.full((3, 5, 5), -SURE, np.float32), "scores": np.full(3, SURE, np.float32)}
    assert len(decode_masks(outputs)) == 0
    outputs["masks"][1, 2, 2:4] = SURE
    assert decode_masks(outputs).boxes.tolist() == [[2, 2, 3, 4]]
    assert len(decode_masks(outputs, least_pixels=3)) == 0
    assert all(RESCORINGS[name](np.zeros((1, 4, 4)), 0.5)[0] in (0, 1) for name in RESCORINGS)


def test_duplicates_go_and_neighbours_stay():
    mask = np.ones((10, 10), bool)
    boxes = np.asarray([(0, 0, 10, 10), (1, 0, 11, 10), (0, 5, 10, 15), (30, 30, 40, 40)], np.int32)
    cells = Instances((50, 50), boxes, [mask] * 4, np.float32([0.6, 0.9, 0.5, 0.1]))
    assert suppress_duplicates(cells, 0.5).tolist() == [True, False, False, False]
    assert suppress_duplicates(cells, 90 / 110).tolist() == [False] * 4       # equality keeps
    assert suppress_duplicates(cells, 0.2).tolist() == [True, False, True, False]


def test_splinters_go_with_the_share_that_lies_in_a_surer_cell():
    boxes = np.asarray([(4, 7, 8, 12), (0, 0, 10, 10), (0, 9, 10, 19)], np.int32)    # a splinter has 12 of its 20 pixels in each
    masks = [np.ones((y1 - y0, x1 - x0), bool) for y0, x0, y1, x1 in boxes.tolist()]
    cells = Instances((20, 20), boxes, masks, np.float32([0.5, 0.9, 0.7]))
    assert suppress_duplicates(cells, 1.0, share=0.5).tolist() == [True, False, False]
    assert suppress_duplicates(cells, 1.0, share=0.6).tolist() == [False] * 3        # equality keeps
    assert suppress_duplicates(cells, 1.0).tolist() == [False] * 3
    sure = Instances((20, 20), boxes, masks, np.float32([0.9, 0.5, 0.1]))       # who is surer stays, also the smaller one
    assert suppress_duplicates(sure, 1.0, share=0.5).tolist() == [False, True, True]


def test_a_cell_that_went_takes_nobody_along():
    mask = np.ones((10, 10), bool)
    boxes = np.asarray([(0, 0, 10, 10), (0, 3, 10, 13), (0, 6, 10, 16)], np.int32)
    cells = Instances((20, 20), boxes, [mask] * 3, np.float32([0.9, 0.8, 0.7]))
    assert suppress_duplicates(cells, 0.5).tolist() == [False, True, False]


def test_decoding_twice_the_same_query_gives_one_cell():
    outputs = perfect(sample().labels)
    twice = {key: np.concatenate([value, value]) for key, value in outputs.items()}
    assert len(decode_masks(twice)) == 2 * len(decode_masks(outputs))
    assert len(decode_masks(twice, duplicate_iou=0.9)) == len(decode_masks(outputs))


def test_a_network_without_queries_to_spare_warns():
    labels = sample().labels
    count = len(Instances.from_labels(labels))
    with pytest.warns(UserWarning, match=f"all {count} queries"):
        decode_masks(perfect(labels, count))


def test_unknown_rescoring():
    with pytest.raises(ValueError, match="'best' is unknown"):
        decode_masks({"masks": np.zeros((0, 4, 4)), "scores": np.zeros(0)}, rescoring="best")


@pytest.mark.parametrize("markers", ["middle", "nuclei"])
def test_watershed_of_perfect_planes_finds_cells_that_do_not_overlap(markers):
    part = SyntheticSource(4, size=128, seed=5, radius=(9, 12), coverage=(0.2, 0.3), clustering=0.0, overlap=0.0,
                           modality="brightfield")[1]
    planes = semantic_planes(part.labels, part.nuclei, ("cytoplasm", "nuclei", "border"))
    outputs = {name: SURE * (2 * plane - 1) for name, plane in planes.items()}
    found = decode_planes(outputs, markers=markers)
    assert match(Instances.from_labels(part.labels), found, thresholds=(0.7,)).f1[0] > 0.9


def test_watershed_parts_touching_cells_but_cannot_keep_an_overlap():
    labels = np.zeros((40, 60, 2), np.int32)
    y, x = np.indices((40, 60))
    labels[..., 0][np.hypot(y - 20, x - 20) < 14], labels[..., 1][np.hypot(y - 20, x - 40) < 14] = 1, 2
    planes = semantic_planes(labels, None, ("cytoplasm",))
    found = decode_planes({"cytoplasm": SURE * (2 * planes["cytoplasm"] - 1)})
    assert len(found) == 2 and found.areas().sum() == (labels > 0).any(-1).sum()
    assert match(Instances.from_labels(labels), found, thresholds=(0.75,)).f1[0] == 1.0


@pytest.mark.parametrize("value", [-SURE, SURE])
def test_watershed_of_a_plane_all_alike(value):
    found = decode_planes({"cytoplasm": np.full((20, 30, 1), value)})
    assert len(found) == (1 if value > 0 else 0)


def test_watershed_needs_what_it_is_told_to_use():
    with pytest.raises(ValueError, match="'nuclei' need a head"):
        decode_planes({"cytoplasm": np.zeros((4, 4, 1))}, markers="nuclei")
    with pytest.raises(ValueError, match="'peaks' is unknown"):
        decode_planes({"cytoplasm": np.zeros((4, 4, 1))}, markers="peaks")
