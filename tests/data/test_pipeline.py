"""Batches are a function of seed and number alone: whoever prepares them, wherever a run stopped."""

from __future__ import annotations

import numpy as np
import pytest

from jaxcell.data.augment import POLICIES
from jaxcell.data.pipeline import make_train_iterator, order_of_epoch
from jaxcell.data.sources.folder import FolderSource
from jaxcell.data.sources.synthetic import SyntheticSource
from jaxcell.types import Sample


def targets(sample: Sample, rng: np.random.Generator) -> dict[str, np.ndarray]:
    assert sample.labels.flags.c_contiguous and sample.image.flags.c_contiguous
    return {"labels": sample.labels.max(axis=-1), "draw": rng.random(2)}


def batches(**options):
    defaults = {"targets": targets, "batch_size": 4, "crop": 48, "augment": "mild", "seed": 3,
                "normalize": {"name": "percentile"}}
    return make_train_iterator(SyntheticSource(7, size=64, seed=1), **{**defaults, **options})


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


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_and_go_on_where_others_stopped(workers):
    reference, first, other = batches(), batches(), batches(workers=workers)
    expected = take(reference, 5)
    assert_same(expected[:2], take(first, 2))
    other.set_state(first.get_state())
    assert_same(expected[2:4], take(other, 2))
    first.set_state(other.get_state())
    other.close()
    assert_same(expected[4:], take(first, 1))


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
            np.testing.assert_array_equal(half["image"], whole["image"][index::2])
            assert half_names == names[index::2]


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


@pytest.mark.parametrize("options, message", [
    ({"augment": "wild"}, "'wild' is unknown.*mild"), ({"batch_size": 3, "shard_count": 2}, "batch_size=3, shard 0 of 2"),
    ({"epoch_fraction": 0.0}, "epoch_fraction"), ({"shard_index": 1}, "shard 1 of 1"),
])
def test_options_are_checked_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        batches(**options)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_makes_batches_of_real_images(data_dir, name):
    source = FolderSource(data_dir / "bbbc038", split="val", limit=6)
    batch, names = next(make_train_iterator(source, targets=targets, batch_size=6, crop=128, augment=name,
                                            normalize={"name": "cstm-mix"}))
    assert batch["image"].shape == (6, 128, 128, 3) and len(set(names)) == 6 and np.isfinite(batch["image"]).all()
