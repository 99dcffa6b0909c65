"""The data side of compression: held-out scores of a model before and after, and batches for calibration."""

import dataclasses

import jax
from rich.console import Console

from deepseek_jax.data import tokenizer
from deepseek_jax.train import setup
from deepseek_jax.train.checkpoints.restore import Trained
from deepseek_jax.train.scoring import scoring_experiment


class Measure:
    """Scores models that have the source's shapes on its run's data; all of them share one compiled function."""

    def __init__(self, source: Trained, console: Console | None = None):
        experiment = scoring_experiment(source.experiment)
        if experiment.family == "language_model":
            beside = tokenizer.of_model(source.directory, source.config.vocab_size)  # the one it was trained with
            data = dataclasses.replace(experiment.data, tokenizer=str(beside.path))
            experiment = dataclasses.replace(experiment, data=data)
        self.setup = setup.prepare(experiment, console)

    def scores(self, params: dict, buffers: dict, batches: int = 0, split: str = "final") -> dict[str, float]:
        """Loss and other scores, by name, on the first `batches` held-out batches (0: all) of `split` ("val", "final").

        Empty if nothing is held out.
        """
        return self.setup.scores(params, buffers, split, batches)

    def training_batches(self, count: int) -> list[dict[str, jax.Array]]:
        """The run's first `count` microbatches, each a dict of arrays [1, M, ...] on the devices."""
        batches = self.setup.train_batches()
        return [self.setup.place([next(batches)]) for _ in range(count)]
