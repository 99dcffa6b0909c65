"""The attentions by name.  Each is a module with

__call__(x_BSD, context) -> (y_BSD, IndexerReport or None) tokens of a row see each other, by their document
prefill(x_BSD, context, cache) -> (y_BSD, cache)           the same for the first tokens of a text, and fills its cache
decode(x_BSD, context, cache) -> (y_BSD, cache)            further tokens, which see the cache too
attention_map(x_BSD, context) -> [B H S S]                 what a call weighs tokens by, to look at
empty_cache(batch, max_length, dtype) -> cache             for texts of up to `max_length` tokens

A cache is a pytree addressed by position: what a token leaves behind lies where its position says, in every row.
A state that sums over tokens, as linear attention's, will do for plain decoding; speculation would leave in it the
drafts that were rejected, which others write over.
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
