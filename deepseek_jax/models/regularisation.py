"""Noise for training: features and residual branches left out at random.

B batch
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def dropout(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """x with a share `rate` of its numbers zeroed and the rest scaled to keep the mean; x itself without a key."""
    return _drop(x, rate, key, x.shape)


def drop_path(branch: Float[Array, "B ..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "B ..."]:
    """A residual branch, zeroed for a share `rate` of the records (arXiv:1603.09382); itself without a key."""
    return _drop(branch, rate, key, (branch.shape[0],) + (1,) * (branch.ndim - 1))


def _drop(x, rate, key, shape):
    if key is None or rate == 0:
        return x
    if rate == 1:
        return jnp.zeros_like(x)
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def split_key(key: PRNGKeyArray | None, count: int) -> list[PRNGKeyArray | None]:
    """`count` keys from one, or as many Nones from none: no key, no noise."""
    return [None] * count if key is None else list(jax.random.split(key, count))
