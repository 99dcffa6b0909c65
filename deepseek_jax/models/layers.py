"""The small parts every layer is made of: matrix products in the activations' type, RMSNorm, SwiGLU.

B batch  S sequence  D model  F feed-forward
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.models.tree import ones, weight


def einsum(spec: str, x: Array, param: nnx.Param) -> Array:
    """`jnp.einsum` of activations with a parameter, in the activations' type."""
    return jnp.einsum(spec, x, param[...].astype(x.dtype))


class RMSNorm(nnx.Module):
    """x / rms(x), statistics in float32, cast back before the learned scale (as DeepSeek-V2 and V3 compute it)."""

    def __init__(self, size: int, eps: float, *, axis: str | None = "embed"):
        self.eps = eps
        self.scale = ones(size, axis)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * self.scale[...].astype(x.dtype)


def swiglu(x_gF: Float[Array, "... 2 F"]) -> Float[Array, "... F"]:
    """silu(gate) * up, of the two halves that one product gave."""
    return jax.nn.silu(x_gF[..., 0, :]) * x_gF[..., 1, :]


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)): the dense feed-forward, and the shared experts as one wide one."""

    def __init__(self, hidden_size: int, intermediate_size: int, scale: float, *, rngs: nnx.Rngs):
        self.gate_up = weight(rngs.params(), (hidden_size, 2, intermediate_size), ("embed", None, "mlp"), scale)
        self.down = weight(rngs.params(), (intermediate_size, hidden_size), ("mlp", "embed"), scale)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return einsum("...F,FD->...D", swiglu(einsum("...D,DgF->...gF", x, self.gate_up)), self.down)
