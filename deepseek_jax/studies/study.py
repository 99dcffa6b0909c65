"""What a study is: a question, a base config, variants, seeds, an equal budget, and a claim made before any run."""

import dataclasses
import itertools
import numbers
import os
import re
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_jax.checking import choice
from deepseek_jax.errors import UserError
from deepseek_jax.source_names import source_name
from deepseek_jax.studies.claims import Claim, parse

if TYPE_CHECKING:
    from deepseek_jax.studies.sweep import Sweep  # not at run time: it imports this file

EQUAL = ("tokens", "records", "flops", "seconds", "steps")


@dataclasses.dataclass(frozen=True)
class Variant:
    """The base with some dotted keys changed: {"router.bias_update_rate": 0.0}.

    `edit`: a function (experiment, params, buffers) -> the same three, applied to the trained model before scoring.
    """

    name: str
    changes: Mapping[str, object] = dataclasses.field(default_factory=dict)
    edit: Callable | None = None

    def __post_init__(self):
        for key in ("train.steps", "train.seed"):
            if key in self.changes:
                raise UserError(f"{self.name!r} sets {key}, which budget and seeds decide for all; leave it out.")


@dataclasses.dataclass(frozen=True)
class Study:
    """One question.  The first variant is the one that the others are compared with.

    base      a config file; each variant changes some of its keys
    seeds     how many; every variant is trained with seeds 0, 1, ..., which makes pairs
    equal     what all variants spend equally: tokens, records, flops, seconds (at the speed measured here) or steps
    budget    how much of it a run may spend; it determines train.steps
    metric    a score of a run, such as final/loss, or of one of `measures`
    margin    the smallest difference that counts: a number, or a percentage of the right side's mean as "0.25%"
    claim     see claims.py
    further   claims about other metrics
    measures  functions of a trained run (studies/measures/) that return further scores {name: number}
    larger    what to run instead on a GPU or a pod, in words
    """

    base: str
    variants: Sequence[Variant]
    budget: float
    metric: str
    margin: float | str
    claim: str
    seeds: int = 3
    equal: str = "tokens"
    further: Sequence[Claim] = ()
    measures: Sequence[Callable] = ()
    larger: str = ""

    def __post_init__(self):
        choice("equal", self.equal, EQUAL)
        check_size(self.seeds, self.budget)
        if not self.names or len(set(self.names)) < len(self.names):
            named = ", ".join(self.names) or "not at all"
            raise UserError(f"a study's variants are named {named}; give each its own name.")
        for claim in self.claims:
            parse(claim.text, self.names)
        for function in (*(variant.edit for variant in self.variants if variant.edit), *self.measures):
            source_name(function)

    @property
    def names(self) -> list[str]:
        return [variant.name for variant in self.variants]

    @property
    def claims(self) -> list[Claim]:
        """All claims, the main one first."""
        return [Claim(self.metric, self.margin, self.claim), *self.further]


def check_size(seeds: int, budget: float):
    """UserError if a study or sweep of this size would train nothing."""
    if not isinstance(seeds, numbers.Integral) or not isinstance(budget, numbers.Real):
        raise UserError(f"seeds is {seeds!r} and budget {budget!r}; write a whole number of seeds, and a number.")
    if seeds < 1 or budget <= 0:
        raise UserError(f"seeds is {seeds} and budget {budget}; each must be above 0.")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A study as loaded from its file; `question` is the file's docstring."""

    path: Path
    question: str
    study: "Study | Sweep"

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def shown_path(self) -> str:
        """The path for use in a command: relative to the working directory if it is inside."""
        path, here = self.path.resolve(), Path.cwd().resolve()
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(self.path)

    @property
    def results(self) -> Path:
        """The folder of its report: in `results`, beside the folder `studies` or beside a file in any other folder."""
        folder = self.path.parent
        beside = folder.resolve().name == "studies"  # resolved: "." has no name
        return Path(os.path.normpath(folder / ".." if beside else folder)) / "results" / self.name


def slug(name: str) -> str:
    """The name of a variant or a study in a form for file names and commands."""
    return re.sub(r"[^a-z0-9.+-]+", "_", name.lower()).strip("_")


def slugs(names: Sequence[str]) -> dict[str, str]:
    """A unique slug for each name: `slug` gives "lr < 1" and "lr > 1" the same one, and "γ" an empty one."""
    found: dict[str, str] = {}
    for name in names:
        alone = slug(name) or "variant"
        numbered = itertools.chain([alone], (f"{alone}_{number}" for number in itertools.count(2)))
        found[name] = next(each for each in numbered if each not in found.values())
    return found


def load(path: str | Path) -> Loaded:
    """The study in a Python file's variable `study`; UserError, with file and line, if it cannot be loaded."""
    from deepseek_jax.experiment_file import execute, explained
    from deepseek_jax.plugins import importable

    path = Path(path)
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"there is no study {path}; a study is a .py file with a variable study.")
    with explained(str(path)), importable(path.resolve().parent.parent.parent, Path.cwd()):
        module = execute(f"study file {path}", path)
    found = getattr(module, "study", None)
    if not hasattr(found, "variants"):
        raise UserError(f"{path} has no variable study that holds a Study or a Sweep.")
    return Loaded(path, _docstring(module), found)


def _docstring(module: types.ModuleType) -> str:
    text = (module.__doc__ or "").strip()
    if not text:
        raise UserError(f"{module.__spec__.origin} has no docstring; a study's docstring is its question.")
    return text
