"""Matching of queries and cells: the best sum, on host and device, whatever the batch lies on."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcell.matching import MATCHERS, assign, dice_scores, match_on_device, match_on_host, pair_scores
from jaxcell.training.mesh import make_mesh, shard_batch

both = pytest.mark.parametrize("match", MATCHERS.values(), ids=MATCHERS)


def total(scores, queries):
    cells = np.flatnonzero(queries >= 0)
    return scores[queries[cells], cells].astype(np.float64).sum()


def random_scores(kind, rng, shape):
    return {"even": lambda: rng.random(shape), "ties": lambda: np.round(rng.random(shape) * 4) / 4,
            "alike": lambda: 0.3 + 1e-4 * rng.random(shape), "zero": lambda: np.zeros(shape),
            "rivals": lambda: np.broadcast_to(rng.random((*shape[:2], 1)), shape) + 0.01 * rng.random(shape),
            }[kind]().astype(np.float32)


@both
def test_no_other_choice_is_better(match):
    rng = np.random.default_rng(0)
    for _ in range(30):
        scores = rng.random((1, 5, 3), np.float32)
        queries = np.asarray(match(scores, np.ones((1, 3), bool)))[0]
        best = max(sum(scores[0, q, c] for c, q in enumerate(choice)) for choice in itertools.permutations(range(5), 3))
        assert sorted(set(queries)) == sorted(queries)
        np.testing.assert_allclose(total(scores[0], queries), best, rtol=1e-6)


@pytest.mark.parametrize("kind", ["even", "ties", "alike", "zero", "rivals"])
@pytest.mark.parametrize("shape", [(3, 30, 30), (2, 60, 17), (1, 1, 1)])
def test_device_finds_what_scipy_finds(kind, shape):
    rng = np.random.default_rng(1)
    scores, present = random_scores(kind, rng, shape), rng.random((shape[0], shape[2])) < 0.8
    expected, found = assign(scores, present), np.asarray(jax.jit(match_on_device)(scores, present))
    np.testing.assert_array_equal(found >= 0, present)
    for one, other, image in zip(expected, found, scores, strict=True):
        assert len(set(other[other >= 0])) == (other >= 0).sum()
        np.testing.assert_allclose(total(image, other), total(image, one), rtol=1e-6)
    if kind == "even":      # no ties: the pairs are the same too
        np.testing.assert_array_equal(found, expected)


@both
def test_rows_without_a_cell_have_no_query(match):
    scores = np.random.default_rng(2).random((2, 6, 4), np.float32)
    present = np.asarray([[False, True, False, True], [False] * 4])
    queries = np.asarray(match(scores, present))
    np.testing.assert_array_equal(queries >= 0, present)
    np.testing.assert_array_equal(queries[0][[1, 3]], np.asarray(match(scores[:1, :, [1, 3]], np.ones((1, 2), bool)))[0])


@both
def test_batch_without_room_for_a_cell(match):
    assert match(np.zeros((2, 5, 0), np.float32), np.zeros((2, 0), bool)).shape == (2, 0)


def test_more_cells_than_queries():
    scores = np.asarray([[[0.1, 0.9, 0.2]]], np.float32)
    np.testing.assert_array_equal(assign(scores, np.ones((1, 3), bool)), [[-1, 0, -1]])
    with pytest.raises(ValueError, match="3 cells for 1 queries"):
        match_on_device(scores, np.ones((1, 3), bool))


@both
def test_what_is_not_finite_does_not_stop_the_step(match):
    scores = np.full((1, 4, 2), np.nan, np.float32)
    queries = np.asarray(match(scores, np.ones((1, 2), bool)))[0]
    assert len(set(queries.tolist())) == 2


@both
def test_four_devices_match_each_its_own_share(match):
    rng = np.random.default_rng(3)
    batch = {"scores": rng.random((8, 20, 9), np.float32), "present": rng.random((8, 9)) < 0.7}
    found = []
    for devices in (1, 4):
        placed = shard_batch(batch, make_mesh(jax.devices()[:devices]))
        compiled = jax.jit(match).lower(placed["scores"], placed["present"]).compile()
        assert "all-gather" not in compiled.as_text() and "all-reduce" not in compiled.as_text()
        found.append(np.asarray(compiled(placed["scores"], placed["present"])))
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(found[0], assign(batch["scores"], batch["present"]))


@both
def test_gradients_pass_by(match):
    def loss(scores):
        queries = match(scores, jnp.ones((1, 2), bool))
        return jnp.take_along_axis(scores, queries[:, None, :], axis=1).sum()

    scores = jnp.asarray([[[0.9, 0.8], [0.7, 0.1], [0.2, 0.3]]])
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(scores)[0], [[0, 1], [1, 0], [0, 0]])


def test_dice_and_pair_scores_by_hand():
    probabilities = np.asarray([[[[1, 0.5], [0, 0]], [[0, 0], [0, 0]]]], np.float32)
    masks = np.asarray([[[[1, 1], [0, 0]]]], np.float32)
    dice = dice_scores(probabilities, masks)
    np.testing.assert_allclose(dice, [[[2 * 1.5 / (1.25 + 2 + 1e-4)], [0]]], rtol=1e-6)
    np.testing.assert_allclose(pair_scores(dice, np.asarray([[[0.25], [0.5]]])), [[[dice[0, 0, 0] ** 0.8 * 0.25 ** 0.2], [0]]],
                               rtol=1e-6)


PROCESS = """
import sys
import jax, numpy as np
from jaxcell.matching import MATCHERS, assign
from jaxcell.training.mesh import join_processes, local_rows, make_mesh, shard_batch
rank = int(sys.argv[2])
join_processes(coordinator=f"127.0.0.1:{sys.argv[1]}", processes=2, process=rank)
rng = np.random.default_rng(0)
scores, present = rng.random((8, 20, 9), np.float32), rng.random((8, 9)) < 0.7
own = slice(4 * rank, 4 * rank + 4)
placed = shard_batch({"scores": scores[own], "present": present[own]}, make_mesh())
for match in MATCHERS.values():
    found = local_rows(jax.jit(match)(placed["scores"], placed["present"]))
    np.testing.assert_array_equal(found, assign(scores, present)[own])
print("matched")
"""


@pytest.mark.slow
def test_two_processes_match_each_its_own_share():
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=2", JAX_PLATFORMS="cpu")
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, "29877", str(rank)], env=environment, text=True,
                                  cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                 for rank in range(2)]
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert out.strip() == "matched", errors


def test_host_matcher_runs_in_a_loop_of_steps():
    step = jax.jit(lambda scores: scores + match_on_host(scores, jnp.ones((2, 4), bool)).sum())
    scores = jnp.asarray(np.random.default_rng(4).random((2, 6, 4), np.float32))
    for _ in range(50):
        scores = step(scores)
    assert np.isfinite(np.asarray(scores)).all()
