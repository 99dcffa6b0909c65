"""Held-out text for measures: the same batches for every run of a corpus."""

import itertools

import numpy as np

from deepseek_jax.data.pipeline import Corpus, open_corpus
from deepseek_jax.train.checkpoints.restore import Trained


def corpus(trained: Trained) -> Corpus:
    return open_corpus(trained.experiment.data, trained.experiment.model.vocab_size)


def batches(trained: Trained, count: int, rows: int = 32) -> list[dict[str, np.ndarray]]:
    """The first `count` held-out batches [rows, S]."""
    return list(itertools.islice(corpus(trained).held_out_batches(rows), count))


def prompts(trained: Trained, count: int, length: int) -> list[list[int]]:
    """The first `length` tokens of up to `count` held-out rows that have no padding there."""
    (batch,) = batches(trained, 1)
    full = batch["segment_ids"][:, :length].all(axis=1)
    return batch["tokens"][full][:count, :length].tolist()
