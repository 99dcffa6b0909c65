"""Goodput: which time counts as useful, also over restarts."""

import pytest

from deepseek_jax.train import goodput
from deepseek_jax.train.goodput import Goodput


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(goodput.time, "time", lambda: now[0])
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])

    def wait(seconds: float):
        now[0] += seconds

    return wait


def test_only_time_between_start_and_stop_is_useful(clock):
    run = Goodput(began=1000.0, useful_seconds=0.0)
    clock(10)  # compiles
    assert run.share == 0
    run.start()
    clock(30)
    assert run.share == pytest.approx(30 / 40)
    run.stop()
    clock(20)  # evaluates and saves
    run.stop()
    run.start()
    run.start()
    clock(40)
    assert run.useful_seconds == pytest.approx(70) and run.share == pytest.approx(0.7)


def test_after_a_restart_lost_steps_and_queueing_are_not_useful_time(clock):
    first = Goodput(began=1000.0, useful_seconds=0.0)
    first.start()
    clock(50)
    saved = first.useful_seconds
    clock(30)  # steps that are lost
    clock(100)  # in the queue
    second = Goodput(began=1000.0, useful_seconds=saved)
    second.start()
    clock(20)
    assert second.share == pytest.approx(70 / 200)


def test_a_clock_that_was_set_back_makes_no_share_above_one(clock):
    run = Goodput(began=5000.0, useful_seconds=20.0)
    assert run.share == 1
    assert Goodput(began=5000.0, useful_seconds=0.0).share == 0
