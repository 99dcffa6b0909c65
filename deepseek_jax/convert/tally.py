"""What a conversion has done so far, and where it found NaN and infinity."""

import dataclasses

from deepseek_jax.convert.finite import Findings
from deepseek_jax.reporting import Report


@dataclasses.dataclass
class Tally:
    """Adds up the amount of a stage that is done, and reports it."""

    report: Report
    stage: str
    total: int
    done: int = 0
    findings: Findings = dataclasses.field(default_factory=Findings)

    def add(self, amount: int):
        self.done += amount
        self.report(self.stage, self.done, self.total)
