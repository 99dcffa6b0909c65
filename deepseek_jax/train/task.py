"""What the loop asks of a family of experiments: its data, its program, its scores, and what is shown of it."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from deepseek_jax.data.batches import Batch, TrainBatches
from deepseek_jax.data.records import Report
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.hybrid_config import HybridConfig
from deepseek_jax.train.program import Program
from deepseek_jax.train.shown import Shown
from deepseek_jax.train.state import State


class Task(Protocol):
    """One for each family: train/language_model.py, train/supervised.py.  `shown` says what its numbers are called.

    `model`: the network's sizes; `sized_by`: the settings that a batch's size follows; `tokenizer`: of its texts, None
    where it reads none; `notes`: what a person should know of how its data was read, a sentence each.
    """

    program: Program
    model: ModelConfig | HybridConfig
    sized_by: str
    tokenizer: Tokenizer | None
    shown: Shown
    notes: list[str]

    def train_batches(self, size: int, rows: np.ndarray) -> TrainBatches:
        """Microbatches of `size` records or sequences; of each only the `rows` that this process's devices hold."""

    def held_out_batches(self, split: str, limit: int, size: int, rows: np.ndarray) -> Iterator[Batch]:
        """Those `rows` of the first `limit` held-out batches of `size`, the same batches each time; of all for 0.

        `split`: "val", by which training may be stopped, or "final", where the family keeps them apart.
        """

    def bytes_a_record(self) -> tuple[int, int]:
        """(in a batch, between all layers in a step) that a sequence or record takes at least."""

    def size(self, batch: dict) -> int:
        """What throughput counts of a batch [K, M, ...]: tokens, or records."""

    def check_new(self):
        """UserError where the network could not learn, so that no run should begin with it."""

    def row(self, measured: dict, timing: dict) -> dict:
        """The family's part of a row of metrics.jsonl; `measured` as the step returned it, `timing` a Clock's lap."""

    def scores(self, score: Callable, params, buffers, batches: Iterable[Batch]) -> dict[str, float]:
        """Of held-out batches, by the jitted program.score; "loss" among them, {} without batches."""

    def measured(self) -> tuple[str, ...]:
        """The names that `scores` gives of "val", () where nothing is held out for it."""

    def baselines(self, report: Report) -> dict[str, float]:
        """What the final scores stand beside, by the name of each; every process asks, and the leading one is told.

        `report` is told how far those are that take long.
        """

    def check_beside(self, workdir: Path):
        """UserError where what `keep_beside` wrote for the checkpoints there is of other data than this task's."""

    def keep_beside(self, workdir: Path):
        """Writes into the run directory what the parameters cannot be used without."""

    def results(self, state: State, workdir: Path, score: Callable, held_out: Iterable[Batch]) -> list[str]:
        """What a finished run shows beside its scores: texts, also written into the run directory."""
