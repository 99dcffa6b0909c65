"""Checks that the runs of a study have the scores that its claims name: before any training and after the first run.

Otherwise a misspelt name would be found only in the report, after all the training.
"""

import contextlib
import difflib
from collections.abc import Collection, Sequence

from deepseek_jax.config import AnyExperiment
from deepseek_jax.data.prepare import domain_names
from deepseek_jax.errors import UserError
from deepseek_jax.experiment_file import resolve
from deepseek_jax.studies.claims import parse
from deepseek_jax.studies.measuring import all_scores, failures
from deepseek_jax.studies.outcome import BALANCE
from deepseek_jax.studies.runs import Run
from deepseek_jax.studies.study import Loaded, Study
from deepseek_jax.studies.sweep import Sweep
from deepseek_jax.tasks import scores
from deepseek_jax.train.reporting.shown import SHOWN

# Scores of which higher is better.
HIGHER = {*scores.HIGHER, "load_entropy", "indexer_recall", *(shown.speed for shown in SHOWN.values())}
GIVES = "gives"  # an optional attribute of a measure: the names of all scores that it may return


def check(loaded: Loaded):
    """UserError for a metric that no run can have.  Not checked if some measure does not name its scores."""
    study = loaded.study
    known = _known(study)
    if not known:
        return  # no variant can be configured; reported elsewhere for each of them
    if isinstance(study, Sweep):
        if study.halving:
            known = {name for name in known if name.startswith("val/")}
        else:
            known |= {"loss/total", *(shown.loss for shown in SHOWN.values())}  # rows of training have these
        lower = {name for name in known if name.rpartition("/")[2] not in HIGHER}
        if study.metric in known - lower:
            why = f"higher is better for {study.metric!r}, but a sweep minimises its metric"
            raise UserError(f"{loaded.shown_path}: {why}; {_instead(study.metric, lower)}")
        _refuse_unknown(loaded, [study.metric], lower)
    elif all(hasattr(function, GIVES) for function in study.measures):
        _refuse_unknown(loaded, [claim.metric for claim in study.claims], known | _names_from_measures(study))


def check_runs(loaded: Loaded, planned: Sequence[Run]):
    """UserError for a metric of a claim that no finished run has, if a run of a variant in that claim has finished.

    A score that a measure names in `gives` is exempt: a later seed may have it.
    """
    study, names = loaded.study, loaded.study.names
    wanted: dict[str, set] = {}
    for claim in study.claims:
        if claim.metric not in _names_from_measures(study):
            sides = {side for clause in parse(claim.text, names) for side in (clause.left, clause.right)}
            wanted.setdefault(claim.metric, set()).update(sides)
    without, there = [], set()
    for run in planned:
        found = all_scores(run, study) if run.trained and not run.failure else None
        if found is None:
            continue
        there |= found.keys()
        if wanted.keys() <= there:
            return
        if not list(failures(run, study)):
            without.append(run.variant.name)
    for metric, asked in wanted.items():
        if metric not in there and (name := next((name for name in without if name in asked), None)):
            raise UserError(f"{loaded.shown_path}: {name} ended without {metric!r}; {_instead(metric, there)}")


def _refuse_unknown(loaded: Loaded, metrics: Collection[str], known: Collection[str]):
    for metric in metrics:
        if metric not in known:
            raise UserError(f"{loaded.shown_path}: no run measures {metric!r}; {_instead(metric, known)}")


def _instead(metric: str, known: Collection[str]) -> str:
    """The end of an error message: the known names most like the metric, or all of them."""
    return f"choose one of {', '.join(difflib.get_close_matches(metric, sorted(known)) or sorted(known))}."


def _names_from_measures(study: Study) -> set[str]:
    return {name for function in study.measures for name in getattr(function, GIVES, ())}


def _known(study: Study | Sweep) -> set[str]:
    """The scores that any of the variants may have, apart from those of measures."""
    found = set()
    for variant in study.variants:
        with contextlib.suppress(UserError):  # reported when its runs are planned
            found |= names_of(resolve(study.base, dict(variant.changes)))
    return found


def names_of(experiment: AnyExperiment) -> set[str]:
    """The scores that a run may have (outcome.summarise), as far as that is known without its data."""
    shown = SHOWN[experiment.family]
    found = {"memory_bytes", shown.speed, *(name for name in shown.labels if name.startswith("final/"))}
    if experiment.family == "language_model":
        found |= {"indexer_recall", *BALANCE}
        domains = domain_names(experiment.data.shares)
        held_out = [*scores.OF_TEXT, "bytes", "dropped"]
        held_out += [f"bits_per_byte/{domain}" for domain in domains if len(domains) > 1]
    else:
        held_out = ["loss", *(name for names in scores.NAMES.values() for name in names)]
    return found | {f"{split}/{name}" for split in ("val", "final") for name in held_out}
