"""SIGTERM, which schedulers send before they take a machine away, and Ctrl-C, as a question asked between steps."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator

import jax
from jax.experimental import multihost_utils

TERMINATED, INTERRUPTED = "SIGTERM", "Ctrl-C"
_HEARD: list[str] = []  # by the last `watch` of this process


class Stopped(Exception):
    """What was under way ends here, and is done again by the run that goes on."""


def unless(stopping: Callable[[], str], batches: Iterable) -> Iterator:
    """The batches; raises Stopped instead of the next one where the run is to stop."""
    for batch in batches:
        if stopping():
            raise Stopped
        yield batch


def heard() -> str:
    """What was to stop the block that was last watched; "" where nothing was."""
    return _HEARD[0] if _HEARD else ""


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], str]]:
    """Gives stopping(): what is to stop the run now, TERMINATED or INTERRUPTED; "" where nothing is.

    Ask it between steps and between the batches of an evaluation, in the main thread; in another, which Python gives no
    signals, nothing stops the run.  A second Ctrl-C ends at once; after a first one the block is left with
    KeyboardInterrupt, when what it had to save is saved.

    In a run of several processes jax's own handler takes SIGTERM, whichever process gets it, and all of them are told
    at the same question: the one after the last that any has asked.  Asking costs a lock and no communication.
    Ctrl-C is passed on as SIGTERM there, and ends as that does: no process may leave before the others.
    """
    asked = _HEARD
    asked.clear()
    if jax.process_count() > 1:
        with _first_interrupt(lambda: asked.append(INTERRUPTED) or os.kill(os.getpid(), signal.SIGTERM)):
            questions, told = itertools.count(1), []

            def together():
                if not told and multihost_utils.reached_preemption_sync_point(next(questions)):
                    told.append([*asked, TERMINATED][0])
                    asked[:] = told  # also where another process got the signal
                return "".join(told)

            yield together
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""
        return
    before = signal.signal(signal.SIGTERM, lambda signum, frame: asked.append(TERMINATED))
    try:
        with _first_interrupt(lambda: asked.append(INTERRUPTED)):
            yield lambda: asked[0] if asked else ""
    finally:
        signal.signal(signal.SIGTERM, before)
    if INTERRUPTED in asked:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _first_interrupt(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` at a first Ctrl-C; a second does what it did before, and where it did nothing so does the first."""
    before = signal.getsignal(signal.SIGINT)

    def first(signum, frame):
        signal.signal(signal.SIGINT, before)
        act()

    if callable(before):  # not so in a job of a script's background, which a terminal's Ctrl-C is not meant for
        signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
