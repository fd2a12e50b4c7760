"""The metric log survives kills: every step stands once."""

from __future__ import annotations

import json
import time

import jax

from jaxcell.training.log import MetricLog, Stopwatch


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_resumed_log_drops_what_will_be_repeated_and_half_lines(tmp_path):
    with MetricLog(tmp_path) as log:
        for step in range(1, 6):
            log.write(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with MetricLog(tmp_path, resume_step=3) as log:
        log.write(4, {"loss": 40})
    assert [(r["step"], r["loss"]) for r in rows(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_not_a_number_becomes_null(tmp_path):
    with MetricLog(tmp_path) as log:
        log.write(1, {"loss": float("nan")})
    assert rows(tmp_path) == [{"step": 1, "loss": None}]


class Busy:
    """An array that is still being computed."""

    def is_ready(self) -> bool:
        return False


def test_stopwatch_counts_since_the_last_read():
    watch = Stopwatch()
    for _ in range(2):
        with watch.waiting_for_data(Busy()):
            time.sleep(0.001)
    first = watch.read(8)
    assert first["data_wait_share"] == 0, "the device was busy meanwhile"
    assert first["images_per_second"] == 8 * first["steps_per_second"] > 0
    with watch.waiting_for_data(jax.block_until_ready(jax.numpy.zeros(1))):
        time.sleep(0.001)
    second = watch.read(8)
    assert 0 < second["data_wait_share"] <= 1
    assert watch.read(8)["images_per_second"] == 0
