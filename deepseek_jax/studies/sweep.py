"""Sweeps: many candidates of one config, of which hopeless ones are stopped early by a stated rule."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from deepseek_jax.checking import choice
from deepseek_jax.errors import UserError
from deepseek_jax.studies.study import EQUAL, Variant


@dataclasses.dataclass(frozen=True)
class LogUniform:
    """Numbers between `low` and `high`, whose logarithms are drawn evenly."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        return float(f"{math.exp(rng.uniform(math.log(self.low), math.log(self.high))):.3g}")


@dataclasses.dataclass(frozen=True)
class Halving:
    """Successive halving (arXiv:1502.07943): at each of `rungs`, shares of the steps, the best `keep` of those that
    are left go on, by the mean over seeds of the metric, measured at the same step of the same schedule."""

    rungs: Sequence[float] = (0.25, 0.5)
    keep: float = 0.5

    def __post_init__(self):
        rising = bool(self.rungs) and list(self.rungs) == sorted(set(self.rungs)) and 0 < min(self.rungs) < 1
        if not (rising and 0 < self.keep < 1):
            raise UserError(f"halving has rungs={self.rungs}, keep={self.keep}; write rising shares between 0 and 1.")

    def survivors(self, scores: Mapping[str, float]) -> list[str]:
        """The names that go on, in the order given; at least one.  Lower is better, and a failed one is infinite."""
        count = max(1, math.ceil(self.keep * len(scores)))
        cost = {name: score if math.isfinite(score) else math.inf for name, score in scores.items()}
        best = sorted(cost, key=lambda name: (cost[name], list(cost).index(name)))[:count]
        return [name for name in scores if name in best]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A search over config fields.

    search    key -> values, each combination a candidate (a grid); or, with `samples`, also LogUniform.  Instead of a
              value of one key, {label: changes} sets several keys together: {"width": {"64": {...}, "128": {...}}}
    samples   how many random candidates; 0: the grid
    across    a key of `search` over which one choice of the others should hold: the report picks the choice whose loss
              is at worst least above the best at each value of it
    halving   when hopeless candidates are stopped; None: never
    metric    lower is better; with halving one that evaluations during training measure: val/...
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
    measures: tuple = ()

    def __post_init__(self):
        choice("equal", self.equal, EQUAL)
        if self.across and self.across not in self.search:
            raise UserError(f"across is {self.across!r}; choose one of {', '.join(self.search)}.")
        drawn = [key for key, values in self.search.items() if isinstance(values, LogUniform)]
        if drawn and not self.samples:
            raise UserError(f"the search over {drawn[0]} is random: say how many samples to draw.")
        if self.seeds < 1 or self.budget <= 0:
            raise UserError(f"seeds is {self.seeds} and budget {self.budget}; each must be above 0.")
        count, different = len(self.names), len(set(self.names))
        if different < count:
            raise UserError(
                f"of the search's {count} candidates only {different} differ; lower samples, or mend the grid."
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
        draw = lambda key: str(self.search[key].draw(rng)) if axes[key] is None else str(rng.choice(axes[key]))  # noqa: E731
        return [{key: draw(key) for key in axes} for _ in range(self.samples)]

    @property
    def names(self) -> list[str]:
        return [variant.name for variant in self.variants]

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
