"""DeepSeekMoE: routed experts beside shared ones (arXiv:2401.06066; V3, section 2.1.2).

B batch  S sequence  D model
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.layers import SwiGLU
from deepseek_jax.models.moe.balance import RouterReport, report
from deepseek_jax.models.moe.experts import Experts
from deepseek_jax.models.moe.router import Router


class MixtureOfExperts(nnx.Module):
    """Routed experts chosen a token at a time, plus the shared experts as one SwiGLU that every token passes."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.router = Router(config, rngs=rngs)
        self.experts = Experts(config, rngs=rngs)
        if config.n_shared_experts:
            width = config.n_shared_experts * config.moe_intermediate_size
            self.shared = SwiGLU(config.hidden_size, width, config.initializer_range, rngs=rngs)

    def __call__(self, x_BSD: Float[Array, "B S D"], context: Context) -> tuple[Array, RouterReport]:
        with jax.named_scope("moe"):
            x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
            routing = self.router(x_TD)
            y_BSD = self.experts(x_TD, routing).reshape(x_BSD.shape)
            if hasattr(self, "shared"):
                y_BSD += self.shared(x_BSD)
            return y_BSD, report(routing, context.counted_BS)
