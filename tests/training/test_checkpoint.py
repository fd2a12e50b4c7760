"""A damaged checkpoint is named and the one before it used; values that were not saved are never returned."""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from benchmarks.faults import damage
from jaxcell.training.checkpoint import Checkpoints, best_score, latest_step, restore_state
from jaxcell.training.mesh import make_mesh, replicated
from jaxcell.training.state import TrainState, digests, init_state

CURSOR = {"batches": 7, "unlabelled": {"batches": 3}}


class Network(nn.Module):
    features: int = 16

    @nn.compact
    def __call__(self, image, train):
        return {"scores": nn.Dense(self.features)(image)}


def state_at(step: int) -> TrainState:
    state = init_state(Network(), optax.adam(1e-3), seed=step, image_shape=(1, 4, 4, 3), average=True)
    return state.replace(step=jnp.int32(step))


def saved(folder: Path) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=3)
    for step in (1, 2):
        checkpoints.save(state_at(step), CURSOR)
    checkpoints.close()
    return checkpoints


def restore(directory: Path, **options) -> tuple[TrainState, dict]:
    return restore_state(directory, jax.eval_shape(lambda: state_at(0)), replicated(make_mesh()), **options)


@pytest.mark.parametrize("trial", range(20))
def test_random_damage_never_gives_wrong_values(tmp_path, capfd, trial):
    directory = saved(tmp_path).directory
    what = damage(directory / "2", random.Random(trial))
    state, cursor = restore(directory)
    step = int(state.step)
    assert digests(state, cursor) == digests(state_at(step), CURSOR), what
    if step == 1:
        assert "2 is damaged" in capfd.readouterr().err and "using step 1" not in what


def test_a_flipped_bit_of_an_array_is_named_and_set_aside(tmp_path, capfd):
    checkpoints = saved(tmp_path)
    values = max((checkpoints.directory / "2" / "state" / "d").iterdir(), key=lambda f: f.stat().st_size)
    data = bytearray(values.read_bytes())
    data[len(data) // 2] ^= 1
    values.write_bytes(data)
    again = Checkpoints(tmp_path, keep=3)
    state, _ = again.restore(jax.eval_shape(lambda: state_at(0)), replicated(make_mesh()))
    assert int(state.step) == 1
    assert "checkpoints/2 is damaged" in capfd.readouterr().err
    assert len(list((tmp_path / "damaged").iterdir())) == 1
    again.save(state_at(2), CURSOR)         # its step is free again
    again.close()
    assert int(restore(checkpoints.directory)[0].step) == 2


def test_all_damaged_or_another_network_is_refused(tmp_path):
    directory = saved(tmp_path).directory
    other = jax.eval_shape(lambda: init_state(Network(8), optax.adam(1e-3), seed=0, image_shape=(1, 4, 4, 3), average=True))
    with pytest.raises(ValueError, match=r"\(2, 1\) can be used.*config\.json"):
        restore_state(directory, other, replicated(make_mesh()))
    for step in (1, 2):
        shutil.rmtree(directory / str(step) / "state")
    with pytest.raises(ValueError, match="can be used"):
        restore(directory)
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        restore(tmp_path / "nowhere")
    assert latest_step(tmp_path / "nowhere") is None and best_score(tmp_path / "nowhere") is None


def test_the_best_is_kept_with_its_score(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    scores = {1: 0.5, 2: 0.4, 3: 0.7}
    assert [checkpoints.save_best(state_at(s), CURSOR, score) for s, score in scores.items()] == [True, False, True]
    checkpoints.close()
    assert best_score(tmp_path / "best") == 0.7 and latest_step(tmp_path / "best") == 3


def test_a_best_checkpoint_without_a_readable_score_is_set_aside(tmp_path, capfd):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save_best(state_at(1), CURSOR, 0.5)
    checkpoints.close()
    (tmp_path / "best" / "1" / "metrics" / "metrics").write_text("{")
    with pytest.raises(ValueError, match="score of the best checkpoint"):
        best_score(tmp_path / "best")
    again = Checkpoints(tmp_path, keep=1)
    assert "cannot be read" in capfd.readouterr().err and again.best_score() is None
    assert again.save_best(state_at(1), CURSOR, 0.3)
    again.close()


def test_four_devices_have_the_digests_of_one():
    one = jax.device_put(state_at(3), replicated(make_mesh(jax.devices()[:1])))
    four = jax.device_put(state_at(3), replicated(make_mesh(jax.devices()[:4])))
    assert digests(one, CURSOR) == digests(four, CURSOR)
    assert digests(one, CURSOR)["cursor"] != digests(one, {"batches": 8})["cursor"]


FULL = """
import resource, signal, sys
import numpy as np
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.path[:0] = sys.argv[2:]
from training.test_checkpoint import CURSOR, Checkpoints, state_at
checkpoints = Checkpoints(sys.argv[1], keep=3)
checkpoints.save(state_at(1), CURSOR)
checkpoints._latest.wait_until_finished()
resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
try:
    checkpoints.save(state_at(2), CURSOR)
    checkpoints.close()
except OSError as error:
    sys.stdout.write(str(error))
    sys.stdout.flush()
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes on this system")
def test_a_full_disk_says_so_and_keeps_the_last_one(tmp_path):
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", FULL, str(tmp_path), str(root), str(root / "tests")], capture_output=True,
                            text=True, timeout=120)
    assert "no checkpoint could be written" in result.stdout, result.stdout + result.stderr[-2000:]
    assert "last whole one is step 1" in result.stdout and "Free some space" in result.stdout
    assert int(restore(tmp_path / "checkpoints")[0].step) == 1
    assert np.isfinite(jax.tree.leaves(restore(tmp_path / "checkpoints")[0].params)[0]).all()
