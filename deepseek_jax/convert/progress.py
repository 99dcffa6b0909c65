"""Progress reports of a conversion, and a record of the NaN and infinity found during it."""

import dataclasses
from collections.abc import Callable

from deepseek_jax.convert.finite import Findings

Progress = Callable[[int, int], None]  # called with (amount done, total amount)
Say = Callable[[str], None]  # called with a message for the user


def no_report(done: int, total: int):
    """A Progress that shows nothing."""


@dataclasses.dataclass
class Tally:
    """Adds up the amount done and reports it to `progress`."""

    progress: Progress
    total: int
    done: int = 0
    findings: Findings = dataclasses.field(default_factory=Findings)

    def add(self, amount: int):
        self.done += amount
        self.progress(self.done, self.total)
