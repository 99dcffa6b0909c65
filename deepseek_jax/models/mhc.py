"""Manifold-constrained hyper-connections: n streams that a sublayer reads, writes and mixes (arXiv:2512.24880).

Without the manifold they are the free ones of arXiv:2409.19606.

B batch  S sequence  n streams  D model
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import exact_linear
from deepseek_jax.models.tree import constant, weight

KEPT = 0.9  # of a stream, by the mixing of streams, before anything is learned
INITIAL_SCALE = 0.01  # of what the maps take from the streams themselves, before anything is learned


class HyperConnection(nnx.Module):
    """X'_j = post_j f(sum_i pre_i X_i) + sum_i comb_ij X_i, where all three maps are read off the streams.

    `comb` is doubly stochastic, so that streams neither grow nor fade with depth.  It begins near the identity, with
    reads of 1/n and writes of 1: equal streams, as the embedding gives them, then are one plain residual.  Small
    random kernels tell them apart.

    Free ones (hc_manifold false) are three unbounded biases plus a scale times tanh of what the streams say; they begin
    with the same reads and writes, and with `comb` the identity.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        n, D = config.hc_mult, config.hidden_size
        self.config = config
        self.kernel = weight(rngs.params(), (n * D, (2 + n) * n), ("embed", None), config.initializer_range)
        if config.hc_manifold:
            stay = math.log(KEPT * (n - 1) / (1 - KEPT)) if n > 1 else 0.0
            bias = [jnp.full((n,), equal_share(n)), jnp.zeros((n,)), stay * jnp.eye(n).ravel()]
        else:
            bias = [jnp.full((n,), 1 / n), jnp.ones((n,)), jnp.eye(n).ravel()]
        self.bias = constant(jnp.concatenate(bias), (None,))
        self.scale = constant(jnp.full((3,), INITIAL_SCALE), (None,))

    def __call__(self, x_BSnD: Float[Array, "B S n D"], f: Callable):
        """(the next streams, what f reports); `f` takes their mixture [B S D] and gives (y, report)."""
        with jax.named_scope("mhc_read"):
            pre_BSn, post_BSn, comb_BSnn = self.maps(x_BSnD)
            mixture_BSD = collapse(pre_BSn, x_BSnD)
        y_BSD, report = f(mixture_BSD)
        with jax.named_scope("mhc_write"):
            mixed_BSnD = _exact_einsum("BSij,BSiD->BSjD", comb_BSnn, x_BSnD)
            written_BSnD = post_BSn[..., None] * y_BSD.astype(jnp.float32)[:, :, None]
            return (written_BSnD + mixed_BSnD).astype(x_BSnD.dtype), report

    def maps(self, x_BSnD: Float[Array, "B S n D"]) -> tuple[Array, Array, Array]:
        """How much of each stream is read [B S n], written to [B S n] and kept, from stream i to j [B S n n]."""
        n, eps = self.config.hc_mult, self.config.hc_eps
        logits = project(x_BSnD, self.kernel, self.config.rms_norm_eps)
        scale = jnp.repeat(self.scale[...], np.array([n, n, n * n]))
        logits = (logits if self.config.hc_manifold else jnp.tanh(logits)) * scale + self.bias[...]
        pre, post, comb = jnp.split(logits, [n, 2 * n], axis=-1)
        comb_BSnn = comb.reshape(*comb.shape[:-1], n, n)
        if not self.config.hc_manifold:
            return pre, post, comb_BSnn
        comb_BSnn = sinkhorn(comb_BSnn, self.config.hc_sinkhorn_iters, eps)
        return jax.nn.sigmoid(pre) + eps, 2 * jax.nn.sigmoid(post), comb_BSnn


class StreamHead(nnx.Module):
    """sum_i pre_i X_i: the one state that the final norm is given.  It begins as the mean of the streams."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        n, D = config.hc_mult, config.hidden_size
        self.config = config
        self.kernel = weight(rngs.params(), (n * D, n), ("embed", None), config.initializer_range)
        self.bias = constant(jnp.full((n,), equal_share(n)), (None,))
        self.scale = constant(jnp.full((1,), INITIAL_SCALE), (None,))

    def __call__(self, x_BSnD: Float[Array, "B S n D"]) -> Float[Array, "B S D"]:
        with jax.named_scope("stream_head"):
            u_BSn = project(x_BSnD, self.kernel, self.config.rms_norm_eps)
            pre_BSn = jax.nn.sigmoid(u_BSn * self.scale[...] + self.bias[...]) + self.config.hc_eps
            return collapse(pre_BSn, x_BSnD)


def sinkhorn(logits: Float[Array, "... n n"], iterations: int, eps: float) -> Float[Array, "... n n"]:
    """A matrix of positive numbers whose rows and columns sum to 1, near enough after `iterations` (mHC, equation 9).

    A softmax makes the rows sum to 1; then columns and rows take turns, columns last.
    """
    matrix = jax.nn.softmax(logits, axis=-1) + eps
    matrix /= matrix.sum(axis=-2, keepdims=True) + eps

    def rows_then_columns(_, matrix):
        matrix /= matrix.sum(axis=-1, keepdims=True) + eps
        return matrix / (matrix.sum(axis=-2, keepdims=True) + eps)

    return jax.lax.fori_loop(1, iterations, rows_then_columns, matrix)


def project(x_BSnD: Float[Array, "B S n D"], kernel: nnx.Param, eps: float) -> Float[Array, "B S K"]:
    """All streams of a token as one vector of unit mean square, times the kernel [nD K], in float32.

    Scaled after the product, which is the same and touches K numbers a token and not nD.
    """
    x = x_BSnD.astype(jnp.float32).reshape(*x_BSnD.shape[:2], -1)
    return exact_linear(x, kernel) * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def collapse(pre_BSn: Float[Array, "B S n"], x_BSnD: Float[Array, "B S n D"]) -> Float[Array, "B S D"]:
    return _exact_einsum("BSn,BSnD->BSD", pre_BSn, x_BSnD).astype(x_BSnD.dtype)


def _exact_einsum(what: str, share, x):
    return jnp.einsum(what, share, x.astype(jnp.float32), precision="highest")


def equal_share(n: int) -> float:
    """The logit of 1/n; 1 stream is read almost whole."""
    return -math.log(max(n - 1, 0.01))
