"""What decoding remembers of the tokens it has seen.

B batch  S new tokens  T cache places  e numbers a token
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def write(
    entries_BTe: Float[Array, "B T e"],
    new_BSe: Float[Array, "B S e"],
    places_BS: Int[Array, "B S"],
    kept_BS: Bool[Array, "B S"],
) -> Float[Array, "B T e"]:
    """The entries with each new one that `kept_BS` names at its place; places must differ within a row."""
    if places_BS.size == 1:  # Written twice, it stays a scatter; what XLA makes of one row copies the cache four times.
        new_BSe, places_BS, kept_BS = (jnp.repeat(x, 2, axis=1) for x in (new_BSe, places_BS, kept_BS))
    rows_B1 = jnp.arange(entries_BTe.shape[0])[:, None]
    places_BS = jnp.where(kept_BS, places_BS, entries_BTe.shape[1])  # past the end: dropped
    return entries_BTe.at[rows_B1, places_BS].set(new_BSe.astype(entries_BTe.dtype), mode="drop")


def written_before(positions_BS: Int[Array, "B S"], length: int) -> Bool[Array, "B S T"]:
    """Which entries of a position-addressed cache of this length a token sees: its own and all before."""
    return jnp.arange(length) <= positions_BS[..., None]
