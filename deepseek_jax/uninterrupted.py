"""Work that Ctrl-C does not interrupt halfway."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays a first Ctrl-C to the end of the block; a second one takes effect at once.

    For writing with Orbax: its threads would go on after the main thread has ended, and print a traceback for each file
    that they can no longer write.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    came = []

    def wait(signum, frame):
        came.append(signum)
        signal.signal(signum, before)

    before = signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)
