"""One layer of the decoder: attention and feed-forward, each behind a norm and beside a residual.

B batch  S sequence  D model
"""

import dataclasses

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from deepseek_jax.models.attention.mla import Context, LatentAttention
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import RMSNorm, SwiGLU
from deepseek_jax.models.moe.balance import RouterReport
from deepseek_jax.models.moe.layer import MixtureOfExperts


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What tells one layer from the next; equal neighbours are stacked and scanned."""

    feed_forward: str  # dense, moe


def layer_kinds(config: ModelConfig) -> list[LayerKind]:
    return [
        LayerKind("dense" if index < config.first_k_dense_replace else "moe")
        for index in range(config.num_hidden_layers)
    ]


class Block(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); the router's report is None for a dense layer."""

    def __init__(self, config: ModelConfig, kind: LayerKind, *, rngs: nnx.Rngs):
        self.kind = kind
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = LatentAttention(config, rngs=rngs)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if kind.feed_forward == "moe":
            self.feed_forward = MixtureOfExperts(config, rngs=rngs)
        else:
            self.feed_forward = SwiGLU(
                config.hidden_size, config.intermediate_size, config.initializer_range, rngs=rngs
            )

    def __call__(
        self, x_BSD: Float[Array, "B S D"], context: Context, counted_BS: Bool[Array, "B S"]
    ) -> tuple[Array, RouterReport | None]:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), context)
        return self._feed_forward(x_BSD, counted_BS)

    def prefill(self, x_BSD, context, cache):
        attended, cache = self.attention.prefill(self.attention_norm(x_BSD), context, cache)
        return self._feed_forward(x_BSD + attended, context.mask_BST.any(axis=-1))[0], cache

    def decode(self, x_BSD, context, cache, place):
        attended, cache = self.attention.decode(self.attention_norm(x_BSD), context, cache, place)
        return self._feed_forward(x_BSD + attended, context.mask_BST.any(axis=-1))[0], cache

    def _feed_forward(self, x_BSD, counted_BS):
        normed = self.feed_forward_norm(x_BSD)
        if self.kind.feed_forward == "moe":
            y_BSD, report = self.feed_forward(normed, counted_BS)
            return x_BSD + y_BSD, report
        with jax.named_scope("feed_forward"):
            return x_BSD + self.feed_forward(normed), None
