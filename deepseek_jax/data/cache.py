"""Cache of prepared data on disk: made once, named by a hash of all its inputs, and never visible half-made."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import IO

from deepseek_jax import files, full_disk
from deepseek_jax.config import DataConfig
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.errors import UserError


def root(data: DataConfig | DatasetConfig) -> pathlib.Path:
    """The directory of prepared data: `data.directory`, else $DEEPSEEK_JAX_DATA, else ~/.cache/deepseek_jax."""
    directory = data.directory or os.environ.get("DEEPSEEK_JAX_DATA") or "~/.cache/deepseek_jax"
    return pathlib.Path(directory).expanduser().absolute()


def digest(*parts) -> str:
    """A hash of JSON-able `parts`, 16 hex digits, the same on every machine and in every process."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def build(entry: pathlib.Path, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Returns `entry`, a directory; if it does not exist, `make(directory)` fills it first.

    Other processes that need the same entry wait for a lock, which ends with its holder.  UserError if nothing can be
    written.
    """
    if entry.exists():
        return entry
    with _opened(entry.parent / f"{entry.name}.lock") as lock:
        _wait(lock, entry.parent)
        if not entry.exists():
            with files.made_whole(entry) as directory:
                make(directory)
    return entry


def _wait(lock: IO, place: pathlib.Path):
    try:
        files.lock(lock, wait=True)
    except OSError:
        raise UserError(
            f"{place} is on a file system without locks, which preparing data needs; give another data.directory "
            "(dataset.directory), or set DEEPSEEK_JAX_DATA."
        ) from None


def _opened(lock: pathlib.Path) -> IO:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock.open("w")
    except OSError as error:
        if full_disk.is_said_by(error):
            raise
        raise UserError(
            f"prepared data cannot be written into {lock.parent}: {error.strerror}; give another data.directory "
            "(dataset.directory), or set DEEPSEEK_JAX_DATA."
        ) from None
