"""Recognises a full disk in the errors of the libraries that run into it."""

import errno
import functools
import logging
import os
import sys

FULL = (errno.ENOSPC, errno.EDQUOT)
SENTENCE = "the disk is full: make room and run this again.  Training resumes from its last checkpoint."


def is_said_by(error: BaseException) -> bool:
    """Whether the error means a full disk; tensorstore, which writes for Orbax, raises a ValueError of its own."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(os.strerror(number) in str(error) for number in FULL)


def say_once():
    """Keeps Orbax's writing threads from printing tracebacks of errors that the main thread raises as well."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_other)
    if getattr(sys.unraisablehook, "func", None) is not _without_closed_loops:
        sys.unraisablehook = functools.partial(_without_closed_loops, sys.unraisablehook)


def _is_other(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[1] and is_said_by(record.exc_info[1]))


def _without_closed_loops(hook, args):
    """Drops "Event loop is closed", which Orbax's other writers raise after the first has failed."""
    if str(args.exc_value) != "Event loop is closed":
        hook(args)
