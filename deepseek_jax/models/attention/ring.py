"""A cache of the newest tokens only, addressed by position modulo its length.

Some places more than are read, so that tokens written and then rejected, as in speculative decoding, have not yet
taken the place of any that is still needed.

B batch  S new tokens  R ring places  e numbers a token
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.models.cache import write
from deepseek_jax.models.context import Context

REJECTED = 8  # tokens that may be written a second time, at the same positions; more with more than 4 modules


def empty_ring(batch: int, newest: int, modules: int, max_length: int, width: int, dtype) -> Float[Array, "B R e"]:
    """For texts of up to `max_length` tokens, of which the `newest` are read, and drafts by so many modules.

    Of k drafts the model writes k a second time, and a module 2 k of its places (infer/speculative.Speculation._draft).
    """
    return jnp.zeros((batch, min(newest + max(REJECTED, 2 * modules), max_length), width), dtype)


def write_ring(ring_BRe: Float[Array, "B R e"], new_BSe: Float[Array, "B S e"], context: Context) -> Array:
    """The ring with the last of the new tokens that it has room for."""
    length = ring_BRe.shape[1]
    last_B1 = jnp.where(context.real_BS, context.positions_BS, -1).max(axis=1, keepdims=True)
    kept_BS = context.real_BS & (context.positions_BS > last_B1 - length)
    return write(ring_BRe, new_BSe, context.positions_BS % length, kept_BS)


def first_position(context: Context) -> Int[Array, "B 1"]:
    """Of each row's new tokens."""
    latest = jnp.iinfo(jnp.int32).max
    return jnp.where(context.real_BS, context.positions_BS, latest).min(axis=1, keepdims=True)


def ring_positions(length: int, context: Context) -> Int[Array, "B R"]:
    """The newest position before the new tokens' that each place of a ring can hold; negative where there is none."""
    before_B1 = first_position(context) - 1
    return before_B1 - (before_B1 - jnp.arange(length)) % length
