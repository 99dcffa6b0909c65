"""Rows of metrics.jsonl time steps by when they end on the device, not by when the loop looks at them."""

import threading
import time
import types

import pytest

from deepseek_jax.train import metrics
from deepseek_jax.train.recorder import Recorder, Started
from deepseek_jax.train.reporting.shown import SHOWN
from tests.train import tiny


class Skipped(int):
    """A count of skipped steps that becomes ready `seconds` after it was made, like a device array.

    `ended` is when `block_until_ready` saw it ready.
    """

    def __new__(cls, seconds: float):
        self = super().__new__(cls, 0)
        self.at = time.perf_counter() + seconds
        return self

    def block_until_ready(self):
        time.sleep(max(self.at - time.perf_counter(), 0))
        self.ended = time.perf_counter()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """(rows, true seconds of each step but the first) of seven steps of 20 ms, each after 60 ms of loading data.

    Before the sixth there is a pause of a second.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "SPAN", 0.0)
        return _record(tmp_path_factory.mktemp("recorded"))


def _record(folder):
    written = []
    task = types.SimpleNamespace(size=lambda batch: 100, row=lambda *_: {}, shown=SHOWN["language_model"])
    goodput = types.SimpleNamespace(start=lambda: None, stop=lambda: None, share=1.0)
    recorder = Recorder(tiny.experiment(folder), task, written.append, lambda *_: None, goodput, skipped=0)
    scalars = dict.fromkeys(["loss/next", *metrics.STEP_SCALARS], 1.0)
    steps, begun = [], {}
    for number in range(1, 8):
        if number == 6:
            recorder.pause()
            time.sleep(1)
            recorder.resume()
            begun[6] = time.perf_counter()
        time.sleep(0.06)
        steps.append(Skipped(0.02))
        recorder.follow(Started(number, {}, scalars | {"skipped": steps[-1]}, 0.06, 0.0))
    recorder.pause()
    recorder.close()
    ends = [step.ended for step in steps]
    return written, [end - begun.get(number, before) for number, (before, end) in enumerate(zip(ends, ends[1:]), 2)]


@pytest.fixture
def rows(recorded):
    return recorded[0]


def test_each_row_has_the_time_of_its_own_step(recorded):
    """At a pause the loop looks at three steps at once, two of which ended long before."""
    rows, seconds = recorded
    assert [row["step"] for row in rows] == list(range(1, 8)) and "step_seconds" not in rows[0]
    assert [row["step_seconds"] for row in rows[1:]] == pytest.approx(seconds, abs=0.02)
    assert [row["tokens_per_second"] for row in rows[1:]] == pytest.approx(
        [100 / row["step_seconds"] for row in rows[1:]]
    )


def test_overhead_is_never_negative(rows):
    assert all(row["overhead_seconds"] >= 0 for row in rows[1:])


def test_no_thread_is_left_behind(rows):
    deadline = time.monotonic() + 5
    while any("_wait_for_each" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
