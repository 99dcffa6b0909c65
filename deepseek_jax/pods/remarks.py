"""Parts what XLA writes past Python to standard error: its remarks into a list, all else on to standard error.

A compiler that aborts takes this process along, so what it says last has to be read by another one: this file, run as a
program, in which nothing but Python's own library may be imported.
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
    """On arrays that could only be moved by bringing them whole to every device; the list is filled at the end."""
    remarks = []
    with tempfile.NamedTemporaryFile("w+", errors="replace") as file:
        command = [sys.executable, "-I", __file__, file.name]
        # A session of its own: Ctrl-C is for this process alone, and the other one ends with what it reads.
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
