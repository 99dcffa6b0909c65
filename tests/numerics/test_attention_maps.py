"""Attention maps: averaging the values by them gives attention's output, for each kind in every generation.

B batch  S sequence  T keys  H heads  V value width
"""

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.models.cached import unstacked


def test_attention_maps_reproduce_the_attentions_output(golden):
    """With two documents and padding in a row: a map's rows sum to 1 (less with a sink) and are 0 where masked."""
    model, (tokens, _, _) = golden.model, golden.batch
    places = jnp.arange(tokens.shape[1])
    first = tokens.shape[1] // 3
    documents = jnp.broadcast_to(jnp.where(places < first, 1, 2) * (places < tokens.shape[1] - 3), tokens.shape)
    positions = jnp.broadcast_to(jnp.where(places < first, places, places - first), tokens.shape)
    context = model.context(tokens, positions, documents)
    h = jax.random.normal(jax.random.key(0), (*tokens.shape, golden.config.hidden_size))
    real = documents > 0
    visible = (documents[:, :, None] == documents[:, None]) & (places <= places[:, None]) & real[..., None]
    for kind, attention in {block.kind.attention: block.attention for block in unstacked(model)}.items():
        found, mixed, whole = jax.jit(_both_ways)(attention, h, context)
        np.testing.assert_allclose(mixed[real], whole[real], rtol=1e-4, atol=1e-5, err_msg=kind)
        assert not found[..., : len(places)][jnp.broadcast_to(~visible[:, None], found[..., : len(places)].shape)].any()
        total = found.sum(axis=-1).swapaxes(1, 2)
        assert not total[~real].any() and (total[real] < 1 + 1e-5).all()
        if kind in ("gqa", "mla", "dsa"):
            np.testing.assert_allclose(total[real], 1, rtol=1e-5)


def _both_ways(attention, h_BSD, context):
    """(the map, the output computed from it, the output of the attention itself)."""
    map_BHST = attention.attention_map(h_BSD, context)
    values_BTHV = _values(attention, h_BSD, context)
    mixed_BSHV = jnp.einsum("BHST,BTHV->BSHV", map_BHST, values_BTHV)
    given = h_BSD if attention.kind in ("gqa", "mla", "dsa") else context
    return map_BHST, attention._output(mixed_BSHV, given), attention(h_BSD, context)[0]


def _values(attention, h_BSD, context):
    heads = attention.config.num_attention_heads
    match attention.kind:
        case "gqa":
            v_BTGV = attention._project(h_BSD, context)[2]
            return jnp.repeat(v_BTGV, heads // v_BTGV.shape[2], axis=2)
        case "mla" | "dsa":
            return attention._expand(attention._project(h_BSD, context)[2])[1]
    _, tokens, entries = attention.queries_and_keys(h_BSD, context)
    values_BTV = jnp.concatenate([tokens.values, entries.values], axis=1)
    return jnp.broadcast_to(values_BTV[:, :, None], (*values_BTV.shape[:2], heads, values_BTV.shape[2]))
