"""Latent attention: the absorbed form of decoding against the expanded form of training, and who sees whom.

B batch  S sequence  T cache places
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepseek_jax.models import rope
from deepseek_jax.models.attention.core import attend, causal_mask, masked_softmax
from deepseek_jax.models.attention.mla import Context, LatentAttention
from deepseek_jax.models.cache import LatentCache
from deepseek_jax.models.config import ModelConfig, RopeScaling

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


def _context(positions_BS, mask_BST):
    return Context(*rope.tables(CONFIG, positions_BS), mask_BST)


@pytest.mark.parametrize("start", [0, 100_000])
def test_absorbed_decoding_equals_expanded_attention(start):
    """One token at a time over the latent cache, or all at once over expanded keys and values: the same outputs."""
    B, S, places = 2, 9, 12
    attention = LatentAttention(CONFIG, rngs=nnx.Rngs(params=0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, S, 32)), jnp.float32)
    positions = jnp.broadcast_to(start + jnp.arange(S), (B, S))
    expanded = attend_all(attention, x, _context(positions, causal_mask(jnp.ones((B, S), jnp.int32))))
    cache = LatentCache.empty(B, places, CONFIG, jnp.float32)
    for place in range(S):
        visible = jnp.broadcast_to(jnp.arange(places) <= place, (B, 1, places))
        context = _context(positions[:, place : place + 1], visible)
        y, cache = decode(attention, x[:, place : place + 1], context, cache, place)
        np.testing.assert_allclose(y[:, 0], expanded[:, place], atol=1e-5)


def test_prefill_leaves_what_decoding_would_have_written():
    B, S = 2, 5
    attention = LatentAttention(CONFIG, rngs=nnx.Rngs(params=0))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(B, S, 32)), jnp.float32)
    positions, empty = jnp.broadcast_to(jnp.arange(S), (B, S)), LatentCache.empty(B, 8, CONFIG, jnp.float32)
    visible = jnp.arange(8)[None] <= jnp.arange(S)[:, None]
    filled = fill(attention, x, _context(positions, causal_mask(jnp.ones((B, S), jnp.int32))), empty)
    decoded = decode(attention, x, _context(positions, jnp.broadcast_to(visible, (B, S, 8))), empty, 0)
    for ours, theirs in zip(jax.tree.leaves(filled), jax.tree.leaves(decoded), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_attention_is_a_softmax_average():
    rng = np.random.default_rng(2)
    q, k, v = (rng.normal(size=shape) for shape in ((1, 4, 2, 6), (1, 4, 2, 6), (1, 4, 2, 3)))
    segments = np.asarray([[1, 1, 2, 2]])
    ours = attend(*(jnp.asarray(a, jnp.float32) for a in (q, k, v)), causal_mask(jnp.asarray(segments)), scale=0.7)
    for token, visible in enumerate([[0], [0, 1], [2], [2, 3]]):
        for head in range(2):
            weights = np.exp(0.7 * k[0, visible, head] @ q[0, token, head])
            np.testing.assert_allclose(ours[0, token, head], weights @ v[0, visible, head] / weights.sum(), atol=1e-5)


def test_nobody_sees_padding_and_padding_sees_nobody():
    mask = causal_mask(jnp.asarray([[0, 0, 1, 1, 0]]))
    assert np.asarray(mask[0]).nonzero()[0].tolist() == [2, 3, 3]
    assert np.asarray(mask[0]).nonzero()[1].tolist() == [2, 2, 3]


def test_softmax_of_nothing_is_zero_and_so_is_its_gradient():
    scores, mask = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), jnp.asarray([[True, True], [False, False]])
    gradient = jax.grad(lambda s: masked_softmax(s, mask)[:, 0].sum())(scores)
    np.testing.assert_allclose(masked_softmax(scores, mask), [[1 / (1 + np.e), np.e / (1 + np.e)], [0, 0]], rtol=1e-6)
    assert np.isfinite(gradient).all() and (gradient[1] == 0).all()
