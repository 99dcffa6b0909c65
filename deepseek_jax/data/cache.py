"""Prepared data on disk: made once, found by a hash of all that went into it, never seen half made."""

import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable

from deepseek_jax.config import DataConfig


def root(data: DataConfig) -> pathlib.Path:
    """Where prepared data lives: `data.directory`, else $DEEPSEEK_JAX_DATA, else ~/.cache/deepseek_jax."""
    directory = data.directory or os.environ.get("DEEPSEEK_JAX_DATA") or "~/.cache/deepseek_jax"
    return pathlib.Path(directory).expanduser().absolute()


def digest(*parts) -> str:
    """A short name for JSON-able `parts`, equal on every machine and in every process."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def build(entry: pathlib.Path, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """`entry`, after `make(directory)` filled it if it was not there.

    `make` works in a directory beside it that is renamed when complete, so a process killed at any moment leaves no
    half-made entry; the lock has processes that want the same entry wait for the first, and dies with its holder.
    """
    if entry.exists():
        return entry
    entry.parent.mkdir(parents=True, exist_ok=True)
    with (entry.parent / f"{entry.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not entry.exists():
            partial = entry.parent / f"{entry.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: the lock says it is gone
            partial.mkdir()
            make(partial)
            partial.rename(entry)
    return entry
