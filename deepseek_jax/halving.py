"""Bisection over the bit patterns of non-negative float32 numbers: an exact threshold without a sort."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

HIGHEST = 0x7FFFFFFF  # above the bits of every float32


def ordered_bits(numbers) -> Int[Array, "..."]:
    """The bit patterns of float32 `numbers`, all at least 0, as integers, which have the same order."""
    return jax.lax.bitcast_convert_type(numbers.astype(jnp.float32), jnp.int32)


def largest_satisfying(
    fits: Callable[[Int[Array, "..."]], Bool[Array, "..."]], shape: Sequence[int]
) -> Int[Array, "..."]:
    """The highest integer below HIGHEST that `fits`, for each entry of `shape`; 0 fits, and all below one that does."""

    def halve(_, span):
        low, high = span
        middle = low + (high - low) // 2
        lower = fits(middle)
        return jnp.where(lower, middle, low), jnp.where(lower, high, middle)

    return jax.lax.fori_loop(0, 31, halve, (jnp.zeros(shape, jnp.int32), jnp.full(shape, HIGHEST)))[0]
