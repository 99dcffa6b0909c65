"""Grouped-query attention (arXiv:2305.13245), as in DeepSeek-LLM (arXiv:2401.02954) and DeepSeekMoE-16B.

One key and value head serves H/G query heads: G = H is multi-head attention, G = 1 multi-query attention.

B batch  S query length  T key length  D model  H heads  G key-value heads  d head width
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from deepseek_jax.models.attention.core import attend, attention_map, causal_attend, causal_mask
from deepseek_jax.models.cache import write, written_before
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.layers import linear
from deepseek_jax.models.rope import rotate
from deepseek_jax.models.tree import weight, zeros
from deepseek_jax.parallel.context import whole_sequence
from deepseek_jax.parallel.local import BY_HEAD, BY_TOKEN, on_each_device

Cache = tuple[Float[Array, "B G T d"], Float[Array, "B G T d"]]


class GroupedQueryAttention(nnx.Module):
    """Rotary embeddings apply to all d channels of a head; the cache holds 2 G d numbers per token."""

    def __init__(self, config: ModelConfig, kind: str, *, rngs: nnx.Rngs):
        self.config, self.kind = config, kind
        D, H, G, d = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        scale = config.initializer_range
        self.q = weight(rngs.params(), (D, H, d), ("embed", "heads", None), scale)
        self.k = weight(rngs.params(), (D, G, d), ("embed", "heads", None), scale)
        self.v = weight(rngs.params(), (D, G, d), ("embed", "heads", None), scale)
        self.out = weight(rngs.params(), (H, d, D), ("heads", None, "embed"), scale)
        biased = config.attention_bias
        self.q_bias = zeros((H, d), ("heads", None)) if biased else None
        self.k_bias = zeros((G, d), ("heads", None)) if biased else None
        self.v_bias = zeros((G, d), ("heads", None)) if biased else None
        self.out_bias = zeros((D,), ("embed",)) if biased else None

    def __call__(self, x_BSD: Float[Array, "B S D"], context: Context) -> tuple[Float[Array, "B S D"], dict]:
        """Every token attends to the tokens of this call, in its own document and up to its own position."""
        return self._among_themselves(*self._project(x_BSD, context), x_BSD, context), {}

    def attention_map(self, x_BSD: Float[Array, "B S D"], context: Context) -> Float[Array, "B H S S"]:
        """Attention weights of every token over all tokens, for inspection."""
        mask_BSS = causal_mask(context.segment_ids_BS, jnp.arange(x_BSD.shape[1]), context.segment_ids_BS)
        q_BSHd, k_BSGd, _ = self._project(x_BSD, context)
        return attention_map(q_BSHd, k_BSGd, mask_BSS, self._scale)

    def empty_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> Cache:
        """(rotated keys, values) [B G T d]: heads come before tokens, the layout that matrix products need."""
        shape = batch, self.config.num_key_value_heads, max_length, self.config.head_dim
        return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)

    def prefill(self, x_BSD: Float[Array, "B S D"], context: Context, cache: Cache) -> tuple[Array, Cache]:
        """Like a call; returns (output, the filled cache)."""
        q_BSHd, k_BSGd, v_BSGd = self._project(x_BSD, context)
        cache = remember(cache, (k_BSGd, v_BSGd), context)
        return self._among_themselves(q_BSHd, k_BSGd, v_BSGd, x_BSD, context), cache

    def decode(self, x_BSD: Float[Array, "B S D"], context: Context, cache: Cache) -> tuple[Array, Cache]:
        """Adds these tokens to the cache and attends to it; returns (output, the updated cache)."""
        q_BSHd, *new = self._project(x_BSD, context)
        k_BGTd, v_BGTd = cache = remember(cache, new, context)
        with jax.named_scope("gqa_cached"):
            mask_BST = written_before(context.positions_BS, k_BGTd.shape[2])
            return self._output(attend(q_BSHd, k_BGTd, v_BGTd, mask_BST, self._scale), x_BSD), cache

    @property
    def _scale(self) -> float:
        return self.config.head_dim**-0.5

    def _project(self, x_BSD, context):
        """Queries [B S H d], keys and values [B S G d]; queries and keys rotated."""
        with jax.named_scope("gqa_project"):
            cos_sin, interleave = context.rope[self.kind], self.config.rope_interleave
            q_BSHd = rotate(linear(x_BSD, self.q, self.q_bias), *cos_sin, interleave=interleave)
            k_BSGd = rotate(linear(x_BSD, self.k, self.k_bias), *cos_sin, interleave=interleave)
            return q_BSHd, k_BSGd, linear(x_BSD, self.v, self.v_bias)

    def _among_themselves(self, q_BSHd, k_BSGd, v_BSGd, x_BSD, context):
        def attend_whole(q_BSHd, k_BSGd, v_BSGd, segment_ids_BS):
            return causal_attend(q_BSHd, *whole_sequence((k_BSGd, v_BSGd)), segment_ids_BS, self._scale)

        with jax.named_scope("gqa"):
            attend_whole = on_each_device(attend_whole, (BY_HEAD, BY_HEAD, BY_HEAD, BY_TOKEN), BY_HEAD)
            return self._output(attend_whole(q_BSHd, k_BSGd, v_BSGd, context.segment_ids_BS), x_BSD)

    def _output(self, mixed_BSHd, x_BSD):
        """Output projection.  `x_BSD`, the layer's input, is for subclasses that override this to gate values by it."""
        return linear(mixed_BSHd, self.out, self.out_bias, contract=2)


def remember(cache, new, context):
    """The cache with new keys and values [B S G d] written at their positions."""
    write_heads = jax.vmap(write, in_axes=(1, 2, None, None), out_axes=1)
    return tuple(
        write_heads(entries_BGTd, new_BSGd, context.positions_BS, context.real_BS)
        for entries_BGTd, new_BSGd in zip(cache, new, strict=True)
    )
