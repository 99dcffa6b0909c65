"""Locks between processes by a file, which die with their holder however it ends; closing the file gives one up."""

import fcntl
from typing import IO


def take(lock: IO[str], *, wait: bool = False) -> bool:
    """Whether this process holds the lock of the open file now, another one's end waited for if asked.

    OSError where the file system has no locks.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def sign(lock: IO[str], holder: str):
    """Writes into the file who holds it, for those that find it held."""
    lock.truncate(0)
    lock.write(holder)
    lock.flush()
