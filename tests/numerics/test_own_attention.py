"""A latent attention of one's own whose output is gated by what came in: one function is all that it replaces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepseek_jax.models.attention.mla import LatentAttention
from deepseek_jax.models.attention.sparse import SparseLatentAttention
from deepseek_jax.models.decoder import Decoder
from tests.train import tiny


class Gated:
    """Values pass as far as the first of a token's numbers says."""

    def _output(self, mixed_BSHV, x_BSD):
        return super()._output(mixed_BSHV * jax.nn.sigmoid(x_BSD[..., :1, None]), x_BSD)


@pytest.mark.parametrize(
    ("of", "kind", "topk"),
    [(LatentAttention, "mla", 4), (SparseLatentAttention, "dsa", 4), (SparseLatentAttention, "dsa", 64)],
)
def test_a_gate_opens_alike_at_once_and_with_a_cache(of, kind, topk):
    """topk 4 of 12 places: the sparse one gathers from its cache; of 64 it attends to all."""
    index = {"index_topk": topk, "index_n_heads": 2, "index_head_dim": 16}
    config = dataclasses.replace(tiny.DENSE, layer_types=(kind,), **index)
    decoder, x = Decoder(config, rngs=nnx.Rngs(params=0)), jax.random.normal(jax.random.key(1), (2, 12, 32))
    places = jnp.broadcast_to(jnp.arange(12), (2, 12))
    context = lambda part: decoder.context(places[:, part], places[:, part], jnp.ones_like(places[:, part]))  # noqa: E731
    gated, plain = (make(config, kind, rngs=nnx.Rngs(params=0)) for make in (type("Own", (Gated, of), {}), of))
    whole, first, rest = slice(None), slice(5), slice(5, None)
    expected = plain(x, context(whole))[0] * jax.nn.sigmoid(x[..., :1])
    np.testing.assert_allclose(gated(x, context(whole))[0], expected, rtol=1e-4, atol=1e-6)
    cache = gated.empty_cache(2, 12, "float32")
    begun, cache = gated.prefill(x[:, first], context(first), cache)
    continued, _ = gated.decode(x[:, rest], context(rest), cache)
    np.testing.assert_allclose(jnp.concatenate([begun, continued], axis=1), expected, rtol=1e-4, atol=1e-6)
