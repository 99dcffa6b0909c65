"""The runs of a study: each one's experiment, directory and state.

A run's directory is named by its variant, its seed and a hash of its experiment.  So a changed study uses other
directories and never reads the old ones, and a run of the same experiment that another study made is found.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from deepseek_jax import fields, files, record, unused
from deepseek_jax.choices import STUDIES_ROOT
from deepseek_jax.config import FAMILIES, AnyExperiment, plain
from deepseek_jax.errors import UserError
from deepseek_jax.experiment_file import resolve
from deepseek_jax.files import read_json
from deepseek_jax.source_names import source_name
from deepseek_jax.studies import budget, reasons
from deepseek_jax.studies.study import Loaded, Study, Variant, slug, slugs
from deepseek_jax.studies.sweep import Sweep
from deepseek_jax.train.optim import schedules

TRAINED = "trained.json"  # in a run directory: the summary of a finished training
# Prefixes of settings that change where a run computes and what it shows, but neither what it learns nor its scores.
NOT_IN_IDENTITY = (*record.NOT_LEARNED, "eval.sample")  # eval.samples, eval.sample_tokens


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of a study, and what is measured of it.

    `failed`: a file with the reason if it failed; in the study's own folder, as several may share a run directory.
    `experiment`: None if it is not valid, for which `problem` is the reason, or if its number of steps is not known
    yet, as a trial has yet to measure its speed (equal="seconds").
    """

    variant: Variant
    seed: int
    experiment: AnyExperiment | None
    directory: Path
    failed: Path
    problem: str = ""

    @property
    def trained(self) -> dict | None:
        """The summary of the training (outcome.summarise); None if it has not finished."""
        return _read(self.directory / TRAINED)

    @property
    def code(self) -> str | None:
        """The hash of the code that trained it last (record.code_hash); None if that was not recorded."""
        return (_read(self.directory / record.CONFIG_FILE) or {}).get("code")

    @property
    def failure(self) -> str | None:
        return self.problem or reasons.read(self.failed)

    def __str__(self):
        return f"{self.variant.name}, seed {self.seed}"


def command(verb: str, loaded: Loaded, root: str | Path) -> str:
    """The command line for `verb` (run or report) of a study, relative to the working directory."""
    option = "" if Path(root) == STUDIES_ROOT else f" --root {shlex.quote(str(root))}"
    return f"deepseek-jax study {verb} {shlex.quote(loaded.shown_path)}{option}"


def commands(loaded: Loaded, root: str | Path) -> str:
    """The command lines that make a study's runs and its report."""
    return "\n".join(command(verb, loaded, root) for verb in ("run", "report"))


def plan(loaded: Loaded, root: Path) -> list[Run]:
    """All runs of a study, seed by seed, so that complete pairs come early."""
    study, found, shared = loaded.study, [], {}
    called = slugs(study.names)
    resolve(study.base)  # an invalid base is not any variant's fault
    for seed in range(study.seeds):
        for variant in study.variants:
            try:
                experiment = experiment_of(study, variant, seed, root / loaded.name)
            except UserError as error:
                nowhere = root / loaded.name / called[variant.name]
                problem = "" if isinstance(error, budget.Unmeasured) else str(error)
                found.append(Run(variant, seed, None, nowhere, nowhere / "failed.json", problem))
            else:
                same = identity(experiment)
                name = f"{called[variant.name]}-{seed}-{same}"
                directory = _directory(root / loaded.name / name, f"-{seed}-{same}", root)
                if not (directory / record.CONFIG_FILE).exists():
                    # Not begun: the first variant with this experiment does it.
                    directory = shared.setdefault(same, directory)
                edit = f"-{source_name(variant.edit)}" if variant.edit else ""  # a changed edit has not failed
                failed = root / loaded.name / "failed" / f"{name}{edit}.json"
                found.append(Run(variant, seed, experiment, directory, failed))
    return found


def check_different(loaded: Loaded):
    """UserError if two variants would share all trainings and scores: it would look like a finding."""
    found = {}
    for variant in loaded.study.variants:
        try:
            experiment = resolve(loaded.study.base, dict(variant.changes))
            learnt = identity(experiment, without=unused.idle_keys(experiment))
        except UserError:  # reported when its runs are planned
            continue
        first = found.setdefault((learnt, variant.edit and source_name(variant.edit)), variant.name)
        if first != variant.name:
            why = "".join(f" ({sentence[:-1]})" for sentence in unused.sentences(experiment, variant.changes)[:1])
            raise UserError(
                f"{loaded.shown_path}: {first} and {variant.name} differ in nothing that learning depends on{why}; "
                "leave one out, or change it."
            )


def check_configured(loaded: Loaded, root: Path):
    """UserError if a variant of a study, or every candidate of a sweep, cannot be trained as configured."""
    study, found = loaded.study, []
    for variant in study.variants:
        try:
            experiment_of(study, variant, 0, root / loaded.name)
        except (budget.Unmeasured, budget.TrialFailed):  # not an error of the configuration
            continue
        except UserError as error:
            found.append(f"{variant.name}: {error}")
    if len(found) == len(study.variants) or found and not isinstance(study, Sweep):
        raise UserError(f"{loaded.shown_path}: {found[0]}")


def experiment_of(study: Study, variant: Variant, seed: int, folder: Path) -> AnyExperiment:
    """The base with the variant's changes, this seed, and as many steps as the budget allows."""
    changed = resolve(study.base, {**variant.changes, "train.seed": seed})
    speed = speed_file(study, variant, folder) if study.equal == "seconds" else None
    steps = budget.steps(changed, study.equal, study.budget, speed)
    try:
        schedules.learning_rate(changed.optimizer, steps)
    except UserError as error:
        raise UserError(f"the budget allows it {steps} steps, but {error}") from None
    return dataclasses.replace(changed, train=dataclasses.replace(changed.train, steps=steps))


def speed_file(study: Study, variant: Variant, folder: Path) -> Path:
    """The file for a variant's speed, in the study's folder: one for all seeds; a changed variant gets another."""
    return folder / f"{slug(variant.name)}-{identity(resolve(study.base, dict(variant.changes)))}.speed.json"


def measure_speeds(loaded: Loaded, root: Path, say: Callable[[str], None]):
    """Runs the speed trials that the budget needs and that are still missing; reports failed ones to `say`."""
    for variant in loaded.study.variants:
        try:
            experiment_of(loaded.study, variant, 0, root / loaded.name)
        except budget.Unmeasured:
            _measure_speed(loaded, variant, root, say)
        except UserError:  # reported when its runs are planned
            continue


def _measure_speed(loaded: Loaded, variant: Variant, root: Path, say: Callable[[str], None]):
    speed = speed_file(loaded.study, variant, root / loaded.name)
    with _locked(root, f"{loaded.name}-{speed.stem}", wait=True):  # another worker may be measuring it
        if not speed.exists():
            try:
                budget.measure_speed(resolve(loaded.study.base, dict(variant.changes)), speed)
            except Exception as error:  # as for a run: the other variants can still be run
                why = reasons.summary(error)
                reasons.write(speed, why, error)
                say(f"{loaded.name}: {variant.name}: failed: the trial that measures its speed failed: {why}")


def identity(experiment: AnyExperiment, without: Collection[str] = ()) -> str:
    """A hash of 8 hex digits, equal for experiments that learn the same; `without` are keys to leave out.

    Only settings that differ from their defaults count, so adding a setting, off by default, changes no run's identity.
    """
    by_default = FAMILIES[experiment.family](parts=type(experiment.parts)())
    settings, defaults = _settings(experiment), _settings(by_default)
    own = {
        key: value
        for key, value in settings.items()
        if (value != defaults[key] and key not in without) or key == "family"
    }
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]


def _settings(experiment: AnyExperiment) -> dict:
    flat = fields.flatten(plain(experiment))
    return {key: value for key, value in flat.items() if not key.startswith(NOT_IN_IDENTITY)}


def _directory(own: Path, suffix: str, root: Path) -> Path:
    """The directory in which the experiment with this suffix was begun, by any study and variant; else `own`."""
    others = sorted(path.parent for path in root.glob(f"*/*{suffix}/{record.CONFIG_FILE}"))
    return own if own in others or not others else others[0]


def stale(loaded: Loaded, runs: list[Run], root: Path) -> list[Path]:
    """Finished runs in the study's folder that are not among its present runs: those of an older version of it."""
    current = {run.directory for run in runs}
    return sorted(path.parent for path in (root / loaded.name).glob(f"*/{TRAINED}") if path.parent not in current)


def of_other_code(runs: list[Run]) -> list[Run]:
    """The finished runs that another version of this package, or of their plugins, trained, perhaps differently."""
    return [run for run in runs if run.trained and run.code not in (None, record.code_hash(run.experiment.plugins))]


def held(run: Run, root: Path, *, wait: bool = False) -> contextlib.AbstractContextManager[bool]:
    """Locks a run; the context's value is whether this process now holds it.  It also excludes processes on other
    machines if the file system shares its locks.  A lock ends with the process that holds it."""
    return _locked(root, run.directory.name, wait=wait)


@contextlib.contextmanager
def _locked(root: Path, name: str, *, wait: bool) -> Iterator[bool]:
    folder = root / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("a+") as lock:
        if not files.lock(lock, wait=wait):
            yield False
            return
        files.sign(lock, str(os.getpid()))
        yield True
        lock.truncate(0)


def last_lock_holder(run: Run, root: Path) -> int | None:
    """The id of the process that holds the run's lock, or held it last and never released it; else None."""
    path = root / ".locks" / run.directory.name
    text = path.read_text() if path.exists() else ""
    return int(text) if text else None


def _read(path: Path) -> dict | None:
    return read_json(path) if path.exists() else None
