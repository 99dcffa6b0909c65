"""Batch, group and layer norm over feature maps of any rank; batch and group norm exclude padding.

B batch  C channels  N groups; `...` are the spatial dimensions: two for images, one for series and text
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from deepseek_jax.models.layers import LayerNorm
from deepseek_jax.models.tree import Buffer, ones, zeros

EPS = 1e-5
GROUP_CHANNELS = 16  # channels per group: as good as a fixed number of groups (arXiv:1803.08494, table 3)

Statistics = dict[str, Float[Array, " C"]]


def make_norm(kind: str, size: int) -> nnx.Module | None:
    """A module called as norm(x [B ... C], real [B ...], training) -> (x, statistics), or None if `kind` is "none".

    `real` is false at padding (None: no padding).  Statistics are empty except for batch norm's.
    """
    makers = {"batch": BatchNorm, "group": GroupNorm, "layer": PositionNorm}
    return makers[kind](size) if kind in makers else None


def channels_together(kind: str, size: int) -> int:
    """How many of `size` channels a per-record norm averages together; 0 for norms over the batch, or none."""
    return {"group": math.gcd(size, GROUP_CHANNELS), "layer": size}.get(kind, 0)


class BatchNorm(nnx.Module):
    """scale * (x - mean) / deviation + bias (arXiv:1502.03167), by moments of the batch in training, else running ones.

    On a mesh the moments are those of the global batch.
    """

    def __init__(self, size: int, eps: float = EPS):
        self.eps = eps
        self.scale, self.bias = ones(size, "features_out"), zeros((size,), ("features_out",))
        self.mean = Buffer(jnp.zeros((size,), jnp.float32), out_sharding=("features_out",))
        self.variance = Buffer(jnp.ones((size,), jnp.float32), out_sharding=("features_out",))

    def __call__(
        self, x: Float[Array, "B ... C"], real: Bool[Array, "B ..."] | None, training: bool
    ) -> tuple[Float[Array, "B ... C"], Statistics]:
        """The returned statistics are this batch's mean and unbiased variance, for the running averages."""
        x32, statistics = x.astype(jnp.float32), {}
        if training:
            mean, variance, count = _moments(x32, real, tuple(range(x.ndim - 1)))
            unbiased = variance * (count / jnp.maximum(count - 1, 1))
            statistics = {"mean": mean.reshape(-1), "variance": unbiased.reshape(-1)}
        else:
            mean, variance = self.mean[...], self.variance[...]
        normed = (x32 - mean) * jax.lax.rsqrt(variance + self.eps)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype), jax.lax.stop_gradient(statistics)


class GroupNorm(nnx.Module):
    """scale * (x - mean) / deviation + bias, with moments per record over space and a group of channels."""

    def __init__(self, size: int):
        self.groups = size // channels_together("group", size)
        self.scale, self.bias = ones(size, "features_out"), zeros((size,), ("features_out",))

    def __call__(
        self, x: Float[Array, "B ... C"], real: Bool[Array, "B ..."] | None, training: bool
    ) -> tuple[Float[Array, "B ... C"], Statistics]:
        grouped = x.astype(jnp.float32).reshape(*x.shape[:-1], self.groups, -1)  # [B ... N C/N]
        real = None if real is None else real[..., None]
        mean, variance, _ = _moments(grouped, real, (*range(1, x.ndim - 1), x.ndim))
        normed = ((grouped - mean) * jax.lax.rsqrt(variance + EPS)).reshape(x.shape)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype), {}


class PositionNorm(LayerNorm):
    """Layer norm over the channels at each position, with the other norms' call signature."""

    def __init__(self, size: int):
        super().__init__(size, EPS, axis="features_out")

    def __call__(
        self, x: Float[Array, "B ... C"], real: Bool[Array, "B ..."] | None, training: bool
    ) -> tuple[Float[Array, "B ... C"], Statistics]:
        return super().__call__(x), {}


def _moments(x, real, axes):
    """(mean, variance, count) of x over `axes`, of the positions where `real` is true; None: of all."""
    weight = jnp.ones(x.shape, x.dtype) if real is None else jnp.broadcast_to(real[..., None], x.shape).astype(x.dtype)
    count = jnp.maximum(weight.sum(axes, keepdims=True), 1)
    mean = (x * weight).sum(axes, keepdims=True) / count
    variance = (jnp.square(x - mean) * weight).sum(axes, keepdims=True) / count
    return mean, variance, count


def updated_buffers(buffers: dict, statistics: dict, momentum: float) -> dict:
    """The running averages after a step: running + momentum * (batch - running).

    `statistics` are those that a training call returned, nested as the buffers are.
    """
    return jax.tree.map(lambda running, seen: running + momentum * (seen - running), buffers, statistics)
