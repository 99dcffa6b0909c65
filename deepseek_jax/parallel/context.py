"""Context parallelism: communication for sequences that are sharded over devices (mesh axis `context`).

XLA shards everything that looks at one token at a time (rules.py).  Attention looks further: it runs on each device's
own tokens (local.py) and uses the functions below to get exactly what it needs from other devices.  These are the keys
of all tokens, before they are expanded; the tokens just before its own, for a window or a compressor; and, to balance
causal attention, another device's queries in exchange for its own.  The backward pass sends their gradients back.

If sequences are not sharded, the functions do not communicate: all keys are local, and zeros precede the first token.

B batch  S tokens of this device  T = n S tokens of all devices
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from deepseek_jax.parallel.current import current_mesh
from deepseek_jax.parallel.rules import mapped_axes, only_axis

AXIS = only_axis("sequence")


def parts() -> int:
    """The number of devices that a sequence is sharded over in the current shard_map: 1 outside `on_each_device`."""
    return current_mesh().shape[AXIS] if mapped_axes(AXIS) else 1


def first_index(length: int) -> int | Int[Array, ""]:
    """The index in the row of the first of this device's `length` tokens."""
    return jax.lax.axis_index(AXIS) * length if parts() > 1 else 0


def swap_second_half(tree):
    """Arrays [B S ...] with the second half exchanged with the mirrored device (first with last, and so on inwards).

    It is its own inverse.
    """

    def swap(x):
        own, given = jnp.split(x, 2, axis=1)
        pairs = [(at, parts() - 1 - at) for at in range(parts())]
        return jnp.concatenate([own, jax.lax.ppermute(given, AXIS, pairs)], axis=1)

    return jax.tree.map(swap, tree)


def swapped_index(length: int) -> Int[Array, ""]:
    """The index in the row of the first token in the half received from `swap_second_half`; `length` as above."""
    return (parts() - 1 - jax.lax.axis_index(AXIS)) * length + length // 2


def whole_sequence(tree):
    """All-gathers arrays [B S ...] along the sequence, to [B T ...]."""
    if parts() == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, axis=1, tiled=True) if x.size else x, tree)


def tokens_before(tree, count: int):
    """The `count` tokens [B count ...] before this device's first in arrays [B S ...]; zeros before the row's start."""

    def fetch(x):
        received = [_from(hop, x[:, x.shape[1] - size :]) for hop, size in _hops(x.shape[1], count)]
        missing = count - sum(part.shape[1] for part in received)
        nothing = jnp.zeros((x.shape[0], missing, *x.shape[2:]), x.dtype)
        return jnp.concatenate([nothing, *received[::-1]], axis=1)

    return jax.tree.map(fetch, tree)


def _hops(length: int, count: int) -> list[tuple[int, int]]:
    """(how many devices back, how many of that device's last tokens), until `count` tokens or the first device."""
    hops = min(-(-count // length), parts() - 1)
    return [(hop + 1, min(length, count - hop * length)) for hop in range(hops)]


def _from(hop: int, x):
    """x of the device `hop` positions before this one; zeros if there is none."""
    return jax.lax.ppermute(x, AXIS, [(at, at + hop) for at in range(parts() - hop)])
