"""Files that are written whole, JSON objects, locks, and whether a path can be written at all.

Every file that this package names is written by `write_bytes`, `write_text` or `write_json`: complete or as it was
before, even if the process is killed or the disk is full.  A file that the user names, such as a page of `data check`,
is written in place, as it may be a link or a device.  A directory that is of use only when it is complete is made by
`made_whole`.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from deepseek_jax.errors import UserError

PARTIAL = ".deepseek-jax.partial"  # of the folder in which a directory is made


def write_bytes(path: Path, content: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # it is there if the disk is full


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


def lock(file: IO[str] | int, *, wait: bool = False) -> bool:
    """Tries to lock an open file or directory, with `wait` until it can; returns whether this process holds the lock.

    It is released when the file is closed or the holder dies, however it ends.  OSError: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def is_taken(file: IO[str] | int) -> bool:
    """Tries to lock an open file or directory; returns whether another process holds it (no if there are no locks)."""
    try:
        return not lock(file)
    except OSError:
        return False


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


@contextlib.contextmanager
def made_whole(target: str | os.PathLike) -> Iterator[Path]:
    """A context that gives an empty directory, of the same name as `target`, which becomes `target` at the end.

    If the block raises, what it made is removed.  A process that is killed leaves it in a folder beside `target` (or in
    `target`, if that exists), which the next one to make `target` replaces.
    UserError if `target` is not absent or empty, cannot be written, or is being made by another process.
    """
    target = Path(target)
    _check_free(target)
    there, final = target.is_dir(), target.resolve()
    # An empty directory is filled, not replaced: it may be a mount point, or in a directory of somebody else.
    folder = final / PARTIAL if there else final.with_name(final.name + PARTIAL)
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        if is_taken(held):
            raise UserError(f"another process is making {target}; wait for it or give another directory.")
        directory = folder / final.name
        shutil.rmtree(directory, ignore_errors=True)
        try:
            directory.mkdir()
            yield directory
            for path in [*directory.iterdir()] if there else [directory]:
                path.rename(final / path.name if there else final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(held)


def _check_free(directory: Path):
    if directory.is_file():
        raise UserError(f"{directory} is a file; give a directory that does not exist yet.")
    check_directory(directory)
    if directory.exists() and any(path.name != PARTIAL for path in directory.iterdir()):
        raise UserError(f"{directory} is not empty; give a directory that does not exist yet.")
