"""Rows of a .csv: separated by commas, quoted as in RFC 4180, with the names of the columns in the first line."""

import csv
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from deepseek_jax.errors import UserError

csv.field_size_limit(2**31 - 1)  # the most on every platform; the default refuses texts of more than 131,072 characters


def csv_rows(
    lines: Iterable[str], needed: Sequence[str], path: pathlib.Path | str, add: Callable[[int, str], None]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (number of its last line, row); `add` is given the line of a broken row and what is wrong with it.

    `lines` must include their line ends.  UserError, naming `path`, if one of the columns `needed` is missing.
    """
    lines = iter(lines)
    first = next(lines, "")
    spaced = _has_spaces(first, needed)
    reader = csv.reader(itertools.chain([first], lines), strict=True, skipinitialspace=spaced)
    line = 0
    try:
        header = [name.strip() if spaced else name for name in next(reader, ())]
        for name in needed:
            if name not in header:
                raise UserError(f"{path} has no column {name!r}; its columns are {named(header) or 'none'}.")
            if header.count(name) > 1:
                raise UserError(f"{path} has several columns {name!r}; give each a name of its own.")
        line = reader.line_num
        for fields in reader:
            line = reader.line_num
            if not fields:  # an empty line
                continue
            if len(fields) == len(header):
                yield line, dict(zip(header, fields))
            else:
                add(line, "the row does not have as many fields as the header")
    except csv.Error as error:  # in the row that begins after `line`; where the next one begins is unknown
        add(line + 1, f"{error}; what follows is not read")


def _has_spaces(first: str, needed: Sequence[str]) -> bool:
    """Whether more of the needed columns are found in a .csv's first line if spaces around names are ignored."""
    as_is, spaced = (set(next(csv.reader([first], skipinitialspace=skip), ())) for skip in (False, True))
    return len(as_is & {*needed}) < len({name.strip() for name in spaced} & {*needed})


def named(header: Sequence[str]) -> str:
    """The columns of a .csv, for an error message."""
    return ", ".join(name.strip() for name in header)


def empty_rows(lines: Iterable[str]) -> list[int]:
    """The empty lines of a .csv, which `csv_rows` skips; those inside a quoted text do not count."""
    reader = csv.reader(lines)
    return [reader.line_num for row in reader if not row]
