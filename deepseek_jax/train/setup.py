"""Everything a run needs before its first step, from its experiment alone: what training and evaluation share."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console

from deepseek_jax.config import Experiment
from deepseek_jax.data.pipeline import Corpus, open_corpus
from deepseek_jax.parallel.mesh import check_batch, check_sequence, make_mesh
from deepseek_jax.parallel.rules import batch_sharding
from deepseek_jax.train import progress
from deepseek_jax.train.evaluate import bytes_a_target
from deepseek_jax.train.optimizer import make_optimizer
from deepseek_jax.train.program import Program, language_model_program
from deepseek_jax.train.state import State, abstract_state


@dataclasses.dataclass(frozen=True)
class Setup:
    """`abstract` is the state's shapes, types and shardings."""

    experiment: Experiment
    mesh: Mesh
    corpus: Corpus
    program: Program
    optimizer: optax.GradientTransformation
    abstract: State

    def train_batches(self):
        """The endless iterator of microbatches; see Corpus.train_batches."""
        train = self.experiment.train
        return self.corpus.train_batches(microbatch_size(self.experiment), seed=train.seed, **_processes())

    def place(self, microbatches: list[dict[str, np.ndarray]]) -> dict[str, jax.Array]:
        """This process's part of a step's microbatches, as arrays [K, M, S] on the devices."""
        stacked = {key: np.stack([batch[key] for batch in microbatches]) for key in microbatches[0]}
        return jax.make_array_from_process_local_data(batch_sharding(self.mesh, leading=1), stacked)

    def held_out_batches(self, limit: int = 0) -> Iterator[dict[str, jax.Array]]:
        """The first `limit` held-out batches, or all of them for 0, as arrays [B, S] on the devices."""
        size = self.experiment.eval.batch_size or microbatch_size(self.experiment)
        for number, batch in enumerate(self.corpus.held_out_batches(size, **_processes())):
            if limit and number == limit:
                return
            yield jax.make_array_from_process_local_data(batch_sharding(self.mesh), batch)


def prepare(experiment: Experiment, console: Console) -> Setup:
    """Checks the experiment against the devices, prepares the corpus where it is missing, and traces the model."""
    mesh = make_mesh(experiment.mesh)
    check_batch(mesh, "train.microbatch_size or train.batch_size", microbatch_size(experiment))
    if experiment.eval.batch_size:
        check_batch(mesh, "eval.batch_size", experiment.eval.batch_size)
    check_sequence(mesh, "data.sequence_length", experiment.data.sequence_length)
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps)
    with progress.preparing(console) as report:
        corpus = open_corpus(experiment.data, experiment.model.vocab_size, report)
    program = language_model_program(experiment, bytes_a_target(corpus))
    ema = experiment.train.ema_decay > 0
    abstract = abstract_state(program, optimizer, mesh, ema)
    return Setup(experiment, mesh, corpus, program, optimizer, abstract)


def microbatch_size(experiment: Experiment) -> int:
    return experiment.train.microbatch_size or experiment.train.batch_size


def _processes() -> dict[str, int]:
    return {"process": jax.process_index(), "processes": jax.process_count()}
