"""Work that no signal breaks off in its middle."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block, but a second of the same does not.

    For writing by Orbax: its threads would not hear of what ends the main one, and go on in a directory that is cleared
    away meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return
    came = []

    def wait(signum, frame):
        came.append(signum)
        signal.signal(signum, before[signum])

    before = {signum: signal.signal(signum, wait) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        for signum in came:
            signal.raise_signal(signum)
