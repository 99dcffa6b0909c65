"""A custom attention whose output is gated by its input: overriding `_output` is all that it takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepseek_jax.models.attention.gqa import GroupedQueryAttention
from deepseek_jax.models.attention.mla import LatentAttention
from deepseek_jax.models.attention.sparse import SparseLatentAttention
from deepseek_jax.models.decoder import Decoder
from tests.train import tiny


class Gated:
    """A mixin: attention's output is multiplied by the sigmoid of the token's first input channel."""

    def _output(self, mixed_BSHV, x_BSD):
        return super()._output(mixed_BSHV * jax.nn.sigmoid(x_BSD[..., :1, None]), x_BSD)


@pytest.mark.parametrize(
    ("of", "kind", "topk"),
    [
        pytest.param(GroupedQueryAttention, "gqa", 4, marks=pytest.mark.slow),
        (LatentAttention, "mla", 4),
        pytest.param(SparseLatentAttention, "dsa", 4, marks=pytest.mark.slow),
        (SparseLatentAttention, "dsa", 64),
    ],
)
def test_a_custom_gate_acts_alike_in_full_attention_and_cached_decoding(of, kind, topk):
    """With index_topk 4 of 12 positions, sparse attention gathers from its cache; with 64 it attends to all."""
    sizes = {"index_topk": topk, "index_n_heads": 2, "index_head_dim": 16, "num_key_value_heads": 1, "head_dim": 8}
    config = dataclasses.replace(tiny.DENSE, layer_types=(kind,), **sizes)
    decoder, x = Decoder(config, rngs=nnx.Rngs(params=0)), jax.random.normal(jax.random.key(1), (2, 12, 32))
    places = jnp.broadcast_to(jnp.arange(12), (2, 12))

    def context(part):
        return decoder.context(places[:, part], places[:, part], jnp.ones_like(places[:, part]))

    gated, plain = (make(config, kind, rngs=nnx.Rngs(params=0)) for make in (type("Own", (Gated, of), {}), of))
    whole, first, rest = slice(None), slice(5), slice(5, None)
    expected = plain(x, context(whole))[0] * jax.nn.sigmoid(x[..., :1])
    np.testing.assert_allclose(gated(x, context(whole))[0], expected, rtol=1e-4, atol=1e-6)
    cache = gated.empty_cache(2, 12, "float32")
    begun, cache = gated.prefill(x[:, first], context(first), cache)
    continued, _ = gated.decode(x[:, rest], context(rest), cache)
    np.testing.assert_allclose(jnp.concatenate([begun, continued], axis=1), expected, rtol=1e-4, atol=1e-6)
