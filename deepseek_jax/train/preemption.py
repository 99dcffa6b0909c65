"""SIGTERM, which schedulers send before they take a machine away, as a question that the loop asks between steps."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def watch() -> Iterator[Callable[[int], bool]]:
    """Gives stopping(step): whether the run is to stop after this step.  Ask it once a step, in the main thread.

    In a run of several processes jax's own handler takes the signal, whichever process gets it, and all of them are
    told the same step: the one after the furthest that any has asked about.  Asking costs a lock and no communication.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: asked.append(signum))
    try:
        yield lambda step: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)
