"""Checkpoints: state, data position and best score in one directory a step, written in the background by Orbax.

A checkpoint counts as intact when every file has the checksum that was recorded before the directory appeared under its
name; any other is passed over for the one before.
"""

import dataclasses
import math
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from deepseek_jax import record
from deepseek_jax.config import CheckpointConfig
from deepseek_jax.errors import LOG, UserError
from deepseek_jax.parallel import processes
from deepseek_jax.train import integrity
from deepseek_jax.train.state import State

DIRECTORY = record.CHECKPOINTS  # below a run directory
# By which one is to be written and sealed.  The leading process reads all of it for the checksums, terabytes of a large
# model, and Orbax's own 20 minutes would end the run; a process that is gone is missed by its heartbeat long before.
SAVING_SECONDS = 4 * 3600
ASIDE = ".aside"  # ends the name of a checkpoint that is being replaced


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run knows beside its state: steps taken, where the data is read on, the best score.  JSON-able.

    `best_score`: of stopping.metric, lower is better; `waited`: evaluations since; `stopped`: it has waited enough,
    and its parameters are those of `best_step`; `useful_seconds`: what the steps took (train/goodput.py);
    `owes_evaluation`: that of `step` was stopped by a signal, and comes first when the run goes on;
    `model_only`: there is no optimizer, as of models that were made smaller (compress/source.py).
    """

    step: int = 0
    data: dict | None = None
    best_score: float = math.inf
    best_step: int = 0
    waited: int = 0
    stopped: bool = False
    useful_seconds: float = 0.0
    owes_evaluation: bool = False
    model_only: bool = False


class Checkpoints:
    """The checkpoints of a run: the newest few and the one with the lowest score are kept.  A context manager."""

    def __init__(self, workdir: Path, config: CheckpointConfig, say: Callable[[str], None]):
        """`say` is told about checkpoints that are passed over."""
        self._directory, self._say = (Path(workdir) / DIRECTORY).absolute(), say
        self._pending = False  # whether it is still to be seen how the last save ended
        self._failed, self._thread = False, threading.get_ident()
        if processes.is_leader():
            _bring_back(self._directory)
        processes.barrier()
        newest = preservation.LatestN(config.keep)
        best = preservation.BestN(n=1, get_metric_fn=_score, reverse=True)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation.AnyPreservationPolicy([newest, best]),
                best_fn=_score,  # without it Orbax does not write the score down
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(
                    timeout_secs=SAVING_SECONDS, barrier_sync_fn=self._arrive, post_finalization_callback=self._seal
                ),
            ),
        )

    def save(self, state: State, progress: Progress, score: float = math.inf):
        """Starts writing, after what was saved before is on disk; returns when the arrays are copied.

        `score` is of this step's parameters, lower is better; infinite where it was not measured.  What was saved of
        the same step goes when this is on disk, for which it waits.
        """
        parts = {
            "state": ocp.args.PyTreeSave(state),
            "progress": ocp.args.JsonSave(dataclasses.asdict(progress)),
        }
        self.wait()  # one at a time, so that `_seal` knows which
        self._writing = progress.step
        again = progress.step in self._manager.all_steps()
        if again:
            if processes.is_leader():
                (self._directory / str(progress.step)).rename(self._directory / f"{progress.step}{ASIDE}")
            processes.barrier()
            self._manager.reload()
        self._manager.save(progress.step, args=ocp.args.Composite(**parts), metrics={"score": score})
        self._pending = True
        if again:
            self.wait()
            if processes.is_leader():
                _bring_back(self._directory)

    def restore(self, abstract: State) -> tuple[State, Progress] | None:
        """The newest intact checkpoint, its arrays lying as `abstract` says; None where there is none at all."""
        step = newest_intact(self._directory, self._say)
        if step is None:
            return None
        for later in self._manager.all_steps():
            if later > step:  # damaged: it would count among the newest few
                self._manager.delete(later)
        found = self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
        progress = Progress(**found["progress"])
        if progress.model_only:
            raise UserError(
                f"{self._directory.parent} holds a model without the optimizer that a run goes on with; begin another "
                f"run from it, with start.checkpoint={self._directory.parent} and a --workdir of its own."
            )
        return self.restore_step(step, abstract), progress

    def restore_step(self, step: int, abstract: State) -> State:
        """The state of a step that was saved and is kept, such as the best."""
        self.wait()
        return self._manager.restore(step, args=ocp.args.Composite(state=_into(abstract)))["state"]

    def is_intact(self, step: int) -> bool:
        """Whether what was saved of that step is as it was written; each process has to ask."""
        self.wait()
        return integrity.damage(self._directory / str(step)) is None

    def wait(self):
        """Until what was saved is on disk; raises what kept it from getting there."""
        self._manager.wait_until_finished()
        self._pending = False

    def check(self):
        """Raises what kept the last checkpoint from being written, such as a full disk; waits for no writing.

        Call it between steps, or a run would train on without a checkpoint until it saves again.  Of several processes
        it raises in those that could not write, which end the others.
        """
        if self._pending and (self._failed or not self._manager.is_saving_in_progress()):
            self.wait()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace):
        if not processes.is_lost_peer(error):  # to finish a checkpoint, all have to be there
            self._manager.close()

    def _arrive(self, *, key: str, timeout_ms: int):
        """Orbax's barrier, in which a writing thread that fails waits for the others, which wait for what it writes."""
        if (error := sys.exception()) and threading.get_ident() != self._thread:
            self._failed = True
            raise error
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

    def _seal(self):
        """Runs when all processes have written, before the directory gets its name: no checkpoint appears unsealed."""
        if processes.is_leader():
            (unnamed,) = self._directory.glob(f"{self._writing}.*tmp*")
            integrity.record(unnamed)


def _bring_back(directory: Path):
    """Of checkpoints that were to be replaced: those whose followers never came."""
    for aside in directory.glob(f"*{ASIDE}"):
        there = aside.with_name(aside.name.removesuffix(ASIDE))
        if there.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(there)


def _score(metrics: dict) -> float:
    return metrics["score"]


def _into(abstract, *, partial: bool = False):
    """Restores arrays into the shardings of `abstract`, whatever they were saved from; `partial` leaves out others."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=partial)


def newest_intact(directory: Path, say: Callable[[str], None] = LOG.warning, below: str = "") -> int | None:
    """Step of the newest checkpoint that is intact, or is so `below` there; None where a directory holds none at all.

    `say` is told of those passed over.  Raises UserError when all are damaged.  Each process has to ask.
    """
    steps = sorted(_steps(directory), reverse=True) if processes.is_leader() else []
    for place in range(count := processes.broadcast_from_leader(len(steps))):
        step = processes.broadcast_from_leader(steps[place] if steps else 0)
        damage = integrity.damage(_place(directory, step), below)
        if damage is None:
            return step
        if processes.is_leader():
            say(f"checkpoint {step} is passed over: {damage}")
    if count:
        raise UserError(
            f"none of the {count} checkpoints in {directory} is intact; delete that directory to begin again."
        )
    return None


def _steps(directory: Path) -> set[int]:
    names = (path.name.removesuffix(ASIDE) for path in directory.glob("*"))
    return {int(name) for name in names if name.isdigit()}


def _place(directory: Path, step: int) -> Path:
    """Where its checkpoint lies: still aside where a run was killed while it replaced it."""
    there, aside = directory / str(step), directory / f"{step}{ASIDE}"
    return aside if aside.exists() and not there.exists() else there


def are_in(workdir: Path) -> bool:
    """Whether the run directory has a checkpoint, intact or not."""
    return bool(_steps(Path(workdir) / DIRECTORY))


def read(workdir: Path, abstract: dict, step: int | None = None) -> tuple[int, dict]:
    """(step, the part of the state that `abstract` describes) of a run's newest intact checkpoint, or that of `step`.

    Changes nothing there, so the run may be going on.
    """
    directory = (Path(workdir) / DIRECTORY).absolute()
    if step is not None:
        _check(directory, step)
    elif (step := newest_intact(directory)) is None:
        raise UserError(f"{workdir} has no checkpoint yet; train it first.")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return step, checkpointer.restore(_place(directory, step) / "state", args=_into(abstract, partial=True))


def _check(directory: Path, step: int):
    """UserError in every process where there is no such step, or it is damaged."""
    if step not in (there := sorted(_steps(directory))):
        known = ", ".join(map(str, there)) or "none"
        raise UserError(f"{directory.parent} has no checkpoint of step {step}; it has {known}.")
    if damage := integrity.damage(_place(directory, step)):
        raise UserError(f"checkpoint {step} of {directory.parent} is damaged: {damage}.")


def best_step(workdir: Path) -> int | None:
    """The step of a run's best evaluation as its newest checkpoint knows it; None where it has had none.

    Checks what it reads of that one alone: the arrays of the best are still to be read.
    """
    directory = (Path(workdir) / DIRECTORY).absolute()
    newest = newest_intact(directory, below="progress/")
    if newest is None:
        return None
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return Progress(**checkpointer.restore(_place(directory, newest) / "progress")).best_step or None
