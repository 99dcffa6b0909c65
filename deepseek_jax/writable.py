"""Checks whether a command will be able to write its output, before it does its work."""

import os
import tempfile
from pathlib import Path

from deepseek_jax.errors import UserError


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
