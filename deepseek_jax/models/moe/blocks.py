"""The experts' feed-forward for CPUs: a loop over blocks of slots, each block of one expert, that skips unused blocks.

One batched product over all blocks would copy every block's weights and compute empty blocks.  A loop over single
blocks would use one core, since XLA's CPU code multi-threads only large products.  So the loop processes a group of
blocks at a time.  It gathers their tokens itself: [T, D] stays in the CPU's cache, where [Z, D] would not.

T tokens  Z slots  G blocks per group  b slots per block  D model  I expert width  F = 2 I  E experts
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.lax import dynamic_slice_in_dim, dynamic_update_slice_in_dim
from jaxtyping import Array, Float

from deepseek_jax.models.arithmetic import PLAIN, Arithmetic
from deepseek_jax.models.layers import silu_product
from deepseek_jax.models.remat import kept
from deepseek_jax.parallel.dispatch import Plan, collect
from deepseek_jax.parallel.rules import varying_as

GROUP = 8
# Slots per block: LARGE from LARGE_FROM assignments per expert on, else SMALL, as each expert's last block is only
# partly full.  CPU milliseconds for forward and backward on two cores, 16 experts of 256 x 128, LARGE against SMALL: 84
# and 90 at 512 assignments per expert, 51 and 48 at 256, 24 and 19 at 64, 20 and 9 at 16.
LARGE, SMALL, LARGE_FROM = 128, 32, 384


@dataclasses.dataclass(frozen=True)
class ExpertOptions:
    """Static settings of the experts: `limit` (swiglu_limit), and the arithmetic of gate and up and that of down."""

    limit: float = 0.0
    gate_up: Arithmetic = PLAIN
    down: Arithmetic = PLAIN

    @property
    def side_by_side(self) -> Arithmetic:
        """The arithmetic of gate and up concatenated into one matrix [D 2I]."""
        return PLAIN if self.gate_up is PLAIN else Halves(self.gate_up)


@dataclasses.dataclass(frozen=True)
class Halves(Arithmetic):
    """Applies `how` to each half of a matrix's outputs separately, so that no quantisation block spans both."""

    how: Arithmetic

    def rows(self, x):
        return self.how.rows(x)

    def weight(self, w):
        return self._each(self.how.weight, w)

    def gradients(self, dy):
        return self._each(self.how.gradients, dy)

    def inputs(self, x):
        return self.how.inputs(x)

    def outputs(self, dy):
        return self._each(self.how.outputs, dy)

    def _each(self, f, whole):
        return jnp.concatenate([f(half) for half in jnp.split(whole, 2, axis=-1)], axis=-1)


def block_for(assignments: int, num_experts: int) -> int:
    """How many slots a block should have, for that many assignments in total."""
    return LARGE if assignments >= LARGE_FROM * num_experts else SMALL


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def blocked_feed_forward(
    x_TD: Float[Array, "T D"],
    weight_Z: Float[Array, "Z"],
    gate_up_EDF: Float[Array, "E D F"],
    down_EID: Float[Array, "E I D"],
    layout: Plan,
    how: ExpertOptions,
) -> Float[Array, "T D"]:
    """For each token, the sum over its slots of weight * down(silu(gate(x)) * up(x)), using the slot's block's expert.

    `layout` must have its blocks in groups of GROUP, and `weight_Z` must be zero at empty slots.  A `how.limit` above 0
    clamps gate and up (layers.silu_product); it is static, so that 0 costs nothing.
    """
    return _forward(x_TD, weight_Z, gate_up_EDF, down_EID, layout, how)[0]


def _forward(x_TD, weight_Z, gate_up_EDF, down_EID, layout, how):
    width, slots, dtype = down_EID.shape[1], weight_Z.shape[0], x_TD.dtype

    def group(turn, carry):
        hidden_ZF, out_ZD = carry
        weight_Gb1, experts_G, tokens_Gb = _group_of(turn, weight_Z, layout)
        h_GbF = how.side_by_side.product(_tokens(x_TD, tokens_Gb), _of_experts(gate_up_EDF, experts_G, dtype))
        active_GbI = silu_product(h_GbF[..., :width], h_GbF[..., width:], how.limit)
        kernel_GID = _of_experts(down_EID, experts_G, dtype)
        if how.down is PLAIN:
            y_GbD = active_GbI @ kernel_GID * weight_Gb1
        else:  # a quantiser's range is calibrated on weighted inputs
            y_GbD = how.down.product((active_GbI * weight_Gb1).astype(dtype), kernel_GID)
        return _put(turn, hidden_ZF, h_GbF), _put(turn, out_ZD, y_GbD)

    start = _zeros(x_TD, ((slots, 2 * width), dtype), ((slots, x_TD.shape[1]), dtype))
    hidden_ZF, out_ZD = jax.lax.fori_loop(0, _turns(layout), group, start)
    hidden_ZF = kept(hidden_ZF)
    y_TD = collect(out_ZD, layout.token_of_slot, layout.slot_of_assignment)
    return y_TD, (x_TD, weight_Z, gate_up_EDF, down_EID, layout, hidden_ZF)


def _backward(how, saved, dy_TD):
    x_TD, weight_Z, gate_up_EDF, down_EID, layout, hidden_ZF = saved
    width, dtype = down_EID.shape[1], x_TD.dtype

    def group(turn, carry):
        dx, dweight, dgate_up, ddown = carry
        weight_Gb1, experts_G, tokens_Gb = _group_of(turn, weight_Z, layout)
        h_GbF, dy_GbD = _rows(turn, hidden_ZF, layout.block), _tokens(dy_TD, tokens_Gb)
        activate = functools.partial(silu_product, limit=how.limit)
        active, pull = jax.vjp(activate, h_GbF[..., :width], h_GbF[..., width:])
        dactive = how.down.into_input(dy_GbD, _of_experts(down_EID, experts_G, dtype))  # without the routing weight
        dweight_Gb = (active * dactive).sum(axis=-1)
        dh_GbF = jnp.concatenate(pull(dactive * weight_Gb1.astype(dtype)), axis=-1)
        dx_GbD = how.side_by_side.into_input(dh_GbF, _of_experts(gate_up_EDF, experts_G, dtype))
        dgate_up_GDF = _transposed(how.side_by_side.inputs(_tokens(x_TD, tokens_Gb))) @ how.side_by_side.outputs(dh_GbF)
        weighted_GbI = active * weight_Gb1.astype(dtype)
        ddown_GID = _transposed(how.down.inputs(weighted_GbI)) @ how.down.outputs(dy_GbD)
        return (
            _put(turn, dx, dx_GbD),
            _put(turn, dweight[:, None], dweight_Gb[..., None])[:, 0],
            dgate_up.at[experts_G].add(dgate_up_GDF.astype(dgate_up.dtype)),
            ddown.at[experts_G].add(ddown_GID.astype(ddown.dtype)),
        )

    others = ((array.shape, array.dtype) for array in (weight_Z, gate_up_EDF, down_EID))
    start = _zeros(dy_TD, ((weight_Z.shape[0], x_TD.shape[1]), dtype), *others)
    dx_ZD, *others = jax.lax.fori_loop(0, _turns(layout), group, start)
    return collect(dx_ZD, layout.token_of_slot, layout.slot_of_assignment), *others, None


blocked_feed_forward.defvjp(_forward, _backward)


def _zeros(like, *shapes):
    """Arrays of zeros for a loop to fill, varying over the same mesh axes as `like` (see rules.varying_as).

    They are made to depend on `like`: XLA would share plain zeros between all layers' loops, and then copy them.
    """
    zero, _ = jax.lax.optimization_barrier((jnp.zeros(()), like))
    return varying_as(like, tuple(jnp.full(shape, zero, dtype) for shape, dtype in shapes))


def _transposed(x_Gbd):
    """[G d b], copied: XLA's CPU code multiplies a transposed view at only three quarters of the speed."""
    return jax.lax.optimization_barrier(x_Gbd.swapaxes(1, 2))


def _turns(layout):
    return (layout.num_blocks + GROUP - 1) // GROUP


def _group_of(turn, weight_Z, layout):
    """A group's weights [G b 1], experts [G] and tokens [G b]; empty slots have weight 0 and token T."""
    weight_Gb1, tokens_Gb1 = (_rows(turn, whole[:, None], layout.block) for whole in (weight_Z, layout.token_of_slot))
    return weight_Gb1, dynamic_slice_in_dim(layout.expert_of_block, turn * GROUP, GROUP), tokens_Gb1[..., 0]


def _tokens(whole_TD, tokens_Gb):
    return jnp.take(whole_TD, tokens_Gb, axis=0, mode="clip")


def _rows(turn, whole, block):
    rows = GROUP * block
    return dynamic_slice_in_dim(whole, turn * rows, rows).reshape(GROUP, block, -1)


def _put(turn, whole, part):
    rows = GROUP * part.shape[1]
    return dynamic_update_slice_in_dim(whole, part.reshape(rows, -1).astype(whole.dtype), turn * rows, 0)


def _of_experts(weights, experts_G, dtype):
    return jnp.take(weights, experts_G, axis=0, mode="clip").astype(dtype)
