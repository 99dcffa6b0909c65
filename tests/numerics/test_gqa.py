"""Grouped-query attention against a loop over heads, and cached decoding against the whole sequence at once.

B batch  S sequence  H heads  G key-value heads  d head width
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepseek_jax.models import rope
from deepseek_jax.models.attention.core import causal_attend
from deepseek_jax.models.attention.gqa import GroupedQueryAttention
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.tree import merge, split

B, S, D, H, d = 2, 9, 16, 4, 6

attend_all = jax.jit(lambda attention, x, context: attention(x, context)[0])
fill = jax.jit(GroupedQueryAttention.prefill)
decode = jax.jit(GroupedQueryAttention.decode)


def _config(groups, **changes):
    sizes = {"num_attention_heads": H, "num_key_value_heads": groups, "head_dim": d, "initializer_range": 0.3}
    return ModelConfig(layer_types=("gqa",), hidden_size=D, rope_interleave=False, **sizes | changes)


def _attention(config):
    """An attention whose biases, if any, are not zero."""
    graphdef, params, _ = split(GroupedQueryAttention(config, "gqa", rngs=nnx.Rngs(params=0)))
    rng = np.random.default_rng(2)
    biases = {name: jnp.asarray(rng.normal(size=params[name].shape), jnp.float32) for name in params if "bias" in name}
    return merge(graphdef, params | biases, {})


def _context(config, positions_BS, real_BS=None):
    segments = jnp.ones_like(positions_BS) if real_BS is None else real_BS.astype(jnp.int32)
    ropes = {"gqa": rope.tables(config, "gqa", positions_BS)}
    return Context(segments, positions_BS, segments, counted_BS=segments > 0, rope=ropes)


def _inputs(length=S):
    return jnp.asarray(np.random.default_rng(0).normal(size=(B, length, D)), jnp.float32)


def _by_head(attention, x_SD, groups):
    """The reference for one row: a head and a token at a time, in float64."""
    part = {name: np.asarray(param, np.float64) for name, param in split(attention)[1].items()}

    def project(name, head, place):
        y = x_SD[place] @ part[name][:, head] + part.get(f"{name}_bias", np.zeros((H, d)))[head]
        if name == "v":
            return y
        turned = (y[: d // 2] + 1j * y[d // 2 :]) * np.exp(1j * place * 10000.0 ** (-np.arange(d // 2) / (d // 2)))
        return np.concatenate([turned.real, turned.imag])

    out = np.zeros((len(x_SD), D)) + part.get("out_bias", 0)
    for head in range(H):
        shared = head // (H // groups)
        for place in range(len(x_SD)):
            query, past = project("q", head, place), range(place + 1)
            weights = np.exp([query @ project("k", shared, before) / np.sqrt(d) for before in past])
            mixed = sum(w * project("v", shared, before) for w, before in zip(weights / weights.sum(), past))
            out[place] += mixed @ part["out"][head]
    return out


@pytest.mark.parametrize("groups, bias", [(1, False), (2, True), (4, False)])
def test_attention_equals_a_loop_over_heads(groups, bias):
    config, x = _config(groups, attention_bias=bias), _inputs()
    attention = _attention(config)
    ours = attend_all(attention, x, _context(config, jnp.broadcast_to(jnp.arange(S), (B, S))))
    np.testing.assert_allclose(ours[1], _by_head(attention, np.asarray(x[1], np.float64), groups), atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_cached_decoding_in_chunks_with_rows_at_different_positions(groups):
    """Row 1 is two tokens behind row 0: its prompt is padded on the left."""
    config, x, behind = _config(groups), _inputs(), jnp.asarray([[0], [2]])
    attention = _attention(config)
    whole = attend_all(attention, x, _context(config, jnp.broadcast_to(jnp.arange(S), (B, S))))
    prompt = jnp.arange(4) - behind  # positions; negative ones are padding

    def x_of(places):
        return x[jnp.arange(B)[:, None], jnp.maximum(places, 0)]

    context = _context(config, jnp.maximum(prompt, 0), prompt >= 0)
    y, cache = fill(attention, x_of(prompt), context, attention.empty_cache(B, 12, jnp.float32))
    for row, padding in enumerate(behind[:, 0]):
        np.testing.assert_allclose(y[row, padding:], whole[row, : 4 - padding], atol=1e-5)
    for start, length in ((4, 1), (5, 3), (8, 1)):
        places = start + jnp.arange(length) - behind
        y, cache = decode(attention, x_of(places), _context(config, places), cache)
        for row in range(B):
            np.testing.assert_allclose(y[row], whole[row, places[row]], atol=1e-5)


def test_prefill_leaves_what_decoding_would_have_written():
    config, x = _config(groups=2), _inputs(5)
    attention, context = _attention(config), _context(config, jnp.broadcast_to(jnp.arange(5), (B, 5)))
    empty = attention.empty_cache(B, 8, jnp.float32)
    assert sum(leaf.size for leaf in jax.tree.leaves(empty)) == B * 8 * 2 * 2 * d
    filled, decoded = (run(attention, x, context, empty)[1] for run in (fill, decode))
    for ours, theirs in zip(jax.tree.leaves(filled), jax.tree.leaves(decoded), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("length", [7, 300])
def test_shared_keys_give_what_repeated_keys_give(length):
    """Outputs and gradients, with two documents per row, in one block and in several."""
    rng, groups = np.random.default_rng(1), 2
    shapes = (B, length, H, d), (B, length, groups, d), (B, length, groups, 5), (B, length, H, 5)
    q, k, v, cotangent = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    segments = jnp.broadcast_to(1 + (jnp.arange(length) > length // 3), (B, length))

    def repeated(q, k, v):
        return causal_attend(q, *(jnp.repeat(x, H // groups, axis=2) for x in (k, v)), segments, 0.7)

    @jax.jit
    def value_and_gradients():
        ways = (lambda *qkv: causal_attend(*qkv, segments, 0.7)), repeated
        pulled = [jax.vjp(way, q, k, v) for way in ways]
        return [(y, *pull_back(cotangent)) for y, pull_back in pulled]

    for got, expected in zip(*value_and_gradients(), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)
