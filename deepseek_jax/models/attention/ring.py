"""A ring buffer of the newest tokens, addressed by position modulo its length.

It has more slots than are read, so that tokens that are written and then rejected, as in speculative decoding, do not
overwrite any that are still needed.

B batch  S new tokens  R ring slots  e numbers per token
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.models.cache import write
from deepseek_jax.models.context import Context

REJECTED = 8  # tokens that may be rejected and rewritten at the same positions; more with more than 4 MTP modules


def empty_ring(batch: int, newest: int, modules: int, max_length: int, width: int, dtype) -> Float[Array, "B R e"]:
    """For texts of up to `max_length` tokens, of which the `newest` are read, with drafts by `modules` MTP modules.

    With k drafts, up to k positions are rewritten in the model's caches and 2 k in a module's
    (infer/speculative.Speculation._draft).
    """
    return jnp.zeros((batch, min(newest + max(REJECTED, 2 * modules), max_length), width), dtype)


def write_ring(ring_BRe: Float[Array, "B R e"], new_BSe: Float[Array, "B S e"], context: Context) -> Array:
    """The ring with the new tokens written to it; of more than R, only the last R are."""
    length = ring_BRe.shape[1]
    last_B1 = jnp.where(context.real_BS, context.positions_BS, -1).max(axis=1, keepdims=True)
    kept_BS = context.real_BS & (context.positions_BS > last_B1 - length)
    return write(ring_BRe, new_BSe, context.positions_BS % length, kept_BS)


def first_position(context: Context) -> Int[Array, "B 1"]:
    """The lowest position among each row's new real tokens."""
    latest = jnp.iinfo(jnp.int32).max
    return jnp.where(context.real_BS, context.positions_BS, latest).min(axis=1, keepdims=True)


def ring_positions(length: int, context: Context) -> Int[Array, "B R"]:
    """The position held by each slot of the ring: the newest one before the new tokens; negative if there is none."""
    before_B1 = first_position(context) - 1
    return before_B1 - (before_B1 - jnp.arange(length)) % length
