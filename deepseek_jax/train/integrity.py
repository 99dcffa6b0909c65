"""Whether a directory still holds what was written: a checksum of every file, kept in a file beside them.

Orbax makes a checkpoint appear at once by renaming it, so half of one is never taken for a whole; what it does not
notice is a byte changed later, by a disk or a copy.
"""

import json
import zlib
from pathlib import Path

RECORD = "checksums.json"
UNSEALED = {RECORD, "_CHECKPOINT_METADATA"}  # Orbax adds the time of the commit to its own afterwards
CHUNK = 1 << 24


def record(directory: Path):
    """Write the checksums of all files below `directory` into it."""
    sums = {str(path.relative_to(directory)): _crc32(path) for path in _files(directory)}
    (directory / RECORD).write_text(json.dumps(sums))


def damage(directory: Path) -> str | None:
    """What is wrong with a directory that `record` saw, in a few words; None when nothing is."""
    try:
        sums = json.loads((directory / RECORD).read_text())
    except (OSError, ValueError):
        return f"{RECORD} is missing or unreadable"
    for name, expected in sums.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if _crc32(path) != expected:
            return f"{name} was changed or cut short"
    return None


def _files(directory: Path):
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in UNSEALED)


def _crc32(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total = zlib.crc32(chunk, total)
    return total
