"""What a model's compression costs: its scores on held-out data, and the batches that calibrate it."""

import dataclasses

import jax
from rich.console import Console

from deepseek_jax.compress.source import Source
from deepseek_jax.data import tokenizer
from deepseek_jax.train import setup
from deepseek_jax.train.scoring import for_scoring


class Measure:
    """Models of the source's sizes on the data of its run; one compilation serves all of them."""

    def __init__(self, source: Source, console: Console | None = None):
        experiment = for_scoring(source.experiment)
        if experiment.family == "language_model":
            beside = tokenizer.of_model(source.directory, source.model.vocab_size)  # by another no text is the model's
            data = dataclasses.replace(experiment.data, tokenizer=str(beside.path))
            experiment = dataclasses.replace(experiment, data=data)
        self.setup = setup.prepare(experiment, console or Console(quiet=True))
        self._score = self.setup.compiled_score()

    def scores(self, params: dict, buffers: dict, batches: int = 0, split: str = "final") -> dict[str, float]:
        """loss and the other scores of held-out batches of "val" or "final", the first so many; 0: all."""
        held_out = self.setup.held_out_batches(split, batches)
        return self.setup.task.scores(self._score, params, buffers, held_out)

    def training_batches(self, count: int) -> list[dict[str, jax.Array]]:
        """The first microbatches [1, M, ...] of the run, on the devices."""
        batches = self.setup.train_batches()
        return [self.setup.place([next(batches)]) for _ in range(count)]
