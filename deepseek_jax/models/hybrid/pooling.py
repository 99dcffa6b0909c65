"""Pooling of feature maps, and ways to reduce a padded sequence to one vector.

B batch  S steps  C channels; `...` are the spatial dimensions: two for images, one for series and text
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def pool(
    x: Float[Array, "B ... C"], real: Bool[Array, "B ..."] | None, kind: str, size: int
) -> tuple[Float[Array, "B ... C"], Bool[Array, "B ..."] | None]:
    """Returns ("max" or "average" over windows of `size` in each spatial dimension, which windows hold real positions).

    Windows do not overlap; those at the edge may be partial, so sizes round up.  Padding (`real` false; None: no
    padding) is excluded, and a window of padding alone gives zeros.  On a CPU, reshaping into windows takes a quarter
    of the time of XLA's windowed reduction.
    """
    present = (jnp.ones((1, *x.shape[1:-1]), bool) if real is None else real)[..., None]
    count = _windows(present, size, False).sum(axis=_within(x))
    if kind == "max":
        lowest = jnp.finfo(x.dtype).min
        windows = _windows(jnp.where(present, x, lowest), size, lowest)
        pooled = functools.reduce(_largest, reversed(_within(x)), windows)
        pooled = jnp.where(count > 0, pooled, 0)
    else:
        pooled = _windows(jnp.where(present, x, 0), size, 0).sum(axis=_within(x)) / jnp.maximum(count, 1)
    return pooled.astype(x.dtype), None if real is None else (count > 0)[..., 0]


def _windows(x, size, fill):
    """x [B, N, M, ..., C] as windows [B, n, size, m, size, ..., C], padded with `fill` to whole windows."""
    padded = jnp.pad(x, [(0, 0), *((0, -length % size) for length in x.shape[1:-1]), (0, 0)], constant_values=fill)
    split = (part for length in padded.shape[1:-1] for part in (length // size, size))
    return padded.reshape(x.shape[0], *split, x.shape[-1])


def _largest(x, axis: int):
    """x.max(axis) whose gradient always goes to exactly one element.

    The gradient of jax.numpy's max goes to the elements that equal the maximum.  If XLA recomputes them in the backward
    pass with different rounding, none is equal, and the window's gradient is lost.
    """
    while (length := x.shape[axis]) > 1:
        half = (length + 1) // 2  # if the length is odd, both halves include the middle element
        first, second = (jax.lax.slice_in_dim(x, begin, begin + half, axis=axis) for begin in (0, length - half))
        x = jnp.where((second > first) | jnp.isnan(second), second, first)
    return x.squeeze(axis)


def _within(x) -> tuple[int, ...]:
    """The dimensions of `_windows(x)` that index positions inside a window."""
    return tuple(range(2, 2 * (x.ndim - 2) + 1, 2))


def real_steps(lengths_B: Int[Array, "B"], steps: int) -> Bool[Array, "B S"]:
    """Which of `steps` steps are real, given each record's length; the rest are padding."""
    return jnp.arange(steps) < lengths_B[:, None]


def last_step(x_BSC: Float[Array, "B S C"], real_BS: Bool[Array, "B S"] | None) -> Float[Array, "B C"]:
    """The last real step of each record, or its first step if none is real.  Padding must come last; None: none."""
    if real_BS is None:
        return x_BSC[:, -1]
    last_B = jnp.maximum(real_BS.sum(axis=1) - 1, 0)
    return jnp.take_along_axis(x_BSC, last_B[:, None, None], axis=1)[:, 0]


def both_ends(x_BSC: Float[Array, "B S C"], real_BS: Bool[Array, "B S"] | None) -> Float[Array, "B C"]:
    """The output of each direction of a bidirectional recurrence once it has seen the whole sequence.

    The first half of the channels (forwards) is taken at the last real step, the second (backwards) at the first step.
    """
    forwards, backwards = jnp.split(x_BSC, 2, axis=-1)
    return jnp.concatenate([last_step(forwards, real_BS), backwards[:, 0]], axis=-1)


def all_steps(x_BSC: Float[Array, "B S C"], real_BS: Bool[Array, "B S"] | None, kind: str) -> Float[Array, "B C"]:
    """The "mean" or "max" over the real steps; zeros if there are none."""
    return pool(x_BSC, real_BS, {"mean": "average", "max": "max"}[kind], x_BSC.shape[1])[0][:, 0]
