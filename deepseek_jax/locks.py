"""File locks between processes, released when the file is closed or the holder dies, however it ends."""

import fcntl
from typing import IO


def take(lock: IO[str], *, wait: bool = False) -> bool:
    """Tries to lock the open file, or with `wait` blocks until it can; returns whether this process holds the lock.

    OSError if the file system has no locks.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def sign(lock: IO[str], holder: str):
    """Writes into the file who holds the lock, for processes that find it taken."""
    lock.truncate(0)
    lock.write(holder)
    lock.flush()
