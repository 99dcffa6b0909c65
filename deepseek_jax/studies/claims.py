"""Claims in words that a program can judge: "bias update <= sequence-wise loss; no different from batch-wise loss".

A clause gives bounds for the paired difference a - b of two variants.  With m the smallest difference that counts:

    a < b                     at most -m            a > b      at least m
    a <= b                    at most m             a >= b     at least -m
    a no different from b     between -m and m

It holds if the 95% interval of the difference is inside the bounds, and does not if it is outside; if the interval
crosses a bound, the study cannot tell.  b may be a number.  A clause without a has the a of the clause before it.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence

from deepseek_jax.errors import UserError
from deepseek_jax.studies.differences import difference

HOLDS, DOES_NOT, CANNOT_TELL = "holds", "does not", "cannot tell at this scale"
NOT_MEASURED = "not measured"  # followed by the metric that no run has
UNFINISHED = "unfinished"  # runs are missing: the first few seeds alone allow no verdict
RELATIONS = {  # -> (lowest, highest) difference, in units of the margin
    "no different from": (-1, 1),
    "<=": (-math.inf, 1),
    ">=": (-1, math.inf),
    "<": (-math.inf, -1),
    ">": (1, math.inf),
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim about a metric.  `margin`: the smallest difference that counts, a number in the metric's unit or a
    percentage of the right side's mean as text: "0.25%"."""

    metric: str
    margin: float | str
    text: str

    def __post_init__(self):
        check_metric(self.metric)
        fraction(self.margin)

    def margin_beside(self, right: float) -> float:
        """The margin in the metric's unit, given the right side's mean."""
        share = fraction(self.margin)
        return abs(share * right) if isinstance(self.margin, str) else share


@dataclasses.dataclass(frozen=True)
class Clause:
    """`left` is a variant's name, `right` a variant's name or a number."""

    left: str
    relation: str
    right: str | float

    def __str__(self):
        return f"{self.left} {self.relation} {self.right}"


@dataclasses.dataclass(frozen=True)
class Judged:
    """A clause, its verdict, and the reason for it."""

    clause: Clause
    verdict: str
    reason: str


def check_metric(metric: object):
    """UserError if the metric of a claim or a sweep is not a string."""
    if not isinstance(metric, str):
        raise UserError(f"metric is {metric!r}; write the name of a score in quotes, as 'final/loss'.")


def fraction(margin: float | str) -> float:
    """A margin as a number above 0: 0.0025 for "0.25%"; UserError if it is not a valid margin."""
    percent = isinstance(margin, str) and margin.endswith("%")
    try:
        value = float(margin[:-1]) / 100 if percent else float(margin)
        if isinstance(margin, str) and not percent or not 0 < value < math.inf:
            raise ValueError
    except ValueError:
        raise UserError(f"a claim's margin is {margin!r}; write a number above 0, or a share as '0.5%'.") from None
    return value


def parse(text: str, names: Sequence[str]) -> list[Clause]:
    """The clauses of a claim about the variants `names`; UserError if the text cannot be parsed."""
    clauses, left = [], None
    for part in filter(None, (part.strip() for part in text.split(";"))):
        relation = next((word for word in RELATIONS if re.search(rf"(^|\s){re.escape(word)}\s", part)), None)
        if relation is None:
            known = ", ".join(RELATIONS)
            raise UserError(
                f"claim {part!r}: write two variants and between them one of {known}, with spaces around it, as in "
                "'new <= old'."
            )
        before, after = (side.strip() for side in re.split(rf"(?:^|\s){re.escape(relation)}\s", part, maxsplit=1))
        left = before or left
        if not left:
            raise UserError(f"claim {part!r} begins with its relation; name a variant before it.")
        number = None if after in names else _number(after)
        right = _known(after, names) if number is None else number
        if right == left:
            raise UserError(f"claim {part!r} compares {left} with itself; name another variant.")
        clauses.append(Clause(_known(left, names), relation, right))
    if not clauses:
        raise UserError("the claim is empty; write one such as 'new <= old'.")
    return clauses


def _known(name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise UserError(f"the claim names {name!r}; the variants are {', '.join(names)}.")
    return name


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def judge(
    claim: Claim, names: Sequence[str], values: Mapping[str, Mapping[int, float]], missing: Mapping[str, str]
) -> list[Judged]:
    """Judges each clause of the claim.  `values`: variant -> seed -> metric; `missing`: variant -> why values are
    missing."""
    return [_judge(claim, clause, values, missing) for clause in parse(claim.text, names)]


def _judge(
    claim: Claim, clause: Clause, values: Mapping[str, Mapping[int, float]], missing: Mapping[str, str]
) -> Judged:
    for name in (clause.left, clause.right):
        if name in missing:
            return Judged(clause, CANNOT_TELL, f"{name}: {missing[name]}")
    left = values.get(clause.left, {})
    right = values.get(clause.right, {}) if isinstance(clause.right, str) else dict.fromkeys(left, clause.right)
    seeds = sorted(left.keys() & right.keys())
    if len(seeds) < 2:
        return Judged(clause, CANNOT_TELL, f"{len(seeds)} paired seeds; an interval needs at least 2")
    found = difference([left[seed] for seed in seeds], [right[seed] for seed in seeds])
    margin = claim.margin_beside(sum(right[seed] for seed in seeds) / len(seeds))
    # A share of 0 is 0, which times an infinite bound is NaN; and a variant is not below one that it equals.
    low, high = (bound * max(margin, sys.float_info.min) for bound in RELATIONS[clause.relation])
    if low <= found.low and found.high <= high:
        verdict = HOLDS
    elif found.high < low or found.low > high:
        verdict = DOES_NOT
    else:
        verdict = CANNOT_TELL
    reason = f"difference {found.mean:+.4g}, 95% interval {found.low:+.4g} to {found.high:+.4g}, margin {margin:.4g}"
    return Judged(clause, verdict, reason)


def overall(judged: Sequence[Judged]) -> str:
    """The verdict on all clauses of a claim together: it holds if all do, and does not if any does not."""
    verdicts = {each.verdict for each in judged}
    unmeasured = next((verdict for verdict in verdicts if verdict.startswith(NOT_MEASURED)), None)
    ranked = (UNFINISHED, DOES_NOT, CANNOT_TELL)
    return unmeasured or next((verdict for verdict in ranked if verdict in verdicts), HOLDS)


def not_measured(claim: Claim, names: Sequence[str]) -> list[Judged]:
    """The claim's clauses, with the verdict that no finished run has the metric."""
    verdict = f"{NOT_MEASURED}: {claim.metric}"
    return [Judged(clause, verdict, "no finished run has it") for clause in parse(claim.text, names)]
