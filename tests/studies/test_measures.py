"""Measures and edits of trained models, on untrained or hand-made ones."""

import dataclasses
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.config import Experiment
from deepseek_jax.errors import UserError
from deepseek_jax.models.decoder import initialise
from deepseek_jax.models.tree import merge
from deepseek_jax.source_names import source_name
from deepseek_jax.studies.measures import (
    cache_bytes,
    composite_gain,
    decoding,
    mask_top,
    residual,
    shared_for_routed,
    step_memory,
    text,
    tokens_to,
)
from deepseek_jax.studies.measures.residual import composite
from deepseek_jax.studies.measures.routing import _loads, divergence
from deepseek_jax.train import setup
from deepseek_jax.train.checkpoints.restore import Trained
from tests.train import tiny
from tests.user_files import write_jsonl

TOKENS = jnp.arange(16).reshape(2, 8)
BATCH = {"tokens": TOKENS, "positions": jnp.broadcast_to(jnp.arange(8), (2, 8)), "segment_ids": jnp.ones_like(TOKENS)}


def trained(model, seed=0) -> Trained:
    return made_of(Experiment(model=model), *initialise(model, jax.random.key(seed))[1:])


def made_of(experiment, params=None, buffers=None, directory=Path("nowhere")) -> Trained:
    return Trained(directory, experiment, 0, experiment.model, params or {}, buffers or {})


def test_cache_bytes_of_latent_attention():
    assert cache_bytes(trained(tiny.MOE)) == {"cache_bytes": 4 * 2 * (16 + 8)}


def test_memory_of_a_step_grows_with_its_batch(tmp_path, monkeypatch):
    base, prepare, prepared = tiny.experiment(tmp_path), setup.prepare, []
    monkeypatch.setattr(setup, "prepare", lambda *arguments: prepared.append(0) or prepare(*arguments))

    def memory(size, seed=0):
        train = dataclasses.replace(base.train, batch_size=size, microbatch_size=0, seed=seed)
        experiment = dataclasses.replace(base, train=train)
        return step_memory(made_of(experiment, *initialise(base.model, jax.random.key(0))[1:]))

    assert memory(16)["step_memory_bytes"] > 1.5 * memory(4)["step_memory_bytes"] > 0
    assert memory(4, seed=1) == memory(4), "a claim goes by all seeds"
    assert len(prepared) == 2, "which are compiled once"


@pytest.mark.parametrize(("end", "reached"), [(2.0, True), (4.0, False), (np.nan, False)])
def test_tokens_to_a_loss_are_measured_only_if_it_is_reached(tmp_path, end, reached):
    base = tiny.experiment(tmp_path)  # steps of 4 x 64 tokens
    rows = [{"step": step, "loss/next": 5.0 if step < 20 else end, "tokens_per_second": 64.0} for step in range(1, 41)]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    found = tokens_to(3.0)(made_of(base, directory=tmp_path))
    assert (found == {}) is not reached
    if reached:
        assert found["tokens_to_3.0"] == pytest.approx(20 * 256, rel=0.05)
        assert found["seconds_to_3.0"] == found["tokens_to_3.0"] / 64


def test_divergence_of_loads_is_between_normalised_rows():
    assert divergence(np.array([[3.0, 1.0], [3.0, 1.0]])) == pytest.approx(0)
    assert divergence(np.array([[4.0, 0.0], [0.0, 1.0]])) == pytest.approx(np.log(2))  # rows are normalised
    assert divergence(np.array([[4.0, 0.0], [0.0, 0.0]])) == pytest.approx(0)


def test_loads_count_one_domains_tokens_alone():
    found = trained(tiny.MOE)
    batch = BATCH | {"domain_ids": jnp.broadcast_to(jnp.arange(2)[:, None], (2, 8))}
    (load_LNE,) = jax.tree.leaves(_loads.__wrapped__(found.graphdef, found.params, found.buffers, batch, 1))
    np.testing.assert_array_equal(load_LNE.sum(axis=-1), [[8 * 2]])  # assignments of the first domain's 8 tokens


def test_an_edit_replaces_the_shared_expert_by_one_more_routed():
    found = trained(tiny.MOE)
    experiment, params, buffers = shared_for_routed(found.experiment, found.params, found.buffers)
    assert (experiment.model.n_shared_experts, experiment.model.num_experts_per_tok) == (0, 3)
    graphdef, expected, _ = initialise(experiment.model, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    merge(graphdef, params, buffers)(*BATCH.values())  # it runs
    with pytest.raises(UserError, match="no shared expert"):
        shared_for_routed(experiment, params, buffers)


def test_mask_top_masks_each_tokens_best_experts():
    found = trained(tiny.MOE)
    experiment, *_ = mask_top(2)(found.experiment, found.params, found.buffers)

    def router(model):
        return merge(initialise(model, jax.random.key(0))[0], found.params, found.buffers)

    whole, masked = (
        jax.tree.map(lambda leaf: leaf[0], router(dataclasses.replace(model, n_group=1, topk_group=1)).layers["1-1"])
        for model in (dataclasses.replace(tiny.MOE, num_experts_per_tok=4), experiment.model)
    )
    x_TD = jax.random.normal(jax.random.key(1), (5, 32))
    four, last = (block.feed_forward.router(x_TD, None).experts_TK for block in (whole, masked))
    np.testing.assert_array_equal(last, four[:, 2:])


def test_edits_of_one_factory_have_distinct_names():
    names = {source_name(mask_top(1)), source_name(mask_top(2)), source_name(shared_for_routed)}
    assert len(names) == 3 and all(name.startswith(("mask_top_", "shared_for_routed-")) for name in names)


STREAMS = dataclasses.replace(tiny.MOE, hc_mult=3)


def test_composite_of_free_hyper_connections_is_the_product_of_matrices():
    """Without the dynamic part each matrix is its bias, so numpy can compute the product."""
    found = trained(dataclasses.replace(STREAMS, hc_manifold=False))
    rng = np.random.default_rng(0)
    matrices = []

    def fix(path, leaf):
        keys = jax.tree_util.keystr(path, simple=True, separator="/")
        if "residual/scale" in keys:
            return jnp.zeros_like(leaf)
        if "residual/bias" in keys:
            square = rng.normal(size=(3, 3))
            matrices.append((keys, square))
            return jnp.concatenate([leaf[0, :6], square.ravel()])[None]
        return leaf

    params = jax.tree_util.tree_map_with_path(fix, found.params)
    matrices = dict(matrices)
    places = (
        "0-0/attention_residual",
        "0-0/feed_forward_residual",
        "1-1/attention_residual",
        "1-1/feed_forward_residual",
    )
    expected = np.linalg.multi_dot([matrices[f"layers/{place}/bias"] for place in places])
    product = composite(merge(found.graphdef, params, found.buffers), BATCH)
    np.testing.assert_allclose(product, np.broadcast_to(expected, product.shape), rtol=1e-4, atol=1e-4)


def test_new_models_with_streams_have_the_states_of_a_plain_residual():
    """Plain, free and manifold-constrained models with the same weights have nearly the same states.

    They differ by the small initial kernels of the hyper-connections.
    """
    models = (tiny.MOE, dataclasses.replace(STREAMS, hc_manifold=False), STREAMS)
    plain, free, manifold = (trained(model) for model in models)

    def shared(streams):
        return {
            name: jax.tree.map(lambda leaf: leaf, part) for name, part in streams.params.items() if name != "layers"
        }

    for streams in (free, manifold):
        layers = {
            name: {key: plain.params["layers"][name].get(key, own) for key, own in block.items()}
            for name, block in streams.params["layers"].items()
        }
        params = (
            shared(streams) | {key: plain.params[key] for key in ("embedding", "head", "norm")} | {"layers": layers}
        )
        states = merge(streams.graphdef, params, plain.buffers)(*BATCH.values()).hidden
        np.testing.assert_allclose(
            states, merge(plain.graphdef, plain.params, plain.buffers)(*BATCH.values()).hidden, atol=0.02
        )


def test_a_plain_residual_has_gain_one():
    assert composite_gain(trained(tiny.MOE))["composite_gain"] == 1


def test_gains_are_mean_largest_column_and_row_sums_over_real_tokens(monkeypatch):
    """The streams are mixed as a row vector: x @ matrix grows by column sums, gradients by row sums."""
    matrices = jnp.array([[[1.0, -2.0], [3.0, 0.5]], [[0.0, 1.0], [0.0, 1.0]], [[9.0, 9.0], [9.0, 9.0]]])[None]
    batch = {"segment_ids": np.array([[1, 1, 0]])}
    monkeypatch.setattr(residual, "merge", lambda *model: None)
    monkeypatch.setattr(residual, "composite", lambda model, batch: matrices)
    monkeypatch.setattr(residual.text, "batches", lambda trained, count, rows: [batch])
    with jax.disable_jit():
        found = composite_gain(made_of(Experiment(model=STREAMS)))
    assert found == {"composite_gain": (4 + 2) / 2, "composite_gain_backward": (3.5 + 1) / 2}


def test_prompts_are_rows_without_padding_in_their_length(monkeypatch):
    batch = {"tokens": np.arange(32).reshape(4, 8), "segment_ids": np.ones((4, 8), int)}
    batch["segment_ids"][1, 3:], batch["segment_ids"][2, 4:] = 0, 0
    monkeypatch.setattr(text, "batches", lambda trained, count: [batch])
    assert text.prompts(None, 2, 4) == [[0, 1, 2, 3], [16, 17, 18, 19]]


def test_decode_speed_up_is_the_time_without_drafts_over_that_with_drafts(monkeypatch):
    """The fastest repeat counts; the first call, which compiles, is not one of them."""
    model = dataclasses.replace(tiny.MOE, num_nextn_predict_layers=1)
    found = made_of(Experiment(model=model))
    seconds = {"generate": [60.0, 6.0, 8.0, 7.0], "speculative": [2.0, 60.0, 4.0, 2.0, 3.0]}
    clock = [0.0]

    def decode(name):
        def new_tokens(model, prompts, count):
            clock[0] += seconds[name].pop(0)
            return None, types.SimpleNamespace(rate=0.75)

        return new_tokens

    monkeypatch.setattr(decoding.text, "prompts", lambda *_: [[1]])
    monkeypatch.setattr(decoding.time, "perf_counter", lambda: clock[0])
    for name in seconds:
        monkeypatch.setattr(getattr(decoding, name), "new_tokens", decode(name))
    assert decoding.acceptance(found) == {"acceptance": 0.75, "decode_speed_up": 6 / 2}
    assert not any(seconds.values())
