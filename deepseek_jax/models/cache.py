"""Writing to and masking the caches that decoding keeps of earlier tokens.

B batch  S new tokens  T cache slots  e numbers per token
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def write(
    entries_BTe: Float[Array, "B T e"],
    new_BSe: Float[Array, "B S e"],
    places_BS: Int[Array, "B S"],
    kept_BS: Bool[Array, "B S"],
) -> Float[Array, "B T e"]:
    """The cache with new_BSe[b, s] written to slot places_BS[b, s] where `kept_BS`; slots must differ within a row."""
    # Writing the entry twice keeps this a scatter; what XLA makes of a single-row one copies the cache four times.
    if places_BS.size == 1:
        new_BSe, places_BS, kept_BS = (jnp.repeat(x, 2, axis=1) for x in (new_BSe, places_BS, kept_BS))
    rows_B1 = jnp.arange(entries_BTe.shape[0])[:, None]
    places_BS = jnp.where(kept_BS, places_BS, entries_BTe.shape[1])  # out of bounds, so that mode="drop" skips it
    return entries_BTe.at[rows_B1, places_BS].set(new_BSe.astype(entries_BTe.dtype), mode="drop")


def written_before(positions_BS: Int[Array, "B S"], length: int) -> Bool[Array, "B S T"]:
    """Which entries of a position-addressed cache of this length (T) a token sees: its own and all earlier ones."""
    return jnp.arange(length) <= positions_BS[..., None]
