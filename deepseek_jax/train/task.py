"""The interface of a family of experiments to the loop: its data, its program, its scores, and what is shown of it."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from deepseek_jax.data.batches import Batch, TrainBatches
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.hybrid.config import HybridConfig
from deepseek_jax.reporting import Report
from deepseek_jax.train.program import Program
from deepseek_jax.train.reporting.shown import Shown
from deepseek_jax.train.state import State


class Task(Protocol):
    """One for each family: train/language_model.py, train/supervised/task.py.  `shown` names its metrics.

    `model`: the network's config; `sized_by`: the settings that decide a batch's size; `tokenizer`: of its texts, None
    if it reads none; `notes`: what the user should know about how its data was read, a sentence each.
    """

    program: Program
    model: ModelConfig | HybridConfig
    sized_by: str
    tokenizer: Tokenizer | None
    shown: Shown
    notes: list[str]

    def train_batches(self, size: int, rows: np.ndarray) -> TrainBatches:
        """Microbatches of `size` records or sequences, each cut to the `rows` that this process's devices hold."""

    def held_out_batches(self, split: str, limit: int, size: int, rows: np.ndarray) -> Iterator[Batch]:
        """The first `limit` held-out batches (0: all) of `size`, always the same, each cut to the `rows`.

        `split`: "val", on which early stopping is based, or "final"; a family may hold out one set for both.
        """

    def bytes_a_record(self) -> tuple[int, int]:
        """The least that a sequence or record takes: (bytes in a batch, bytes of activations between layers)."""

    def size(self, batch: dict) -> int:
        """How many units of throughput, tokens or records, a batch [K, M, ...] has."""

    def check_new(self):
        """UserError if the network could not learn; called before a new run begins."""

    def row(self, measured: dict, timing: dict) -> dict:
        """The family's part of a row of metrics.jsonl; `measured` as the step returned it, `timing` a Clock's lap."""

    def scores(self, score: Callable, params, buffers, batches: Iterable[Batch]) -> dict[str, float]:
        """Scores on held-out batches, by the jitted program.score; "loss" is among them; {} without batches."""

    def measured(self) -> tuple[str, ...]:
        """The names of the scores that `scores` returns on "val"; () if nothing is held out for it."""

    def baselines(self, report: Report) -> dict[str, float]:
        """Scores to compare the final scores with, by name.  Collective; returns {} in all processes but the leader.

        `report` receives the progress of those that take long.
        """

    def check_data_files(self, workdir: Path):
        """UserError if what `save_data_files` once wrote into the run directory does not match this task's data."""

    def save_data_files(self, workdir: Path):
        """Writes into the run directory what is needed to use the parameters, such as the tokenizer."""

    def results(self, state: State, workdir: Path, score: Callable, held_out: Iterable[Batch]) -> list[str]:
        """Writes what a finished run shows beside its scores into the run directory; returns texts to print."""
