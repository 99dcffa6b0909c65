"""The kinds of attention by name.  Each is a module with

__call__(x_BSD, context) -> (y_BSD, told)                  causal attention within each document of a row
prefill(x_BSD, context, cache) -> (y_BSD, cache)           the same for the first tokens of a text; fills the cache
decode(x_BSD, context, cache) -> (y_BSD, cache)            for further tokens, which also see the cache
attention_map(x_BSD, context) -> [B H S S]                 the attention weights, for inspection; V4's: [B H S S+E]
empty_cache(batch, max_length, dtype) -> cache             for texts of up to `max_length` tokens

`told` holds numbers of each token [B S] by name: a dict, or None.  metrics.jsonl has their means in each layer, as
attention/own/NAME, and they have gradients, so that the loss may use their sums (Output.attentions).

A cache is a pytree addressed by position: in every row, a token's entry is at the index given by its position.  A state
that sums over tokens, as in linear attention, works for plain decoding only: rejected drafts of speculative decoding
would stay in it, whereas position-addressed entries are overwritten.
"""

from flax import nnx

from deepseek_jax.models.attention.compressed import CompressedAttention
from deepseek_jax.models.attention.gqa import GroupedQueryAttention
from deepseek_jax.models.attention.mla import LatentAttention
from deepseek_jax.models.attention.sparse import SparseLatentAttention
from deepseek_jax.models.config import ModelConfig

KINDS = {
    "gqa": GroupedQueryAttention,
    "mla": LatentAttention,
    "dsa": SparseLatentAttention,
    "window": CompressedAttention,
    "csa": CompressedAttention,
    "hca": CompressedAttention,
}


def make_attention(config: ModelConfig, kind: str, *, rngs: nnx.Rngs) -> nnx.Module:
    return KINDS[kind](config, kind, rngs=rngs)
