"""Faults in the records of a file, collected so that the user can mend all of them at once."""

import bisect
import pathlib

from deepseek_jax.data.sets.formats import CSV, PARQUET, format_of
from deepseek_jax.errors import UserError

SHOWN = 10


class Faults:
    """The faults of one table with their lines, or rows of Parquet; `check` raises them together.

    format: format_of the table, found once, as that goes through all of a directory.
    current: the file that is read now, the table itself or one of a directory.
    typed: whether the table distinguishes numbers from text, as a .jsonl does; in a .csv everything is text.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = self.current = path
        self.format = format_of(path)
        self.typed = self.format not in (CSV, None)
        self._unit = "row" if self.format == PARQUET else "line"
        self._starts: list[tuple[int, str]] = []  # what is before each file of a directory, and its name
        self._found: list[tuple[int, str]] = []

    def begin(self, file: pathlib.Path, before: int):
        """Says that a file of a directory begins after so many rows or lines."""
        self.current = file
        if file != pathlib.Path(self.path):
            self._starts.append((before, str(file.relative_to(self.path))))

    def place(self, line: int) -> str:
        """Where a record is, as "line 3", "row 3", or "row 3 of FILE" in a directory."""
        before, file = self._start(line)
        return f"{self._unit} {line - before} of {file}" if file else f"{self._unit} {line}"

    def file(self, line: int) -> str:
        """The file of a directory in which a record is."""
        return self._start(line)[1]

    def _start(self, line: int) -> tuple[int, str]:
        place = bisect.bisect_left(self._starts, line, key=lambda start: start[0])
        return self._starts[place - 1] if place else (0, "")

    def add(self, line: int, what: str):
        """`what`: a sentence without its full stop."""
        self._found.append((line, what))

    def check(self):
        """Raises UserError if there are any faults: a sentence for one, else a line for each of the first SHOWN."""
        if not self._found:
            return
        if len(self._found) == 1:
            ((line, what),) = self._found
            raise UserError(f"{self.path} {self.place(line)}: {what}.")
        found = sorted(self._found, key=lambda fault: fault[0])
        shown = [f"  {self.place(line)}: {what}." for line, what in found[:SHOWN]]
        rest = [f"  and {len(found) - SHOWN:,} more."] if len(found) > SHOWN else []
        raise UserError("\n".join([f"{self.path} has {len(found):,} faults:", *shown, *rest]))
