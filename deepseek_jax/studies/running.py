"""Runs the unfinished part of a study, in worker processes that each train many runs in turn.

A worker shares JAX's start-up and compiled programs between its runs.  Runs are claimed by locks, so any number of
workers, started by anyone, can share the work; a run whose worker was killed resumes from its last checkpoint.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deepseek_jax import host_memory
from deepseek_jax.data.prepare import given_tokenizer
from deepseek_jax.errors import UserError
from deepseek_jax.experiment_file import resolve
from deepseek_jax.files import write_json, write_text
from deepseek_jax.studies import metrics, reasons, stated, sweeping
from deepseek_jax.studies import runs as runs_
from deepseek_jax.studies.measuring import all_scores, failures, measure
from deepseek_jax.studies.outcome import summarise
from deepseek_jax.studies.runs import TRAINED, Run
from deepseek_jax.studies.study import Loaded
from deepseek_jax.studies.sweep import Sweep
from deepseek_jax.train.reporting.sinks import METRICS_FILE

PARENT = "DEEPSEEK_JAX_STUDY_PARENT"  # in a worker's environment: the id of its parent process, with which it ends
Say = Callable[[str], None]


def to_do(loaded: Loaded, root: Path) -> list[Run]:
    """The runs that are still to be done; failed ones are not among them, nor those that a sweep has stopped."""
    if isinstance(loaded.study, Sweep):
        rung = sweeping.rungs(loaded, root)[-1]
        return [run for run in rung.runs if not _done(run, loaded, rung.share)]
    return [run for run in runs_.plan(loaded, root) if not _done(run, loaded)]


def _done(run: Run, loaded: Loaded, share: float = 1.0) -> bool:
    """Whether a run has failed or has its scores; in a sweep, the score after `share` of its steps."""
    if run.failure:
        return True
    if isinstance(loaded.study, Sweep):
        return sweeping.score_at(run, loaded.study.metric, share) is not None
    return bool(run.trained) and all_scores(run, loaded.study) is not None


def failed(loaded: Loaded, root: Path, index: int | None = None) -> list[Run]:
    """The failed runs; with `index`, only run number `index`, if it failed.

    For a sweep with runs that did not fail, only those that cannot be configured: divergence is one of its findings.
    """
    planned = runs_.plan(loaded, root)
    found = [run for run in _chosen(planned, index) if run.failure]
    if isinstance(loaded.study, Sweep) and len(found) < len(planned):
        return [run for run in found if run.problem]
    return found


def _chosen(planned: list[Run], index: int | None) -> list[Run]:
    return planned if index is None else planned[index : index + 1]


def forget_failures(loaded: Loaded, root: Path, index: int | None = None):
    """Deletes the records of failed runs, measures and speed trials, so that they are tried again.

    With `index`, of the runs only number `index`: the others would not be tried again, and their reasons would be lost.
    """
    for run in _chosen(runs_.plan(loaded, root), index):
        run.failed.unlink(missing_ok=True)
        for path, _ in failures(run, loaded.study):
            path.unlink()
    for speed in (root / loaded.name).glob("*.speed.json"):
        if reasons.read(speed):
            speed.unlink()


def work(studies: Sequence[Loaded], root: Path, say: Say = print, index: int | None = None):
    """Does the remaining work of the studies in this process; with `index`, only run number `index` of a study."""
    _end_with_parent()
    _check(studies, root)
    for loaded in studies:
        stated.keep(loaded, root)
        _check_here(_chosen(runs_.plan(loaded, root), index), loaded)
        runs_.measure_speeds(loaded, root, say if is_worker() else lambda text: None)  # else reported below
        runs_.check_configured(loaded, root)  # again, now that its steps are known
    for loaded in studies:
        planned = runs_.plan(loaded, root)
        if index is not None and not 0 <= index < len(planned):
            raise UserError(f"--index is {index}; {loaded.path} has runs 0 to {len(planned) - 1}.")
        if not is_worker():
            _tell_problems(loaded, _chosen(planned, index), say)
        if isinstance(loaded.study, Sweep):
            while not (rung := sweeping.rungs(loaded, root)[-1]).complete:
                _divide(rung.runs, rung.runs, loaded, root, say, rung.share)
        else:
            metrics.check_runs(loaded, planned)
            _divide(_chosen(planned, index), planned, loaded, root, say)


def _check(studies: Sequence[Loaded], root: Path):
    """UserError for mistakes that would otherwise be found only after training, and if nothing can be trained."""
    for loaded in studies:
        runs_.check_configured(loaded, root)
        runs_.check_different(loaded)
        metrics.check(loaded)


def _check_here(planned: Sequence[Run], loaded: Loaded):
    """UserError for a variant of a study, not a sweep, that cannot be trained on the devices of this machine."""
    from deepseek_jax.train import setup, start
    from deepseek_jax.train.checkpoints.checkpoint import has_checkpoints
    from deepseek_jax.train.reporting import sinks

    study = loaded.study
    if isinstance(study, Sweep):  # its candidates may fail one by one
        return
    left = [run for run in planned if not _done(run, loaded)]
    for run in {run.variant.name: run for run in left}.values():
        experiment = run.experiment or resolve(study.base, dict(run.variant.changes))  # only its steps are unknown
        try:
            if not has_checkpoints(run.directory):
                start.check(experiment)
            sinks.check_sinks(experiment.log)
            setup.check(experiment)
            if experiment.family == "language_model":
                given_tokenizer(experiment.data, experiment.model.vocab_size)
        except UserError as error:
            raise UserError(f"{loaded.shown_path}: {run.variant.name}: {error}") from None


def _divide(chosen: Sequence[Run], peers: Sequence[Run], loaded: Loaded, root: Path, say: Say, share: float = 1.0):
    """Does the runs that no other worker holds; then waits for the others, and does those that are left undone.

    `peers`: the runs of which some must have the metric; if none has, the fault is the metric's and not a run's.
    """

    def attempt(run: Run, *, wait: bool) -> bool:
        with runs_.held(run, root, wait=wait) as mine:
            if mine and not _done(run, loaded, share):
                _finish(run, loaded, say, share)
                _check_measured(run, peers, loaded, share)
            return mine

    busy = [run for run in chosen if not _done(run, loaded, share) and not attempt(run, wait=False)]
    for run in busy:
        attempt(run, wait=True)


def _check_measured(run: Run, peers: Sequence[Run], loaded: Loaded, share: float):
    """UserError if none of `peers` has the metric.  In a sweep, a single candidate without it counts as failed."""
    if not isinstance(loaded.study, Sweep):
        metrics.check_runs(loaded, peers)
    elif not _done(run, loaded, share):
        metric = loaded.study.metric
        scores = (sweeping.score_at(peer, metric, share) for peer in peers)
        if not any(score is not None and score < math.inf for score in scores):
            raise UserError(
                f"{loaded.shown_path}: {run} measured no {metric} after {share:.0%} of its steps; "
                f"name a metric that {run.directory}/{METRICS_FILE} has."
            )
        reasons.write(run.failed, f"it measured no {metric} after {share:.0%} of its steps.")


def is_worker() -> bool:
    """Whether this process was started by another one, which does the reporting."""
    return PARENT in os.environ


def _tell_problems(loaded: Loaded, planned: Sequence[Run], say: Say):
    """Reports each variant that cannot be configured, or whose speed trial failed earlier."""
    for name, problem in {run.variant.name: run.problem for run in planned if run.problem}.items():
        say(f"{loaded.name}: {name}: failed: {problem}")


def _finish(run: Run, loaded: Loaded, say: Say, share: float):
    """Trains a run up to `share` of its steps and measures it; or records why that failed."""
    host_memory.free_programs()  # of earlier runs
    began = time.monotonic()
    try:
        until = sweeping.step_at(run, share) if share < 1 else None
        if not run.trained and not _train(run, until):
            raise KeyboardInterrupt  # SIGTERM: the checkpoint is saved; end this process
        if run.trained:
            measure(run, loaded.study)
    except Exception as error:  # a loss that is not finite, out of memory, a bug: the other runs can still be done
        reasons.write(run.failed, reasons.summary(error), error)
    outcome = f"failed: {run.failure}" if run.failure else _score(run, loaded) if run.trained else f"at {share:.0%}"
    say(f"{loaded.name}: {run}: {outcome}  ({time.monotonic() - began:.0f} s)")


def _train(run: Run, until: int | None) -> bool:
    """Trains the run; returns whether it reached its end or the step `until`."""
    from rich.console import Console

    from deepseek_jax.train import preemption, program_cache
    from deepseek_jax.train.checkpoints.checkpoint import DIRECTORY, newest_intact
    from deepseek_jax.train.loop import train

    spent, began = run.directory / "seconds.txt", time.monotonic()
    run.directory.mkdir(parents=True, exist_ok=True)
    before = float(spent.read_text()) if spent.exists() else 0.0
    try:
        scores = train(run.experiment, run.directory, Console(quiet=True), until=until, programs=program_cache.cached)
    finally:
        seconds = before + time.monotonic() - began
        write_text(spent, f"{seconds:.1f}\n")
    if not any(name.startswith("final/") for name in scores):
        reached = newest_intact(run.directory / DIRECTORY)
        if reached == run.experiment.train.steps and not preemption.heard():
            raise UserError(
                "nothing is held out, so nothing is measured: data.held_out or dataset.test comes to no record; raise "
                "it."
            )
        return until is not None and (reached or 0) >= until  # more if it was trained for a later rung
    write_json(run.directory / TRAINED, summarise(run.directory, run.experiment, seconds))
    return True


def _score(run: Run, loaded: Loaded) -> str:
    metric, scores = loaded.study.metric, all_scores(run, loaded.study)
    found = f"{metric} {scores[metric]:.4f}" if metric in scores else f"no {metric} was measured"
    failed = [f"{reason} ({path.with_suffix('.txt')})" for path, reason in failures(run, loaded.study)]
    return "; ".join([found, *failed])


def run_in_workers(paths: Sequence[Path], jobs: int, root: Path, say: Say = print):
    """Does the remaining work of the studies in the files `paths` in `jobs` worker processes.

    A worker that dies, for example killed when memory runs out, is replaced, and its run counts as failed.
    """
    from deepseek_jax.studies.study import load

    studies = [load(path) for path in paths]
    command = [sys.executable, "-m", "deepseek_jax", "study", "run", *map(str, paths), "--here", "--root", str(root)]
    environment = os.environ | {PARENT: str(os.getpid())}
    workers: list[subprocess.Popen] = []

    def todo():
        return [run for loaded in studies for run in to_do(loaded, root)]

    _check(studies, root)
    for loaded in studies:
        stated.keep(loaded, root)
        _tell_problems(loaded, runs_.plan(loaded, root), say)
    try:
        wanted = min(jobs, len(todo()))
        workers = [subprocess.Popen(command, env=environment) for _ in range(wanted)]
        while workers:
            time.sleep(0.2)
            for worker in [worker for worker in workers if worker.poll() is not None]:
                workers.remove(worker)
                if worker.returncode == 0:
                    continue
                if 0 < worker.returncode != 130:
                    raise UserError("a worker stopped with an error; see its message above.")
                if worker.returncode in (130, -signal.SIGTERM):
                    raise KeyboardInterrupt
                left = todo()
                _mark_died(worker, left, root, say)
                if not all(run.experiment for run in left):  # another worker would die in the same speed trial
                    raise UserError("a worker died while it measured speeds; make the variants that it began smaller.")
                if todo():
                    workers.append(subprocess.Popen(command, env=environment))
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()


def _mark_died(worker: subprocess.Popen, left: list[Run], root: Path, say: Say):
    for run in left:
        if runs_.last_lock_holder(run, root) == worker.pid:
            name = signal.Signals(-worker.returncode).name
            reasons.write(run.failed, f"its process died of {name}" + ("; out of memory?" if name == "SIGKILL" else ""))
            say(f"{run}: failed: {run.failure}")


def _end_with_parent():
    """If the parent is killed, its workers save a checkpoint and end: no training goes on unnoticed."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch():
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
