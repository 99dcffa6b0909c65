"""SIGTERM, which schedulers send before they take a machine away, as a flag that the loop reads between steps."""

import contextlib
import signal
from collections.abc import Iterator


class Preemption:
    asked = False

    def __call__(self, signum, frame):
        self.asked = True


@contextlib.contextmanager
def watch() -> Iterator[Preemption]:
    """While the block runs, SIGTERM only sets `asked`.  Enter it in the main thread, as Python's signals demand."""
    preemption = Preemption()
    before = signal.signal(signal.SIGTERM, preemption)
    try:
        yield preemption
    finally:
        signal.signal(signal.SIGTERM, before)
