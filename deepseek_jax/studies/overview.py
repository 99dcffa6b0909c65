"""All studies at a glance, and the settings in which two runs differ."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from deepseek_jax import fields, record
from deepseek_jax.config import plain
from deepseek_jax.errors import UserError
from deepseek_jax.studies import results, sweep_report
from deepseek_jax.studies.study import Loaded, load
from deepseek_jax.studies.sweep import Sweep

FOLDER = Path("experiments/studies")
NOT_RUN = "not run yet"
OF_FILE = f", from {results.RESULTS_FILE}"


@dataclasses.dataclass(frozen=True)
class Line:
    """A study's row in the list."""

    name: str
    question: str
    runs: str
    verdict: str


def lines(paths: Iterable[Path], root: Path) -> list[Line]:
    return [_line(load(path), root) for path in paths]


def _line(loaded: Loaded, root: Path) -> Line:
    runs, verdict = _of_sweep(loaded, root) if isinstance(loaded.study, Sweep) else _of_study(loaded, root)
    return Line(loaded.name, loaded.question.splitlines()[0], runs, verdict)


def _of_study(loaded: Loaded, root: Path) -> tuple[str, str]:
    found = results.gather(loaded, root)
    finished, failed = len(found["runs"]), len(found["failed"])
    runs = f"{finished} of {finished + failed + found['missing']}"
    runs += f", {failed} failed" * bool(failed) + f", {found['stale']} stale" * bool(found["stale"])
    runs += OF_FILE * (results.FROM_FILE in found)
    try:
        results.need_some(found, loaded)
    except UserError:
        return runs, NOT_RUN
    return runs, results.main_verdict(loaded, found)


def _of_sweep(loaded: Loaded, root: Path) -> tuple[str, str]:
    try:
        found = sweep_report.gather(loaded, root)
    except UserError:
        return f"{len(loaded.study.names)} candidates", NOT_RUN
    runs = f"{found['runs']} candidates" + OF_FILE * (results.FROM_FILE in found)
    return runs, sweep_report.choice(loaded, found)


def files(folder: Path = FOLDER) -> list[Path]:
    """The study files in a folder; UserError if there are none."""
    found = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))
    if not found:
        raise UserError(f"{folder} contains no study; name study files, or run this where experiments/studies is.")
    return found


def diff(left: Path, right: Path) -> list[tuple[str, object, object]]:
    """(key, left value, right value) of every setting in which two run directories differ; None for an absent one."""
    first, second = (fields.flatten(plain(record.read(path))) for path in (left, right))
    keys = [*first, *(key for key in second if key not in first)]
    return [(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]
