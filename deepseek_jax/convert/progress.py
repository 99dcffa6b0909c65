"""How far a conversion is, for whoever wants to show it, and what it came upon."""

import dataclasses
from collections.abc import Callable

from deepseek_jax.convert.finite import Findings

Progress = Callable[[int, int], None]  # (what is done, all there is to do)
Say = Callable[[str], None]  # is told what a user should know


def unseen(done: int, total: int):
    """The Progress of those who do not look."""


@dataclasses.dataclass
class Tally:
    """Adds up what is done and tells it."""

    progress: Progress
    total: int
    done: int = 0
    findings: Findings = dataclasses.field(default_factory=Findings)

    def add(self, amount: int):
        self.done += amount
        self.progress(self.done, self.total)
