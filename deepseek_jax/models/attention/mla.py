"""Multi-head latent attention (DeepSeek-V2, section 2.1; arXiv:2405.04434).

B batch  S query length  T key length  D model  Q query rank  C key-value rank  H heads
N no-rope dims  R rope dims  V value dims
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from deepseek_jax.models.attention.core import attention_map, causal_attend, causal_mask, masked_softmax
from deepseek_jax.models.cache import write, written_before
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.layers import RMSNorm, linear
from deepseek_jax.models.rope import rotate
from deepseek_jax.models.tree import used, weight, zeros
from deepseek_jax.parallel.context import whole_sequence
from deepseek_jax.parallel.local import BY_HEAD, BY_TOKEN, on_each_device, stored_axes

LATENT_NORM_EPS = 1e-6  # of the two norms inside MLA, independent of rms_norm_eps (as in DeepSeek's code)


class LatentAttention(nnx.Module):
    """Expands keys and values from one latent per token: the cache holds C + R numbers per token, not H (N + R + V)."""

    def __init__(self, config: ModelConfig, kind: str, *, rngs: nnx.Rngs):
        self.config, self.kind = config, kind
        D, Q, C, H = config.hidden_size, config.q_lora_rank, config.kv_lora_rank, config.num_attention_heads
        N, R, V, scale = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim, config.initializer_range
        if Q:
            self.q_down = weight(rngs.params(), (D, Q), ("embed", "latent"), scale)
            self.q_norm = RMSNorm(Q, LATENT_NORM_EPS, axis="latent")
        self.q_up = weight(rngs.params(), (Q or D, H, N + R), ("rank" if Q else "embed", "heads", None), scale)
        self.kv_down = weight(rngs.params(), (D, C + R), ("embed", "latent"), scale)
        self.kv_norm = RMSNorm(C, LATENT_NORM_EPS, axis="latent")
        self.kv_up = weight(rngs.params(), (C, H, N + V), ("rank", "heads", None), scale)
        self.out = weight(rngs.params(), (H, V, D), ("heads", None, "embed"), scale)
        biased = config.attention_bias
        self.q_down_bias = zeros((Q,), ("latent",)) if biased and Q else None
        self.kv_down_bias = zeros((C + R,), ("latent",)) if biased else None
        self.out_bias = zeros((D,), ("embed",)) if biased else None

    def __call__(self, x_BSD: Float[Array, "B S D"], context: Context) -> tuple[Float[Array, "B S D"], dict]:
        """Every token attends to the tokens of this call, in its own document and up to its own position."""
        _, q_BSHd, entry_BSe = self._project(x_BSD, context)
        return self._attend_expanded(x_BSD, q_BSHd, entry_BSe, context), {}

    def attention_map(self, x_BSD: Float[Array, "B S D"], context: Context) -> Float[Array, "B H S S"]:
        """Attention weights of every token over all tokens, for inspection."""
        mask_BSS = causal_mask(context.segment_ids_BS, jnp.arange(x_BSD.shape[1]), context.segment_ids_BS)
        _, q_BSHd, entry_BSe = self._project(x_BSD, context)
        return self._map(q_BSHd, entry_BSe, mask_BSS)

    def empty_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> Float[Array, "B T C+R"]:
        """Latents and rotated keys, shared by all heads (V2, table 1)."""
        return jnp.zeros((batch, max_length, self.config.kv_lora_rank + self.config.qk_rope_head_dim), dtype)

    def prefill(self, x_BSD: Float[Array, "B S D"], context: Context, cache_BTe) -> tuple[Array, Array]:
        """Like a call; returns (output, the filled cache)."""
        _, q_BSHd, entry_BSe = self._project(x_BSD, context)
        cache_BTe = write(cache_BTe, entry_BSe, context.positions_BS, context.real_BS)
        return self._attend_expanded(x_BSD, q_BSHd, entry_BSe, context), cache_BTe

    def decode(self, x_BSD: Float[Array, "B S D"], context: Context, cache_BTe) -> tuple[Array, Array]:
        """Adds these tokens to the cache and attends to it without expanding its latents.

        Returns (output, the updated cache).
        """
        _, q_BSHd, entry_BSe = self._project(x_BSD, context)
        cache_BTe = write(cache_BTe, entry_BSe, context.positions_BS, context.real_BS)
        return self._output(self._attend_absorbed(q_BSHd, cache_BTe, context), x_BSD), cache_BTe

    def _project(self, x_BSD, context):
        """Query latents [B S Q], queries [B S H N+R], and cache entries: latents and rope keys [B S C+R]."""
        N, C, interleave = self.config.qk_nope_head_dim, self.config.kv_lora_rank, self.config.rope_interleave
        with jax.named_scope("mla_project"):
            q_BSQ = x_BSD
            if self.config.q_lora_rank:
                q_BSQ = self.q_norm(linear(x_BSD, self.q_down, self.q_down_bias))
            q_BSHd = linear(q_BSQ, self.q_up)
            down = linear(x_BSD, self.kv_down, self.kv_down_bias)
            cos_sin = context.rope[self.kind]
            q_rope = rotate(q_BSHd[..., N:], *cos_sin, interleave=interleave)
            k_rope = rotate(down[..., C:], *cos_sin, interleave=interleave)
            q_BSHd = jnp.concatenate([q_BSHd[..., :N], q_rope], axis=-1)
            return q_BSQ, q_BSHd, jnp.concatenate([self.kv_norm(down[..., :C]), k_rope], axis=-1)

    def _attend_expanded(self, x_BSD, q_BSHd, entry_BSe, context):
        def attend(self, q_BSHd, entry_BSe, segment_ids_BS):
            k_BTHd, v_BTHV = self._expand(whole_sequence(entry_BSe))  # communicate latents, not expanded keys
            return causal_attend(q_BSHd, k_BTHd, v_BTHV, segment_ids_BS, self.config.softmax_scale)

        with jax.named_scope("mla"):
            attend = on_each_device(attend, (stored_axes(self), BY_HEAD, BY_TOKEN, BY_TOKEN), BY_HEAD)
            return self._output(attend(self, q_BSHd, entry_BSe, context.segment_ids_BS), x_BSD)

    def _attend_absorbed(self, q_BSHd, cache_BTe, context):
        with jax.named_scope("mla_absorbed"):
            mask_BST = written_before(context.positions_BS, cache_BTe.shape[1])
            kv_up_CHe = used(self.kv_up, q_BSHd.dtype)
            return self._release(attend_latents(self._absorb(q_BSHd, kv_up_CHe), cache_BTe, mask_BST), kv_up_CHe)

    def _map(self, q_BSHd, entry_BTe, mask_BST):
        return attention_map(q_BSHd, self._expand(entry_BTe)[0], mask_BST, self.config.softmax_scale)

    def _expand(self, entry_BTe):
        """Keys [B T H N+R] and values [B T H V] of all heads, or of this device's heads."""
        N, C = self.config.qk_nope_head_dim, self.config.kv_lora_rank
        kv_BTHe = linear(entry_BTe[..., :C], self.kv_up)
        rope_BTR = entry_BTe[..., C:]
        rope_BTHR = jnp.broadcast_to(rope_BTR[:, :, None], (*kv_BTHe.shape[:3], rope_BTR.shape[-1]))
        return jnp.concatenate([kv_BTHe[..., :N], rope_BTHR], axis=-1), kv_BTHe[..., N:]

    def _absorb(self, q_BSHd, kv_up_CHe):
        """Scaled queries [B S H C+R] that can attend to entries directly: W_UK is absorbed into them (V2, 2.1.2)."""
        N = self.config.qk_nope_head_dim
        q_BSHC = jnp.einsum("BSHN,CHN->BSHC", q_BSHd[..., :N], kv_up_CHe[..., :N])
        return jnp.concatenate([q_BSHC, q_BSHd[..., N:]], axis=-1) * self.config.softmax_scale

    def _release(self, mixed_BSHe, kv_up_CHe):
        """Values [B S H V] from weighted sums of entries: W_UV is applied after the sum instead of to every entry."""
        N, C = self.config.qk_nope_head_dim, self.config.kv_lora_rank
        return jnp.einsum("BSHC,CHV->BSHV", mixed_BSHe[..., :C], kv_up_CHe[..., N:])

    def _output(self, mixed_BSHV, x_BSD):
        """Output projection.  `x_BSD`, the layer's input, is for subclasses that override this to gate values by it."""
        return linear(mixed_BSHV, self.out, self.out_bias, contract=2)


def attend_latents(
    query_BSHe: Float[Array, "B S H C+R"], entries_BTe: Float[Array, "B T C+R"], mask_BST: Bool[Array, "B S T"]
) -> Float[Array, "B S H C+R"]:
    """Multi-query attention: H heads of scaled queries over shared entries, which are both keys and values."""
    B, S, H, e = query_BSHe.shape
    # Transpose the small operand: otherwise XLA's CPU code copies the whole cache into another layout at every step.
    # Without the barrier XLA swaps the operands again.
    query_BeZ = query_BSHe.reshape(B, S * H, e).swapaxes(1, 2)
    scores_BTZ = jax.lax.optimization_barrier(jnp.matmul(entries_BTe, query_BeZ, preferred_element_type=jnp.float32))
    weights_BSHT = masked_softmax(scores_BTZ.swapaxes(1, 2).reshape(B, S, H, -1), mask_BST[:, :, None])
    return (weights_BSHT.astype(query_BSHe.dtype).reshape(B, S * H, -1) @ entries_BTe).reshape(B, S, H, e)
