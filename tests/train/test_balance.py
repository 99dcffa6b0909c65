"""The bias update does what it is for: on a batch of real text, an unbalanced router becomes an even one."""

import dataclasses

import jax
import numpy as np

from deepseek_jax.config import RouterConfig
from deepseek_jax.data.pipeline import open_corpus
from deepseek_jax.train.metrics import by_layer
from deepseek_jax.train.program import language_model_program
from tests.train import tiny

UPDATES, RATE = 150, 0.002


def test_the_bias_update_moves_loads_towards_balance(tmp_path):
    experiment = dataclasses.replace(tiny.experiment(tmp_path, tiny.MOE), router=RouterConfig(bias_update_rate=RATE))
    corpus = open_corpus(experiment.data, experiment.model.vocab_size)
    batch = next(corpus.train_batches(32, seed=0))
    program = language_model_program(experiment, np.ones(len(corpus.domains)))
    params, buffers = program.make_parameters()
    totals = program.totals(batch)

    @jax.jit
    def update(buffers):
        _, aux = program.loss(params, buffers, batch, totals, {"mtp": 0.0, "index_warmup": None})
        return program.update_buffers(params, buffers, aux, update=0), aux["router/load"]

    excess = []
    for _ in range(UPDATES):
        buffers, loads = update(buffers)
        load_E = next(iter(by_layer(loads).values()))
        assert load_E.sum() == (batch["segment_ids"] > 0).sum() * experiment.model.num_experts_per_tok
        excess.append(load_E.max() / load_E.mean() - 1)
    assert excess[0] > 0.5  # random routers are uneven
    assert max(excess[-10:]) < 0.3 * excess[0]
