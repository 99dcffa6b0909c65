"""One layer of the decoder: attention and feed-forward, each with a norm before it and a residual around it.

B batch  S sequence  D model

x is [B S D], or [B S nD] where hyper-connections carry n streams side by side.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.models.attention.kinds import make_attention
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.feed_forward import make_feed_forward
from deepseek_jax.models.layers import RMSNorm
from deepseek_jax.models.moe.balance import RouterReport
from deepseek_jax.models.moe.router import Routing
from deepseek_jax.models.residual import make_residual
from deepseek_jax.models.schedule import LayerKind
from deepseek_jax.parallel.rules import constrain_tokens

Cache = Any  # one layer's cache: a pytree of arrays whose form depends on the attention (attention/kinds.py)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerReport:
    """Statistics of a layer: of its router, None in a dense layer, and what its attention tells, by name.

    The latter are sums over counted tokens, as the router's are.
    """

    router: RouterReport | None
    attention: dict[str, Float[Array, ""]]


class Block(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), or the same with hyper-connections as residuals."""

    def __init__(self, config: ModelConfig, kind: LayerKind, *, rngs: nnx.Rngs):
        self.kind = kind
        self.attention_residual = make_residual(config, rngs=rngs)
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = make_attention(config, kind.attention, rngs=rngs)
        self.feed_forward_residual = make_residual(config, rngs=rngs)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = make_feed_forward(config, kind.feed_forward, rngs=rngs)

    def __call__(self, x: Float[Array, "B S ..."], context: Context) -> tuple[Float[Array, "B S ..."], LayerReport]:
        """Returns (the next x, the layer's report); tokens attend to the tokens of this call only, not to a cache."""
        x, told = self.through_attention(x, context)
        attention = {name: jnp.where(context.counted_BS, each_BS, 0.0).sum() for name, each_BS in (told or {}).items()}
        x, routing = self.through_feed_forward(x, context)
        router = None if routing is None else self.feed_forward.report(routing, context)
        return x, LayerReport(router, attention)

    def prefill(self, x: Float[Array, "B S ..."], context: Context, cache: Cache) -> tuple[Array, Cache]:
        """Like a call, for the first tokens of each row; returns (the next x, the filled cache)."""
        x, cache = self._attend(x, lambda h: self.attention.prefill(h, context, cache))
        return self.through_feed_forward(x, context)[0], cache

    def decode(self, x: Float[Array, "B S ..."], context: Context, cache: Cache) -> tuple[Array, Cache]:
        """Processes further tokens, which also attend to the cached ones; returns (the next x, the updated cache)."""
        x, cache = self._attend(x, lambda h: self.attention.decode(h, context, cache))
        return self.through_feed_forward(x, context)[0], cache

    def through_attention(
        self, x: Float[Array, "B S ..."], context: Context
    ) -> tuple[Float[Array, "B S ..."], dict[str, Float[Array, "B S"]]]:
        """The first half of a call; returns (x between the two sublayers, what the attention tells of each token)."""
        return self._attend(x, lambda h: self.attention(h, context))

    def through_feed_forward(
        self, x: Float[Array, "B S ..."], context: Context
    ) -> tuple[Float[Array, "B S ..."], Routing | None]:
        """The second half of a call; returns (the next x, each token's experts, or None in a dense layer)."""
        x, routing = self.feed_forward_residual(x, lambda h: self.feed_forward(self.feed_forward_norm(h), context))
        return constrain_tokens(x), routing

    def _attend(self, x, attend):
        x, attended = self.attention_residual(x, lambda h: attend(self.attention_norm(h)))
        return constrain_tokens(x), attended
