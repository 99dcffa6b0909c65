"""The language model as the step sees it: what it counts, and that packed microbatches add up to the large batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.config import Experiment, LossConfig, MeshConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from deepseek_jax.models.flops import attention_a_token
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.train.optimizer import make_optimizer
from deepseek_jax.train.program import language_model_program
from deepseek_jax.train.state import abstract_state, make_state
from deepseek_jax.train.step import compile_step, gradient_function, make_step
from tests.train import tiny

LENGTH = 12
BYTES = np.array([4.0, 2.5])
ROWS = [[5, 7], [2, 3, 4], [12], [1, 1, 1]]  # lengths of the documents packed into each row; the rest is padding


@pytest.fixture(scope="module")
def batch():
    """[4, 12]"""
    rng = np.random.default_rng(0)
    names = "tokens", "segment_ids", "positions", "domain_ids"
    rows = {name: np.zeros((len(ROWS), LENGTH), np.int32) for name in names}
    for row, lengths in enumerate(ROWS):
        start = 0
        for segment, length in enumerate(lengths, start=1):
            piece = slice(start, start + length)
            rows["tokens"][row, piece] = rng.integers(1, tiny.DENSE.vocab_size, length)
            rows["segment_ids"][row, piece], rows["positions"][row, piece] = segment, np.arange(length)
            start += length
        rows["domain_ids"][row] = row % 2
    return rows


@pytest.fixture(scope="module")
def experiment():
    sparse = {"layer_types": ("dsa",), "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4}
    model = dataclasses.replace(tiny.DENSE, num_nextn_predict_layers=1, **sparse)
    loss = LossConfig(indexer_warmup=0.0)  # scores are those of sparse attention
    return Experiment(model=model, loss=loss, train=TrainConfig(steps=10), optimizer=OptimizerConfig())


@pytest.fixture(scope="module")
def program(experiment):
    return language_model_program(experiment, BYTES)


@pytest.fixture(scope="module")
def state(program):
    params, buffers = program.make_parameters()
    return {"step": jnp.zeros((), jnp.int32), "skipped": jnp.zeros((), jnp.int32), "params": params, "buffers": buffers}


def by_microbatch(program, state, batch, count: int):
    """((loss, aux), gradient) summed over `count` microbatches."""
    split = jax.tree.map(lambda leaf: leaf.reshape(count, -1, LENGTH), batch)
    compute = jax.jit(gradient_function(program, state, split))
    parts = [compute(state["params"], {key: leaf[k] for key, leaf in split.items()}, k) for k in range(count)]
    return jax.tree.map(lambda *leaves: sum(map(np.asarray, leaves)), *parts)


def test_packed_microbatches_with_unequal_tokens_add_up_to_the_large_batch(program, experiment, state, batch):
    whole = by_microbatch(program, state, batch, 1)
    parts = by_microbatch(program, state, batch, 4)
    for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-7, err_msg=jax.tree_util.keystr(path))


def test_the_step_of_a_moe_model_with_mtp_is_that_of_the_large_batch(batch):
    """Parameters, the bias that loads move, and all that is measured, after two steps of plain gradient descent."""
    model = dataclasses.replace(tiny.MOE, num_nextn_predict_layers=1)
    optimizer = OptimizerConfig(name="sgd", b1=0.0, peak_lr=0.1, schedule=ScheduleConfig(name="constant"))
    loss = LossConfig(sequence_balance=0.01, z_loss=1e-3)
    given = Experiment(model=model, loss=loss, train=TrainConfig(steps=10), optimizer=optimizer)
    program, chain = language_model_program(given, BYTES), make_optimizer(optimizer, 10)
    abstract = abstract_state(program, chain, make_mesh(MeshConfig()), ema=False)
    step = compile_step(make_step(program, chain, given), abstract)

    def after_two(count):
        microbatches = jax.tree.map(lambda leaf: leaf.reshape(count, -1, LENGTH), batch)
        state = make_state(program, chain, abstract)
        for _ in range(2):
            state, measured = step(state, microbatches)
        return {key: state[key] for key in ("params", "buffers")} | measured

    whole, parts = after_two(1), after_two(4)
    assert any(np.any(bias) for bias in jax.tree.leaves(whole["buffers"]))
    for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6, err_msg=jax.tree_util.keystr(path))


def test_what_a_batch_holds_is_counted(program, experiment, state, batch):
    (_, aux), _ = by_microbatch(program, state, batch, 1)
    lengths = [length for row in ROWS for length in row]
    assert aux["tokens"] == sum(lengths)
    assert aux["targets"] == sum(length - 1 for length in lengths)
    assert aux["attention"] == sum(attention_a_token(experiment.model, 1 + jnp.arange(n)).sum() for n in lengths)
    assert aux["bytes"] == (4 + 6 + 11) * 4.0 + (1 + 2 + 3) * 2.5


def test_scores_are_summed_by_domain_and_agree_with_the_loss(program, experiment, state, batch):
    (_, aux), _ = by_microbatch(program, state, batch, 1)
    scores = jax.jit(program.score)(state["params"], state["buffers"], batch)
    np.testing.assert_array_equal(scores["targets"], [4 + 6 + 11, 1 + 2 + 3])
    np.testing.assert_allclose(scores["nats"].sum(), aux["loss/next"] * aux["targets"], rtol=1e-5)


def test_parameters_are_the_same_each_time_and_differ_by_seed(program, experiment, state):
    again = program.make_parameters()[0]
    np.testing.assert_array_equal(again["embedding"], state["params"]["embedding"])
    other = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=1))
    assert (language_model_program(other, BYTES).make_parameters()[0]["embedding"] != again["embedding"]).any()
