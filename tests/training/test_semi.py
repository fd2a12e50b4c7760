"""A teacher's predictions become targets: of the cells it finds, with what it thinks of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from targets.perfect import PERFECT_OUTPUTS

from configs.contour_proposal import get_config
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.systems import build_system
from jaxcell.training.mesh import make_mesh
from jaxcell.training.semi import make_teacher
from jaxcell.types import Instances, Sample

CONFIG = get_config("toy")
SYSTEM = build_system(CONFIG)
SIZE = CONFIG.data.crop


def annotated(index: int) -> Sample:
    sample = SyntheticSource(4, size=SIZE, seed=7)[index]
    return Sample(sample.image.astype(np.float32) / 255, sample.labels, name=sample.name)


def maps_of(index: int) -> dict[str, np.ndarray]:
    """What a perfect teacher says of an image."""
    return PERFECT_OUTPUTS["contour_proposal"](SYSTEM.targets(annotated(index), np.random.default_rng(0)), CONFIG)


def test_a_perfect_teacher_gives_the_annotated_targets():
    rng = np.random.default_rng
    truth = SYSTEM.teaching.targets(None, annotated(0), rng(0))
    taught = SYSTEM.teaching.targets(maps_of(0), Sample(annotated(0).image, name="x"), rng(0))
    assert truth.keys() == taught.keys()
    assert {k: v.shape for k, v in truth.items()} == {k: v.shape for k, v in taught.items()}
    used = taught["ids"] > 0
    assert used.sum() == (truth["ids"] > 0).sum() > 3
    # Rows are in another order: compare as sets of places.
    places = [np.sort(t["locations"][t["ids"] > 0].round(0), axis=0) for t in (truth, taught)]
    assert np.abs(places[0] - places[1]).max() <= 2
    assert (truth["teacher_scores"] == 1).all() and (truth["teacher_uncertainty"] == 0).all()
    assert (truth["teacher_score_maps"] == 0).all() and (taught["teacher_scores"][~used] == 0).all()
    assert taught["teacher_score_maps"].shape == (*taught["labels"].shape, 1)


def test_each_row_has_its_own_cells_score_and_uncertainty():
    outputs = maps_of(0)
    rng = np.random.default_rng(3)
    scores = np.where(outputs["scores"] > 0, rng.uniform(2, 6, outputs["scores"].shape), outputs["scores"])
    outputs["scores"] = scores.astype(np.float32)
    outputs["uncertainty"] = rng.normal(0, 1, (*outputs["scores"].shape[:2], 4)).astype(np.float32)
    cells: Instances = SYSTEM.decode(outputs)
    taught = SYSTEM.teaching.targets(outputs, Sample(annotated(0).image, name="x"), np.random.default_rng(0))
    checked = 0
    for row in np.flatnonzero(taught["ids"]):
        cell = taught["ids"][row] - 1
        y0, x0, y1, x1 = cells.boxes[cell]
        y, x = taught["locations"][row]
        assert y0 - 1 <= y <= y1 and x0 - 1 <= x <= x1, "this row describes another cell"
        assert taught["teacher_scores"][row] == cells.scores[cell]
        np.testing.assert_array_equal(taught["teacher_uncertainty"][row], cells.extras["uncertainties"][cell])
        checked += 1
    assert checked > 3


def test_an_image_in_which_the_teacher_finds_nothing():
    outputs = {key: np.full_like(value, -9) if key == "scores" else value for key, value in maps_of(0).items()}
    taught = SYSTEM.teaching.targets(outputs, Sample(annotated(0).image, name="x"), np.random.default_rng(0))
    assert not taught["ids"].any() and (taught["labels"] == 0).all() and not taught["teacher_scores"].any()


def test_two_batches_become_one_and_depend_on_the_step_alone():
    truth = [SYSTEM.teaching.targets(None, annotated(i), np.random.default_rng(i)) for i in (0, 1)]
    images = np.stack([annotated(i).image for i in (0, 1)])
    batch = {key: np.stack([t[key] for t in truth]) for key in truth[0]} | {"image": images}
    unlabelled = {"image": np.stack([annotated(i).image for i in (2, 3)])}
    maps = [maps_of(i) for i in (2, 3)]
    predicted = {key: jnp.asarray(np.stack([m[key] for m in maps])) for key in maps[0]}
    teach = make_teacher(SYSTEM.teaching, lambda variables, image: predicted, make_mesh(jax.devices()[:1]), seed=5)
    joined, again, later = (teach({}, batch, unlabelled, ["a", "b"], step) for step in (3, 3, 4))
    assert joined.keys() == batch.keys()
    for key in batch:
        assert joined[key].shape == (4, *batch[key].shape[1:])
        np.testing.assert_array_equal(joined[key][:2], batch[key])
        np.testing.assert_array_equal(joined[key], again[key])
    assert (joined["sampling"][2:] != later["sampling"][2:]).any()
