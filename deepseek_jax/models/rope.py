"""Rotary position embeddings and their YaRN extension (arXiv:2104.09864, arXiv:2309.00071).

B batch  S sequence  R rope dims  P = R/2 rotated pairs
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from deepseek_jax.models import checks
from deepseek_jax.models.config import ModelConfig, RopeScaling


def frequencies(dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Radians per position for each of the dim/2 pairs, with YaRN applied; float64 on the host."""
    plain = theta ** (-np.arange(0, dim, 2) / dim)
    if scaling.factor <= 1:
        return plain
    low, high = (
        _pair_of_rotations(rotations, dim, theta, scaling) for rotations in (scaling.beta_fast, scaling.beta_slow)
    )
    low, high = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low or 0.001), 0.0, 1.0)  # cut off, high may be below low
    return plain / scaling.factor * ramp + plain * (1.0 - ramp)


def _pair_of_rotations(rotations: float, dim: int, theta: float, scaling: RopeScaling) -> float:
    """Index of the pair that rotates `rotations` times over the original context (inverse of YaRN's equation 24)."""
    return dim * math.log(scaling.original_max_position_embeddings / (rotations * 2 * math.pi)) / (2 * math.log(theta))


def tables(
    config: ModelConfig, kind: str, positions_BS: Int[Array, "B S"]
) -> tuple[Float[Array, "B S P"], Float[Array, "B S P"]]:
    """Cosine and sine of every pair's angle at each position, for a kind of attention; float32.

    They are scaled by YaRN's magnitudes (see RopeScaling), except in V4's attentions, of which only the compressing
    ones, csa and hca, extend their context.
    """
    kind = checks.like(kind)
    dim = config.head_dim if kind == "gqa" else config.qk_rope_head_dim
    compressing = kind in ("csa", "hca")
    theta = config.compress_rope_theta if compressing else config.rope_theta
    scaling = RopeScaling() if kind == "window" else config.rope_scaling
    angles = positions_BS[..., None].astype(jnp.float32) * jnp.asarray(frequencies(dim, theta, scaling), jnp.float32)
    magnitude = 1.0 if compressing else scaling.magnitude(scaling.mscale) / scaling.magnitude(scaling.mscale_all_dim)
    return magnitude * jnp.cos(angles), magnitude * jnp.sin(angles)


def rotate(
    x: Float[Array, "B S ... R"], cos: Float[Array, "B S P"], sin: Float[Array, "B S P"], *, interleave: bool
) -> Array:
    """Rotates the pairs (2i, 2i+1) of the last dimension, or (i, i + R/2) if not `interleave`, in float32.

    In both cases the result has all first elements of pairs, then all second ones.  The order does not matter: scores
    are products of queries and keys in the same order.
    """
    between = (1,) * (x.ndim - 3)
    cos, sin = (t.reshape(*t.shape[:2], *between, t.shape[-1]) for t in (cos, sin))
    x32 = x.astype(jnp.float32)
    first, second = (x32[..., 0::2], x32[..., 1::2]) if interleave else jnp.split(x32, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rotate_tail(x: Float[Array, "B S ... d"], cos: Float[Array, "B S P"], sin: Float[Array, "B S P"]) -> Array:
    """Rotates the pairs (2i, 2i+1) of the last R channels, as V4 does whatever `rope_interleave`; see `rotate`."""
    start = x.shape[-1] - 2 * cos.shape[-1]
    return jnp.concatenate([x[..., :start], rotate(x[..., start:], cos, sin, interleave=True)], axis=-1)


def rotate_tail_back(x: Float[Array, "B S ... d"], cos: Float[Array, "B S P"], sin: Float[Array, "B S P"]) -> Array:
    """Rotates back what `rotate_tail` rotated and restores the layout, with pairs side by side."""
    start = x.shape[-1] - 2 * cos.shape[-1]
    halves = jnp.split(rotate(x[..., start:], cos, -sin, interleave=False), 2, axis=-1)
    pairs = jnp.stack(halves, axis=-1).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([x[..., :start], pairs], axis=-1)
