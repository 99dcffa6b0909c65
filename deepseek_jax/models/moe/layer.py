"""DeepSeekMoE: routed experts beside shared ones (arXiv:2401.06066; V3, section 2.1.2).

B batch  S sequence  T = B S tokens  D model
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.layers import SwiGLU
from deepseek_jax.models.moe.balance import RouterReport, report
from deepseek_jax.models.moe.experts import Experts
from deepseek_jax.models.moe.router import ROUTERS, Routing
from deepseek_jax.parallel.expert import tokenwise


class MixtureOfExperts(nnx.Module):
    """Routed experts, chosen for each token, plus the shared experts as one SwiGLU that every token passes through.

    `kind`: a name in `ROUTERS`, such as "moe", where scores choose the experts, or "hash_moe", where a table does.
    """

    def __init__(self, config: ModelConfig, kind: str, *, rngs: nnx.Rngs):
        self.router = ROUTERS[kind](config, rngs=rngs)
        self.experts = Experts(config, rngs=rngs)
        if config.n_shared_experts:
            self.shared = SwiGLU(config, config.n_shared_experts * config.moe_intermediate_size, rngs=rngs)

    def __call__(self, x_BSD: Float[Array, "B S D"], context: Context) -> tuple[Float[Array, "B S D"], Routing]:
        with jax.named_scope("moe"):
            routed = functools.partial(_routed, capacity_factor=context.capacity_factor)
            known = [context.tokens_BS]
            if self.router.draws and context.keys_BS is not None:
                known.append(context.keys_BS)
            y_BSD, routing = tokenwise(routed, (self.router, self.experts), x_BSD, *known)
            if hasattr(self, "shared"):
                y_BSD += self.shared(x_BSD)
            return y_BSD, routing

    def report(self, routing: Routing, context: Context) -> RouterReport:
        found = report(routing, context.counted_BS)
        if not self.router.by_scores:
            none = {name: jnp.zeros_like(getattr(found, name)) for name in ("balance", "share_E")}
            found = dataclasses.replace(found, **none)
        return found


def _routed(router, experts, x_TD, *known_T, capacity_factor):
    routing = router(x_TD, *known_T)
    y_TD, dropped_T = experts(x_TD, routing, capacity_factor)
    return y_TD, dataclasses.replace(routing, dropped_T=dropped_T)
