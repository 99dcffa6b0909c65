"""Filters what XLA's C++ code writes to standard error: its remarks go into a list, the rest passes through.

A compiler that aborts kills its process, so its last words must be read by another one: this file, run as a program.
It must therefore import nothing but the standard library.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

REMARK = re.compile(rb"nvoluntary full rematerialization")


@contextlib.contextmanager
def captured_remarks() -> Iterator[list[str]]:
    """Yields a list of remarks on arrays that could be resharded only by replicating them; it is filled at the end."""
    remarks = []
    with tempfile.NamedTemporaryFile("w+", errors="replace") as file:
        command = [sys.executable, "-I", __file__, file.name]
        # In a session of its own, so that Ctrl-C reaches only this process; the sieve ends when its input does.
        sieve = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        outside = os.dup(2)
        os.dup2(sieve.stdin.fileno(), 2)
        sieve.stdin.close()
        try:
            yield remarks
        finally:
            os.dup2(outside, 2)
            os.close(outside)
            sieve.wait()
            remarks += file.read().splitlines()


def part(lines: Iterable[bytes], remarks: BinaryIO, others: BinaryIO):
    for line in lines:
        kept = remarks if REMARK.search(line) else others
        kept.write(line)
        kept.flush()


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as file:
        part(sys.stdin.buffer, file, sys.stderr.buffer)
