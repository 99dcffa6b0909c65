"""SIGTERM, which schedulers send before they take a machine away, and Ctrl-C, as a flag polled between steps."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator

import jax
from jax.experimental import multihost_utils

TERMINATED, INTERRUPTED = "SIGTERM", "Ctrl-C"
_HEARD: list[str] = []  # signals that the last `watch` of this process received


class Stopped(Exception):
    """A signal ends the work under way, which the resumed run does again."""


def until_stopped(stopping: Callable[[], str], batches: Iterable) -> Iterator:
    """Yields the batches; raises Stopped instead of yielding the next one if `stopping()` names a signal."""
    for batch in batches:
        if stopping():
            raise Stopped
        yield batch


def heard() -> str:
    """The signal that was to stop the last `watch` block; "" if there was none."""
    return _HEARD[0] if _HEARD else ""


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], str]]:
    """Yields stopping(), which returns the signal that is to stop the run now, TERMINATED or INTERRUPTED, or "".

    Call it between steps and between the batches of an evaluation, in the main thread; in any other, where Python
    delivers no signals, it always returns "".  When the block has ended after a Ctrl-C, having saved what it must, this
    raises KeyboardInterrupt; a second Ctrl-C takes effect at once.

    In a multi-process run JAX's own handler takes SIGTERM, whichever process gets it, and all processes learn of it at
    the same call of stopping(), the next that none has made yet; so all must make the same calls.  A call costs a lock
    and no communication.  Ctrl-C is passed on as SIGTERM there and treated alike: no process may leave before the
    others.
    """
    asked = _HEARD
    asked.clear()
    if jax.process_count() > 1:
        with _first_interrupt(lambda: asked.append(INTERRUPTED) or os.kill(os.getpid(), signal.SIGTERM)):
            questions, told = itertools.count(1), []

            def together():
                if not told and multihost_utils.reached_preemption_sync_point(next(questions)):
                    told.append([*asked, TERMINATED][0])
                    asked[:] = told  # also if another process got the signal
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
    """Calls `act` on the first Ctrl-C; the second has its previous effect.  Where Ctrl-C is ignored, it stays so."""
    before = signal.getsignal(signal.SIGINT)

    def first(signum, frame):
        signal.signal(signal.SIGINT, before)
        act()

    if callable(before):  # else it is ignored, as in a script's background job: Ctrl-C is not meant for that
        signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
