"""The routed experts: five ways to compute the same sum, chosen by platform and size (see `fastest`) or by `plainly`.

T tokens  K experts per token  A = T K assignments  E experts  D model  I expert width  Z slots  R slots per expert
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from deepseek_jax.models import arithmetic
from deepseek_jax.models.arithmetic import multiply
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import silu_product
from deepseek_jax.models.moe.blocks import GROUP, ExpertOptions, block_for, blocked_feed_forward
from deepseek_jax.models.moe.grouped import grouped_matmul
from deepseek_jax.models.moe.router import Routing
from deepseek_jax.models.remat import kept
from deepseek_jax.models.tree import used, weight
from deepseek_jax.parallel.current import by_platform, current_mesh
from deepseek_jax.parallel.dispatch import allot, collect, copy_to_slots, plan, sufficient_capacity
from deepseek_jax.parallel.expert import exchange
from deepseek_jax.parallel.rules import RULES, mapped_axes

# Gathering an expert's weights for one token and using them costs as much as this many plain reads of them (two cores).
CHOSEN_COST = 2
# Assignments up to which `with_fixed_capacity` (CPUs) or `every_expert` is used.  128 assignments to 16 experts of
# 256 x 128 take 0.45 ms by the former on two cores, 0.70 by the latter and 1.03 by `in_blocks`.  With more, loads are
# uneven because of the text, not by chance, and a fixed capacity is too small.
MOST_FOR_FEW = 128

_PLAIN = jax.make_user_context(default_value=False)  # part of jit's cache key: inside it, programs are traced anew


def plainly():
    """A context manager that selects `every_expert`, whose operations all of JAX's transforms support."""
    return _PLAIN(True)


class Experts(nnx.Module):
    """sum over the chosen experts e of w_e * down_e(silu(gate_e(x)) * up_e(x)).

    Only a `capacity_factor` above 0 drops assignments.  Assignments of weight zero may be to no expert (number E).
    If swiglu_limit is not 0, gate and up are clamped (layers.silu_product).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.limit = config.swiglu_limit
        E, D, I = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        scale = config.initializer_range
        self.gate = weight(rngs.params(), (E, D, I), ("experts", "embed", "expert_mlp"), scale)
        self.up = weight(rngs.params(), (E, D, I), ("experts", "embed", "expert_mlp"), scale)
        self.down = weight(rngs.params(), (E, I, D), ("experts", "expert_mlp", "embed"), scale)

    def __call__(
        self, x_TD: Float[Array, "T D"], routing: Routing, capacity_factor: float = 0.0
    ) -> tuple[Float[Array, "T D"], Int[Array, "T"] | None]:
        """Returns (the sum, the number of each token's assignments that were dropped, or None if none can be)."""
        with jax.named_scope("experts"):
            kernels = [self._kernel(kernel, x_TD.dtype) for kernel in (self.gate, self.up, self.down)]
            of_down = arithmetic.of(self.down).split_over(mapped_axes(RULES["expert_mlp"]))
            how = ExpertOptions(self.limit, arithmetic.of(self.gate), of_down)
            compute = functools.partial(fastest, how=how)
            return exchange(compute, x_TD, routing.experts_TK, routing.weights_TK, kernels, capacity_factor)

    def _kernel(self, param, dtype):
        return used(param, dtype) if current_mesh() else param[...]  # one device: each way casts what it uses


def fastest(
    x_TD: Float[Array, "T D"],
    experts_TK: Int[Array, "T K"],
    weights_TK: Float[Array, "T K"],
    gate: Float[Array, "E D I"],
    up: Float[Array, "E D I"],
    down: Float[Array, "E I D"],
    how: ExpertOptions,
) -> Float[Array, "T D"]:
    """Uses the way that is fastest for this many assignments on the platform that this is compiled for.

    All five have the same arguments and result: for each token, the weighted sum over its experts.
    """
    arguments = x_TD, experts_TK, weights_TK, gate, up, down
    if _PLAIN.value:
        return every_expert(*arguments, how)
    if CHOSEN_COST * experts_TK.size <= down.shape[0]:
        return chosen_experts(*arguments, how)
    few = experts_TK.size <= MOST_FOR_FEW
    return by_platform(
        *arguments,
        cpu=functools.partial(with_fixed_capacity if few else in_blocks, how=how),
        default=functools.partial(every_expert if few else ragged, how=how),
    )


def chosen_experts(x_TD, experts_TK, weights_TK, gate, up, down, how: ExpertOptions) -> Float[Array, "T D"]:
    """Gathers each token's experts' weights: best for one or two tokens, which use few of all experts."""
    experts_A, (tokens, per_token) = experts_TK.reshape(-1), experts_TK.shape
    gate, up, down = (
        jnp.take(kernel, experts_A, axis=0, mode="clip").astype(x_TD.dtype) for kernel in (gate, up, down)
    )
    x_A1D = jnp.repeat(x_TD, per_token, axis=0)[:, None]
    gate_A1I, up_A1I = (multiply(x_A1D, kernel, how.gate_up) for kernel in (gate, up))
    active_A1I = silu_product(gate_A1I, up_A1I, how.limit) * weights_TK.reshape(-1, 1, 1).astype(x_TD.dtype)
    return multiply(active_A1I, down, how.down).reshape(tokens, per_token, -1).sum(axis=1)


def every_expert(x_TD, experts_TK, weights_TK, gate, up, down, how: ExpertOptions) -> Float[Array, "T D"]:
    """Runs all experts on all tokens, with weight zero where not chosen: best if reading weights is the only cost."""
    chosen_TE = jnp.zeros((x_TD.shape[0], down.shape[0]), weights_TK.dtype)
    chosen_TE = chosen_TE.at[jnp.arange(x_TD.shape[0])[:, None], experts_TK].add(weights_TK)
    x_ETD = jnp.broadcast_to(x_TD, (down.shape[0], *x_TD.shape))
    weight_ET1 = chosen_TE.T[:, :, None].astype(x_TD.dtype)
    return _each_on_its_rows(x_ETD, weight_ET1, gate, up, down, how).sum(axis=0)


def _each_on_its_rows(x_ERD, weight_ER1, gate, up, down, how):
    gate, up, down = (kernel.astype(x_ERD.dtype) for kernel in (gate, up, down))
    # The barriers keep the products batched: to merge them into one wide product, XLA would copy the weights each time.
    fixed = jax.lax.optimization_barrier
    x_ERD = fixed(x_ERD)
    gate_ERI, up_ERI = (multiply(x_ERD, kernel, how.gate_up) for kernel in (gate, up))
    active_ERI = silu_product(gate_ERI, up_ERI, how.limit) * weight_ER1
    return fixed(multiply(active_ERI, down, how.down))


def with_fixed_capacity(x_TD, experts_TK, weights_TK, gate, up, down, how: ExpertOptions) -> Float[Array, "T D"]:
    """Runs each expert on `sufficient_capacity` slots, which are almost always enough: for few tokens on CPUs.

    If it is not enough, falls back to `every_expert`.
    """
    experts, room = down.shape[0], sufficient_capacity(*experts_TK.shape, down.shape[0])
    if room >= x_TD.shape[0]:
        return every_expert(x_TD, experts_TK, weights_TK, gate, up, down, how)
    slots = allot(experts_TK, experts, room)

    def in_slots(x_TD, experts_TK, weights_TK, gate, up, down):
        x_ERD = jnp.take(x_TD, slots.token_of_slot, axis=0, mode="clip").reshape(experts, room, -1)
        weight_Z = jnp.take(weights_TK, slots.assignment_of_slot, mode="fill", fill_value=0).astype(x_TD.dtype)
        out_ERD = _each_on_its_rows(x_ERD, weight_Z.reshape(experts, room, 1), gate, up, down, how)
        return slots.sums(out_ERD.reshape(experts * room, -1))

    every = functools.partial(every_expert, how=how)
    without_room = (slots.slot_of_assignment == experts * room) & (experts_TK < experts)
    return jax.lax.cond(without_room.any(), every, in_slots, x_TD, experts_TK, weights_TK, gate, up, down)


def in_blocks(x_TD, experts_TK, weights_TK, gate, up, down, how: ExpertOptions) -> Float[Array, "T D"]:
    """Sorts assignments by expert into blocks of one expert each (blocks.py): for CPUs."""
    layout = kept(plan(experts_TK, down.shape[0], block_for(experts_TK.size, down.shape[0]), GROUP))
    gate_up = jnp.concatenate([gate, up], axis=-1)
    return blocked_feed_forward(x_TD, layout.weight_of_slot(weights_TK), gate_up, down, layout, how)


def ragged(x_TD, experts_TK, weights_TK, gate, up, down, how: ExpertOptions) -> Float[Array, "T D"]:
    """Sorts assignments by expert and runs `grouped_matmul` on groups of any length: for accelerators."""
    layout = kept(plan(experts_TK, down.shape[0], block=1))
    by_token = layout.token_of_slot, layout.slot_of_assignment
    # grouped_matmul's results for rows of no expert are undefined: they must not reach sums or gradients.
    of_expert_Z1 = (jnp.arange(layout.assignment_of_slot.size) < layout.counts.sum())[:, None]
    x_ZD = jnp.where(of_expert_Z1, copy_to_slots(x_TD, *by_token), 0)
    gate, up, down = (kernel.astype(x_TD.dtype) for kernel in (gate, up, down))
    gate_ZI, up_ZI = (kept(grouped_matmul(x_ZD, kernel, layout.counts, how.gate_up)) for kernel in (gate, up))
    active_ZI, weight_Z1 = silu_product(gate_ZI, up_ZI, how.limit), layout.weight_of_slot(weights_TK)[:, None]
    if how.down is arithmetic.PLAIN:
        out_ZD = jnp.where(of_expert_Z1, grouped_matmul(active_ZI, down, layout.counts, how.down), 0)
        return collect((out_ZD * weight_Z1).astype(x_TD.dtype), *by_token)
    # Other arithmetics need the product's input to be weighted already, as in the other ways.  That keeps one more
    # array: a step of V3 takes 54.0 GiB of a v5p instead of 49.9 (compiled with JAX_OPTIMIZATION_LEVEL=O1).
    weighted_ZI = (active_ZI * jnp.where(of_expert_Z1, weight_Z1, 0)).astype(x_TD.dtype)
    out_ZD = grouped_matmul(weighted_ZI, down, layout.counts, how.down)
    return collect(jnp.where(of_expert_Z1, out_ZD, 0), *by_token)
