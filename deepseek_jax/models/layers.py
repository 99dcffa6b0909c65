"""The small parts every layer is made of: matrix products in the activations' type, RMSNorm, SwiGLU.

B batch  S sequence  D model  F feed-forward
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.models.tree import ones, weight


def linear(x: Float[Array, "... I"], param: nnx.Param, *, contract: int = 1) -> Float[Array, "... O"]:
    """x times a parameter, over x's last `contract` dimensions and the parameter's first ones, in x's type.

    One plain matrix product of [tokens, in] with [in, out]: XLA's CPU code takes twice as long for gradients of
    products that keep batch and sequence apart.
    """
    kernel = param[...].astype(x.dtype)
    inner = math.prod(kernel.shape[:contract])
    y = x.reshape(-1, inner) @ kernel.reshape(inner, -1)
    return y.reshape(*x.shape[: x.ndim - contract], *kernel.shape[contract:])


class RMSNorm(nnx.Module):
    """scale * x / rms(x), all in float32 and rounded once, at the end."""

    def __init__(self, size: int, eps: float, *, axis: str | None = "embed"):
        self.eps = eps
        self.scale = ones(size, axis)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (normed * self.scale[...]).astype(x.dtype)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)): the dense feed-forward, and the shared experts as one wide one."""

    def __init__(self, hidden_size: int, intermediate_size: int, scale: float, *, rngs: nnx.Rngs):
        self.gate = weight(rngs.params(), (hidden_size, intermediate_size), ("embed", "mlp"), scale)
        self.up = weight(rngs.params(), (hidden_size, intermediate_size), ("embed", "mlp"), scale)
        self.down = weight(rngs.params(), (intermediate_size, hidden_size), ("mlp", "embed"), scale)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return linear(jax.nn.silu(linear(x, self.gate)) * linear(x, self.up), self.down)
