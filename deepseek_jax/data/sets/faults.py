"""What is wrong with the records of a file, gathered so that one look at it mends them all."""

import pathlib

from deepseek_jax.data.documents import is_jsonl
from deepseek_jax.errors import UserError

SHOWN = 10


class Faults:
    """Faults of one file by line; `check` says the first of them, and how many there are.

    typed: whether the file tells numbers from texts, as a .jsonl does; in a .csv all is text.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = path
        self.typed = is_jsonl(path)
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, what: str):
        """`what` is a sentence without its full stop."""
        self._found.append((line, what))

    def check(self):
        """Raises UserError where there are any: of one fault as a sentence, of several as a line for each."""
        if not self._found:
            return
        if len(self._found) == 1:
            ((line, what),) = self._found
            raise UserError(f"{self.path} line {line}: {what}.")
        found = sorted(self._found, key=lambda fault: fault[0])
        shown = [f"  line {line}: {what}." for line, what in found[:SHOWN]]
        rest = [f"  and {len(found) - SHOWN:,} more."] if len(found) > SHOWN else []
        raise UserError("\n".join([f"{self.path} has {len(found):,} faults:", *shown, *rest]))
