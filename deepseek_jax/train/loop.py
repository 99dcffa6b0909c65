"""The training loop, from an experiment to a run directory.  Read it from top to bottom."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from deepseek_jax import fields, host_memory, record
from deepseek_jax.config import AnyExperiment, TrainConfig
from deepseek_jax.data.batches import TrainBatches
from deepseek_jax.errors import UserError
from deepseek_jax.parallel import processes
from deepseek_jax.source_names import source_name
from deepseek_jax.train import branch, early_stopping, preemption, program_cache, start
from deepseek_jax.train.checkpoints.checkpoint import Checkpoints, RunPosition, has_checkpoints
from deepseek_jax.train.goodput import Goodput
from deepseek_jax.train.metrics import by_layer
from deepseek_jax.train.nonfinite import bad_parameter, find_origin
from deepseek_jax.train.optim import schedules
from deepseek_jax.train.profile import Profile
from deepseek_jax.train.program import Program
from deepseek_jax.train.recorder import NotFinite, Recorder, Started
from deepseek_jax.train.reporting import bars, report, summary
from deepseek_jax.train.reporting.sinks import Sinks, check_sinks
from deepseek_jax.train.setup import Setup, prepare
from deepseek_jax.train.state import State, scored_model
from deepseek_jax.train.step import gradient_function
from deepseek_jax.views.pruned import updates_to_prune


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from a process's first step to its last.

    `step` and `score` are compiled when they are first called.  `profile`: the steps to trace; `until`: the step after
    which to pause, if any; `stopping()`: the signal that is to stop the run, or "" (train/preemption.py).
    """

    setup: Setup
    step: Callable
    score: Callable
    batches: TrainBatches
    checkpoints: Checkpoints
    workdir: Path
    console: Console
    goodput: Goodput
    profile: range
    until: int | None
    stopping: Callable[[], str]


def run_experiment(
    experiment: AnyExperiment,
    workdir: str | Path,
    console: Console | None = None,
    change: Callable[[Program], Program] | None = None,
) -> dict[str, float]:
    """Trains in `workdir` as `deepseek-jax train` does, resuming what is there; returns the final scores.

    `console`: a rich one to print to instead of standard output.  `change` returns the program to train instead of the
    experiment's own (docs/runs.md).  UserError for what the user can fix.
    """
    return train(experiment, workdir, console, change=change)


def train(
    experiment: AnyExperiment,
    workdir: str | Path,
    console: Console | None = None,
    profile: range = range(0),
    until: int | None = None,
    programs: Callable[[Setup], tuple[Callable, Callable]] = program_cache.compiled,
    change: Callable[[Program], Program] | None = None,
) -> dict[str, float]:
    """Trains in `workdir`, resuming from its newest intact checkpoint if there is one; returns the final scores.

    In a multi-process run every process calls this; only the leader writes files and prints.  On SIGTERM to any
    process, and after step `until` (which is evaluated first), it saves a checkpoint and returns.  On Ctrl-C it saves
    one and raises KeyboardInterrupt; a multi-process run returns instead.  A profiler trace of the steps `profile` goes
    into the run directory.  `programs` returns the compiled step and score.  `change` returns the program to train
    instead of the experiment's own (docs/runs.md); a run belongs to one such function, known by its source.  Raises
    UserError for what the user can fix, and at a non-finite step if train.on_nonfinite is "stop".
    """
    host_memory.keep()  # here, as the next line starts jax's threads
    experiment, workdir, leads = fields.checked(experiment), Path(workdir), processes.is_leader()
    changed_by = change and source_name(change)
    record.claim(workdir, experiment, changed_by, write=False)  # refuse early: preparing the corpus may take hours
    if not has_checkpoints(workdir):
        start.check(experiment)
    elif leads:
        record.warn_of_changed_plugins(workdir, experiment)
    check_sinks(experiment.log)
    console = console or Console(quiet=not leads, markup=False)  # file names may contain brackets
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs every file it writes
    setup = prepare(experiment, console, change)
    early_stopping.check(experiment.stopping, tuple(f"val/{name}" for name in setup.task.measured()))
    setup.check_memory()
    batches = setup.train_batches()
    shown, finished, results = setup.task.shown, False, []
    alone = record.held(workdir) if leads else contextlib.nullcontext()
    # Signals are caught to the end: the last checkpoint is still being written when the steps are over.
    with alone, preemption.watch() as stopping:
        state, done, began = _begin(setup, batches, workdir, changed_by, console)
        try:
            with Checkpoints(workdir, experiment.checkpoint, say=console.print) as checkpoints:
                if state is None:
                    state, done = checkpoints.restore(setup.abstract)
                    batches.restore(done.data)  # refuses other data, even for a finished run: its samples come from it
                    console.print(f"resuming from step {done.step}")
                elif done.step:  # of another run, whose directory need not stay
                    checkpoints.save(state, done, done.best_score)
                goodput = Goodput(began, done.useful_seconds)
                step, score = programs(setup)
                run = Run(setup, step, score, batches, checkpoints, workdir, console, goodput, profile, until, stopping)
                last = experiment.train.steps if until is None else min(until, experiment.train.steps)
                if not done.stopped and (done.step < last or done.owes_evaluation):
                    state, done = _take_steps(run, state, done)
            if done.stopped or (done.step == experiment.train.steps and not done.owes_evaluation):
                results = _finish(run, state, done)
                finished = True
        except preemption.Stopped:
            console.print(f"stopped by {stopping()} before the final scores were done; the same command makes them")
        finally:
            if leads:
                report.write(workdir)  # also if the run failed: the report shows where
    if finished:
        summary.show(console, workdir, shown, results)
    return summary.final_scores(workdir, shown)


def _begin(
    setup: Setup, batches: TrainBatches, workdir: Path, changed_by: str | None, console: Console
) -> tuple[State | None, RunPosition, float]:
    """Claims the directory; returns (the initial state, or None if there are checkpoints; the position that goes with
    it; when the run first began, in seconds since 1970).

    A run that cannot be started or resumed claims and changes nothing.
    """
    leads, state, done = processes.is_leader(), None, RunPosition()
    if processes.broadcast_from_leader(has_checkpoints(workdir)):
        setup.task.check_data_files(workdir)
    elif setup.experiment.start.full_state:
        state, done = branch.begin(setup, batches, console.print)
    else:
        state = start.first_state(setup, console.print)
    began = record.claim(workdir, setup.experiment, changed_by, write=leads)
    if leads:
        setup.task.save_data_files(workdir)
    processes.check_shared(workdir / record.CONFIG_FILE)
    return state, done, began


def _take_steps(run: Run, state: State, done: RunPosition) -> tuple[State, RunPosition]:
    """Takes the remaining steps, up to `run.until`, early stopping or a signal; saves before it returns."""
    setup, console, experiment = run.setup, run.console, run.setup.experiment
    steps, begun = experiment.train.steps, done.step
    sinks = Sinks(run.workdir, experiment, begun, again="val/" if done.owes_evaluation else "")
    with sinks, bars.training(console, begun, steps) as show:
        recorder = Recorder(experiment, setup.task, sinks.write, show, run.goodput, skipped=int(state["skipped"]))
        profile = Profile(run.profile, run.workdir, recorder)
        try:
            first = begun if done.owes_evaluation else begun + 1  # repeat an interrupted evaluation first
            for step in range(first, steps + 1):
                if step > begun:
                    profile.before(step)
                    if _grows(experiment.train, step):
                        recorder.restart()
                    state, started = _start_step(run, state, step)
                    recorder.follow(started)  # waits for earlier steps
                    profile.after(step)
                    run.checkpoints.check()

                due = _due_after(run, step, repeated=step == begun)
                if not (due.evaluation or due.checkpoint or run.stopping()):
                    continue
                recorder.pause()  # rows must be written before the checkpoint that a resumed run trusts
                if due.evaluation:
                    done, scores = _evaluated(run, state, done, step)
                    for row in (_router_shares(recorder.last_load()), scores):
                        if row:
                            sinks.write({"step": step} | row)
                state, done, over = _saved(run, state, done, step, due)
                if over:
                    break
                recorder.resume()
        except NotFinite as failure:
            console.print(f"{failure}; searching for the operation where it began ...")
            raise UserError(_explain(setup, state, failure.step, done)) from None
        finally:
            recorder.close()
            profile.close()
    return state, done


def _grows(train: TrainConfig, step: int) -> bool:
    """Whether the batch has more microbatches than in the step before, so that the step has to be recompiled."""
    return step > 1 and schedules.microbatches(train, step - 1) > schedules.microbatches(train, step - 2)


def _start_step(run: Run, state: State, step: int) -> tuple[State, Started]:
    """Returns (the next state, the step under way).  The state passed in is donated and must not be used again."""
    train = run.setup.experiment.train
    asked = time.perf_counter()
    count = schedules.microbatches(train, step - 1)
    microbatches = [next(run.batches) for _ in range(count)]
    waited = time.perf_counter() - asked
    batch = run.setup.place(microbatches)
    worked = time.thread_time()
    state, measured = run.step(state, batch)
    return state, Started(step, batch, measured, waited, time.thread_time() - worked)


class Due(NamedTuple):
    """What is to be done after a step: `pause` is the end of this process's part, `last` that of the experiment."""

    evaluation: bool
    checkpoint: bool
    pause: bool
    last: bool


def _due_after(run: Run, step: int, repeated: bool) -> Due:
    """`repeated`: whether the step itself was taken earlier, and only its evaluation was interrupted."""
    experiment = run.setup.experiment
    last, pause = step == experiment.train.steps, step == run.until
    return Due(
        evaluation=last or pause or repeated or _is_multiple(step, experiment.eval.every),
        checkpoint=last or pause or _is_multiple(step, experiment.checkpoint.every),
        pause=pause,
        last=last,
    )


def _is_multiple(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _saved(run: Run, state: State, done: RunPosition, step: int, due: Due) -> tuple[State, RunPosition, bool]:
    """Saves what is due, the best evaluation, and before the run ends; (state, progress, whether no step follows).

    At the end of training with early stopping, the state returned and saved is that of the best evaluation.
    """
    interrupted = run.stopping()
    if interrupted == preemption.INTERRUPTED:
        run.console.print(f"saving step {step}; a second Ctrl-C stops at once")
    best = due.evaluation and done.best_step == step
    ending = done.stopped or (due.last and not done.owes_evaluation)
    if ending:
        state, done = _restore_best(run, state, done, step)
    if due.checkpoint or best or ending or interrupted:
        useful = run.goodput.useful_seconds
        done = dataclasses.replace(done, step=step, data=run.batches.state(), useful_seconds=useful)
        run.checkpoints.save(state, done, done.best_score if best else math.inf)
    if interrupted and not (ending or due.pause):
        run.console.print(f"stopped by {interrupted} after step {step}; the same command resumes from there")
    return state, done, bool(ending or due.pause or interrupted)


def _evaluated(run: Run, state: State, done: RunPosition, step: int):
    """(the progress after evaluating `step`, its scores); if a signal interrupts, (progress that owes the scores, {}).

    After a signal, the grace period is needed for the checkpoint: an evaluation may take longer.
    """
    experiment = run.setup.experiment
    try:
        scores = _scores(run, state, "val", experiment.eval.batches)
    except preemption.Stopped:
        return dataclasses.replace(done, owes_evaluation=True), {}
    pruned = step - int(state["skipped"]) >= updates_to_prune(experiment.prune, experiment.train.steps)
    # Not judged: an evaluation due only to a pause, and any before pruning is complete, as going back to it would bring
    # pruned weights back.
    if step == experiment.train.steps or (pruned and _is_multiple(step, experiment.eval.every)):
        done = early_stopping.judge(experiment.stopping, done, scores, step)
    return dataclasses.replace(done, owes_evaluation=False), scores


def _scores(run: Run, state: State, split: str, limit: int) -> dict[str, float]:
    """<split>/* scores on the first `limit` held-out batches (0: all), the same ones at each evaluation."""
    held_out = preemption.until_stopped(run.stopping, run.setup.held_out_batches(split, limit))
    found = run.setup.task.scores(run.score, *scored_model(state), held_out)
    return {f"{split}/{key}": value for key, value in found.items()}


def _finish(run: Run, state: State, done: RunPosition) -> list[str]:
    """Computes final scores if missing or made with other settings; returns the task's results.  May raise Stopped."""
    if not summary.is_scored(run.workdir, run.setup.experiment.eval):
        _score_finally(run, state, done)
    held_out = preemption.until_stopped(run.stopping, run.setup.held_out_batches("final"))
    return run.setup.task.results(state, run.workdir, run.score, held_out)


def _score_finally(run: Run, state: State, done: RunPosition):
    """Writes the row of final scores.  Their checkpoint exists already, so a resumed run can redo what fails here."""
    experiment, task = run.setup.experiment, run.setup.task
    with run.console.status("scoring all that is held out"):
        found = _scores(run, state, "final", experiment.eval.final_batches)
    if run.stopping():
        raise preemption.Stopped  # baselines may take longer than the grace period
    if not experiment.eval.final_batches:  # baselines are scored on all held-out data
        with bars.stages(run.console) as report_baselines:
            found |= {f"final/{name}": value for name, value in task.baselines(report_baselines).items()}
    if not found:  # nothing is held out
        return
    if experiment.stopping.patience and done.best_step:
        found["stopping/kept_step"] = done.best_step  # the step whose parameters were scored
    found[summary.SETTINGS] = summary.scored_with(experiment.eval)
    with Sinks(run.workdir, experiment, resumed_at=done.step, again=summary.FINAL) as sinks:
        sinks.write({"step": done.step} | found)


def _restore_best(run: Run, state: State, done: RunPosition, step: int) -> tuple[State, RunPosition]:
    """(the state of the best evaluation if early stopping is on, else `state`; the progress that goes with it)."""
    stopping = run.setup.experiment.stopping
    if done.stopped and not done.best_step:
        none = f"{stopping.metric} was no finite number in {done.waited} evaluations"
        run.console.print(f"{none}: stopping with the last parameters")
    if not stopping.patience or done.best_step in (0, step):
        return state, done
    why = f"no better {stopping.metric} in {done.waited} evaluations; " if done.stopped else ""
    if not run.checkpoints.is_intact(done.best_step):
        run.console.print(
            f"{why}the best checkpoint, of step {done.best_step}, is damaged: keeping the last parameters"
        )
        return state, dataclasses.replace(done, best_step=step)
    run.console.print(f"{why}restoring the parameters of step {done.best_step}")
    return run.checkpoints.restore_step(done.best_step, run.setup.abstract), done


def _router_shares(load: dict) -> dict:
    """Each expert's share of the assignments in the last step, a list for each layer."""
    shares = {layer: load_E / max(load_E.sum(), 1) for layer, load_E in by_layer(load).items()}
    shares = {layer: [round(float(x), 4) for x in share_E] for layer, share_E in shares.items()}
    return {"router/share": shares} if shares else {}


def _explain(setup: Setup, state: State, step: Started, done: RunPosition) -> str:
    """Says where the first non-finite number came from, by running the step again operation by operation."""
    where = bad_parameter(state["params"])
    if where:
        where = f"in the parameter {where}"
    else:
        # The number of the failed update.  Later steps were dropped too, so `state` is still the one it started from.
        update = step.number - int(step.measured["skipped"])
        batch, _ = setup.program.rollouts(state, step.batch, update)
        gradient = gradient_function(setup.program, state, batch, update)
        count = len(next(iter(batch.values())))
        microbatches = (({key: leaf[k] for key, leaf in batch.items()}, k) for k in range(count))
        origins = (find_origin(gradient, state["params"], *microbatch) for microbatch in microbatches)
        where = next((f"at {origin}" for origin in origins if origin), "where sums of finite numbers overflow")
    there = f"The last checkpoint is of step {done.step}" if done.step else "There is no checkpoint yet"
    return (
        f"step {step.number} is not finite; it began {where}.  {there}; the same command with train.on_nonfinite=skip "
        "drops such steps, or start a new run, in a --workdir of its own, with a lower optimizer.peak_lr."
    )
