"""Detects damage to a directory's files, by a checksum of each that is stored in one more file there.

Orbax makes a checkpoint appear atomically, by renaming it, so a partial one is never taken for a whole; what it does
not notice is a byte changed later, by a disk or a copy.  Files are read in parallel: one thread reads some 1.5 GB a
second, and checkpoints of large models have terabytes.
"""

import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from deepseek_jax.errors import UserError
from deepseek_jax.files import read_json, write_json
from deepseek_jax.parallel import processes

RECORD = "checksums.json"
UNSEALED = {RECORD, "_CHECKPOINT_METADATA"}  # Orbax adds the commit time to the latter file later
CHUNK = 1 << 24


def record(directory: Path):
    """Writes the checksums of all files below `directory` into it."""
    files = _files(directory)
    with ThreadPoolExecutor() as threads:
        sums = zip(files, threads.map(_crc32, files), strict=True)
        write_json(directory / RECORD, {str(path.relative_to(directory)): total for path, total in sums})


def damage(directory: Path, below: str = "") -> str | None:
    """What is wrong with a directory that `record` has sealed, in words; None if it is intact.

    `below`: check only files whose path begins with this.  Collective: every process must call it, each reads a part
    of the files, and all get the same answer.
    """
    sums = _recorded(directory)
    names = sorted(name for name in sums or {} if name.startswith(below))
    mine = range(jax.process_index(), len(names), jax.process_count())
    with ThreadPoolExecutor() as threads:
        intact = threads.map(lambda number: _has(directory / names[number], sums[names[number]]), mine)
        first = next((number for number, well in zip(mine, intact, strict=True) if not well), len(names))
    first = processes.minimum_over_processes(-1 if sums is None else first)
    if first < 0:
        return f"{RECORD} is missing or unreadable"
    return f"{names[first]} is missing or was changed" if first < len(names) else None


def _recorded(directory: Path) -> dict[str, int] | None:
    try:
        return read_json(directory / RECORD)
    except UserError:
        return None


def _files(directory: Path):
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in UNSEALED)


def _has(path: Path, checksum: int) -> bool:
    try:
        return _crc32(path) == checksum
    except OSError:  # it is gone, or its disk cannot read it
        return False


def _crc32(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total = zlib.crc32(chunk, total)
    return total
