"""SIGTERM and Ctrl-C as the training loop learns of them."""

import signal
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
from jax.experimental import multihost_utils

from deepseek_jax.errors import UserError
from deepseek_jax.train import preemption


@pytest.fixture
def handlers():
    """Checks that a test leaves the signal handlers as they were before it."""
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # as background jobs of a script ignore SIGINT
    terminate = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is terminate
    assert signal.signal(signal.SIGINT, outside) is signal.default_int_handler


def test_a_first_interrupt_is_reported_to_the_loop_and_raised_on_leaving(handlers):
    with pytest.raises(KeyboardInterrupt), preemption.watch() as stopping:
        assert stopping() == ""
        signal.raise_signal(signal.SIGINT)
        assert stopping() == preemption.INTERRUPTED
        saved = True
    assert saved


def test_a_second_interrupt_ends_at_once(handlers):
    reached = []
    with pytest.raises(KeyboardInterrupt), preemption.watch():
        signal.raise_signal(signal.SIGINT)
        reached.append("first")
        signal.raise_signal(signal.SIGINT)
        reached.append("second")
    assert reached == ["first"]


def test_another_error_is_raised_in_place_of_the_interrupt(handlers):
    with pytest.raises(UserError), preemption.watch():
        signal.raise_signal(signal.SIGINT)
        raise UserError("step 3 is not finite.")


def test_sigterm_raises_nothing(handlers):
    with preemption.watch() as stopping:
        signal.raise_signal(signal.SIGTERM)
        assert stopping() == preemption.TERMINATED


def test_an_ignored_interrupt_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with preemption.watch() as stopping:
            signal.raise_signal(signal.SIGINT)
            assert stopping() == ""
    finally:
        signal.signal(signal.SIGINT, before)


def test_iterating_over_batches_raises_stopped_after_a_signal(handlers):
    with preemption.watch() as stopping:
        batches = preemption.until_stopped(stopping, range(5))
        assert next(batches) == 0
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(preemption.Stopped):
            next(batches)


def test_an_interrupt_of_one_process_stops_all_at_the_same_step(handlers, monkeypatch):
    told = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(preemption.os, "kill", lambda process, number: told.append(number))
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: bool(told) and step == 3)
    with preemption.watch() as stopping:
        assert stopping() == ""
        signal.raise_signal(signal.SIGINT)
        assert told == [signal.SIGTERM]
        assert [stopping() for _ in range(3)] == ["", preemption.INTERRUPTED, preemption.INTERRUPTED]


def test_outside_the_main_thread_signals_are_not_watched(handlers):
    def watched():
        with preemption.watch() as stopping:
            return stopping()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(watched).result() == ""
