"""Training of language models, behind the interface that the loop uses (train/task.py)."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from deepseek_jax.config import Experiment
from deepseek_jax.data import compressors
from deepseek_jax.data.batches import Batch, TrainBatches
from deepseek_jax.data.corpora import CORPORA
from deepseek_jax.data.pipeline import open_corpus
from deepseek_jax.errors import UserError
from deepseek_jax.parallel import processes
from deepseek_jax.reporting import Report
from deepseek_jax.train.abstract import FIELDS
from deepseek_jax.train.evaluate import bytes_a_target, evaluate, names
from deepseek_jax.train.metrics import language_model_row
from deepseek_jax.train.program import language_model_program
from deepseek_jax.train.reporting.shown import SHOWN
from deepseek_jax.train.samples import write_samples
from deepseek_jax.train.state import State
from deepseek_jax.train.views import as_trained


class LanguageModelTask:
    """A corpus and a decoder; see Task."""

    shown = SHOWN["language_model"]
    sized_by = "train.batch_size, train.microbatch_size or data.sequence_length"

    def __init__(self, experiment: Experiment, report: Report):
        """Prepares the corpus if it is missing; `report` receives the progress."""
        self.experiment = experiment
        self.corpus = open_corpus(experiment.data, experiment.model.vocab_size, report)
        # Not reported for the package's own corpora: their few empty files are known.
        given = [part for source, part in zip(experiment.data.shares, self.corpus.parts) if source not in CORPORA]
        self.notes = [part.skipped_sentence for part in given if part.skipped_sentence]
        self.model, self.tokenizer = experiment.model, self.corpus.tokenizer
        self.program = as_trained(language_model_program(experiment, bytes_a_target(self.corpus)), experiment)

    def train_batches(self, size: int, rows: np.ndarray) -> TrainBatches:
        return self.corpus.train_batches(size, seed=self.experiment.train.seed, chosen=rows)

    def held_out_batches(self, split: str, limit: int, size: int, rows: np.ndarray) -> Iterator[Batch]:
        return itertools.islice(self.corpus.held_out_batches(size, chosen=rows), limit or None)

    def bytes_a_record(self) -> tuple[int, int]:
        data, tuned = self.experiment.data, self.experiment.tune.is_on
        columns = len(FIELDS) + bool(data.chat)
        layers = 1 if tuned else self.model.num_hidden_layers  # frozen layers need keep nothing for the backward pass
        a_token = layers * self.model.hidden_size * jnp.dtype(self.experiment.train.dtype).itemsize
        return columns * np.dtype(np.int32).itemsize * data.sequence_length, a_token * data.sequence_length

    def size(self, batch: dict) -> int:
        """Token positions, padding included."""
        return batch["tokens"].size

    def check_new(self):
        """Nothing to refuse: every decoder can learn."""

    def row(self, measured: dict, timing: dict) -> dict:
        return language_model_row(measured, timing, self.experiment.model)

    def scores(self, score: Callable, params, buffers, batches: Iterable[Batch]) -> dict[str, float]:
        return evaluate(score, params, buffers, batches, self.corpus)

    def measured(self) -> tuple[str, ...]:
        return names(self.corpus)

    def baselines(self, report: Report) -> dict[str, float]:
        found = compressors.total_bits_per_byte(self.corpus, report) if processes.is_leader() else {}
        processes.barrier()  # compressing may take longer than the others' collectives would wait
        return found

    def check_data_files(self, workdir: Path):
        """UserError if the tokenizer differs from the saved one, whose token ids the model has learned."""
        if self.tokenizer.differs_from_that_in(workdir):
            raise UserError(
                f"{workdir} was trained with another tokenizer than its data yields now: the texts, or the Python or "
                "package that they come from, have changed since.  `eval`, `generate` and start.checkpoint use the "
                "tokenizer.json there; to train on the present texts, give another --workdir."
            )

    def save_data_files(self, workdir: Path):
        self.tokenizer.save(workdir)

    def results(self, state: State, workdir: Path, score: Callable, held_out: Iterable[Batch]) -> list[str]:
        return write_samples(self.experiment, self.corpus, self.program, state, workdir)
