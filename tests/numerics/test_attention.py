"""Latent attention: the absorbed form of decoding against the expanded form of training; causal masks.

B batch  S sequence  T cache places
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepseek_jax.models import rope
from deepseek_jax.models.attention.core import causal_attend, causal_mask, masked_softmax
from deepseek_jax.models.attention.mla import LatentAttention
from deepseek_jax.models.config import ModelConfig, RopeScaling
from deepseek_jax.models.context import Context

CONFIG = ModelConfig(
    hidden_size=32,
    num_attention_heads=3,
    q_lora_rank=12,
    kv_lora_rank=10,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=5,
    initializer_range=0.3,
    rope_scaling=RopeScaling(factor=4.0, original_max_position_embeddings=16),
)

attend_all = jax.jit(LatentAttention.__call__)
fill = jax.jit(LatentAttention.prefill)
decode = jax.jit(LatentAttention.decode)


def _context(positions_BS):
    """The context of rows with one document each."""
    ones = jnp.ones_like(positions_BS)
    ropes = {"mla": rope.tables(CONFIG, "mla", positions_BS)}
    return Context(ones, positions_BS, ones, counted_BS=ones > 0, rope=ropes)


def test_absorbed_decoding_equals_expanded_attention():
    """One token at a time over the latent cache gives the outputs of all at once over expanded keys and values."""
    B, S, places = 2, 9, 12
    attention = LatentAttention(CONFIG, "mla", rngs=nnx.Rngs(params=0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, S, 32)), jnp.float32)
    positions = jnp.broadcast_to(jnp.arange(S), (B, S))
    expanded, _ = attend_all(attention, x, _context(positions))
    cache = attention.empty_cache(B, places, jnp.float32)
    for place in range(S):
        y, cache = decode(attention, x[:, place : place + 1], _context(positions[:, place : place + 1]), cache)
        np.testing.assert_allclose(y[:, 0], expanded[:, place], atol=1e-5)


def test_attention_depends_only_on_relative_positions():
    attention = LatentAttention(CONFIG, "mla", rngs=nnx.Rngs(params=0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 32)), jnp.float32)
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    near, far = (attend_all(attention, x, _context(start + positions))[0] for start in (0, 10_000))
    np.testing.assert_allclose(near, far, atol=1e-3)


def test_prefill_leaves_what_decoding_would_have_written():
    B, S = 2, 5
    attention = LatentAttention(CONFIG, "mla", rngs=nnx.Rngs(params=0))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(B, S, 32)), jnp.float32)
    context = _context(jnp.broadcast_to(jnp.arange(S), (B, S)))
    empty = attention.empty_cache(B, 8, jnp.float32)
    filled, decoded = (run(attention, x, context, empty) for run in (fill, decode))
    for ours, theirs in zip(jax.tree.leaves(filled), jax.tree.leaves(decoded), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("length", [1, 128, 300])
def test_causal_attention_in_blocks_is_a_softmax_average(length):
    """Outputs and gradients, for rows with two documents or padding, in one block and in several."""
    rng, scale = np.random.default_rng(2), 0.7
    shapes = (2, length, 3, 6), (2, length, 3, 6), (2, length, 3, 5), (2, length, 3, 5)
    q, k, v, cotangent = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    place = np.arange(length)
    segments = np.stack([1 + (place > length // 3), place > length // 4]).astype(np.int32)
    mask = causal_mask(jnp.asarray(segments), jnp.asarray(place), jnp.asarray(segments))

    def plain(q, k, v):
        scores = jnp.where(mask[:, None], scale * jnp.einsum("BSHK,BTHK->BHST", q, k), -1e30)
        weights = jnp.where(mask[:, None], jax.nn.softmax(scores, axis=-1), 0.0)
        return jnp.einsum("BHST,BTHV->BSHV", weights, v)

    def value_and_gradients(attention):
        y, pull_back = jax.vjp(attention, q, k, v)
        return y, *pull_back(cotangent)

    ours = jax.jit(lambda: value_and_gradients(lambda *qkv: causal_attend(*qkv, jnp.asarray(segments), scale)))()
    for got, expected in zip(ours, jax.jit(lambda: value_and_gradients(plain))(), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_padding_neither_attends_nor_is_attended_to():
    segments = jnp.asarray([[0, 0, 1, 1, 0]])
    mask = causal_mask(segments, jnp.arange(5), segments)
    assert np.asarray(mask[0]).nonzero()[0].tolist() == [2, 3, 3]
    assert np.asarray(mask[0]).nonzero()[1].tolist() == [2, 2, 3]


def test_a_fully_masked_softmax_and_its_gradient_are_zero():
    scores, mask = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), jnp.asarray([[True, True], [False, False]])
    gradient = jax.grad(lambda s: masked_softmax(s, mask)[:, 0].sum())(scores)
    np.testing.assert_allclose(masked_softmax(scores, mask), [[1 / (1 + np.e), np.e / (1 + np.e)], [0, 0]], rtol=1e-6)
    assert np.isfinite(gradient).all() and (gradient[1] == 0).all()


def test_tokens_attend_causally_within_their_document():
    segments = np.array([[1, 1, 2, 2, 2, 0], [1, 2, 2, 3, 0, 0], [0, 0, 1, 1, 2, 2]])
    places = np.arange(6)
    same = (segments[:, :, None] == segments[:, None]) & (segments[:, :, None] > 0)
    found = causal_mask(jnp.asarray(segments), jnp.asarray(places), jnp.asarray(segments))
    np.testing.assert_array_equal(found, same & (places <= places[:, None]))
    later = causal_mask(jnp.asarray(segments[:, 3:]), jnp.asarray(places[3:]), jnp.asarray(segments))
    np.testing.assert_array_equal(later, found[:, 3:])
