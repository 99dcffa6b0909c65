"""Faults in the records of a file, collected so that the user can mend all of them at once."""

import pathlib

from deepseek_jax.data.documents import is_jsonl
from deepseek_jax.errors import UserError

SHOWN = 10


class Faults:
    """The faults of one file with their lines; `check` raises them together.

    typed: whether the file distinguishes numbers from text, as a .jsonl does; in a .csv everything is text.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = path
        self.typed = is_jsonl(path)
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, what: str):
        """`what`: a sentence without its full stop."""
        self._found.append((line, what))

    def check(self):
        """Raises UserError if there are any faults: a sentence for one, else a line for each of the first SHOWN."""
        if not self._found:
            return
        if len(self._found) == 1:
            ((line, what),) = self._found
            raise UserError(f"{self.path} line {line}: {what}.")
        found = sorted(self._found, key=lambda fault: fault[0])
        shown = [f"  line {line}: {what}." for line, what in found[:SHOWN]]
        rest = [f"  and {len(found) - SHOWN:,} more."] if len(found) > SHOWN else []
        raise UserError("\n".join([f"{self.path} has {len(found):,} faults:", *shown, *rest]))
