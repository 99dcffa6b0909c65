"""Why a run, a measure or a speed trial failed: the content of a file, so that it is reported and not tried again."""

import traceback
from pathlib import Path

from deepseek_jax.errors import UserError
from deepseek_jax.files import read_json, write_json, write_text

KEY = "failed"  # the only key of such a file


def write(path: Path, reason: str, error: Exception | None = None):
    """Writes the file `path` and, if an error is given, its traceback beside it in a .txt."""
    write_json(path, {KEY: reason})
    if error:
        write_text(path.with_suffix(".txt"), "".join(traceback.format_exception(error)))


def read(path: Path) -> str | None:
    """The reason in the file; None if it has none, but numbers, or does not exist."""
    reason = read_json(path).get(KEY) if path.exists() else None
    return reason if isinstance(reason, str) else None


def summary(error: Exception) -> str:
    """An exception's type and first line; the whole message of a UserError."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
