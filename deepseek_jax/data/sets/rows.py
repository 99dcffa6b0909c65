"""Reads the rows of a user's tables with their line numbers, and texts and numbers from a row."""

import contextlib
import io
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

import numpy as np

from deepseek_jax.data import opening
from deepseek_jax.data.csv_rows import csv_rows
from deepseek_jax.data.dotted import has, value_at
from deepseek_jax.data.plain_text import is_utf8
from deepseek_jax.data.sets.faults import Faults
from deepseek_jax.data.sets.formats import CSV, JSONL, OTHERWISE, PARQUET, Row, format_of, shards
from deepseek_jax.data.sets.parquet_rows import parquet_rows
from deepseek_jax.errors import UserError

SURROGATE = "contains a lone surrogate (half of a character), which is not text; correct the record or remove it"
NOT_UTF8 = "is not UTF-8; correct the record or remove it"
SHOWN = 100  # characters, or entries of a list, of a value in an error message
LARGEST = float(np.finfo(np.float32).max)  # magnitude of a number, as networks use float32


@contextlib.contextmanager
def reading(key: str, path: pathlib.Path | str) -> Iterator[None]:
    """Turns errors into UserError if the file named by the setting `key` does not exist or cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{key}: there is no file {path}.") from None
    except OSError as error:
        raise UserError(f"{key}: cannot read {path}: {error.strerror}; name a file.") from None


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[TextIO]:
    """Opens a .csv or .jsonl, which may be compressed, for `rows_of`; UserError if it cannot be read."""
    check_readable(path)
    newline = "" if format_of(path) == CSV else None
    try:
        with opening.opened(path, lambda size: None, OTHERWISE) as file:
            if other := opening.other_contents(file):
                raise UserError(f"{path} is not UTF-8: {other}.")
            yield io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; save it in that encoding.") from None


def check_readable(path: pathlib.Path):
    """UserError if the table that dataset.name names does not exist or cannot be read."""
    with reading("dataset.name", path):
        if not (path.is_dir() and format_of(path)):
            path.open("rb").close()


def table_rows(path: pathlib.Path, needed: list[str], faults: Faults, whole: bool) -> Iterator[tuple[int, Row]]:
    """Yields (line number, row) of a table of any format, as `rows_of` does; of Parquet the numbers of the rows.

    whole: whether rows must have more columns than those `needed`.
    """
    if faults.format == PARQUET:
        yield from parquet_rows(path, needed, faults, whole)
        return
    before = 0
    for file in shards(path):
        faults.begin(file, before)
        count = itertools.count()
        with opened(file) as lines:
            counted = (line for line, _ in zip(lines, count))
            yield from rows_of(counted, faults.format, needed, faults, before)
        before += next(count)


def rows_of(
    lines: Iterable[str], suffix: str, needed: list[str], faults: Faults, before: int = 0
) -> Iterator[tuple[int, Row]]:
    """Yields (line number, row); rows that are broken or lack one of the columns `needed` become faults.

    One at a time: keeping whole rows takes about twenty times the memory of the file.
    `lines` must include their line ends; `suffix` is one of READERS; before: lines of the directory's earlier files.
    """

    def add(line: int, what: str):
        faults.add(before + line, what)

    for line, row in READERS[suffix](lines, needed, faults.current, add):
        yield before + line, row


def _jsonl_rows(
    lines: Iterable[str], needed: list[str], path: pathlib.Path | str, add: Callable[[int, str], None]
) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            add(number, "broken JSON")
            continue
        missing = [name for name in needed if not has(row, name)]
        if missing:
            add(number, f"no key {missing[0]!r}")
        else:
            yield number, row


READERS: dict[str, Callable[..., Iterator[tuple[int, Row]]]] = {CSV: csv_rows, JSONL: _jsonl_rows}


def shown(value: object) -> str:
    """A value for an error message: cut if it is long, and of a record in the record only the keys."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: ..." for key in value) + "}"
    cut = isinstance(value, str | list) and len(value) > SHOWN
    written = repr(value[:SHOWN] if cut else value)
    return f"{written[:SHOWN]}..." if cut or len(written) > 2 * SHOWN else written


def text(faults: Faults, line: int, row: Row, column: str) -> str:
    """The text in a column; "" and a fault if it is not text or is blank."""
    given = value_at(row, column)
    value = decoded(given)
    if not isinstance(value, str) or not value.strip():
        faults.add(line, f"{column} is {shown(value)}; it must be text")
    elif not is_utf8(value):
        faults.add(line, f"{column} {NOT_UTF8 if isinstance(given, bytes) else SURROGATE}")
    else:
        return value
    return ""


def decoded(value: object) -> object:
    """Bytes as text, as some writers of Parquet do not mark texts; what is not UTF-8 in them fails `is_utf8`."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def number(faults: Faults, line: int, row: Row, column: str) -> float:
    """The number in a column; 0 and a fault if it is not a finite number in the range of float32."""
    value = value_at(row, column)
    try:
        # float() would also accept JSON's true, the string "40" in a .jsonl, and "1_2" as 12.
        if isinstance(value, bool | bytes) or (isinstance(value, str) and (faults.typed or "_" in value)):
            raise ValueError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        faults.add(line, f"{column} is {shown(decoded(value))}; it must be a number")
        return 0.0
    if abs(found) <= LARGEST:
        return found
    faults.add(line, f"{column} is {found}; correct the record or remove it")
    return 0.0
