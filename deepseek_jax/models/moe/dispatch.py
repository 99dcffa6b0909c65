"""Where each token's copies lie while the experts work: sorted by expert, gathers only, nothing dropped.

T tokens  K experts a token  A = T K assignments  E experts  Z slots  D features
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Where each assignment lies in a row of slots, and what lies in each slot."""

    assignment_of_slot: Int[Array, "Z"]  # A where the slot is empty
    slot_of_assignment: Int[Array, "T K"]

    def weight_of_slot(self, weights_TK: Float[Array, "T K"]) -> Float[Array, "Z"]:
        """The routing weight of each slot's assignment; zero where the slot is empty."""
        flat = weights_TK.reshape(-1, 1)
        weights_Z = spread(flat, self.assignment_of_slot, self.slot_of_assignment.reshape(-1, 1))[:, 0]
        return jnp.where(self.assignment_of_slot < flat.shape[0], weights_Z, 0)

    @property
    def token_of_slot(self) -> Int[Array, "Z"]:
        """T where the slot is empty."""
        return self.assignment_of_slot // self.slot_of_assignment.shape[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan(Slots):
    """A slot for every assignment; each expert's slots are contiguous and start at a multiple of the block length."""

    counts: Int[Array, "E"]  # assignments an expert
    expert_of_block: Int[Array, "blocks"]
    num_blocks: Int[Array, ""]  # blocks in use; the rest of the slots are empty

    @property
    def block(self) -> int:
        """Slots a block."""
        return self.assignment_of_slot.size // self.expert_of_block.size


def plan(experts_TK: Int[Array, "T K"], num_experts: int, block: int, group: int = 1) -> Plan:
    """Sorts assignments by expert and rounds each expert's share up to whole blocks of `block` slots.

    There are blocks for the worst case, in whole groups of `group`; those past `num_blocks` name no expert (E).
    Assignments to E are to no expert: they lie behind all others, and their weight must be zero.
    """
    tokens, per_token = experts_TK.shape
    total = tokens * per_token
    expert_A = experts_TK.reshape(-1)
    order = jnp.argsort(expert_A, stable=True)
    counts = jnp.zeros((num_experts,), jnp.int32).at[expert_A].add(1)
    blocks = (counts + block - 1) // block
    shift = (jnp.cumsum(blocks) - blocks) * block - (jnp.cumsum(counts) - counts)  # slot - rank in the sorted order
    slot_sorted = (jnp.arange(total) + shift[expert_A[order]]).astype(jnp.int32)
    most_blocks = (total + num_experts * (block - 1)) // block
    most_blocks = -(-most_blocks // group) * group
    return Plan(
        assignment_of_slot=jnp.full((most_blocks * block,), total, jnp.int32)
        .at[slot_sorted]
        .set(order.astype(jnp.int32)),
        slot_of_assignment=jnp.zeros((total,), jnp.int32).at[order].set(slot_sorted).reshape(tokens, per_token),
        counts=counts,
        expert_of_block=jnp.searchsorted(jnp.cumsum(blocks), jnp.arange(most_blocks), side="right").astype(jnp.int32),
        num_blocks=blocks.sum(),
    )


@jax.custom_vjp
def spread(
    x_TD: Float[Array, "T D"], source_of_slot: Int[Array, "Z"], slots_of_source: Int[Array, "T K"]
) -> Float[Array, "Z D"]:
    """Copies each source row to its slots; empty slots hold some row, so their weight must be zero."""
    return jnp.take(x_TD, source_of_slot, axis=0, mode="clip")


@jax.custom_vjp
def collect(
    y_ZD: Float[Array, "Z D"], source_of_slot: Int[Array, "Z"], slots_of_source: Int[Array, "T K"]
) -> Float[Array, "T D"]:
    """Sums for each source row what lies in its slots.  The transpose of `spread`, empty slots apart."""
    rows = (jnp.take(y_ZD, slots_of_source[:, k], axis=0, mode="clip") for k in range(slots_of_source.shape[1]))
    return functools.reduce(jnp.add, rows)  # one pass; gathering [T, K, D] and summing it takes three times as long


# Each is written as the other's gradient, so that backward passes gather too: scatters are slow everywhere.
spread.defvjp(lambda x, *where: (spread(x, *where), where), lambda where, dy: (collect(dy, *where), None, None))
collect.defvjp(lambda y, *where: (collect(y, *where), where), lambda where, dx: (spread(dx, *where), None, None))
