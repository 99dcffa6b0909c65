"""Noise for training: dropout of features, and of residual branches.

B batch
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def dropout(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """x with a fraction `rate` of its elements zeroed and the rest scaled to keep the mean; unchanged without a key."""
    return _drop(x, rate, key, x.shape)


def drop_path(branch: Float[Array, "B ..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "B ..."]:
    """A residual branch, zeroed for a fraction `rate` of the records and otherwise scaled up to keep the mean.

    Stochastic depth (arXiv:1603.09382).  Unchanged without a key.
    """
    return _drop(branch, rate, key, (branch.shape[0],) + (1,) * (branch.ndim - 1))


def _drop(x, rate, key, shape):
    if key is None or rate == 0:
        return x
    if rate == 1:
        return jnp.zeros_like(x)
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def split_key(key: PRNGKeyArray | None, count: int) -> list[PRNGKeyArray | None]:
    """`count` keys split from `key`; if that is None (no noise), `count` Nones."""
    return [None] * count if key is None else list(jax.random.split(key, count))
