"""Sweeps: many candidates of one config, with the unpromising ones stopped early by a stated rule."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from deepseek_jax.checking import choice
from deepseek_jax.errors import UserError
from deepseek_jax.studies.claims import check_metric
from deepseek_jax.studies.study import EQUAL, Variant, check_size


@dataclasses.dataclass(frozen=True)
class LogUniform:
    """Random numbers between `low` and `high` whose logarithm is uniform, to three significant digits."""

    low: float
    high: float

    def __post_init__(self):
        if not 0 < self.low < self.high:
            raise UserError(f"LogUniform({self.low}, {self.high}): the first must be above 0 and below the second.")

    def draw(self, rng: np.random.Generator) -> float:
        return float(f"{math.exp(rng.uniform(math.log(self.low), math.log(self.high))):.3g}")


@dataclasses.dataclass(frozen=True)
class Halving:
    """Successive halving (arXiv:1502.07943): at each of `rungs`, shares of the steps, the best share `keep` of the
    remaining candidates continues, by the metric's mean over seeds, measured at the same step of the same schedule."""

    rungs: Sequence[float] = (0.25, 0.5)
    keep: float = 0.5

    def __post_init__(self):
        rising = bool(self.rungs) and list(self.rungs) == sorted(set(self.rungs))
        if not (rising and 0 < self.rungs[0] and self.rungs[-1] < 1 and 0 < self.keep < 1):
            raise UserError(f"halving has rungs={self.rungs}, keep={self.keep}; write rising shares between 0 and 1.")

    def survivors(self, scores: Mapping[str, float]) -> list[str]:
        """The names that continue, at least one, in the given order.  Lower is better; a failed one scores infinity."""
        count = max(1, math.ceil(self.keep * len(scores)))
        cost = {name: score if math.isfinite(score) else math.inf for name, score in scores.items()}
        best = sorted(cost, key=lambda name: (cost[name], list(cost).index(name)))[:count]
        return [name for name in scores if name in best]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A search over config fields.

    search    key -> values, each combination a candidate (a grid); with `samples`, also LogUniform.  A mapping
              {label: changes} as values sets several keys together: {"width": {"64": {...}, "128": {...}}}
    samples   number of random candidates; 0: the grid
    across    a key of `search`; one choice of the other keys should do well at all its values.  The report picks the
              choice with the least regret: its largest excess over the best score at the same value
    halving   when unpromising candidates are stopped; None: never.  With `across`, a choice continues at all values or
              at none, by its regret
    metric    lower is better; with halving, one that is evaluated during training: val/...
    """

    base: str
    search: Mapping[str, object]
    budget: float
    equal: str = "tokens"
    metric: str = "val/loss"
    seeds: int = 1
    samples: int = 0
    halving: Halving | None = None
    across: str = ""
    larger: str = ""

    claims = measures = ()  # those of a Study

    def __post_init__(self):
        choice("equal", self.equal, EQUAL)
        if self.across:
            choice("across", self.across, self.search)
        if self.across and self.samples:
            raise UserError(
                f"across needs each choice at every value of {self.across}, which random candidates are not; leave "
                "samples out and write a grid."
            )
        if not self.search:
            raise UserError("search is empty; give a key and its values.")
        for key, values in self.search.items():
            listed = isinstance(values, Collection) and not isinstance(values, str) and len(values) > 0
            if not (listed or isinstance(values, LogUniform)):
                raise UserError(f"the search over {key} is {values!r}; list its values, or give LogUniform(low, high).")
        drawn = [key for key, values in self.search.items() if isinstance(values, LogUniform)]
        if drawn and not self.samples:
            raise UserError(f"the search over {drawn[0]} is random: say how many samples to draw.")
        check_size(self.seeds, self.budget)
        check_metric(self.metric)
        count, different = len(self.names), len(set(self.names))
        if different < count:
            raise UserError(
                f"of the search's {count} candidates only {different} differ; lower samples, or correct the grid."
            )

    @property
    def variants(self) -> list[Variant]:
        """The candidates."""
        return [Variant(" ".join(point.values()), self._changes(point)) for point in self.points]

    @property
    def points(self) -> list[dict[str, str]]:
        """Each candidate as key -> label."""
        axes = {key: self._labels(key) for key in self.search}
        if not self.samples:
            return [dict(zip(axes, labels)) for labels in itertools.product(*axes.values())]
        rng = np.random.default_rng(0)

        def draw(key):
            return str(self.search[key].draw(rng)) if axes[key] is None else str(rng.choice(axes[key]))

        return [{key: draw(key) for key in axes} for _ in range(self.samples)]

    @property
    def names(self) -> list[str]:
        return [variant.name for variant in self.variants]

    def survivors(self, scores: Mapping[str, float]) -> list[str]:
        """The names of the candidates that continue by the rule of `halving`."""
        if not self.across:
            return self.halving.survivors(scores)
        left = self.halving.survivors(self.regrets(scores))
        return [name for name, (_, label) in self._places.items() if name in scores and label in left]

    def regrets(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Choice of the other keys -> its largest excess over the best score at the same value of `across`; infinite
        if it has no score at some value, and for all choices if no candidate has a score at some value."""
        table = self.by_value(scores)
        labels = dict.fromkeys(label for name, (_, label) in self._places.items() if name in scores)
        best = {value: min(of.values(), default=math.nan) for value, of in table.items()}
        above = {label: [of.get(label, math.inf) - best[value] for value, of in table.items()] for label in labels}
        return {label: max(of) if all(map(math.isfinite, of)) else math.inf for label, of in above.items()}

    def by_value(self, scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Value of `across` -> choice of the other keys -> score, of the candidates with a finite score."""
        table: dict[str, dict[str, float]] = {value: {} for value, _ in self._places.values()}
        for name, (value, label) in self._places.items():
            if math.isfinite(scores.get(name, math.inf)):
                table[value][label] = scores[name]
        return table

    @property
    def _places(self) -> dict[str, tuple[str, str]]:
        """Candidate -> (its value of `across`, its choice of the other keys)."""
        others = (" ".join(label for key, label in point.items() if key != self.across) for point in self.points)
        values = (point[self.across] for point in self.points)
        return dict(zip(self.names, zip(values, others, strict=True), strict=True))

    def _labels(self, key: str) -> list[str] | None:
        values = self.search[key]
        return None if isinstance(values, LogUniform) else [str(value) for value in values]

    def _changes(self, point: Mapping[str, str]) -> dict[str, object]:
        changes = {}
        for key, label in point.items():
            values = self.search[key]
            if isinstance(values, Mapping):
                changes |= next(each for name, each in values.items() if str(name) == label)
            elif isinstance(values, LogUniform):
                changes[key] = label
            else:
                changes[key] = next(value for value in values if str(value) == label)
        return changes
