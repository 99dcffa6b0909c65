"""Multi-token prediction (MTP): one module, with one layer, for each further token ahead (V3, section 2.2).

A module's input is the state from the main stack or the previous module.  It returns (the state for the next module,
the normed state that the head predicts from, its layer's report).

B batch  S sequence  D model  n streams
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.models.block import Block, LayerReport
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.layers import RMSNorm, linear
from deepseek_jax.models.mhc import StreamHead, apart
from deepseek_jax.models.schedule import LayerKind
from deepseek_jax.models.tree import weight


class MultiTokenPrediction(nnx.Module):
    """Combines the state that predicts token t+k with that token's embedding into the state that predicts t+k+1.

    The input state is taken after the final norm, as released checkpoints expect (in the paper: before it).
    """

    def __init__(self, config: ModelConfig, kind: LayerKind, *, rngs: nnx.Rngs):
        D = config.hidden_size
        self.embedding_norm = RMSNorm(D, config.rms_norm_eps)
        self.hidden_norm = RMSNorm(D, config.rms_norm_eps)
        self.project = weight(rngs.params(), (2 * D, D), (None, "embed"), config.initializer_range)
        self.block = Block(config, kind, rngs=rngs)
        self.norm = RMSNorm(D, config.rms_norm_eps)

    def __call__(
        self, hidden_BSD: Float[Array, "B S D"], embedded_BSD: Float[Array, "B S D"], context: Context
    ) -> tuple[Array, Array, LayerReport]:
        with jax.named_scope("mtp"):
            x_BSD, report = self.block(self.enter(hidden_BSD, embedded_BSD), context)
            hidden_BSD = self.leave(x_BSD)
            return hidden_BSD, hidden_BSD, report

    def enter(self, hidden_BSD: Float[Array, "B S D"], embedded_BSD: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        both = jnp.concatenate([self.embedding_norm(embedded_BSD), self.hidden_norm(hidden_BSD)], axis=-1)
        return linear(both, self.project)

    def leave(self, x_BSD: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return self.norm(x_BSD)


class StreamPrediction(nnx.Module):
    """The same for hyper-connected streams (V4), taken directly from the last layer, before StreamHead and norm."""

    def __init__(self, config: ModelConfig, kind: LayerKind, *, rngs: nnx.Rngs):
        D, scale, self.streams = config.hidden_size, config.initializer_range, config.hc_mult
        self.embedding_norm = RMSNorm(D, config.rms_norm_eps)
        self.hidden_norm = RMSNorm(D, config.rms_norm_eps)
        self.project_embedding = weight(rngs.params(), (D, D), (None, "embed"), scale)
        self.project_hidden = weight(rngs.params(), (D, D), (None, "embed"), scale)
        self.block = Block(config, kind, rngs=rngs)
        self.stream_head = StreamHead(config, rngs=rngs)
        self.norm = RMSNorm(D, config.rms_norm_eps)

    def __call__(
        self, x: Float[Array, "B S ..."], embedded_BSD: Float[Array, "B S D"], context: Context
    ) -> tuple[Array, Array, LayerReport]:
        with jax.named_scope("mtp"):
            x, report = self.block(self.enter(x, embedded_BSD), context)
            return x, self.leave(x), report

    def enter(self, x: Float[Array, "B S ..."], embedded_BSD: Float[Array, "B S D"]) -> Float[Array, "B S ..."]:
        embedded_BSD = linear(self.embedding_norm(embedded_BSD), self.project_embedding)
        x_BSnD = linear(self.hidden_norm(apart(x, self.streams)), self.project_hidden)
        return (embedded_BSD[:, :, None] + x_BSnD).reshape(x.shape)

    def leave(self, x: Float[Array, "B S ..."]) -> Float[Array, "B S D"]:
        return self.norm(self.stream_head(x))


def make_mtp(config: ModelConfig, kind: LayerKind, *, rngs: nnx.Rngs) -> nnx.Module:
    return (StreamPrediction if config.hc_mult else MultiTokenPrediction)(config, kind, rngs=rngs)
