"""Batches are a function of seed and number alone: whoever prepares them, wherever a run stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcell.data.augment import POLICIES
from jaxcell.data.pipeline import make_train_iterator, order_of_epoch
from jaxcell.data.sources import open_source
from jaxcell.data.sources.folder import FolderSource
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.types import Sample


def targets(sample: Sample, rng: np.random.Generator) -> dict[str, np.ndarray]:
    assert sample.labels.flags.c_contiguous and sample.image.flags.c_contiguous
    return {"labels": sample.labels.max(axis=-1), "draw": rng.random(2)}


def batches(**options):
    defaults = {"targets": targets, "batch_size": 4, "crop": 48, "augment": "mild", "seed": 3,
                "normalize": {"name": "percentile"}, "source": SyntheticSource(7, size=64, seed=1)}
    return make_train_iterator(**{**defaults, **options})


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(left, right):
    for (a, a_names), (b, b_names) in zip(left, right, strict=True):
        assert a_names == b_names and a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_batches_hold_images_targets_and_names():
    batch, names = next(batches())
    assert batch["image"].shape == (4, 48, 48, 3) and batch["image"].dtype == np.float32
    assert batch["labels"].shape == (4, 48, 48) and batch["draw"].shape == (4, 2) and len(names) == 4
    assert batch["image"].min() >= 0 and batch["image"].max() <= 1


@pytest.mark.parametrize("options", [{"prefetch": 0}, {"prefetch": 5}, {"threads": 3, "prefetch": 4}])
def test_threads_and_prefetching_change_nothing(options):
    assert_same(take(batches(), 6), take(batches(**options), 6))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing_and_go_on_where_others_stopped(workers):
    options = {"augment": "mosaic"}         # draws other samples besides
    reference, first, other = batches(**options), batches(**options), batches(workers=workers, **options)
    expected = take(reference, 8)
    assert_same(expected[:2], take(first, 2))
    other.set_state(first.get_state())
    assert_same(expected[2:7], take(other, 5))
    first.set_state(other.get_state())
    other.close()
    assert_same(expected[7:], take(first, 1))


@pytest.mark.parametrize("name", POLICIES)
def test_a_run_may_be_restored_before_every_batch_of_an_epoch(name):
    options = {"augment": name, "batch_size": 2, "crop": 32, "source": SyntheticSource(20, size=64, seed=1)}
    expected = take(batches(**options), 11)         # an epoch of 10 batches and the first of the next
    restored = batches(**options)
    for start in reversed(range(11)):
        restored.set_state({"batches": start})
        assert_same(expected[start:start + 2], take(restored, min(2, 11 - start)))


def test_shards_and_the_disk_cache_change_nothing(tmp_path):
    (tmp_path / "lab").mkdir()
    for index, sample in enumerate(map(SyntheticSource(6, size=64, seed=2).__getitem__, range(6))):
        Image.fromarray(sample.image.squeeze()).save(tmp_path / "lab" / f"{index}.png")
        Image.fromarray(sample.labels.max(axis=-1).astype(np.uint16)).save(tmp_path / "lab" / f"{index}_label.png")

    def run(**options):
        source = open_source({"lab": {"kind": "folder", "root": "lab"}}, root=tmp_path, cache_gb=0.0,
                             disk_cache=options.pop("disk_cache", ""))
        iterator = batches(source=source, augment="mosaic", **options)
        found = take(iterator, 3)
        iterator.close()
        return found

    expected = run()
    for workers, state in ((0, "cold"), (0, "warm"), (1, "warm")):
        assert bool(list(tmp_path.glob("cache/*/*/*.sample"))) == (state == "warm")
        assert_same(expected, run(workers=workers, disk_cache=tmp_path / "cache"))
    halves = [run(disk_cache=tmp_path / "cache", shard_index=i, shard_count=2) for i in range(2)]
    for (whole, names), *parts in zip(expected, *halves, strict=True):
        for index, (part, part_names) in enumerate(parts):
            here = slice(2 * index, 2 * index + 2)
            assert part_names == names[here]
            for key in whole:
                np.testing.assert_array_equal(part[key], whole[key][here])


def test_state_is_the_number_of_batches_taken_not_prepared():
    iterator = batches(prefetch=4)
    expected = take(iterator, 6)
    assert iterator.get_state() == {"batches": 6}
    for start in (0, 2, 5):
        iterator.set_state({"batches": start})
        assert_same(expected[start:], take(iterator, 6 - start))


def test_shards_share_out_every_batch():
    expected = take(batches(), 3)
    for index in range(2):
        part = take(batches(shard_index=index, shard_count=2), 3)
        for (whole, names), (half, half_names) in zip(expected, part, strict=True):
            here = slice(2 * index, 2 * index + 2)
            np.testing.assert_array_equal(half["image"], whole["image"][here])
            assert half_names == names[here]


def test_epochs_visit_everything_once_in_new_orders_and_change_the_crops():
    iterator = batches(batch_size=7)
    (first, names), (second, others) = take(iterator, 2)
    assert sorted(names) == sorted(others) == SyntheticSource(7, size=64, seed=1).names and names != others
    same = others.index(names[0])
    assert (first["image"][0] != second["image"][same]).any()
    assert (next(batches(seed=4))[0]["image"] != next(batches())[0]["image"]).any()
    np.testing.assert_array_equal(np.sort(order_of_epoch(0, 1, 50)), np.arange(50))


def test_an_epoch_may_be_a_part_of_the_samples():
    iterator = batches(batch_size=3, epoch_fraction=3 / 7)
    epochs = [frozenset(names) for _, names in take(iterator, 12)]
    assert all(len(names) == 3 for names in epochs) and len(set(epochs)) > 4


def test_statistics_are_those_of_the_whole_image():
    image = np.zeros((96, 96, 1), np.uint8)
    image[:48], image[48:, :48] = 100, 50       # no crop of 24 shows all grey levels
    source = [Sample(image, np.ones((96, 96, 1), np.int32), name="steps")]

    class Steps(list):
        names = ["steps"]

    iterator = make_train_iterator(Steps(source), targets=targets, batch_size=8, crop=24, augment="none",
                                   normalize={"name": "percentile", "lower": 0, "upper": 100}, channels=1)
    values = np.unique(np.concatenate([np.unique(batch["image"]) for batch, _ in take(iterator, 4)]))
    np.testing.assert_allclose(values, [0, 0.5, 1], atol=1e-6)


def test_window_and_crop_of_a_policy_without_scaling_keep_label_and_image_together():
    """The image is normalised after it was cut: it must still be the same place."""
    index = (np.arange(64)[:, None] * 3 + np.arange(64)).astype(np.uint8)[..., None]

    class Ramp(list):
        names = ["ramp"]

    source = Ramp([Sample(index, index.astype(np.int32) + 1, name="ramp")])
    batch, _ = next(make_train_iterator(source, targets=targets, batch_size=8, crop=16, augment="flips",
                                        normalize={"name": "type_range"}, channels=1))
    np.testing.assert_array_equal(np.rint(batch["image"][..., 0] * 255) + 1, batch["labels"])


def raise_in_targets(sample: Sample, rng: np.random.Generator) -> dict[str, np.ndarray]:
    raise ValueError("no cell fits")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_name_the_sample_even_from_workers(workers):
    iterator = batches(targets=raise_in_targets, workers=workers)
    with pytest.raises(RuntimeError, match=r"sample 'synthetic_1_0000\d': ValueError: no cell fits"):
        next(iterator)
    iterator.close()


class Broken(SyntheticSource):
    """Its last sample cannot be read."""

    def __getitem__(self, index):
        if index == len(self) - 1:
            raise ValueError("no image")
        return super().__getitem__(index)


def test_an_error_in_a_sample_that_is_mixed_in_names_that_sample():
    iterator = batches(source=Broken(4, size=64, seed=1), augment="mosaic", batch_size=8)
    with pytest.raises(RuntimeError, match=r"^sample 'synthetic_1_00003': ValueError: no image(\n|$)"):
        take(iterator, 9)


def workers_of_this_process():
    return [process.pid for process in multiprocessing.active_children()]


def test_a_killed_worker_is_told_and_leaves_nothing_behind():
    before = set(workers_of_this_process())
    iterator = batches(workers=2)
    expected = take(batches(), 24)
    assert_same(expected[:2], take(iterator, 2))
    own = sorted(set(workers_of_this_process()) - before)
    assert len(own) == 2
    os.kill(own[0], signal.SIGKILL)
    with pytest.raises(ValueError, match="workers=2: a worker process ended with exit code -9 before .* fewer workers"):
        take(iterator, 20)
    assert set(workers_of_this_process()) <= before
    taken = iterator.get_state()["batches"]
    assert 2 <= taken < 22      # (what was prepared by then is still given)
    assert_same(expected[taken:taken + 2], take(iterator, 2))      # new workers go on where the others ended
    iterator.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_what_a_terminal_or_cluster_sends_to_all_processes_ends_no_worker(number):
    """The training process decides; it needs batches until it has saved."""
    before = set(workers_of_this_process())
    iterator = batches(workers=2)
    first = take(iterator, 2)
    for worker in set(workers_of_this_process()) - before:
        os.kill(worker, number)
    time.sleep(0.5)
    assert_same(take(batches(), 24), first + take(iterator, 22))
    iterator.close()


ORPHANS = """
import multiprocessing, os, signal, sys
sys.path[:0] = {path!r}
from test_pipeline import batches

if __name__ == "__main__":
    iterator = batches(workers=2)
    next(iterator)
    print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_the_training_that_was_killed(tmp_path):
    (tmp_path / "orphans.py").write_text(ORPHANS.format(path=[str(Path(__file__).parent)]))
    with (tmp_path / "out").open("w") as out:        # (a pipe would stay open as long as the workers live)
        subprocess.run([sys.executable, tmp_path / "orphans.py"], stdout=out, stderr=subprocess.DEVNULL, timeout=120)
    workers = [int(number) for number in (tmp_path / "out").read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def is_running(pid: int) -> bool:
    """Whether there is such a process, other than one that ended and was not yet buried."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.mark.parametrize("options, message", [
    ({"augment": "wild"}, "'wild' is unknown.*mild"), ({"batch_size": 3, "shard_count": 2}, "batch_size=3, shard 0 of 2"),
    ({"epoch_fraction": 0.0}, "epoch_fraction"), ({"shard_index": 1}, "shard 1 of 1"),
])
def test_options_are_checked_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        batches(**options)


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_spoils_standardised_images(name):
    """What is below the mean stays below it, and nothing becomes NaN, as powers of negative values are."""
    iterator = batches(augment=name, normalize={"name": "standardise"}, batch_size=16, channels=1)
    images = next(iterator)[0]["image"]
    assert np.isfinite(images).all() and (images < -0.2).mean() > 0.1 and (images > 0.2).mean() > 0.1


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_makes_batches_of_real_images(data_dir, name):
    source = FolderSource(data_dir / "bbbc038", split="val", limit=6)
    batch, names = next(make_train_iterator(source, targets=targets, batch_size=6, crop=128, augment=name,
                                            normalize={"name": "cstm-mix"}))
    assert batch["image"].shape == (6, 128, 128, 3) and len(set(names)) == 6 and np.isfinite(batch["image"]).all()
