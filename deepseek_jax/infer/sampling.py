"""From logits to a token: greedy, temperature, top-k, top-p.

B batch  S places  V vocabulary
"""

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from deepseek_jax.errors import UserError
from deepseek_jax.halving import largest_satisfying, ordered_bits

COLDEST = 1e-30  # lower temperatures are greedy
NARROWEST = 1e-30  # smallest top_p that is used: one that float32 rounds to 0 would leave no token


@dataclasses.dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep all tokens.  top_k is applied first."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        for name in ("temperature", "top_k", "top_p"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real | np.ndarray | jax.Array) or np.size(value) != 1:
                raise UserError(f"{name} is {value!r}; it must be a number.")
        if not 0 <= _as_float(self.temperature) < math.inf:
            raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy) or more.")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must lie above 0 and at most at 1 (all tokens).")

    def drawing(self) -> "Drawing":
        temperature, top_p = _as_float(self.temperature), max(_as_float(self.top_p), NARROWEST)
        return Drawing(temperature, top_p, temperature < COLDEST, self.top_k, top_p < 1)


def _as_float(number) -> float:
    """A Python float, whatever type was given: a compiled program depends on the type."""
    try:
        return float(np.asarray(number).item())
    except OverflowError:  # an int too large for a float
        return math.inf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawing:
    """Sampling as an argument of a compiled program, which another temperature or top_p does not recompile."""

    temperature: float
    top_p: float
    greedy: bool = dataclasses.field(metadata={"static": True})
    top_k: int = dataclasses.field(metadata={"static": True})
    nucleus: bool = dataclasses.field(metadata={"static": True})


GREEDY = Sampling()


def token_keys(key: Key[Array, ""], steps_BS: Int[Array, "B S"]) -> Key[Array, "B S"]:
    """The random key of each token, decided by its row and its index among the row's new tokens alone, so that plain
    and speculative decoding draw alike."""
    rows_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(steps_BS.shape[0]))
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(rows_B, steps_BS)


def sample(logits_BSV: Float[Array, "B S V"], keys_BS: Key[Array, "B S"], drawing: Drawing) -> Int[Array, "B S"]:
    """One token for each position; a number past the vocabulary if its scores are NaN."""
    if drawing.greedy:
        return best(logits_BSV)
    # Shift the largest to 0, so that a low temperature does not make it infinite.
    logits_BSV = (logits_BSV - logits_BSV.max(axis=-1, keepdims=True)) / drawing.temperature
    if drawing.top_k:
        least_BS1 = jax.lax.top_k(logits_BSV, min(drawing.top_k, logits_BSV.shape[-1]))[0][..., -1:]
        logits_BSV = jnp.where(logits_BSV < least_BS1, -jnp.inf, logits_BSV)
    if drawing.nucleus:
        logits_BSV = nucleus(logits_BSV, drawing.top_p)
    return sample_categorical(logits_BSV, keys_BS)


def sample_categorical(logits_BSV: Float[Array, "B S V"], keys_BS: Key[Array, "B S"]) -> Int[Array, "B S"]:
    """Samples each token by its probability: first a block of some sqrt(V) tokens by its sum, then a token of it.

    This takes two random numbers per draw.  One for each token (the Gumbel-max trick) takes ten to twenty times as long
    on a CPU.
    """
    V = logits_BSV.shape[-1]
    N = math.isqrt(V - 1) + 1  # number of blocks, and of tokens in each; the last ones are not full
    shares_BSV = jnp.exp(logits_BSV - logits_BSV.max(axis=-1, keepdims=True))
    shares_BSNN = jnp.pad(shares_BSV, ((0, 0), (0, 0), (0, N * N - V))).reshape(*keys_BS.shape, N, N)
    points = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (2, 1))))(keys_BS)
    block_BS = _where_sums_pass(points[..., 0, :], shares_BSNN.sum(axis=-1))
    shares_BSN = jnp.take_along_axis(shares_BSNN, block_BS[..., None, None], axis=-2)[..., 0, :]
    return block_BS * N + _where_sums_pass(points[..., 1, :], shares_BSN)


def _where_sums_pass(points: Float[Array, "... 1"], shares: Float[Array, "... N"]) -> Int[Array, "..."]:
    """The first index at which the cumulative sum of `shares` exceeds `points` times their sum; N if that is NaN.

    Never an index whose share is 0, even though a parallel cumulative sum may change there by rounding.
    """
    sums = jnp.where(shares > 0, jnp.cumsum(shares, axis=-1), 0)
    passed = sums > points * sums.max(axis=-1, keepdims=True)
    return jnp.where(passed, jnp.arange(shares.shape[-1]), shares.shape[-1]).min(axis=-1)


def best(logits: Float[Array, "... V"]) -> Int[Array, "..."]:
    """The first index of the maximum; V if a logit is NaN.

    This is `argmax` as two vectorised reductions, ten times faster than XLA's own on a CPU.
    """
    top = logits.max(axis=-1, keepdims=True)
    places_V = jnp.arange(logits.shape[-1])
    return jnp.where(logits == top, places_V, logits.shape[-1]).min(axis=-1)


def nucleus(logits: Float[Array, "... V"], top_p: Float[Array, ""] | float) -> Float[Array, "... V"]:
    """Keeps the fewest best tokens, at least one, whose probabilities reach `top_p` (arXiv:1904.09751), and ties; the
    others become -inf.

    A token stays if those above it sum to less than `top_p`.  The cut-off below the maximum is found by bisection: a
    sort takes 20 times as long in XLA's CPU code.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    below = ordered_bits(logits.max(axis=-1, keepdims=True) - logits)

    def stays(place):
        return jnp.where(below < place, probabilities, 0).sum(axis=-1, keepdims=True) < top_p

    return jnp.where(below > largest_satisfying(stays, (*logits.shape[:-1], 1)), -jnp.inf, logits)
