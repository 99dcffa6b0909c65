"""The routed experts: three ways to compute the same sum, chosen by where it runs.

T tokens  K experts a token  E experts  D model  I expert width  Z slots
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import swiglu
from deepseek_jax.models.moe.blocks import BLOCK, blocked_feed_forward
from deepseek_jax.models.moe.dispatch import collect, plan, spread
from deepseek_jax.models.moe.router import Routing
from deepseek_jax.models.tree import weight


class Experts(nnx.Module):
    """sum over the chosen experts e of w_e * down_e(silu(gate_e(x)) * up_e(x)); no token is ever dropped."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        E, D, I, scale = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size, config.initializer_range
        self.gate_up = weight(rngs.params(), (E, D, 2, I), ("experts", "embed", None, "expert_mlp"), scale)
        self.down = weight(rngs.params(), (E, I, D), ("experts", "expert_mlp", "embed"), scale)

    def __call__(self, x_TD: Float[Array, "T D"], routing: Routing) -> Float[Array, "T D"]:
        arguments = x_TD, routing.experts_TK, routing.weights_TK, self.gate_up[...], self.down[...]
        with jax.named_scope("experts"):
            if x_TD.shape[0] * routing.experts_TK.shape[1] <= BLOCK:
                return every_expert(*arguments)
            return jax.lax.platform_dependent(*arguments, cpu=in_blocks, default=ragged)


def every_expert(x_TD, experts_TK, weights_TK, gate_up, down):
    """All experts on all tokens, weighted by zero where not chosen: best for the few tokens of a decoding step."""
    chosen_TE = jnp.zeros((x_TD.shape[0], down.shape[0]), weights_TK.dtype)
    chosen_TE = chosen_TE.at[jnp.arange(x_TD.shape[0])[:, None], experts_TK].add(weights_TK)
    active_ETI = swiglu(jnp.einsum("TD,EDgI->ETgI", x_TD, gate_up.astype(x_TD.dtype)))
    active_ETI *= chosen_TE.T[:, :, None].astype(x_TD.dtype)
    return jnp.einsum("ETI,EID->TD", active_ETI, down.astype(x_TD.dtype))


def in_blocks(x_TD, experts_TK, weights_TK, gate_up, down):
    """Sorted by expert, in blocks of equal expert, each block a plain matrix product: for CPUs."""
    layout = plan(experts_TK, down.shape[0], BLOCK)
    by_token = layout.token_of_slot, layout.slot_of_assignment
    by_assignment = layout.assignment_of_slot, layout.slot_of_assignment.reshape(-1, 1)
    weight_Z = spread(weights_TK.reshape(-1, 1), *by_assignment)[:, 0]
    gate_up = gate_up.reshape(*gate_up.shape[:2], -1)
    blocks = layout.expert_of_block, layout.num_blocks
    return collect(blocked_feed_forward(spread(x_TD, *by_token), weight_Z, gate_up, down, *blocks), *by_token)


def ragged(x_TD, experts_TK, weights_TK, gate_up, down):
    """Sorted by expert, groups of any length through `jax.lax.ragged_dot`: for accelerators."""
    layout = plan(experts_TK, down.shape[0], block=1)
    by_token = layout.token_of_slot, layout.slot_of_assignment
    by_assignment = layout.assignment_of_slot, layout.slot_of_assignment.reshape(-1, 1)
    E, D, _, I = gate_up.shape
    x_ZD = spread(x_TD, *by_token)
    hidden_ZF = jax.lax.ragged_dot(x_ZD, gate_up.reshape(E, D, 2 * I).astype(x_TD.dtype), layout.counts)
    out_ZD = jax.lax.ragged_dot(swiglu(hidden_ZF.reshape(-1, 2, I)), down.astype(x_TD.dtype), layout.counts)
    weight_Z1 = spread(weights_TK.reshape(-1, 1), *by_assignment)
    return collect((out_ZD * weight_Z1).astype(x_TD.dtype), *by_token)
