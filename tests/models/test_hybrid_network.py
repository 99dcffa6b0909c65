"""The hybrid network: outputs, padding that must not matter, noise, batch norms, stages that are left out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepseek_jax.compiling import LEVEL
from deepseek_jax.models import tree
from deepseek_jax.models.hybrid.config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.models.hybrid.feature_norms import updated_buffers
from deepseek_jax.models.hybrid.network import Hybrid
from deepseek_jax.models.hybrid.regularisation import drop_path, dropout
from tests import xla_flags
from tests.models.hybrids import IMAGE, SERIES, TEXT

NO_CONVOLUTION, NO_RECURRENCE, NO_ATTENTION = ConvolutionConfig(()), RecurrentConfig("none"), AttentionConfig(0)


@functools.cache
def network(config, **options):
    """(parameters, buffers, jitted call(params, buffers, inputs, lengths, key)) of a network split as in training."""
    graphdef, params, buffers = tree.split(Hybrid(config, rngs=nnx.Rngs(params=0), **options))

    def call(params, buffers, inputs, lengths=None, key=None):
        return tree.merge(graphdef, params, buffers)(inputs, lengths, key=key)

    return params, buffers, jax.jit(call)


def run(config, *given, **options):
    """(outputs, batch-norm statistics) of a new network for `given`: inputs, and optionally lengths and a key."""
    params, buffers, call = network(config, **options)
    return call(params, buffers, *given)


def inputs_of(config, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    if config.input == "text":
        return jnp.asarray(rng.integers(0, config.vocab_size, (batch, config.length)))
    shape = {
        "image": (config.height, config.width, config.channels),
        "series": (config.length, config.channels),
        "table": (config.channels,),
    }[config.input]
    return jnp.asarray(rng.normal(size=(batch, *shape)), jnp.float32)


@pytest.mark.parametrize("config", [SERIES, TEXT, dataclasses.replace(SERIES, readout="max")], ids=lambda c: c.input)
def test_padding_changes_nothing(config):
    """A record has the same outputs in a padded batch as alone, whatever the padding contains."""
    inputs, lengths = inputs_of(config), jnp.array([5, config.length, 1])
    padding = jnp.arange(config.length) >= lengths[:, None]
    filled = [jnp.where(padding[(...,) + (None,) * (inputs.ndim - 2)], fill, inputs) for fill in (0, 7)]
    zeros, sevens = (run(config, each, lengths)[0] for each in filled)
    np.testing.assert_array_equal(zeros, sevens)
    for number, length in enumerate(lengths):
        alone, _ = run(config, inputs[number : number + 1, :length])
        np.testing.assert_allclose(zeros[number], alone[0], rtol=1e-5, atol=1e-6)


def test_batch_norm_statistics_exclude_padding():
    config = dataclasses.replace(SERIES, convolution=ConvolutionConfig((4,), norm="batch", pool="none"))
    inputs, lengths = inputs_of(config, batch=2), jnp.array([6, 6])
    _, whole = run(config, inputs[:, :6], None, jax.random.key(0))
    _, padded = run(config, inputs, lengths, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, padded)


@pytest.mark.parametrize(
    "left_out",
    [{"convolution": NO_CONVOLUTION}, {"recurrent": NO_RECURRENCE}, {"attention": NO_ATTENTION}],
    ids=lambda each: next(iter(each)),
)
@pytest.mark.parametrize("sequence", ["rows", "cells"])
def test_any_stage_can_be_left_out(left_out, sequence):
    config = dataclasses.replace(IMAGE, sequence=sequence, **left_out)
    params, _, _ = network(config)
    assert set(params) == {"convolution", "recurrent", "attention", "head"} - set(left_out)
    assert run(config, inputs_of(config))[0].shape == (3, 10)


def test_a_table_alone_is_linear_regression():
    stages = {"convolution": NO_CONVOLUTION, "recurrent": NO_RECURRENCE, "attention": NO_ATTENTION}
    config = HybridConfig(input="table", channels=4, head="numbers", outputs=1, **stages)
    params, _, _ = network(config)
    x = inputs_of(config)
    np.testing.assert_allclose(run(config, x)[0], x @ params["head"]["kernel"] + params["head"]["bias"], rtol=1e-6)


@pytest.mark.parametrize(
    "parts",
    [{"sequence": "cells"}, {"sequence": "rows", "recurrent": NO_RECURRENCE, "attention": NO_ATTENTION}],
    ids=lambda parts: parts["sequence"],
)
def test_a_box_head_predicts_for_every_cell_of_the_map(parts):
    config = dataclasses.replace(IMAGE, head="boxes", outputs=5, height=10, width=8, **parts)
    outputs, _ = run(config, inputs_of(config))
    assert config.map_size == (5, 4)
    assert {name: each.shape[1:] for name, each in outputs.items()} == {
        "heat": (5, 4, 5),
        "size": (5, 4, 2),
        "offset": (5, 4, 2),
    }
    assert 0.02 < jax.nn.sigmoid(outputs["heat"]).mean() < 0.3  # a new network finds few centres


def test_attention_of_the_last_step_alone_equals_that_of_all_steps():
    """readout="last" computes only the last query.  All steps here are equal, so the mean over all must be the same."""
    last = dataclasses.replace(SERIES, convolution=NO_CONVOLUTION, recurrent=NO_RECURRENCE)
    x = jnp.broadcast_to(inputs_of(last)[:, :1], (3, 4, 3))
    mean = dataclasses.replace(last, readout="mean")
    np.testing.assert_allclose(run(last, x)[0], run(mean, x)[0], rtol=1e-5, atol=1e-6)


def test_the_last_readout_takes_each_direction_where_it_has_seen_all_steps():
    config = dataclasses.replace(
        SERIES,
        convolution=NO_CONVOLUTION,
        recurrent=RecurrentConfig("gru", 6, bidirectional=True),
        attention=NO_ATTENTION,
    )
    x, lengths = inputs_of(config), jnp.array([5, 12, 1])
    params, _, call = network(config)
    ways = params["recurrent"]["layers"]["0"]
    turned = {"forwards": ways["backwards"], "backwards": ways["forwards"]}
    kernel = params["head"]["kernel"]
    other = params | {
        "recurrent": {"layers": {"0": turned}},
        "head": params["head"] | {"kernel": jnp.concatenate([kernel[6:], kernel[:6]])},
    }
    backwards = jnp.take_along_axis(x, jnp.maximum(lengths[:, None] - 1 - jnp.arange(12), 0)[..., None], axis=1)
    np.testing.assert_allclose(call(params, {}, x, lengths)[0], call(other, {}, backwards, lengths)[0], rtol=1e-5)


def test_running_averages_converge_to_the_batch_statistics():
    """After many updates with one batch, inference with running averages equals training with batch statistics."""
    config = dataclasses.replace(IMAGE, convolution=ConvolutionConfig((4, 6), convs_per_block=2, norm="batch"))
    params, buffers, call = network(config)
    x = 5 + 3 * inputs_of(config, batch=64)
    trained, statistics = call(params, buffers, x, None, jax.random.key(0))
    assert jax.tree.structure(statistics) == jax.tree.structure(buffers)
    before, none = call(params, buffers, x)
    assert none == {} and np.abs(before - trained).max() > 0.05
    for _ in range(60):
        buffers = updated_buffers(buffers, statistics, momentum=0.2)
    after, _ = call(params, buffers, x)
    np.testing.assert_allclose(after, trained, atol=0.01)


def test_dropout_is_only_applied_with_a_key_and_determined_by_it():
    config = dataclasses.replace(TEXT, dropout=0.5, drop_path=0.5)
    inputs = inputs_of(config)
    still, _ = run(config, inputs)
    np.testing.assert_array_equal(still, run(TEXT, inputs)[0])
    first, again, other = (run(config, inputs, None, jax.random.key(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - still).max() > 1e-3


def test_dropout_keeps_the_mean_and_drop_path_drops_whole_records():
    x, key = jnp.ones((200, 50)), jax.random.key(0)
    dropped = dropout(x, 0.25, key)
    assert set(np.unique(dropped)) == {0, np.float32(4 / 3)}
    assert abs((dropped == 0).mean() - 0.25) < 0.02
    paths = drop_path(x, 0.25, key)
    assert (paths == paths[:, :1]).all() and abs((paths[:, 0] == 0).mean() - 0.25) < 0.1


def test_bfloat16_follows_float32():
    inputs = inputs_of(TEXT)
    exact, rounded = run(TEXT, inputs)[0], run(TEXT, inputs, dtype="bfloat16")[0]
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_more_than_ten_layers_run_in_their_order():
    """Splitting and merging sorts names as strings, "10" before "2".  Each layer has its own width, so order shows."""
    config = dataclasses.replace(SERIES, convolution=ConvolutionConfig(tuple(range(2, 14)), pool="none"))
    assert run(config, inputs_of(config))[0].shape == (3, 2)


def test_an_lstms_forget_gate_bias_starts_at_one():
    """The bias of the forget gate, the second of i, f, g and o, starts at 1."""
    params, _, _ = network(SERIES)
    bias_GH = params["recurrent"]["layers"]["0"]["forwards"]["bias"]
    assert bias_GH.tolist() == [[0.0] * 6, [1.0] * 6, [0.0] * 6, [0.0] * 6]


@pytest.mark.slow
def test_no_gradient_is_lost_in_a_max_pool_however_xla_rounds():
    """XLA may recompute a pool's input for the gradient and round differently; a maximum found by equality is lost."""
    config = HybridConfig(
        height=8,
        width=8,
        outputs=3,
        convolution=ConvolutionConfig((16,), norm="batch"),
        recurrent=RecurrentConfig("gru", 8),
        attention=AttentionConfig(0, 8),
    )
    graphdef, params, buffers = tree.split(Hybrid(config, rngs=nnx.Rngs(params=0)))
    params = jax.tree.map(lambda leaf: leaf + 0.01 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    images = jax.random.uniform(jax.random.key(0), (32, 8, 8, 1))

    def loss(params):
        outputs, _ = tree.merge(graphdef, params, buffers)(images, None, key=jax.random.key(1))
        return (outputs * jnp.arange(1.0, 4)).sum()

    with jax.disable_jit():
        expected = jax.grad(loss)(params)
    newer = {xla_flags.FUSION_EMITTERS: True} if xla_flags.EMITTERS_OPTIONAL else {}
    for options in ({LEVEL: 0} | newer, {LEVEL: 0}, {LEVEL: 2} | newer):
        found = jax.jit(jax.grad(loss), compiler_options=options)(params)
        for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5 * np.abs(right).max())
