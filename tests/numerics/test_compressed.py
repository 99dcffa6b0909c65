"""V4's attentions against v4_reference.py: padding, packing, caches, long rows.

B batch  S sequence  D model
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from v4_reference import attend

from deepseek_jax.models import rope
from deepseek_jax.models.attention import window
from deepseek_jax.models.attention.compressed import CompressedAttention
from deepseek_jax.models.attention.indexer import DIVERGENCE
from deepseek_jax.models.config import ModelConfig, RopeScaling
from deepseek_jax.models.context import Context

D, KINDS = 20, ("window", "csa", "hca")
CONFIG = ModelConfig(
    hidden_size=D,
    layer_types=("csa",),
    num_attention_heads=4,
    head_dim=12,
    qk_rope_head_dim=4,
    q_lora_rank=10,
    sliding_window=7,
    csa_rate=3,
    hca_rate=5,
    index_n_heads=3,
    index_head_dim=6,
    index_topk=4,
    o_groups=2,
    o_lora_rank=6,
    rope_scaling=RopeScaling(factor=4.0, original_max_position_embeddings=16),
)
call = jax.jit(lambda attention, x, context: attention(x, context))
prefill = jax.jit(lambda attention, x, context, cache: attention.prefill(x, context, cache))
decode = jax.jit(lambda attention, x, context, cache: attention.decode(x, context, cache))


@pytest.fixture(scope="module", params=KINDS)
def attention(request):
    """An attention of each kind, with every parameter large enough to affect the output."""
    module = CompressedAttention(CONFIG, request.param, rngs=nnx.Rngs(params=0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * (1 if x.ndim < 2 else 0.4), x.dtype), module)


def states(*shape):
    return np.random.default_rng(2).normal(size=(*shape, D)).astype(np.float32)


def context(positions, segment_ids=None):
    """The context of tokens at these positions [B S], by default in one document per row."""
    positions = jnp.asarray(positions)
    segment_ids = jnp.ones_like(positions) if segment_ids is None else jnp.asarray(segment_ids)
    ropes = {kind: rope.tables(CONFIG, kind, positions) for kind in KINDS}
    return Context(jnp.zeros_like(positions), positions, segment_ids, counted_BS=segment_ids > 0, rope=ropes)


def packed(lengths):
    """(positions, segment ids) of a row of documents of these lengths; negative lengths are padding."""
    positions = np.concatenate([np.arange(abs(length)) for length in lengths])
    numbers = np.cumsum([length > 0 for length in lengths]) * (np.array(lengths) > 0)
    return positions, np.repeat(numbers, np.abs(lengths))


def test_padded_and_packed_documents_match_the_reference_of_each_alone(attention):
    """Includes documents shorter than the window, and shorter than one compressed entry."""
    rows = ([-3, 23, 2, 12], [11, 29], [40], [-31, 4, -5])
    positions, segments = (np.stack(part) for part in zip(*map(packed, rows)))
    x = states(len(rows), 40)
    y, told = call(attention, x, context(positions, segments))
    divergence = 0.0
    for row, documents in enumerate(segments):
        for number in set(documents) - {0}:
            own = documents == number
            expected, of_tokens = attend(attention, x[row, own])
            np.testing.assert_allclose(y[row, own], expected, rtol=1e-4, atol=1e-4)
            divergence += of_tokens.sum()
    if attention.kind == "csa":
        np.testing.assert_allclose(told[DIVERGENCE][segments > 0].sum(), divergence, rtol=1e-4)


def test_cached_decoding_in_odd_chunks(attention):
    """Rows of different lengths, padded left and right; rejected draft tokens must leave no trace in the cache."""
    x, total, prompts = states(3, 40), 40, np.array([13, 2, 10])
    expected, _ = call(attention, x, context(np.broadcast_to(np.arange(total), (3, total))))
    length = prompts.max()
    starts = np.array([0, length - 2, 0])  # where each prompt begins in its row: the second is left-padded
    places = np.arange(length) - starts[:, None]
    real = (places >= 0) & (places < prompts[:, None])
    rows, places = np.arange(3)[:, None], np.clip(places, 0, None)
    y, cache = prefill(
        attention, x[rows, places], context(places, real.astype(int)), attention.empty_cache(3, total, x.dtype)
    )
    np.testing.assert_allclose(y[real], expected[rows, places][real], rtol=1e-4, atol=1e-4)
    at = prompts
    for chunk, rejected in ((1, 0), (5, 3), (5, 0), (1, 0), (5, 0), (5, 1)):
        places = at[:, None] + np.arange(chunk)
        given = x[rows, places].copy()
        given[:, chunk - rejected :] += 1.0
        y, cache = decode(attention, given, context(places), cache)
        kept = chunk - rejected
        np.testing.assert_allclose(y[:, :kept], expected[rows, places][:, :kept], rtol=1e-4, atol=1e-4)
        at = at + kept


def test_padding_in_a_decoded_chunk_writes_nothing(attention):
    x, positions = states(1, 12), np.arange(12)[None]
    expected, _ = call(attention, x, context(positions))
    _, cache = prefill(attention, x[:, :9], context(positions[:, :9]), attention.empty_cache(1, 24, x.dtype))
    chunk = np.concatenate([x[:, 9:10], 9 + x[:, 10:11]], axis=1)
    _, cache = decode(attention, chunk, context(np.array([[9, 0]]), np.array([[1, 0]])), cache)
    y, _ = decode(attention, x[:, 10:], context(positions[:, 10:]), cache)
    np.testing.assert_allclose(y, expected[:, 10:], rtol=1e-4, atol=1e-4)


def test_blocks_of_queries_and_gathered_picks_change_nothing(attention, monkeypatch):
    """Long rows are attended in blocks of queries, and few picks among many entries are gathered instead of masked."""
    x, (positions, segments) = states(1, 60), packed([-2, 41, 17])
    inputs = x, context(positions[None], segments[None])
    whole = gradients(attention, *inputs)
    monkeypatch.setattr(window, "QUERIES_A_TURN", 16)
    monkeypatch.setattr(window, "GATHER_FROM", 1)
    agree(gradients(attention, *inputs), whole)


def test_the_kernels_of_a_tpu_change_nothing(attention, monkeypatch):
    """With packed documents and padding.  128 tokens and their entries do not fill whole blocks of keys."""
    x, (positions, segments) = states(1, 128), packed([-2, 70, 40, 15, -1])
    inputs = x, context(positions[None], segments[None])
    in_turns = gradients(attention, *inputs)
    monkeypatch.setattr(window, "_attend_in_turns", functools.partial(window.attend_by_kernels, interpret=True))
    agree(gradients(attention, *inputs), in_turns)


def gradients(attention, x, context):
    jax.clear_caches()  # as attention's constants may have changed
    return jax.jit(jax.value_and_grad(both_losses, argnums=(0, 1)))(attention, x, context)


def agree(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def both_losses(attention, x, context):
    y, told = attention(x, context)
    return (y**2).sum() + (told[DIVERGENCE].sum() if told else 0.0)


@pytest.mark.parametrize("attention", ["csa"], indirect=True)
def test_an_indexer_learns_from_its_divergence_alone(attention):
    x, here = states(1, 40), context(np.arange(40)[None])

    def part(of_output, attention, x):
        y, told = call(attention, x, here)
        return (y**2).sum() if of_output else told[DIVERGENCE].sum()

    grad = jax.grad(part, (1, 2))
    for output, (of_parameters, of_x) in ((True, grad(True, attention, x)), (False, grad(False, attention, x))):
        assert (of_x != 0).any() == output
        for path, leaf in jax.tree_util.tree_leaves_with_path(of_parameters):
            name = jax.tree_util.keystr(path)
            assert (leaf != 0).any() == (output != ("indexer" in name)), name


@pytest.mark.parametrize("attention", ["csa"], indirect=True)
def test_while_indexers_warm_up_all_entries_are_attended_to(attention, monkeypatch):
    x, here = states(1, 40), context(np.arange(40)[None])
    of_all = CompressedAttention(dataclasses.replace(CONFIG, index_topk=40), "csa", rngs=nnx.Rngs(params=0))
    expected, _ = call(nnx.merge(nnx.graphdef(of_all), nnx.state(attention)), x, here)
    assert np.abs(call(attention, x, here)[0] - expected).max() > 0.01
    for gather_from in (1, 100):
        monkeypatch.setattr(window, "GATHER_FROM", gather_from)
        jax.clear_caches()
        warm, _ = call(attention, x, dataclasses.replace(here, index_warmup=jnp.asarray(True)))
        np.testing.assert_allclose(warm, expected, rtol=1e-4, atol=1e-4)


def test_a_sink_takes_its_share_however_large_it_is():
    """And where everything is masked, all weights are 0."""
    scores_HT, sinks_H = jnp.asarray([[1.0, 2.0], [1.0, 2.0]]), jnp.asarray([0.5, 300.0])
    weights_HT = window.sink_softmax(scores_HT, jnp.asarray([True, True]), sinks_H)
    share = np.exp([1.0, 2.0]) / np.exp([1.0, 2.0, 0.5]).sum()
    np.testing.assert_allclose(weights_HT, [share, [0, 0]], rtol=1e-6)
    gradients = jax.grad(lambda *a: window.sink_softmax(a[0], jnp.asarray([True, False]), a[1])[:, 0].sum(), (0, 1))
    assert all(np.isfinite(each).all() for each in gradients(scores_HT, sinks_H))
    np.testing.assert_array_equal(window.sink_softmax(scores_HT, jnp.asarray([False, False]), sinks_H), 0)


def test_the_cache_grows_by_compressed_entries_alone(attention):
    """A ring buffer for the window and one for tokens not yet compressed, of constant sizes; then T / rate entries."""
    sizes = {T: sum(x.size for x in jax.tree.leaves(attention.empty_cache(1, T, jnp.float32))) for T in (1500, 3000)}
    widths = {"window": 0, "csa": 12 + 6, "hca": 12}  # an entry, and the indexer's key for it
    rate = {"window": 1, "csa": 3, "hca": 5}[attention.kind]
    assert sizes[3000] - sizes[1500] == 1500 // rate * widths[attention.kind]
    rings = {"window": 0, "csa": (6 + 8) * 4 * (12 + 6), "hca": (5 + 8) * 2 * 12}
    assert sizes[3000] == (7 + 8) * 12 + rings[attention.kind] + 3000 // rate * widths[attention.kind]
