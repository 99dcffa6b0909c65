"""The basic parts of every layer: matrix products in the activations' dtype, norms, SwiGLU.

B batch  S sequence  D model  F feed-forward
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.models import arithmetic
from deepseek_jax.models.arithmetic import PLAIN, multiply
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.tree import ones, used, weight, zeros
from deepseek_jax.parallel.current import current_mesh


def linear(
    x: Float[Array, "... I"], param: nnx.Param, bias: nnx.Param | None = None, *, contract: int = 1
) -> Float[Array, "... O"]:
    """x times a parameter, plus bias: contracts x's last `contract` dimensions with the parameter's first; x's dtype.

    On one device this is a plain matrix product of [tokens, in] with [in, out]: with separate batch and sequence
    dimensions, XLA's CPU code takes twice as long for the gradients.  On a mesh, where both dimensions may be sharded,
    merging them would move tokens between devices.
    """
    kernel, how = used(param, x.dtype), arithmetic.of(param)
    if current_mesh() and how is PLAIN:
        y = jnp.tensordot(x, kernel, axes=contract)
    else:
        inner = math.prod(kernel.shape[:contract])
        y = multiply(x.reshape(-1, inner), kernel.reshape(inner, -1), how)
        y = y.reshape(*x.shape[: x.ndim - contract], *kernel.shape[contract:])
    return y if bias is None else y + bias[...].astype(y.dtype)


def exact_linear(x: Float[Array, "... I"], param: nnx.Param) -> Float[Array, "... O"]:
    """`linear` in true float32 whatever x's dtype: by default, GPUs and TPUs multiply with fewer bits."""
    with jax.default_matmul_precision("highest"):
        return linear(x.astype(jnp.float32), param)


def unit_rms(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    """x / rms(x), in float32."""
    x32 = x.astype(jnp.float32)
    return x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)


class RMSNorm(nnx.Module):
    """scale * x / rms(x), computed in float32 and rounded to x's dtype once, at the end."""

    def __init__(self, size: int, eps: float, *, axis: str | None = None):
        self.eps = eps
        self.scale = ones(size, axis)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return (unit_rms(x, self.eps) * self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """scale * (x - mean) / deviation + bias, computed in float32 and rounded to x's dtype once, at the end."""

    def __init__(self, size: int, eps: float, *, axis: str | None = None):
        self.eps = eps
        self.scale = ones(size, axis)
        self.bias = zeros((size,), (axis,))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)): the dense feed-forward, or all shared experts as one wide feed-forward."""

    def __init__(self, config: ModelConfig, width: int, *, rngs: nnx.Rngs):
        self.config = config
        D, scale = config.hidden_size, config.initializer_range
        self.gate = weight(rngs.params(), (D, width), ("embed", "mlp"), scale)
        self.up = weight(rngs.params(), (D, width), ("embed", "mlp"), scale)
        self.down = weight(rngs.params(), (width, D), ("mlp", "embed"), scale)
        self.gate_bias = zeros((width,), ("mlp",)) if config.mlp_bias else None
        self.up_bias = zeros((width,), ("mlp",)) if config.mlp_bias else None
        self.down_bias = zeros((D,), ("embed",)) if config.mlp_bias else None

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        gate, up = linear(x, self.gate, self.gate_bias), linear(x, self.up, self.up_bias)
        return linear(silu_product(gate, up, self.config.swiglu_limit), self.down, self.down_bias)


def silu_product(gate: Float[Array, "... F"], up: Float[Array, "... F"], limit: float) -> Float[Array, "... F"]:
    """silu(gate) * up; a `limit` above 0 first clamps `gate` to at most limit and `up` to [-limit, limit] (V4)."""
    if limit:
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    return jax.nn.silu(gate) * up
