"""The language model's program: what it counts, its losses, and that packed microbatches add up to the large batch."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.config import (
    Experiment,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    RouterConfig,
    ScheduleConfig,
    TrainConfig,
)
from deepseek_jax.models import tree
from deepseek_jax.models.attention.indexer import DIVERGENCE, RECALL
from deepseek_jax.models.decoder import Decoder, Output, shift
from deepseek_jax.models.flops import attention_a_token
from deepseek_jax.models.moe.balance import RouterReport
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.tasks import language_model
from deepseek_jax.train.optim.optimizer import make_optimizer
from deepseek_jax.train.program import language_model_program
from deepseek_jax.train.state import abstract_state, make_state
from deepseek_jax.train.step import compile_step, gradient_function, make_step
from tests.parallel.curves import V4
from tests.train import tiny

LENGTH = 12
BYTES = np.array([4.0, 2.5])
ROWS = [[5, 7], [2, 3, 4], [12], [1, 1, 1]]  # lengths of the documents packed into each row; the rest is padding


@pytest.fixture(scope="module")
def batch():
    """A packed batch, [4 rows, 12 tokens], of two domains in turn."""
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
    loss = LossConfig(indexer_warmup=0.0)  # sparse attention from the first step, as in scoring
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
    compute = jax.jit(gradient_function(program, state, split, state["step"]))
    parts = [compute(state["params"], {key: leaf[k] for key, leaf in split.items()}, k) for k in range(count)]
    return jax.tree.map(lambda *leaves: sum(map(np.asarray, leaves)), *parts)


def test_packed_microbatches_with_unequal_tokens_add_up_to_the_large_batch(program, experiment, state, batch):
    whole = by_microbatch(program, state, batch, 1)
    parts = by_microbatch(program, state, batch, 4)
    for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-7, err_msg=jax.tree_util.keystr(path))


def test_microbatched_steps_of_a_moe_model_with_mtp_equal_those_of_the_large_batch(batch):
    """Compared after two steps of plain gradient descent: parameters, the routers' biases and all measurements."""
    model = dataclasses.replace(tiny.ROUTED, num_nextn_predict_layers=1)
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


def test_router_and_indexer_reports_are_averaged_over_the_tokens_each_layer_counts():
    """Layers count 8 tokens; MTP modules the 6 and 4 whose target lies in their document, whether an answer or not."""

    def report(dropped, entropy):
        dropped, entropy = jnp.asarray(dropped), jnp.asarray(entropy)
        zero = jnp.zeros((*dropped.shape, 4))
        return RouterReport(zero + 5, zero, zero, dropped * 0, entropy, dropped)

    segments = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 2, 0]])
    batch = {"tokens": segments, "positions": segments, "segment_ids": segments}
    batch["answers"] = jnp.asarray([[0, 0, 1, 1, 0, 0, 0, 1, 0]])
    layers, modules = report([8.0, 4.0], [16.0, 4.0]), [report(1.0, 8.0), report(3.0, 2.0)]
    hidden = jnp.ones((1, 9, 3))
    mtp = {f"mtp/{number}/block": module for number, module in enumerate(modules)}
    attentions = {"layers/1-2": {DIVERGENCE: jnp.asarray([16.0, 4.0]), RECALL: jnp.asarray([8.0, 2.0])}}
    attentions |= {"mtp/0/block": {}, "mtp/1/block": {DIVERGENCE: jnp.asarray(2.0), RECALL: jnp.asarray(1.0)}}
    output = Output(hidden, (hidden, hidden), {"layers/1-2": layers} | mtp, attentions)

    class AlreadyRun:
        config = types.SimpleNamespace(num_experts_per_tok=2)
        head_weight = staticmethod(lambda: jnp.ones((3, 5)))

        def __call__(self, *_):
            return output

    totals = language_model.totals(batch, 3)
    scheduled = {"mtp": 0.0, "index_warmup": None}
    _, parts = language_model.loss(AlreadyRun(), batch, totals, scheduled, LossConfig())
    np.testing.assert_allclose(parts["router/dropped"], np.mean([8 / 8, 4 / 8, 1 / 6, 3 / 4]) / 2, rtol=1e-6)
    np.testing.assert_allclose(parts["router/entropy"]["layers/1-2"], [2.0, 0.5], rtol=1e-6)
    found = [parts["router/entropy"][block] for block in mtp]
    np.testing.assert_allclose(found, [8 / 6, 2 / 4], rtol=1e-6)
    learned = parts["loss/indexer"], parts["indexer/recall"]
    np.testing.assert_allclose(learned, np.mean([[2, 1], [0.5, 0.25], [2 / 4, 1 / 4]], axis=0), rtol=1e-6)
    *_, routed = language_model.next_token_nll(AlreadyRun(), batch, chunk_tokens=16)
    assert routed == {"dropped": 8 + 4, "assigned": 2 * 4 * 5}, "a score is of the layers alone"


@pytest.mark.parametrize("recentre", [False, True])
def test_router_biases_move_as_configured_until_bias_update_until(recentre):
    """They rest after half of ten updates."""
    router = RouterConfig(bias_update_rate=0.1, bias_update_until=0.5, recentre_bias=recentre)
    program = language_model_program(Experiment(model=tiny.ROUTED, router=router, train=TrainConfig(steps=10)), BYTES)
    buffers = {"layers": {"1-1": {"feed_forward": {"router": {"bias": jnp.zeros((1, 4))}}}}}
    aux = {"router/load": {"layers/1-1": jnp.asarray([[6.0, 1.0, 1.0, 0.0]])}}
    moved, resting = (jax.tree.leaves(program.update_buffers({}, buffers, aux, update))[0] for update in (4, 5))
    np.testing.assert_allclose(moved, [np.array([-0.1, 0.1, 0.1, 0.1]) - 0.05 * recentre], rtol=1e-5)
    np.testing.assert_array_equal(resting, 0)


def test_totals_are_at_least_one():
    """Such as a batch of padding alone, whose totals would be zeros."""
    totals = language_model.totals({"segment_ids": jnp.zeros((1, 4), jnp.int32)}, 2)
    assert set(map(float, totals.values())) == {1.0}


SPARSE = {"layer_types": ("dsa",), "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4}


@pytest.fixture(scope="module")
def weighed(batch):
    """weighed(**settings of LossConfig) -> (value, aux, model), for a model with two MTP modules, experts, indexers."""
    model = dataclasses.replace(tiny.MOE, num_nextn_predict_layers=2, initializer_range=0.3, **SPARSE)
    scheduled = {"mtp": 0.4, "index_warmup": None}

    def run(**loss):
        given = Experiment(model=model, loss=LossConfig(**loss), train=TrainConfig(steps=10))
        program = language_model_program(given, BYTES)
        params, buffers = program.make_parameters()
        found = jax.jit(program.loss)(params, buffers, batch, program.totals(batch), scheduled)
        return *found, tree.merge(program.graphdef, params, buffers)

    return run


def test_the_loss_is_the_sum_of_its_parts_by_their_weights(weighed):
    """MTP modules share one weight; every other part has its own."""
    value, aux, _ = weighed(sequence_balance=0.03, batch_balance=0.05, indexer_weight=0.7)
    names = "next", "mtp_1", "mtp_2", "balance", "batch_balance", "indexer"
    parts = [float(aux[f"loss/{name}"]) for name in names]
    assert all(part > 0.01 for part in parts), parts
    np.testing.assert_allclose(value, np.dot([1, 0.2, 0.2, 0.03, 0.05, 0.7], parts), rtol=1e-5)


def test_every_prediction_depth_has_its_z_loss(weighed, batch):
    (without, *_), (value, aux, model) = (weighed(z_loss=z_loss) for z_loss in (0.0, 0.1))
    output = jax.jit(type(model).__call__)(model, batch["tokens"], batch["positions"], batch["segment_ids"])
    means = []
    for depth, hidden in enumerate((output.hidden, *output.mtp), start=1):
        counted = np.asarray(language_model.targets(batch, depth))
        logits = np.asarray(model.logits(hidden))[counted]
        means.append(np.square(np.asarray(jax.nn.logsumexp(logits, axis=-1))).mean())
        nll = -jax.nn.log_softmax(logits)[np.arange(len(logits)), np.asarray(shift(batch["tokens"], depth))[counted]]
        name = "next" if depth == 1 else f"mtp_{depth - 1}"
        np.testing.assert_allclose(aux[f"loss/{name}"], nll.mean(), rtol=1e-4)
    np.testing.assert_allclose(value - without, 0.1 * np.dot([1, 0.2, 0.2], means), rtol=1e-4)


def test_each_mtp_depth_routes_only_tokens_whose_target_is_in_their_document(weighed, batch):
    _, aux, _ = weighed()
    load, segments = aux["router/load"], batch["segment_ids"]
    for depth, of in enumerate([load["layers/1-1"][0], load["mtp/0/block"], load["mtp/1/block"]]):
        seen = (segments[:, depth:] > 0) & (segments[:, depth:] == segments[:, : segments.shape[1] - depth])
        assert of.sum() == 2 * seen.sum()


def test_hash_routed_layers_have_no_balance_loss(batch):
    model = dataclasses.replace(tiny.MOE, num_hash_layers=1)  # the only layer with experts
    given = Experiment(model=model, loss=LossConfig(batch_balance=0.05), train=TrainConfig(steps=10))
    program = language_model_program(given, BYTES)
    scheduled = {"mtp": 0.0, "index_warmup": None}
    model = jax.jit(program.make_parameters)()
    _, aux = jax.jit(lambda model: program.loss(*model, batch, program.totals(batch), scheduled))(model)
    assert aux["loss/balance"] == aux["loss/batch_balance"] == 0


def test_microbatches_share_the_batch_wise_loss(batch):
    """Each of four equal microbatches contributes a quarter."""
    given = Experiment(model=tiny.ROUTED, loss=LossConfig(batch_balance=0.05), train=TrainConfig(steps=10))
    program = language_model_program(given, BYTES)
    model, scheduled = jax.jit(program.make_parameters)(), {"mtp": 0.0, "index_warmup": None}
    row = {name: array[:1] for name, array in batch.items()}
    four = {name: np.stack(4 * [array]) for name, array in row.items()}
    measure = jax.jit(lambda totals: program.loss(*model, row, totals, scheduled)[1])
    alone, share = (measure(program.totals(of)) for of in (row, four))
    np.testing.assert_allclose(4 * share["loss/batch_balance"], alone["loss/batch_balance"], rtol=1e-6)


def test_rope_tables_of_several_attention_kinds_are_in_a_fixed_order():
    """Iterating over a set of strings would give another order, and so miss XLA's compile cache, in each process."""
    kinds = ("window", "hca", "csa")
    config = dataclasses.replace(V4, layer_types=kinds)
    ids = jnp.zeros((1, LENGTH), jnp.int32)
    context = Decoder.context(types.SimpleNamespace(config=config, capacity_factor=0.0), ids, ids, ids)
    assert list(context.rope) == sorted(kinds)
