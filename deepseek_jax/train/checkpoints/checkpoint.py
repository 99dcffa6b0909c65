"""Checkpoints: state, data position and best score, one directory per step, written in the background by Orbax.

A checkpoint is intact if every file has the checksum that was recorded before the directory got its final name; a
damaged one is skipped in favour of the one before.
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
from deepseek_jax.models import tree
from deepseek_jax.parallel import processes
from deepseek_jax.train.checkpoints import integrity
from deepseek_jax.train.state import State

DIRECTORY = record.CHECKPOINTS  # below a run directory
# Time limit for writing and sealing a checkpoint.  For the checksums the leader reads all of it back, terabytes for a
# large model; Orbax's default of 20 minutes would end the run.  A dead process is noticed sooner, by its heartbeat.
SAVING_SECONDS = 4 * 3600
REPLACED = ".aside"  # suffix of a checkpoint's directory while it is being replaced


@dataclasses.dataclass(frozen=True)
class RunPosition:
    """How far a run has come, beside its state: steps taken, position in the data, best score.  JSON-able.

    `best_score`: of stopping.metric, negated if higher is better; `waited`: evaluations since then; `stopped`: patience
    has run out and the parameters are those of `best_step`; `useful_seconds`: time spent in steps (train/goodput.py);
    `owes_evaluation`: a signal interrupted the evaluation of `step`, which a resumed run repeats first;
    `model_only`: saved without optimizer state, as by compression (compress/source.py).
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
    """The checkpoints of a run; keeps the newest few and the one with the lowest score.  A context manager."""

    def __init__(self, workdir: Path, config: CheckpointConfig, say: Callable[[str], None]):
        """`say` receives a message about each checkpoint that is skipped as damaged."""
        self._directory, self._say = _directory(workdir), say
        self._pending = False  # whether the outcome of the last save is still unknown
        self._failed, self._thread = False, threading.get_ident()
        if processes.is_leader():
            _finish_replacements(self._directory)
        processes.barrier()
        newest = preservation.LatestN(config.keep)
        best = preservation.BestN(n=1, get_metric_fn=_score, reverse=True)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation.AnyPreservationPolicy([newest, best]),
                best_fn=_score,  # without it Orbax does not store the score
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(
                    timeout_secs=SAVING_SECONDS, barrier_sync_fn=self._arrive, post_finalization_callback=self._seal
                ),
            ),
        )

    def save(self, state: State, progress: RunPosition, score: float = math.inf):
        """Waits until the last save is on disk, then starts the next; returns when the arrays are copied.

        `score` is that of this step's parameters, lower is better; infinite if it was not measured.  If the step has a
        checkpoint already, that one is deleted once the new one is on disk, which the call then waits for.
        """
        parts = {
            "state": ocp.args.PyTreeSave(state),
            "progress": ocp.args.JsonSave(dataclasses.asdict(progress)),
        }
        self.wait()  # one save at a time: `_seal` needs to know which one it is
        self._writing = progress.step
        again = progress.step in self._manager.all_steps()
        if again:
            if processes.is_leader():
                (self._directory / str(progress.step)).rename(self._directory / f"{progress.step}{REPLACED}")
            processes.barrier()
            self._manager.reload()
        self._manager.save(progress.step, args=ocp.args.Composite(**parts), metrics={"score": score})
        self._pending = True
        if again:
            self.wait()
            if processes.is_leader():
                _finish_replacements(self._directory)

    def restore(self, abstract: State) -> tuple[State, RunPosition] | None:
        """The newest intact checkpoint, its arrays sharded like `abstract`; None if there are no checkpoints.

        Deletes newer ones, which are damaged.  UserError if all are damaged or it holds no optimizer state.
        """
        step = newest_intact(self._directory, self._say)
        if step is None:
            return None
        for later in self._manager.all_steps():
            if later > step:  # damaged, but Orbax would keep it as one of the newest
                self._manager.delete(later)
        workdir = self._directory.parent
        progress = read_position(workdir, step)
        if progress.model_only:
            raise UserError(
                f"{workdir} holds a model without the optimizer state that resuming needs; start a new run from it, "
                f"with start.checkpoint={workdir} and a --workdir of its own."
            )
        return self.restore_step(step, abstract), progress

    def restore_step(self, step: int, abstract: State) -> State:
        """The state of a step whose checkpoint still exists, such as the best; sharded like `abstract`."""
        self.wait()
        return self._manager.restore(step, args=ocp.args.Composite(state=_into(abstract)))["state"]

    def is_intact(self, step: int) -> bool:
        """Whether that step's checkpoint is undamaged on disk.  Collective: every process must call it."""
        self.wait()
        return integrity.damage(self._directory / str(step)) is None

    def wait(self):
        """Blocks until the last save is on disk; raises the error that prevented it."""
        self._manager.wait_until_finished()
        self._pending = False

    def check(self):
        """Raises the error that prevented the last save, such as a full disk; does not wait for a save in progress.

        Call it between steps, or a run would train on without a checkpoint until its next save.  In a multi-process run
        it raises in the processes that could not write; their failure ends the others.
        """
        if self._pending and (self._failed or not self._manager.is_saving_in_progress()):
            self.wait()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace):
        if not processes.is_lost_peer(error):  # closing waits for all processes
            self._manager.close()

    def _arrive(self, *, key: str, timeout_ms: int):
        """Orbax's barrier, except that a failed writing thread raises: the others would wait in vain for its files."""
        if (error := sys.exception()) and threading.get_ident() != self._thread:
            self._failed = True
            raise error
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

    def _seal(self):
        """Records the checksums after all processes have written and before the directory gets its final name."""
        if processes.is_leader():
            (unnamed,) = self._directory.glob(f"{self._writing}.*tmp*")
            integrity.record(unnamed)


def _finish_replacements(directory: Path):
    """Deletes checkpoints that were set aside and replaced, and restores those whose replacement never appeared."""
    for aside in directory.glob(f"*{REPLACED}"):
        there = aside.with_name(aside.name.removesuffix(REPLACED))
        if there.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(there)


def _score(metrics: dict) -> float:
    return metrics["score"]


def _into(abstract, *, partial: bool = False):
    """Orbax arguments to restore arrays into the shardings of `abstract`; `partial`: skip arrays that it lacks."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=partial)


def newest_intact(directory: Path, say: Callable[[str], None] = LOG.warning, below: str = "") -> int | None:
    """Step of the newest intact checkpoint in `directory`; None if it has no checkpoints.

    `below`: check only files whose path begins with this.  `say` receives a message about each one skipped.
    UserError if all are damaged.  Collective: every process must call it.
    """
    steps = sorted(_steps(directory), reverse=True) if processes.is_leader() else []
    for place in range(count := processes.broadcast_from_leader(len(steps))):
        step = processes.broadcast_from_leader(steps[place] if steps else 0)
        damage = integrity.damage(_place(directory, step), below)
        if damage is None:
            return step
        if processes.is_leader():
            say(f"checkpoint {step} is skipped: {damage}")
    if count:
        raise UserError(
            f"none of the {count} checkpoints in {directory} is intact; delete that directory to start over."
        )
    return None


def _steps(directory: Path) -> set[int]:
    names = (path.name.removesuffix(REPLACED) for path in directory.glob("*"))
    return {int(name) for name in names if name.isdigit()}


def _place(directory: Path, step: int) -> Path:
    """The directory of a step's checkpoint: still the one set aside if a run was killed while replacing it."""
    there, aside = directory / str(step), directory / f"{step}{REPLACED}"
    return aside if aside.exists() and not there.exists() else there


def _directory(workdir: Path) -> Path:
    return (Path(workdir) / DIRECTORY).absolute()


def has_checkpoints(workdir: Path) -> bool:
    """Whether the run directory has a checkpoint, intact or not."""
    return bool(_steps(_directory(workdir)))


def read(workdir: Path, abstract: dict, step: int | None = None) -> tuple[int, dict]:
    """(step, the part of the state that `abstract` describes) of the checkpoint that `find` finds."""
    step = find(workdir, step)
    return step, read_state(workdir, step, abstract)


def find(workdir: Path, step: int | None = None) -> int:
    """The step of a run's newest intact checkpoint, or `step` if its checkpoint is intact; UserError if there is none.

    Like the functions below, which are given that step, it changes nothing on disk: the run may still be training.
    """
    directory = _directory(workdir)
    if step is not None:
        _check(directory, step)
    elif (step := newest_intact(directory)) is None:
        raise UserError(f"{workdir} has no checkpoint yet; train it first.")
    return step


def read_state(workdir: Path, step: int, abstract: dict) -> dict:
    """The part of a checkpoint's state that `abstract` describes."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(_place(_directory(workdir), step) / "state", args=_into(abstract, partial=True))


def read_shapes(workdir: Path, step: int) -> dict[str, tuple[int, ...]]:
    """The shapes of all arrays in a checkpoint's state, by path."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found = checkpointer.metadata(_place(_directory(workdir), step) / "state").item_metadata.tree
    return {path: leaf.shape for path, leaf in tree.by_path(found).items()}


def read_position(workdir: Path, step: int) -> RunPosition:
    """How far the run had come at a checkpoint."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return RunPosition(**checkpointer.restore(_place(_directory(workdir), step) / "progress"))


def _check(directory: Path, step: int):
    """UserError, in every process, if there is no such step or its checkpoint is damaged."""
    if step not in (there := sorted(_steps(directory))):
        known = ", ".join(map(str, there)) or "none"
        raise UserError(f"{directory.parent} has no checkpoint of step {step}; it has {known}.")
    if damage := integrity.damage(_place(directory, step)):
        raise UserError(f"checkpoint {step} of {directory.parent} is damaged: {damage}; name another step.")


def best_step(workdir: Path) -> int | None:
    """The step of a run's best evaluation, as its newest checkpoint records it; None if there was none yet.

    Verifies only the progress file that it reads, not the checkpoint of the best step.
    """
    newest = newest_intact(_directory(workdir), below="progress/")
    return None if newest is None else read_position(workdir, newest).best_step or None
