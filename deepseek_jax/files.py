"""Files that are written whole, JSON objects, locks, and whether a path can be written at all.

Every file that this package names is written by `write_bytes`, `write_text` or `write_json`: complete or as it was
before, even if the process is killed or the disk is full.  A file that the user names, such as a page of `data check`,
is written in place, as it may be a link or a device.
"""

import fcntl
import json
import os
import tempfile
from pathlib import Path
from typing import IO

from deepseek_jax.errors import UserError


def write_bytes(path: Path, content: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def write_text(path: Path, text: str):
    write_bytes(path, text.encode())


def write_json(path: Path, content: dict):
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: str | Path) -> dict:
    """The JSON object in a file; UserError if there is none or it cannot be read."""
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}.") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object.")
    return content


def lock(file: IO[str], *, wait: bool = False) -> bool:
    """Tries to lock the open file, or with `wait` blocks until it can; returns whether this process holds the lock.

    It is released when the file is closed or the holder dies, however it ends.  OSError: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def sign(file: IO[str], holder: str):
    """Writes into the file who holds its lock, for processes that find it taken."""
    file.truncate(0)
    file.write(holder)
    file.flush()


def check_file(path: Path):
    """Raises UserError if no file can be written at `path`; leaves nothing there."""
    if not path.parent.is_dir():
        raise UserError(f"there is no directory {path.parent} to write {path.name} into.")
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file in it.")
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"{path} cannot be overwritten; name another file.")
    if not path.exists():
        check_directory(path.parent, "written into")


def check_directory(directory: Path, what: str = "made a directory"):
    """Raises UserError (it "cannot be `what`") if `directory` can be neither made nor written into; leaves no file."""
    try:
        there = next(path for path in (directory, *directory.parents) if path.exists())
        tempfile.TemporaryDirectory(dir=there).cleanup()
    except OSError as error:
        raise UserError(f"{directory} cannot be {what}: {error.strerror}; give another.") from None
