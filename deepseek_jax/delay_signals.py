"""Work that signals do not interrupt halfway."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def delay_signals() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM to the end of the block; a second one of the same kind takes effect at once.

    For writing with Orbax: its threads would not notice that the main thread has ended, and would go on writing into a
    directory that is being removed.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
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
