"""Optimizer moments in fewer bits than they are computed in (V3, section 3.3.2; arXiv:2412.19437)."""

import jax
import jax.numpy as jnp
import optax


def remembered_in(dtype: str, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` whose state is rounded to `dtype` between steps, and float32 again while a step computes with it.

    Rounding to bfloat16 costs a moment at most 0.4% of itself a step, next to the 5% that b2 = 0.95 replaces.
    """
    if dtype == "float32":
        return inner

    def init(params):
        return _cast(inner.init(params), dtype)

    def update(updates, state, params=None):
        updates, state = inner.update(updates, _cast(state, jnp.float32), params)
        return updates, _cast(state, dtype)

    return optax.GradientTransformation(init, update)


def _cast(state, dtype):
    """Counts of steps, which are integers, stay as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, state)
