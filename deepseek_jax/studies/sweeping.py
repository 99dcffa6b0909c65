"""The progress of a sweep, rung by rung: candidates are trained up to a rung, and only the best of them further."""

import dataclasses
import math
import statistics
from pathlib import Path

from deepseek_jax.studies import runs as runs_
from deepseek_jax.studies.runs import Run
from deepseek_jax.studies.study import Loaded
from deepseek_jax.train.reporting.sinks import METRICS_FILE, read_rows


@dataclasses.dataclass(frozen=True)
class Rung:
    """A comparison of candidates after `share` of the steps.  `runs`: those that came this far; `scores`: candidate ->
    mean metric over seeds, infinite for a failed one; `complete`: all of `runs` are measured here."""

    share: float
    runs: list[Run]
    scores: dict[str, float]
    complete: bool


def rungs(loaded: Loaded, root: Path) -> list[Rung]:
    """All complete rungs and the first incomplete one.  The last rung of a sweep, 1.0, is the end of training."""
    sweep, found = loaded.study, []
    left = runs_.plan(loaded, root)
    shares = [*(sweep.halving.rungs if sweep.halving else ()), 1.0]
    for share in shares:
        measured = {run.directory: score_at(run, sweep.metric, share) for run in left}
        complete = None not in measured.values()
        names = dict.fromkeys(run.variant.name for run in left)
        of = {name: [measured[run.directory] for run in left if run.variant.name == name] for name in names}
        scores = {name: statistics.mean(values) for name, values in of.items() if None not in values}
        found.append(Rung(share, left, scores, complete))
        if not complete:
            break
        if share < 1:
            survivors = sweep.survivors(scores)
            left = [run for run in left if run.variant.name in survivors]
    return found


def step_at(run: Run, share: float) -> int:
    return max(round(share * run.experiment.train.steps), 1)


def score_at(run: Run, metric: str, share: float) -> float | None:
    """The metric after that share of a run's steps; infinite if the run failed, None if it has not come that far.

    A run that paused at that step was evaluated there.  For one that went further or ended before, it is the last
    evaluation up to that step, or else the first; for a run that ended by then, that of the parameters it kept.
    """
    if run.failure:
        return math.inf
    path, trained = run.directory / METRICS_FILE, run.trained
    if not path.exists():  # not begun
        return None
    rows, step = list(read_rows(path)), step_at(run, share)
    last = max((row["step"] for row in rows), default=0)
    if trained and last <= step and metric in trained["scores"]:
        return trained["scores"][metric]
    found = {row["step"]: row[metric] for row in rows if metric in row}
    if not found or not (trained or (share < 1 and (step in found or last > step))):
        return None
    return found[max((at for at in found if at <= step), default=min(found))]
