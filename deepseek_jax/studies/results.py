"""A study's results, gathered from its runs: the input of its report, and committed as results.json."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from deepseek_jax.errors import UserError
from deepseek_jax.experiment_file import resolve
from deepseek_jax.files import read_json
from deepseek_jax.studies import runs as runs_
from deepseek_jax.studies import stated
from deepseek_jax.studies.claims import UNFINISHED, Judged, judge, not_measured, overall
from deepseek_jax.studies.measuring import all_scores, failures, sources
from deepseek_jax.studies.runs import Run
from deepseek_jax.studies.study import Loaded
from deepseek_jax.train.reporting.shown import SHOWN

RESULTS_FILE = "results.json"
FROM_FILE = "from_file"  # key that marks results that were read from RESULTS_FILE; not written to it


def gather(loaded: Loaded, root: Path) -> dict:
    """JSON-able: settings of the study, each finished run, why others or measures failed, what is missing or stale.

    From the run directories; if none of its runs was made here, from the study's committed results if these have more.
    """
    planned = runs_.plan(loaded, root)
    finished = [entry for run in planned if run.trained and not run.failure and (entry := _entry(run, loaded))]
    failed = [_of(run, loaded) | {"reason": run.failure} for run in planned if run.failure]
    unmeasured = [
        {"variant": run.variant.name, "seed": run.seed, "reason": reason}
        for run in planned
        for _, reason in failures(run, loaded.study)
    ]
    if (loaded.results / RESULTS_FILE).exists() and not _made_here(loaded, planned, root):
        committed = _committed(loaded, planned, failed)
        if len(committed["runs"]) > len(finished):
            return committed | {FROM_FILE: True}
    return {
        "study": loaded.name,
        "root": str(root),
        "base": loaded.study.base,
        "family": resolve(loaded.study.base).family,
        "runs": finished,
        "failed": failed,
        "unmeasured": unmeasured,
        "missing": len(planned) - len(finished) - len(failed),
        "stale": len(runs_.stale(loaded, planned, root)),
        "stated": stated.read(loaded, root),
    }


def _entry(run: Run, loaded: Loaded) -> dict | None:
    scores = all_scores(run, loaded.study)
    if scores is None:
        return None
    return _of(run, loaded) | {"code": run.code} | run.trained | {"scores": scores}


def _of(run: Run, loaded: Loaded) -> dict:
    """The fields that identify a run's entry; `identity` is None if its experiment is invalid."""
    identity = runs_.identity(run.experiment) if run.experiment else None
    found = {"variant": run.variant.name, "seed": run.seed, "identity": identity}
    return found | {"sources": sources(run.variant, loaded.study)}


def _made_here(loaded: Loaded, planned: list[Run], root: Path) -> bool:
    """Whether any run failed or was trained in this study's own folder; runs in another study's folder do not count."""
    own = root / loaded.name
    return any(run.failed.exists() or (run.trained and run.directory.parent == own) for run in planned)


def _committed(loaded: Loaded, planned: list[Run], impossible: list[dict]) -> dict:
    """The committed results of the runs that the study has now; `impossible`: the runs that cannot be configured.

    Runs of equal seconds have no identity here before a trial, so their variant, seed and sources must do.
    """
    content = read_json(loaded.results / RESULTS_FILE)
    known = [_of(run, loaded) for run in planned if not run.problem]

    def current(entry: dict) -> bool:
        return any(all(value in (None, entry.get(key)) for key, value in own.items()) for own in known)

    kept, failed = (list(filter(current, content[kind])) for kind in ("runs", "failed"))
    failed += impossible
    stale = len(content["runs"]) - len(kept)  # those counted where the file was made are not known here
    missing = len(planned) - len(kept) - len(failed)
    return content | {"runs": kept, "failed": failed, "missing": missing, "stale": stale}


def devices(results: Mapping) -> list[str]:
    """The devices that the runs were trained on."""
    return sorted({run["device"] for run in results["runs"]})


def values(results: Mapping, metric: str) -> dict[str, dict[int, float]]:
    """variant -> seed -> metric, of the finished runs that have it."""
    found: dict[str, dict[int, float]] = {}
    for run in results["runs"]:
        if metric in run["scores"]:
            found.setdefault(run["variant"], {})[run["seed"]] = run["scores"][metric]
    return found


def verdicts(loaded: Loaded, results: Mapping) -> list[list[Judged]]:
    """For each claim of the study, the main one first, its judged clauses.  While runs are missing, the verdict is
    "unfinished", as further seeds may change it."""
    failed = {each["variant"]: f"seed {each['seed']} failed: {each['reason']}" for each in results["failed"]}
    judged, names = [], loaded.study.names
    for claim in loaded.study.claims:
        found = values(results, claim.metric)
        if results["runs"] and not found:
            judged.append(not_measured(claim, names))
        else:
            clauses = judge(claim, names, found, _unmeasured(results, claim.metric) | failed)
            judged.append([_so_far(each) for each in clauses] if results["missing"] else clauses)
    return judged


def _so_far(judged: Judged) -> Judged:
    return dataclasses.replace(judged, verdict=UNFINISHED, reason=f"so far: {judged.reason}")


def main_verdict(loaded: Loaded, results: Mapping) -> str:
    """The verdict on the study's main claim, in words."""
    found = overall(verdicts(loaded, results)[0])
    if found == UNFINISHED:
        found += f" ({progress(results)})"
    changed = stated.main_changed(loaded.study, results["stated"])
    return found + ", by a claim that was changed after its first run" * changed


def progress(results: Mapping) -> str:
    """How many runs have ended, failed ones included: "4 of 9 runs"."""
    ended = len(results["runs"]) + len(results["failed"])
    return f"{ended} of {ended + results['missing']} runs"


def _unmeasured(results: Mapping, metric: str) -> dict[str, str]:
    """Variant -> why, if one of its runs ended without a finite value of this metric: a loss was never reached, say.
    If only such runs were left out, their variant would look better than it is."""
    found = {}
    for run in results["runs"]:
        if not math.isfinite(score := run["scores"].get(metric, math.nan)):
            how = f"with {metric} {score}" if metric in run["scores"] else f"without {metric}"
            found[run["variant"]] = f"seed {run['seed']} ended {how}"
    return found


def need_some(results: Mapping, loaded: Loaded):
    """Raises UserError if there is nothing to report: no run has ended, or none can begin."""
    if results["runs"]:
        return
    root = Path(results["root"])
    runs_.check_configured(loaded, root)
    if not results["failed"]:
        raise UserError(f"{loaded.path} has no finished run; `{runs_.command('run', loaded, root)}` makes them.")


def speed_key(results: Mapping) -> str:
    return SHOWN[results["family"]].speed
