"""Windows of a feature map made one, and what is left of a sequence's padding.

B batch  S steps  C channels; `...` are the dimensions of space: two for images, one for series and text
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def pool(
    x: Float[Array, "B ... C"], real: Bool[Array, "B ..."] | None, kind: str, size: int
) -> tuple[Float[Array, "B ... C"], Bool[Array, "B ..."] | None]:
    """(the "max" or "average" of windows of `size` along each dimension of space, where a window holds anything).

    Windows at the edge hold what is left of the map, so sizes round up; padding (real false) takes no part, and a
    window of padding alone gives zeros.  Splitting the dimensions costs a quarter of XLA's windowed reduction on a CPU.
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
    """[B, n, size, m, size, ..., C] of x [B, N, M, ..., C], filled up to whole windows."""
    padded = jnp.pad(x, [(0, 0), *((0, -length % size) for length in x.shape[1:-1]), (0, 0)], constant_values=fill)
    split = (part for length in padded.shape[1:-1] for part in (length // size, size))
    return padded.reshape(x.shape[0], *split, x.shape[-1])


def _largest(x, axis: int):
    """x.max(axis), whose gradient goes to one element, whatever rounding does.

    That of jax.numpy goes to the elements equal to the maximum.  XLA may compute them anew for it, rounded otherwise;
    then none is equal, and the gradient of the window is lost.
    """
    while (length := x.shape[axis]) > 1:
        half = (length + 1) // 2  # of an odd length both halves have the middle
        first, second = (jax.lax.slice_in_dim(x, begin, begin + half, axis=axis) for begin in (0, length - half))
        x = jnp.where((second > first) | jnp.isnan(second), second, first)
    return x.squeeze(axis)


def _within(x) -> tuple[int, ...]:
    """The dimensions of `_windows(x)` that count inside a window."""
    return tuple(range(2, 2 * (x.ndim - 2) + 1, 2))


def real_steps(lengths_B: Int[Array, "B"], steps: int) -> Bool[Array, "B S"]:
    """Which of `steps` steps are no padding."""
    return jnp.arange(steps) < lengths_B[:, None]


def last_step(x_BSC: Float[Array, "B S C"], real_BS: Bool[Array, "B S"] | None) -> Float[Array, "B C"]:
    """The last real step of each record, of which padding comes after; the first one where none is real."""
    if real_BS is None:
        return x_BSC[:, -1]
    last_B = jnp.maximum(real_BS.sum(axis=1) - 1, 0)
    return jnp.take_along_axis(x_BSC, last_B[:, None, None], axis=1)[:, 0]


def both_ends(x_BSC: Float[Array, "B S C"], real_BS: Bool[Array, "B S"] | None) -> Float[Array, "B C"]:
    """Of channels whose second half was read backwards: the last real step of the first half, the first of the second.

    Each is where its direction has seen the whole sequence.
    """
    forwards, backwards = jnp.split(x_BSC, 2, axis=-1)
    return jnp.concatenate([last_step(forwards, real_BS), backwards[:, 0]], axis=-1)


def all_steps(x_BSC: Float[Array, "B S C"], real_BS: Bool[Array, "B S"] | None, kind: str) -> Float[Array, "B C"]:
    """The "mean" or the "max" of the real steps; zeros where none is."""
    return pool(x_BSC, real_BS, {"mean": "average", "max": "max"}[kind], x_BSC.shape[1])[0][:, 0]
