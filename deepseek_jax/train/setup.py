"""Everything a run needs before its first step, made from its experiment alone; shared by training and evaluation."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console

from deepseek_jax import disk_cache, host_memory, plugins
from deepseek_jax.config import AnyExperiment
from deepseek_jax.data.batches import Batch, TrainBatches
from deepseek_jax.errors import UserError
from deepseek_jax.parallel import processes
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.shares import Share
from deepseek_jax.train.language_model import LanguageModelTask
from deepseek_jax.train.optim import groups
from deepseek_jax.train.optim.optimizer import make_optimizer
from deepseek_jax.train.optim.schedules import learning_rate, microbatch_size, microbatches
from deepseek_jax.train.program import Program, changed, language_model_program
from deepseek_jax.train.refusals import refusals
from deepseek_jax.train.reporting import bars
from deepseek_jax.train.state import State, abstract_state, check_memory
from deepseek_jax.train.step import compile_score, compile_step, make_step
from deepseek_jax.train.supervised.task import SupervisedTask
from deepseek_jax.train.task import Task
from deepseek_jax.train.views import as_trained

TASKS = {"language_model": LanguageModelTask, "supervised": SupervisedTask}


@dataclasses.dataclass(frozen=True)
class Setup:
    """`abstract`: the state's shapes, dtypes and shardings."""

    experiment: AnyExperiment
    mesh: Mesh
    task: Task
    optimizer: optax.GradientTransformationExtraArgs
    abstract: State

    @property
    def program(self) -> Program:
        return self.task.program

    @functools.cached_property
    def share(self) -> Share:
        """The part of a microbatch that this process reads."""
        return Share(self.mesh, microbatch_size(self.experiment.train))

    def train_batches(self) -> TrainBatches:
        return self.task.train_batches(microbatch_size(self.experiment.train), self.share.rows)

    def place(self, batches: list[Batch]) -> dict[str, jax.Array | np.ndarray]:
        """The step's input arrays [K, M, ...] from its microbatches, each this process's share."""
        return self.share.place_step(batches)

    def inputs(self) -> Iterator[dict[str, jax.Array | np.ndarray]]:
        """The input of each step of a run, from the first on, as `place` returns it."""
        train, batches = self.experiment.train, self.train_batches()
        for step in range(train.steps):
            yield self.place([next(batches) for _ in range(microbatches(train, step))])

    def held_out_batches(self, split: str, limit: int = 0) -> Iterator[dict[str, jax.Array]]:
        """The first `limit` batches (0: all) of "val" or "final", as arrays [B, ...] on the devices.

        Without eval.batch_size a batch is as large as a training batch and comes in its microbatches, so that cutting
        batches into microbatches to save memory does not change the scores.
        """
        train, asked = self.experiment.train, self.experiment.eval.batch_size
        pieces = 1 if asked else microbatches(train)
        size = asked or microbatch_size(train)
        share = Share(self.mesh, size)
        return map(share.place, self.task.held_out_batches(split, limit * pieces, size, share.rows))

    @functools.cached_property
    def _score(self) -> Callable:
        return processes.compiled_by_all(self.compiled_score())

    def scores(self, params: dict, buffers: dict, split: str, limit: int = 0) -> dict[str, float]:
        """Loss and other scores, by name, on the first `limit` batches (0: all) of "val" or "final"; {} without any."""
        return self.task.scores(self._score, params, buffers, self.held_out_batches(split, limit))

    def check_memory(self):
        """UserError if the state and a step are certain to exceed this machine's memory.

        Counts the batch, which the host makes, and, if CPUs compute, the activations between layers that the backward
        pass needs.  Without this check the operating system would kill the process without a message.
        """
        train, devices = self.experiment.train, self.mesh.devices.flat
        in_batch, between_layers = self.task.bytes_a_record()
        of_a_step = train.batch_size * in_batch
        if devices[0].platform == "cpu":
            of_a_step += microbatch_size(train) * between_layers
        check_memory(self.abstract, of_a_step * len(self.mesh.local_devices) // len(devices), self.task.sized_by)

    def compiled_step(self) -> jax.stages.Wrapped:
        """step(state, batch) -> (state, metrics), compiled when it is first called; donates `state`."""
        return compile_step(make_step(self.program, self.optimizer, self.experiment), self.abstract)

    def compiled_score(self) -> jax.stages.Wrapped:
        """score(params, buffers, batch) for `task.scores`, compiled when it is first called."""
        return compile_score(self.program, self.mesh)


def check(experiment: AnyExperiment) -> Mesh:
    """The experiment's mesh, on the devices present; UserError for sizes that do not fit it."""
    mesh = make_mesh(experiment.mesh)
    if refused := refusals(experiment, mesh):
        raise UserError(refused[0])
    return mesh


def prepare(
    experiment: AnyExperiment,
    console: Console | None = None,
    change: Callable[[Program], Program] | None = None,
) -> Setup:
    """Checks the experiment against the devices, prepares the data if it is missing, and traces the model.

    `change` returns the program to train instead of the experiment's own, which its plugins may have changed already.
    Prints notes on how the data was read to `console`, if there is one.
    UserError for settings that cannot work.  Keeps memory between steps and compiled programs between processes: the
    command line has seen to that before, a script has not.
    """
    host_memory.keep()
    disk_cache.keep_programs()
    mesh, console = check(experiment), console or Console(quiet=True)
    learning_rate(experiment.optimizer, experiment.train.steps)  # refuses impossible schedules before data is prepared
    if experiment.family == "language_model" and mesh.size > 1:  # fail before a corpus takes minutes
        _placed(experiment, as_trained(language_model_program(experiment, np.ones(1)), experiment), mesh)
    with bars.stages(console) as report:
        task = TASKS[experiment.family](experiment, report)
        processes.barrier()
    task.program = changed(task.program, [*plugins.changes(experiment.plugins), *([change] if change else [])])
    for note in task.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    optimizer, abstract = _placed(experiment, task.program, mesh)
    return Setup(experiment, mesh, task, optimizer, abstract)


def _placed(experiment, program, mesh) -> tuple[optax.GradientTransformationExtraArgs, State]:
    """(the optimizer, the abstract state)."""
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, program.axes)
    abstract = abstract_state(program, optimizer, mesh, ema=experiment.train.ema_decay > 0)
    groups.check(experiment.optimizer.groups, abstract["params"])
    return optimizer, abstract
