"""Long sequences: what a device needs of tokens that lie on others, where the sequence is spread.

Whatever looks at one token at a time is spread with its tokens, by XLA (rules.py).  Attention looks further.  It runs
on each device's own tokens (local.py), and asks there for exactly what it needs of others, by the functions below: the
keys of all tokens, as small as they are before they are expanded; the tokens just before its own for a window or a
compressor; another's queries in exchange for its own, where these see more than those.  What travels is what is asked
for, and in the backward pass its gradient.

Where no sequence is spread each function gives what there is: all keys are one's own, and before the first token lies
nothing.

B batch  S tokens of this device  T = n S tokens of all
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from deepseek_jax.parallel.current import current_mesh
from deepseek_jax.parallel.rules import RULES, divided

AXIS = RULES["sequence"]


def parts() -> int:
    """Among how many devices the sequence is spread where this is asked: 1 outside of `on_each_device`."""
    return current_mesh().shape[AXIS] if divided(AXIS) else 1


def first_index(length: int) -> int | Int[Array, ""]:
    """Where in their row the first of this device's `length` tokens is."""
    return jax.lax.axis_index(AXIS) * length if parts() > 1 else 0


def swap_second_half(tree):
    """Arrays [B S ...] with the second half of the device as far from the end as this is from the beginning.

    Done again, it brings back what there was.
    """

    def swap(x):
        own, given = jnp.split(x, 2, axis=1)
        pairs = [(at, parts() - 1 - at) for at in range(parts())]
        return jnp.concatenate([own, jax.lax.ppermute(given, AXIS, pairs)], axis=1)

    return jax.tree.map(swap, tree)


def swapped_index(length: int) -> Int[Array, ""]:
    """Where in their row the half that `swap_second_half` brings begins."""
    return (parts() - 1 - jax.lax.axis_index(AXIS)) * length + length // 2


def whole_sequence(tree):
    """Arrays [B S ...] as [B T ...]: what the tokens of all devices have."""
    if parts() == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, axis=1, tiled=True) if x.size else x, tree)


def tokens_before(tree, count: int):
    """[B count ...] of arrays [B S ...]: the `count` tokens before this device's first, zeros before the row's."""

    def fetch(x):
        received = [_from(hop, x[:, x.shape[1] - size :]) for hop, size in _hops(x.shape[1], count)]
        missing = count - sum(part.shape[1] for part in received)
        nothing = jnp.zeros((x.shape[0], missing, *x.shape[2:]), x.dtype)
        return jnp.concatenate([nothing, *received[::-1]], axis=1)

    return jax.tree.map(fetch, tree)


def _hops(length: int, count: int) -> list[tuple[int, int]]:
    """(how many devices back, how many of its tokens) until `count` are found or there are no more devices."""
    hops = min(-(-count // length), parts() - 1)
    return [(hop + 1, min(length, count - hop * length)) for hop in range(hops)]


def _from(hop: int, x):
    """x of the device `hop` places before this one; zeros where there is none."""
    return jax.lax.ppermute(x, AXIS, [(at, at + hop) for at in range(parts() - hop)])
