"""SIGTERM, which schedulers send before they take a machine away, and Ctrl-C, as a question asked between steps."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

TERMINATED, INTERRUPTED = "SIGTERM", "Ctrl-C"


@contextlib.contextmanager
def watch() -> Iterator[Callable[[int], str]]:
    """Gives stopping(step): what is to stop the run after this step, TERMINATED or INTERRUPTED; "" where nothing is.

    Ask it once a step, in the main thread.  A second Ctrl-C ends at once; after a first one the block is left with
    KeyboardInterrupt, when what it had to save is saved.

    In a run of several processes jax's own handler takes SIGTERM, whichever process gets it, and all of them are told
    the same step: the one after the furthest that any has asked about.  Asking costs a lock and no communication.
    Ctrl-C is passed on as SIGTERM there, and ends as that does: no process may leave before the others.
    """
    asked = []
    if jax.process_count() > 1:
        with _first_interrupt(lambda: asked.append(INTERRUPTED) or os.kill(os.getpid(), signal.SIGTERM)):
            together = multihost_utils.reached_preemption_sync_point
            yield lambda step: [*asked, TERMINATED][0] if together(step) else ""
        return
    before = signal.signal(signal.SIGTERM, lambda signum, frame: asked.append(TERMINATED))
    try:
        with _first_interrupt(lambda: asked.append(INTERRUPTED)):
            yield lambda step: asked[0] if asked else ""
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
