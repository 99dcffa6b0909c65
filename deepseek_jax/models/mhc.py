"""Manifold-constrained hyper-connections (arXiv:2512.24880): n residual streams that a sublayer reads, writes, mixes.

Without the constraint they are the original hyper-connections of arXiv:2409.19606, called free here.

B batch  S sequence  n streams  D model  N = n D, all streams of a token

The decoder carries streams side by side, [B S N], and sums over them are written out: in an array [B S n D] a TPU pads
n to the 8 rows of a tile, and products over so few streams leave most of its matrix unit idle.  Every function here
also takes streams [B S n D], as `trace` shows them.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import exact_linear
from deepseek_jax.models.tree import constant, weight

STAY_SHARE = 0.9  # share of each stream that stays in place when streams are mixed, at initialisation
INITIAL_SCALE = 0.01  # of the input-dependent part of the maps, at initialisation


class HyperConnection(nnx.Module):
    """X'_j = post_j f(sum_i pre_i X_i) + sum_i comb_ij X_i, where pre, post and comb are computed from the streams.

    `comb` is doubly stochastic, so that streams neither grow nor fade with depth.  Initially comb is near the identity,
    pre near 1/n and post near 1: equal streams, such as the embedding's copies, then act as one plain residual.  Small
    random kernels make the streams differ.

    The free form (hc_manifold false) computes each unbounded map as bias + scale * tanh(projection of the streams).
    Its initial pre and post are the same, and its comb is the identity.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        n, D = config.hc_mult, config.hidden_size
        self.config = config
        self.kernel = weight(rngs.params(), (n * D, (2 + n) * n), ("embed", None), config.initializer_range)
        if config.hc_manifold:
            stay = math.log(STAY_SHARE * (n - 1) / (1 - STAY_SHARE)) if n > 1 else 0.0
            bias = [jnp.full((n,), equal_share(n)), jnp.zeros((n,)), stay * jnp.eye(n).ravel()]
        else:
            bias = [jnp.full((n,), 1 / n), jnp.ones((n,)), jnp.eye(n).ravel()]
        self.bias = constant(jnp.concatenate(bias), (None,))
        self.scale = constant(jnp.full((3,), INITIAL_SCALE), (None,))

    def __call__(self, x: Float[Array, "B S ..."], f: Callable):
        """Returns (the next streams, f's report); `f` maps the weighted sum of streams [B S D] to (y, report)."""
        with jax.named_scope("mhc_read"):
            pre_BSn, post_BSn, comb_BSnn = self.maps(x)
            streams = single_streams(x, self.config.hc_mult)
            mixture_BSD = weighted_sum(pre_BSn, streams).astype(x.dtype)
        y_BSD, report = f(mixture_BSD)
        with jax.named_scope("mhc_write"):
            y_BSD = y_BSD.astype(jnp.float32)
            written = [
                (post_BSn[..., j, None] * y_BSD + weighted_sum(comb_BSnn[..., j], streams)).astype(x.dtype)
                for j in range(self.config.hc_mult)
            ]
            return jnp.concatenate(written, axis=-1).reshape(x.shape), report

    def maps(self, x: Float[Array, "B S ..."]) -> tuple[Array, Array, Array]:
        """Returns pre [B S n], post [B S n] and comb [B S n n], the weight from stream i to j."""
        n, eps = self.config.hc_mult, self.config.hc_eps
        logits = project(x, self.kernel, self.config.rms_norm_eps)
        logits = logits if self.config.hc_manifold else jnp.tanh(logits)
        logits, bias = (jnp.split(each, [n, 2 * n], axis=-1) for each in (logits, self.bias[...]))
        pre, post, comb = (part * self.scale[index] + bias[index] for index, part in enumerate(logits))
        comb_BSnn = comb.reshape(*comb.shape[:-1], n, n)
        if not self.config.hc_manifold:
            return pre, post, comb_BSnn
        comb_BSnn = sinkhorn(comb_BSnn, self.config.hc_sinkhorn_iters, eps)
        return jax.nn.sigmoid(pre) + eps, 2 * jax.nn.sigmoid(post), comb_BSnn


class StreamHead(nnx.Module):
    """sum_i pre_i X_i: merges the streams into the final norm's input; initially their mean."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        n, D = config.hc_mult, config.hidden_size
        self.config = config
        self.kernel = weight(rngs.params(), (n * D, n), ("embed", None), config.initializer_range)
        self.bias = constant(jnp.full((n,), equal_share(n)), (None,))
        self.scale = constant(jnp.full((1,), INITIAL_SCALE), (None,))

    def __call__(self, x: Float[Array, "B S ..."]) -> Float[Array, "B S D"]:
        with jax.named_scope("stream_head"):
            u_BSn = project(x, self.kernel, self.config.rms_norm_eps)
            pre_BSn = jax.nn.sigmoid(u_BSn * self.scale[...] + self.bias[...]) + self.config.hc_eps
            return weighted_sum(pre_BSn, single_streams(x, self.config.hc_mult)).astype(x.dtype)


def sinkhorn(logits: Float[Array, "... n n"], iterations: int, eps: float) -> Float[Array, "... n n"]:
    """A positive matrix whose rows and columns approximately sum to 1 after `iterations` (mHC, equation 9).

    Rows are normalised by a softmax, then columns and rows alternately, columns last.
    """
    matrix = jax.nn.softmax(logits, axis=-1) + eps
    matrix /= matrix.sum(axis=-2, keepdims=True) + eps

    def rows_then_columns(_, matrix):
        matrix /= matrix.sum(axis=-1, keepdims=True) + eps
        return matrix / (matrix.sum(axis=-2, keepdims=True) + eps)

    return jax.lax.fori_loop(1, iterations, rows_then_columns, matrix)


def project(x: Float[Array, "B S ..."], kernel: nnx.Param, eps: float) -> Float[Array, "B S K"]:
    """RMS-normalises all streams of a token as one vector [N] and multiplies by the kernel [N K], in float32.

    The norm's factor is applied after the product: equivalent, but on K numbers per token instead of N.
    """
    x_BSN = side_by_side(x).astype(jnp.float32)
    return exact_linear(x_BSN, kernel) * jax.lax.rsqrt(jnp.mean(jnp.square(x_BSN), axis=-1, keepdims=True) + eps)


def side_by_side(x: Float[Array, "B S ..."]) -> Float[Array, "B S N"]:
    return x.reshape(*x.shape[:2], -1)


def apart(x: Float[Array, "B S ..."], n: int) -> Float[Array, "B S n D"]:
    return x.reshape(*x.shape[:2], n, -1)


def single_streams(x: Float[Array, "B S ..."], n: int) -> list[Float[Array, "B S D"]]:
    """n arrays, in float32; cast one by one, as XLA would store a float32 copy of x that `project` uses too."""
    return [stream_BSD.astype(jnp.float32) for stream_BSD in jnp.split(side_by_side(x), n, axis=-1)]


def weighted_sum(weights_BSn: Float[Array, "B S n"], streams: list[Float[Array, "B S D"]]) -> Float[Array, "B S D"]:
    return sum(weights_BSn[..., i, None] * stream_BSD for i, stream_BSD in enumerate(streams))


def equal_share(n: int) -> float:
    """The logit of 1/n; for n = 1, whose logit is infinite, that of 0.99."""
    return -math.log(max(n - 1, 0.01))
