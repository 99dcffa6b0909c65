"""Assigns the copies of each token to slots, sorted by expert; moves them there and back by gathers only.

T tokens  K experts per token  A = T K assignments (of a token to an expert)  E experts  Z slots  D features
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Which slot each assignment has, and which assignment is in each slot."""

    assignment_of_slot: Int[Array, "Z"]  # A if the slot is empty
    slot_of_assignment: Int[Array, "T K"]

    def weight_of_slot(self, weights_TK: Float[Array, "T K"]) -> Float[Array, "Z"]:
        """The routing weight of each slot's assignment; zero for empty slots."""
        flat = weights_TK.reshape(-1, 1)
        weights_Z = copy_to_slots(flat, self.assignment_of_slot, self.slot_of_assignment.reshape(-1, 1))[:, 0]
        return jnp.where(self.assignment_of_slot < flat.shape[0], weights_Z, 0)

    @property
    def token_of_slot(self) -> Int[Array, "Z"]:
        """The token in each slot; T if the slot is empty."""
        return self.assignment_of_slot // self.slot_of_assignment.shape[1]

    def sums(self, y_ZD: Float[Array, "Z D"]) -> Float[Array, "T D"]:
        """For each token, the sum over its slots; slot number Z counts as zero (`collect`, faster, does not check)."""

        def rows(k):
            return jnp.take(y_ZD, self.slot_of_assignment[:, k], axis=0, mode="fill", fill_value=0)

        return functools.reduce(jnp.add, map(rows, range(self.slot_of_assignment.shape[1])))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan(Slots):
    """A slot for every assignment; each expert's slots are contiguous and start at a multiple of the block size."""

    counts: Int[Array, "E"]  # assignments per expert
    expert_of_block: Int[Array, "blocks"]  # E for unused blocks
    num_blocks: Int[Array, ""]  # blocks in use; all slots after them are empty

    @property
    def block(self) -> int:
        """Slots per block."""
        return self.assignment_of_slot.size // self.expert_of_block.size


def plan(experts_TK: Int[Array, "T K"], num_experts: int, block: int, group: int = 1) -> Plan:
    """Sorts assignments by expert and rounds each expert's slots up to whole blocks of `block` slots.

    The number of blocks is that of the worst case, rounded up to a multiple of `group`.  Assignments to number E are to
    no expert: they come after all others, and their weight must be zero.
    """
    total = experts_TK.size
    order_A, expert_A, rank_A, counts = _ranked(experts_TK, num_experts)
    blocks = (counts + block - 1) // block
    first_slot = (jnp.cumsum(blocks) - blocks) * block
    slot_A = (first_slot[expert_A] + rank_A).astype(jnp.int32)
    most_blocks = (total + num_experts * (block - 1)) // block
    most_blocks = -(-most_blocks // group) * group
    return Plan(
        assignment_of_slot=jnp.full((most_blocks * block,), total, jnp.int32).at[slot_A].set(order_A.astype(jnp.int32)),
        slot_of_assignment=jnp.zeros((total,), jnp.int32).at[order_A].set(slot_A).reshape(experts_TK.shape),
        counts=counts,
        expert_of_block=jnp.searchsorted(jnp.cumsum(blocks), jnp.arange(most_blocks), side="right").astype(jnp.int32),
        num_blocks=blocks.sum(),
    )


def _ranked(target_TK, targets: int):
    """Sorts assignments by target (an expert or device); those to no target (number `targets`) come last.

    Returns (assignments in that order, the target of each, its rank among those to the same target; all [A], and the
    number of assignments per target).
    """
    target_A = target_TK.reshape(-1)
    order_A = jnp.argsort(target_A, stable=True)
    counts = jnp.zeros((targets,), jnp.int32).at[target_A].add(1)
    sorted_A = target_A[order_A]
    return order_A, sorted_A, jnp.arange(target_A.size) - (jnp.cumsum(counts) - counts)[sorted_A], counts


def allot(target_TK: Int[Array, "T K"], targets: int, capacity: int, room: int | None = None) -> Slots:
    """Gives each target `capacity` consecutive slots, of which only the first `room` are filled (None: all).

    An assignment without a free slot, or to no target (number `targets`), gets slot number Z = targets * capacity.
    """
    room = capacity if room is None else room
    order_A, sorted_A, rank_A, _ = _ranked(target_TK, targets)
    nowhere = targets * capacity
    slot_A = jnp.where((rank_A < room) & (sorted_A < targets), sorted_A * capacity + rank_A, nowhere).astype(jnp.int32)
    return Slots(
        assignment_of_slot=jnp.full((nowhere,), target_TK.size, jnp.int32)
        .at[slot_A]
        .set(order_A.astype(jnp.int32), mode="drop"),
        slot_of_assignment=jnp.zeros_like(slot_A).at[order_A].set(slot_A).reshape(target_TK.shape),
    )


TILE = 5  # rows per tile of XLA's CPU matrix products: six rows take a quarter longer than five
OVERFLOW_PROBABILITY = 0.1  # the acceptable probability of `sufficient_capacity` being too small


def sufficient_capacity(tokens: int, per_token: int, experts: int) -> int:
    """Slots per expert, a multiple of TILE, that random routing exceeds with at most OVERFLOW_PROBABILITY."""
    more, room = 1.0, -1  # `more`: the probability that a given expert needs more than `room`
    while experts * more > OVERFLOW_PROBABILITY and room < tokens:
        room += 1
        ways = math.comb(tokens, room) * per_token**room * (experts - per_token) ** (tokens - room)
        more -= ways / experts**tokens
    return -(-room // TILE) * TILE


@jax.custom_vjp
def copy_to_slots(
    x_TD: Float[Array, "T D"], source_of_slot: Int[Array, "Z"], slots_of_source: Int[Array, "T K"]
) -> Float[Array, "Z D"]:
    """Copies each source row to its slots; empty slots hold an arbitrary row, so their weight must be zero."""
    return jnp.take(x_TD, source_of_slot, axis=0, mode="clip")


@jax.custom_vjp
def collect(
    y_ZD: Float[Array, "Z D"], source_of_slot: Int[Array, "Z"], slots_of_source: Int[Array, "T K"]
) -> Float[Array, "T D"]:
    """For each source row, the sum over its slots: the transpose of `copy_to_slots`, except for empty slots."""
    rows = (jnp.take(y_ZD, slots_of_source[:, k], axis=0, mode="clip") for k in range(slots_of_source.shape[1]))
    return functools.reduce(jnp.add, rows)  # in one pass; gathering [T, K, D] first takes three times as long


# Each is defined as the other's gradient, so that backward passes use gathers too: scatters are slow on all platforms.
copy_to_slots.defvjp(
    lambda x, *where: (copy_to_slots(x, *where), where), lambda where, dy: (collect(dy, *where), None, None)
)
collect.defvjp(lambda y, *where: (collect(y, *where), where), lambda where, dx: (copy_to_slots(dx, *where), None, None))
