"""Sparse attention: its two forms against each other and against latent attention, and what its indexer learns.

B batch  S sequence  D model
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deepseek_jax.models import rope
from deepseek_jax.models.attention.indexer import (
    DIVERGENCE,
    RECALL,
    IndexQueries,
    better_half,
    kl_of_indexer,
    recall_of_indexer,
    scores_of_all,
    scores_of_picked,
)
from deepseek_jax.models.attention.mla import LatentAttention
from deepseek_jax.models.attention.selection import by_blocks, mask_of, masks_of_best, pick, pick_causally
from deepseek_jax.models.attention.sparse import SPARSE_FROM, SparseLatentAttention
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context

CONFIG = ModelConfig(
    layer_types=("dsa",),
    hidden_size=32,
    num_attention_heads=3,
    q_lora_rank=12,
    kv_lora_rank=10,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=5,
    index_n_heads=5,
    index_head_dim=8,
    index_topk=8,
    initializer_range=0.3,
)
SHORT, LONG = 20, SPARSE_FROM * CONFIG.index_topk + 28  # lengths at which keys are masked, and gathered
SPLIT = 17  # where the second document of a row begins


@functools.cache
def attention(**changes) -> SparseLatentAttention:
    return SparseLatentAttention(dataclasses.replace(CONFIG, **changes), "dsa", rngs=nnx.Rngs(params=0))


def context(length, *, packed=False, warmup=None) -> Context:
    """The context of two rows of one document; with `packed` the second has two documents and padding at its end."""
    places = np.arange(length)
    segments, positions = np.ones((2, length), np.int32), np.stack([places, places])
    if packed:
        segments[1, SPLIT:], segments[1, -2:] = 2, 0
        positions[1, SPLIT:] -= SPLIT
    ropes = {kind: rope.tables(CONFIG, kind, jnp.asarray(positions)) for kind in ("dsa", "mla")}
    segments = jnp.asarray(segments)
    return Context(jnp.ones_like(segments), jnp.asarray(positions), segments, segments > 0, ropes, warmup)


def states(length, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, length, 32)), jnp.float32)


call = jax.jit(SparseLatentAttention.__call__)
fill = jax.jit(SparseLatentAttention.prefill)
decode = jax.jit(SparseLatentAttention.decode)


def by_mask(attention, x, context, block):
    queries, keys = attention.queries_and_keys(x, context)
    return attention.by_mask(queries, keys, context.index_warmup, block)


def by_gathering(attention, x, context, block):
    queries, keys = attention.queries_and_keys(x, context)
    return attention.by_gathering(queries, keys, block=block)


def by_kernels(attention, x, context, block):
    queries, keys = attention.queries_and_keys(x, context)
    return attention.mask_by_kernels(queries, keys, context.index_warmup, block, interpret=True)


def value_and_gradients(form, block, x, around):
    """Of a loss that weights every output differently, and of the indexer's."""
    graphdef, params = nnx.split(attention())

    def loss(params, x):
        found = form(nnx.merge(graphdef, params), x, around, block)
        return (found.mixed * jnp.cos(jnp.arange(5.0))).sum() + found.divergence.sum(), found

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)


def agree(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


def test_masking_and_gathering_agree_in_value_and_gradients():
    """In one block and in several, with packed documents."""
    inputs = states(LONG), context(LONG, packed=True)
    plain = value_and_gradients(by_mask, LONG, *inputs)
    for form, block in ((by_mask, 16), (by_gathering, LONG), (by_gathering, 16)):
        agree(value_and_gradients(form, block, *inputs), plain)


@pytest.mark.parametrize("warmup", [None, True])
def test_the_kernels_of_a_tpu_mask_as_well(warmup):
    """With packed documents, and padding, whose output is 0."""
    inputs = states(128), context(128, packed=True, warmup=warmup if warmup is None else jnp.asarray(warmup))
    found = value_and_gradients(by_kernels, 48, *inputs)
    agree(found, value_and_gradients(by_mask, 128, *inputs))
    assert not found[0][1].mixed[1, -2:].any()


def test_each_query_picks_the_best_visible_keys():
    """Compared with plain loops in numpy."""
    around = context(LONG, packed=True)

    @jax.jit
    def pick(module, x):
        queries, keys = module.queries_and_keys(x, around)
        return queries.index, keys.index, pick_causally(queries, keys, CONFIG.index_topk, 16)

    queries, keys, picked = jax.device_get(pick(attention(), states(LONG)))
    q, w, k = (np.float64(x) for x in (queries.query_BShi, queries.weight_BSh, keys))
    segments = np.asarray(around.segment_ids_BS)
    for b, s in zip(*segments.nonzero()):
        seen = [t for t in range(s + 1) if segments[b, t] == segments[b, s]]
        scores = {t: (w[b, s] * np.maximum(q[b, s] @ k[b, t], 0)).sum() for t in seen}
        best = sorted(seen, key=lambda t: -scores[t])[: CONFIG.index_topk]
        assert set(best) == set(seen) & set(picked[b, s]), (b, s)


@pytest.mark.parametrize("length", [SHORT, LONG])
def test_sparse_attention_is_latent_attention_where_every_key_is_kept(length):
    """Every key is kept if index_topk is at least the number of keys, or while the indexer warms up."""
    x, module, plain = states(length), attention(), LatentAttention(CONFIG, "mla", rngs=nnx.Rngs(params=0))
    for name in ("q_down", "q_norm", "q_up", "kv_down", "kv_norm", "kv_up", "out"):
        setattr(plain, name, getattr(module, name))
    expected, _ = jax.jit(LatentAttention.__call__)(plain, x, context(length, packed=True))

    def output(module, **changes):
        return call(module, x, context(length, packed=True, **changes))[0]

    sparse = output(module)
    np.testing.assert_allclose(output(attention(index_topk=length)), expected, atol=1e-5)
    np.testing.assert_allclose(output(module, warmup=jnp.asarray(True)), expected, atol=1e-5)
    np.testing.assert_allclose(output(module, warmup=jnp.asarray(False)), sparse, atol=1e-6)
    assert np.abs(sparse - expected).max() > 1e-2


@pytest.mark.parametrize("places, chunks", [(8, [5, 3]), (LONG, [LONG]), (LONG, [LONG - 11, 1, 7, 3])])
def test_cached_decoding_in_chunks_equals_attention_at_once(places, chunks):
    """The first chunk prefills the cache; with 8 positions (index_topk) every key is kept."""
    module, x, whole = attention(), states(places), context(places)
    expected, _ = call(module, x, whole)
    cache, start = module.empty_cache(2, places, jnp.float32), 0
    for chunk in chunks:
        part = jax.tree.map(lambda leaf: leaf[:, start : start + chunk], whole)  # noqa: B023
        y, cache = (decode if start else fill)(module, x[:, start : start + chunk], part, cache)
        np.testing.assert_allclose(y, expected[:, start : start + chunk], atol=2e-5)
        start += chunk
    _, filled = fill(module, x, whole, module.empty_cache(2, places, jnp.float32))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), cache, filled)


@pytest.mark.parametrize("length", [SHORT + 10, LONG])
def test_packed_documents_do_not_influence_each_other(length):
    """They are isolated to the last bit, and a document among others has the outputs that it has alone."""
    module, around = attention(), context(length, packed=True)
    for changed, kept in ((1, 2), (2, 1), (0, 1)):
        other = jnp.where((around.segment_ids_BS == changed)[..., None], states(length, seed=1), states(length))
        (before, _), (after, _) = call(module, states(length), around), call(module, other, around)
        same = np.asarray(around.segment_ids_BS == kept)
        np.testing.assert_array_equal(before[same], after[same])
    inside = slice(SPLIT, length - 2)
    alone, _ = call(module, states(length)[:, inside], jax.tree.map(lambda leaf: leaf[:, inside], around))
    np.testing.assert_allclose(alone[1], before[1, inside], atol=1e-5)


@pytest.mark.parametrize("length", [SHORT, LONG])
def test_the_indexer_learns_from_its_divergence_alone(length):
    """And no other parameter, nor the input, gets a gradient from the divergence."""
    graphdef, params = nnx.split(attention())

    @jax.jit
    def gradients(params, x):
        def of(what):
            return jax.grad(lambda params, x: what(nnx.merge(graphdef, params)(x, context(length))), (0, 1))(params, x)

        return of(lambda found: jnp.square(found[0]).sum()), of(lambda found: found[1][DIVERGENCE].sum())

    (of_output, _), (of_divergence, of_x) = gradients(params, states(length))
    assert (of_x == 0).all()
    of_output, of_divergence = (
        jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(each)) for each in (of_output, of_divergence)
    )
    for (path, output), (_, divergence) in zip(of_output, of_divergence, strict=True):
        learns, still = (divergence, output) if path[0].key == "indexer" else (output, divergence)
        assert (still == 0).all() and np.abs(learns).max() > 1e-4, jax.tree_util.keystr(path)


def test_minimising_its_divergence_teaches_the_indexer():
    """With attention fixed, the better half of the picked keys comes to hold more of its weight."""
    graphdef, indexer, rest = nnx.split(attention(), lambda path, _: path[0] == "indexer", ...)
    around, optimizer = context(SHORT, warmup=jnp.asarray(True)), optax.adam(3e-2)

    def loss(indexer):
        told = nnx.merge(graphdef, indexer, rest)(states(SHORT), around)[1]
        learned = {name: jnp.where(around.counted_BS, each_BS, 0.0).sum() for name, each_BS in told.items()}
        return learned[DIVERGENCE], learned

    @jax.jit
    def learn(indexer):
        def step(carry, _):
            indexer, state = carry
            gradient, learned = jax.grad(loss, has_aux=True)(indexer)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(indexer, updates), state), learned

        return jax.lax.scan(step, (indexer, optimizer.init(indexer)), length=100)[1]

    learned = learn(indexer)
    assert learned[DIVERGENCE][-1] < 0.5 * learned[DIVERGENCE][0]
    assert learned[RECALL][-1] > learned[RECALL][0] + 0.1 * around.counted_BS.sum()


def test_divergence_is_the_kl_divergence_by_definition():
    rng = np.random.default_rng(3)
    scores, attention = rng.normal(size=(2, 3, 7)), rng.uniform(size=(2, 3, 7))
    visible = rng.uniform(size=(2, 3, 7)) < 0.6
    visible[0, 0], visible[0, 1] = False, np.arange(7) == 4
    attention[0, 2, 1] = 0.0
    ours = kl_of_indexer(jnp.asarray(scores), jnp.asarray(attention), jnp.asarray(visible))
    for b, s in np.ndindex(2, 3):
        seen = visible[b, s] & (attention[b, s] > 0)
        p = attention[b, s][seen] / attention[b, s][seen].sum()
        q = np.exp(scores[b, s][seen]) / np.exp(scores[b, s][visible[b, s]]).sum()
        np.testing.assert_allclose(ours[b, s], (p * np.log(p / q)).sum(), atol=1e-5)
    of_little = kl_of_indexer(jnp.asarray(scores), jnp.asarray(1e-6 * attention), jnp.asarray(visible))
    np.testing.assert_allclose(of_little, ours, atol=1e-5)  # V4's window and sink may leave entries almost no weight
    gradient = jax.grad(lambda scores: kl_of_indexer(scores, jnp.asarray(attention), jnp.asarray(visible)).sum())
    gradient = gradient(jnp.asarray(scores))
    assert np.isfinite(gradient).all() and (gradient[~visible] == 0).all()


def test_picked_keys_score_as_they_do_among_all():
    rng = np.random.default_rng(4)
    queries = IndexQueries(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3, 5, 8), (2, 3, 5))))
    keys = jnp.asarray(rng.normal(size=(2, 9, 8)), jnp.float32)
    each = jnp.broadcast_to(keys[:, None], (2, 3, 9, 8))
    np.testing.assert_allclose(scores_of_all(queries, keys), scores_of_picked(queries, each), atol=1e-5)


@pytest.mark.parametrize("backward", [False, True])
def test_memory_grows_linearly_with_the_length(backward):
    """Twice the length takes twice the temporaries; a mask of all pairs would take four times."""
    graphdef, params = nnx.split(attention(index_topk=4))

    def loss(params, x):
        y, told = nnx.merge(graphdef, params)(x, context(x.shape[1]))
        return y.sum() + told[DIVERGENCE].sum()

    def temporaries(length):
        run = jax.jit(jax.grad(loss) if backward else loss)
        return run.lower(params, states(length)).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(2048) < 2.4 * temporaries(1024)


def test_blocks_need_not_divide_the_length():
    x = jnp.arange(22.0).reshape(2, 11)
    np.testing.assert_array_equal(by_blocks(lambda x, factor: factor * x, 4, x, jnp.float32(2)), 2 * x)


def test_index_heads_are_weighted_by_the_released_scale():
    """1 / sqrt(heads * width), as in DeepSeek's code: it affects no choice of keys, but the divergence."""
    module, x = attention(), states(SHORT)
    queries, _ = module.queries_and_keys(x, context(SHORT))
    expected = np.asarray(x, np.float64) @ np.asarray(module.indexer.weights[...], np.float64)
    expected /= math.sqrt(CONFIG.index_n_heads * CONFIG.index_head_dim)
    np.testing.assert_allclose(queries.index.weight_BSh, expected, rtol=1e-4, atol=1e-6)


def test_recall_is_the_attention_share_of_the_better_half_of_picked_keys():
    attention_BSk = jnp.asarray([[[0.5, 0.2, 0.1, 0.05, 0.05], [0.4, 0.0, 0.0, 0.0, 0.0]]])
    better_k, total_BS = np.arange(5) < better_half(5), jnp.asarray([[1.0, 0.5]])
    np.testing.assert_allclose(recall_of_indexer(attention_BSk, better_k, total_BS), [[0.8, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("count", [1, 4, 7, 20])
def test_masks_of_the_best_keys_are_those_of_their_indices(count):
    """With ties, with fewer visible keys than are picked, and with fewer keys than that."""
    rng = np.random.default_rng(5)
    scores = jnp.asarray(rng.integers(-2, 3, size=(2, 9, 12)), jnp.float32)
    visible = jnp.asarray(rng.random((2, 9, 12)) < 0.5)
    picked = pick(scores, visible, count)
    best, better = masks_of_best(scores, visible, count)
    np.testing.assert_array_equal(best, mask_of(picked, 12))
    np.testing.assert_array_equal(better, mask_of(picked[..., : better_half(picked.shape[-1])], 12))


def test_sparse_attention_by_mask_scatters_and_gathers_no_single_numbers():
    """TPUs do that one by one."""
    module, x = attention(), states(SHORT)
    text = str(jax.make_jaxpr(module.by_mask)(*module.queries_and_keys(x, context(SHORT))))
    assert "scatter" not in text and "gather" not in text
