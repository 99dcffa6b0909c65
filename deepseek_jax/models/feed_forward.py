"""The kinds of feed-forward by name.  Each is a module with

__call__(x_BSD, context) -> (y_BSD, Routing or None)    the experts of each token, where it has experts
report(routing, context) -> RouterReport                needed only with experts
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.layers import SwiGLU
from deepseek_jax.models.moe.layer import MixtureOfExperts


class DenseFeedForward(SwiGLU):
    def __init__(self, config: ModelConfig, kind: str, *, rngs: nnx.Rngs):
        super().__init__(config, config.intermediate_size, rngs=rngs)

    def __call__(self, x_BSD: Float[Array, "B S D"], context: Context) -> tuple[Float[Array, "B S D"], None]:
        with jax.named_scope("feed_forward"):
            return super().__call__(x_BSD), None


FEED_FORWARDS = {"dense": DenseFeedForward}  # all other kinds are experts, chosen by the router of that name


def make_feed_forward(config: ModelConfig, kind: str, *, rngs: nnx.Rngs) -> nnx.Module:
    return FEED_FORWARDS.get(kind, MixtureOfExperts)(config, kind, rngs=rngs)
