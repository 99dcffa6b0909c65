"""The indexer of V4's compressed sparse attention: it scores compressed entries, where V3.2's scores tokens.

B batch  S sequence  D model  Q query rank  E entries  h index heads  i index width
"""

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from deepseek_jax.models import rope
from deepseek_jax.models.attention.compressor import Compressor
from deepseek_jax.models.attention.indexer import IndexQueries
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.layers import exact_linear, linear
from deepseek_jax.models.tree import weight


class BlockIndexer(nnx.Module):
    """Computes small queries per token and, with its own compressor, a small key per entry.

    Its inputs are detached: it learns from `kl_of_indexer` alone, and passes no gradient to the language model.
    """

    def __init__(self, config: ModelConfig, kind: str, *, rngs: nnx.Rngs):
        self.kind = kind
        D, Q, h, i = config.hidden_size, config.q_lora_rank, config.index_n_heads, config.index_head_dim
        self.q_up = weight(rngs.params(), (Q, h, i), ("rank", None, None), config.initializer_range)
        self.weights = weight(rngs.params(), (D, h), ("embed", None), config.initializer_range)
        self.compressor = Compressor(config, kind, i, rngs=rngs)

    def queries(self, q_BSQ: Float[Array, "B S Q"], x_BSD: Float[Array, "B S D"], context: Context) -> IndexQueries:
        """The tokens' index queries, from the attention's normed query latent and its input."""
        q_BSQ, x_BSD = jax.lax.stop_gradient((q_BSQ, x_BSD))
        q_BShi = rope.rotate_tail(linear(q_BSQ, self.q_up), *context.rope[self.kind])
        h, i = q_BShi.shape[-2:]
        return IndexQueries(q_BShi, exact_linear(x_BSD, self.weights) * (h * i) ** -0.5)

    def keys(self, x_BSD: Float[Array, "B S D"], context: Context) -> Float[Array, "B E i"]:
        return self.compressor(jax.lax.stop_gradient(x_BSD), context).values

    def empty_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> dict:
        return self.compressor.empty_cache(batch, max_length, dtype)

    def decode(self, x_BSD: Float[Array, "B S D"], context: Context, cache: dict) -> tuple[Array, dict]:
        """Processes further tokens; returns (keys of all entries [B E i], the updated cache)."""
        keys, cache = self.compressor.decode(x_BSD, context, cache)
        return keys.values, cache
