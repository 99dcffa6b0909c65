"""Expert parallelism: tokens are sent to the devices that hold their experts, and the experts' outputs are sent back.

Every device routes its own tokens.  There are two ways to their experts.

If nothing may be dropped, all tokens may choose experts of the same device, so arrays of fixed size have room for all
tokens on every device.  Then every device gets all tokens by an all-gather, and a reduce-scatter adds up what the
devices' experts make of them.

If the rows that a device may send to each other one are limited, it sorts its tokens' assignments by the device that
holds the expert, sends each device as many rows as there is room for, runs its own experts on what it receives, and
sends the results back (GShard, arXiv:2006.16668; DeepSeek-V3, section 3.2).  Each direction is one all-to-all of arrays
of fixed size; on TPUs only their filled rows are sent.

B batch  S sequence  T tokens  K experts per token  A = T K assignments  D model  P devices that share the experts
C capacity: rows that a device may send to each other one  Z = P C rows
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from deepseek_jax.parallel.current import current_mesh, platform
from deepseek_jax.parallel.dispatch import Slots, allot, collect, copy_to_slots
from deepseek_jax.parallel.local import BY_TOKEN, on_each_device, stored_axes
from deepseek_jax.parallel.rules import RULES, mapped_axes, only_axis, total, varying, varying_as


def tokenwise(f: Callable, modules: tuple, x_BSD: Float[Array, "B S D"], *known_BS: Shaped[Array, "B S"]):
    """Calls f(*modules, x_TD, *known_T) on flattened tokens; reshapes its results from [T ...] to [B S ...].

    On a mesh every device calls `f` for its own tokens, with its own shards of the modules' parameters.
    """

    def of_device(modules, x_BSD, *known_BS):
        found = f(*modules, x_BSD.reshape(-1, x_BSD.shape[-1]), *(each_BS.reshape(-1) for each_BS in known_BS))
        return jax.tree.map(lambda leaf: leaf.reshape(*x_BSD.shape[:2], *leaf.shape[1:]), found)

    arguments = stored_axes(modules), BY_TOKEN, *(BY_TOKEN for _ in known_BS)
    return on_each_device(of_device, arguments, BY_TOKEN)(modules, x_BSD, *known_BS)


def exchange(
    compute: Callable,
    x_TD: Float[Array, "T D"],
    experts_TK: Int[Array, "T K"],
    weights_TK: Float[Array, "T K"],
    kernels: list[Float[Array, "E ..."]],
    capacity_factor: float = 0.0,
) -> tuple[Float[Array, "T D"], Int[Array, "T"] | None]:
    """compute(x_TD, experts_TK, weights_TK, *kernels) over all experts, though each device has only its own kernels.

    Returns (its result, how many of each token's experts were dropped; None if there is room for all).  `compute` must
    return, for each token, the weighted sum of the outputs of the experts whose kernels it gets; expert number E, one
    past the last, means none.  To be called inside `tokenwise`.
    """
    arguments = varying_as(x_TD, (x_TD, experts_TK, weights_TK, kernels))  # as each device has its own tokens
    x_TD, experts_TK, weights_TK, kernels = varying(arguments, mapped_axes(RULES["expert_mlp"]))
    if not mapped_axes(RULES["experts"]):
        y_TD, dropped_T = compute(x_TD, experts_TK, weights_TK, *kernels), None
    else:
        devices, local = current_mesh().shape[only_axis("experts")], kernels[0].shape[0]
        capacity, bounded = rows_a_device(*experts_TK.shape, local, devices, capacity_factor)
        if bounded:
            y_TD, dropped_T = _by_sending(compute, x_TD, experts_TK, weights_TK, kernels, devices, capacity)
        else:
            y_TD = _by_gathering(compute, x_TD, experts_TK, weights_TK, kernels)
            dropped_T = jnp.zeros_like(experts_TK[:, 0]) if capacity_factor else None
    return total(y_TD, RULES["expert_mlp"]), dropped_T  # sums the parts of each expert's width


def _by_gathering(compute, x_TD, experts_TK, weights_TK, kernels):
    """`compute` of all devices' tokens with this device's experts; the sum over devices, for this device's tokens."""
    axis, local = only_axis("experts"), kernels[0].shape[0]
    with jax.named_scope("dispatch"):
        tokens = x_TD, experts_TK, weights_TK
        x_TD, experts_TK, weights_TK = (jax.lax.all_gather(each, axis, tiled=True) for each in tokens)
    experts_TK = experts_TK - local * jax.lax.axis_index(axis)
    here_TK = (experts_TK >= 0) & (experts_TK < local)
    experts_TK, weights_TK = jnp.where(here_TK, experts_TK, local), jnp.where(here_TK, weights_TK, 0)
    if local < experts_TK.shape[1]:  # of a token's experts, at most `local` are here: they are moved to the front
        marks = jax.lax.sort((experts_TK, weights_TK), num_keys=1)
        experts_TK, weights_TK = (each_TK[:, :local] for each_TK in marks)
    y_TD = compute(x_TD, experts_TK, weights_TK, *kernels)
    with jax.named_scope("combine"):
        return jax.lax.psum_scatter(y_TD, axis, tiled=True)


def _by_sending(compute, x_TD, experts_TK, weights_TK, kernels, devices, capacity):
    """`compute` of the rows sent to this device's experts; (the sum of what comes back, the drops of each token)."""
    local = kernels[0].shape[0]
    slots = slots_by_device(experts_TK // local, devices, capacity)
    expert_Z = jnp.take((experts_TK % local).reshape(-1), slots.assignment_of_slot, mode="fill", fill_value=local)
    rows_ZD = copy_to_slots(x_TD, slots.token_of_slot, slots.slot_of_assignment)
    with jax.named_scope("dispatch"):
        sent_P = (slots.assignment_of_slot < experts_TK.size).reshape(devices, -1).sum(axis=1, dtype=jnp.int32)
        marks = expert_Z[:, None], slots.weight_of_slot(weights_TK)[:, None], sent_P
        expert_Z1, weight_Z1, received_P = jax.tree.map(_swap_whole, marks)
        received_ZD = swap(rows_ZD, sent_P, received_P)
    mixed_ZD = compute(received_ZD, expert_Z1, weight_Z1, *kernels)
    with jax.named_scope("combine"):
        mixed_ZD = swap(mixed_ZD, received_P, sent_P)
    dropped_TK = slots.slot_of_assignment == devices * capacity - 1
    return collect(mixed_ZD, slots.token_of_slot, slots.slot_of_assignment), dropped_TK.sum(axis=1)


@jax.custom_vjp
def swap(rows_ZD: Float[Array, "Z D"], sent_P: Int[Array, " P"], received_P: Int[Array, " P"]) -> Float[Array, "Z D"]:
    """All-to-all: sends block p (C rows) to device p and returns the blocks received, in the order of their senders.

    Only the first sent_P[p] rows of a block sent, and received_P[p] of one received, are meaningful; on TPUs the others
    are not transferred.
    """
    return _swap_filled(rows_ZD, sent_P, received_P) if platform() == "tpu" else _swap_whole(rows_ZD)


def _swap_back(counts, dreceived_ZD):
    sent_P, received_P = counts
    return swap(dreceived_ZD, received_P, sent_P), None, None


swap.defvjp(lambda rows_ZD, *counts: (swap(rows_ZD, *counts), counts), _swap_back)


def _swap_whole(rows_Z):
    return jax.lax.all_to_all(rows_Z, only_axis("experts"), split_axis=0, concat_axis=0, tiled=True)


def _swap_filled(rows_ZD, sent_P, received_P):
    capacity = rows_ZD.shape[0] // sent_P.size
    blocks_P = capacity * jnp.arange(sent_P.size, dtype=jnp.int32)
    here_P = jnp.full_like(blocks_P, capacity * jax.lax.axis_index(only_axis("experts")))  # this device's block there
    placed = blocks_P, sent_P, here_P, received_P
    return jax.lax.ragged_all_to_all(rows_ZD, jnp.zeros_like(rows_ZD), *placed, axis_name=only_axis("experts"))


MANY = 128  # rows; from here on losing one does not matter, and adding one would misalign the kernels' tiles


def rows_a_device(tokens: int, per_token: int, experts: int, devices: int, capacity_factor: float) -> tuple[int, bool]:
    """Returns (C, the assignments of a device that each other one has room for; whether C may be too few).

    Each device has `tokens` tokens, which choose `per_token` experts each, and holds `experts` of all experts.

    With factor 0, C suffices for the worst case: all tokens choose as many of one device's experts as they can.  If C
    may be too few, one row stays empty (`slots_by_device`); it is added to C unless that is at least MANY.
    """
    most = tokens * min(per_token, experts)
    if not capacity_factor:
        return most, False
    rows = math.ceil(capacity_factor * tokens * per_token / devices)
    rows += rows < MANY
    return (rows, True) if rows < most else (most, False)


def slots_by_device(device_TK: Int[Array, "T K"], devices: int, capacity: int) -> Slots:
    """Gives every assignment a slot among the `capacity` consecutive slots of its target device.

    The last slot of each device stays empty, and assignments that are dropped get the last slot of all.
    """
    slots = allot(device_TK, devices, capacity, capacity - 1)
    last = devices * capacity - 1
    return dataclasses.replace(slots, slot_of_assignment=jnp.minimum(slots.slot_of_assignment, last))
