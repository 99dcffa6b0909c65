"""The bias update evens out an unbalanced router's loads on a batch of real text; the batch-wise balance loss."""

import dataclasses

import jax
import numpy as np

from deepseek_jax.config import RouterConfig
from deepseek_jax.data.pipeline import open_corpus
from deepseek_jax.models.moe.balance import batch_balance, update_bias
from deepseek_jax.train.metrics import by_layer
from deepseek_jax.train.program import language_model_program
from tests.train import tiny

UPDATES, RATE = 150, 0.002


def test_the_bias_update_moves_loads_towards_balance(tmp_path):
    experiment = dataclasses.replace(tiny.experiment(tmp_path, tiny.MOE), router=RouterConfig(bias_update_rate=RATE))
    corpus = open_corpus(experiment.data, experiment.model.vocab_size)
    batch = next(corpus.train_batches(32, seed=0))
    program = language_model_program(experiment, np.ones(len(corpus.domains)))
    params, buffers = jax.jit(program.make_parameters)()
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


def test_a_bias_keeps_its_dtype_where_the_rate_has_another():
    """With jax_enable_x64 schedules are float64, but a step must return its state in the dtypes that it was given."""
    bias, load = np.zeros(2, np.float32), np.array([3.0, 1.0], np.float32)
    with jax.enable_x64(True):
        moved = update_bias(jax.numpy.asarray(bias), load, jax.numpy.float64(0.5), recentre=True)
    np.testing.assert_array_equal(moved, np.array([-0.5, 0.5], np.float32), strict=True)


def test_batch_balance_is_the_loss_over_all_tokens_together():
    """arXiv:2412.19437, equations 17 to 20, over the batch instead of a sequence; the loads have no gradient."""
    rng = np.random.default_rng(0)
    load, share = rng.integers(0, 9, (2, 4)).astype(np.float32), rng.random((2, 4)).astype(np.float32)
    frequency = load * 4 / load.sum(axis=1, keepdims=True)  # the loads sum to K T
    probability = share / share.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(batch_balance(load, share), (frequency * probability).sum(axis=1), rtol=1e-6)
    assert not np.any(jax.grad(lambda load: batch_balance(load, share).sum())(load))
    assert batch_balance(0 * load, 0 * share).tolist() == [0, 0]  # a microbatch that is all padding


def test_two_uneven_sequences_may_make_an_even_batch():
    """Each sequence prefers its own experts: the sequence-wise loss is high, the batch-wise one at its minimum, 1."""
    load_BE, share_BE = np.array([[8.0, 0.0], [0.0, 8.0]]), np.array([[7.0, 1.0], [1.0, 7.0]])
    assert batch_balance(load_BE.sum(axis=0), share_BE.sum(axis=0)) == 1
    assert np.all(np.asarray(batch_balance(load_BE, share_BE)) == 1.75)


def test_the_loss_has_a_batch_wise_part(tmp_path):
    experiment = tiny.experiment(tmp_path, tiny.ROUTED)
    corpus = open_corpus(experiment.data, experiment.model.vocab_size)
    batch, scheduled = next(corpus.train_batches(4, seed=0)), {"mtp": 0.0, "index_warmup": None}
    found = []
    for weight in (0.0, 0.5):
        loss = dataclasses.replace(experiment.loss, batch_balance=weight)
        program = language_model_program(dataclasses.replace(experiment, loss=loss), np.ones(1))
        measure = jax.jit(lambda *model, program=program: program.loss(*model, batch, program.totals(batch), scheduled))
        found.append(measure(*jax.jit(program.make_parameters)()))
    (without, _), (value, aux) = found
    assert 1 <= aux["loss/batch_balance"] < 4
    np.testing.assert_allclose(value - without, 0.5 * aux["loss/batch_balance"], rtol=1e-4)
