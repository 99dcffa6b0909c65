"""From scores of the vocabulary to one token: greedy, temperature, top-k, top-p.

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
from deepseek_jax.halving import bits_of, last_that

COLDEST = 1e-30  # less is greedy
NARROWEST = 1e-30  # share that a nucleus reaches at the least: what float32 takes for 0 would leave it empty


@dataclasses.dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the best token; `top_k` 0 and `top_p` 1 leave all tokens in.  top_k is applied first."""

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
    """Of one type whatever it was given as, on which a compiled program depends."""
    try:
        return float(np.asarray(number).item())
    except OverflowError:  # an int too large for one
        return math.inf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawing:
    """Sampling for a compiled program, which another temperature or top_p does not compile anew."""

    temperature: float
    top_p: float
    greedy: bool = dataclasses.field(metadata={"static": True})
    top_k: int = dataclasses.field(metadata={"static": True})
    nucleus: bool = dataclasses.field(metadata={"static": True})


GREEDY = Sampling()


def token_keys(key: Key[Array, ""], steps_BS: Int[Array, "B S"]) -> Key[Array, "B S"]:
    """The key of each token: its row and its number among the row's new tokens decide, not how it was reached."""
    rows_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(steps_BS.shape[0]))
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(rows_B, steps_BS)


def sample(logits_BSV: Float[Array, "B S V"], keys_BS: Key[Array, "B S"], drawing: Drawing) -> Int[Array, "B S"]:
    """One token a place; a number past the vocabulary where scores are no numbers."""
    if drawing.greedy:
        return best(logits_BSV)
    # The largest becomes 0, so that no temperature makes it infinite.
    logits_BSV = (logits_BSV - logits_BSV.max(axis=-1, keepdims=True)) / drawing.temperature
    if drawing.top_k:
        least_BS1 = jax.lax.top_k(logits_BSV, min(drawing.top_k, logits_BSV.shape[-1]))[0][..., -1:]
        logits_BSV = jnp.where(logits_BSV < least_BS1, -jnp.inf, logits_BSV)
    if drawing.nucleus:
        logits_BSV = nucleus(logits_BSV, drawing.top_p)
    return drawn(logits_BSV, keys_BS)


def drawn(logits_BSV: Float[Array, "B S V"], keys_BS: Key[Array, "B S"]) -> Int[Array, "B S"]:
    """Each token as often as its probability says: a block of some sqrt(V) tokens by its sum, then a token of it.

    Two random numbers a draw.  One for each token (Gumbel's way) takes a CPU ten to twenty times as long.
    """
    V = logits_BSV.shape[-1]
    N = math.isqrt(V - 1) + 1  # blocks, and tokens of each; the last ones are not full
    shares_BSV = jnp.exp(logits_BSV - logits_BSV.max(axis=-1, keepdims=True))
    shares_BSNN = jnp.pad(shares_BSV, ((0, 0), (0, 0), (0, N * N - V))).reshape(*keys_BS.shape, N, N)
    points = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (2, 1))))(keys_BS)
    block_BS = _where_sums_pass(points[..., 0, :], shares_BSNN.sum(axis=-1))
    shares_BSN = jnp.take_along_axis(shares_BSNN, block_BS[..., None, None], axis=-2)[..., 0, :]
    return block_BS * N + _where_sums_pass(points[..., 1, :], shares_BSN)


def _where_sums_pass(points: Float[Array, "... 1"], shares: Float[Array, "... N"]) -> Int[Array, "..."]:
    """The first place up to which `shares` add up to more than this part of their sum; N where that is no number.

    Never one whose share is 0, though sums that are not added up in turn may differ there by a rounding.
    """
    sums = jnp.where(shares > 0, jnp.cumsum(shares, axis=-1), 0)
    passed = sums > points * sums.max(axis=-1, keepdims=True)
    return jnp.where(passed, jnp.arange(shares.shape[-1]), shares.shape[-1]).min(axis=-1)


def best(logits: Float[Array, "... V"]) -> Int[Array, "..."]:
    """The first of the highest, V where one is no number.

    This is `argmax` in two vectorised reductions, ten times faster than XLA's own on a CPU.
    """
    top = logits.max(axis=-1, keepdims=True)
    places_V = jnp.arange(logits.shape[-1])
    return jnp.where(logits == top, places_V, logits.shape[-1]).min(axis=-1)


def nucleus(logits: Float[Array, "... V"], top_p: Float[Array, ""] | float) -> Float[Array, "... V"]:
    """Leaves the fewest best tokens, one at least, whose probabilities reach `top_p` (arXiv:1904.09751), and ties.

    A token stays where those above it come to less than `top_p`.  How far below the best that goes is found by halving:
    a sort takes XLA's CPU code 20 times as long.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    below = bits_of(logits.max(axis=-1, keepdims=True) - logits)

    def stays(place):
        return jnp.where(below < place, probabilities, 0).sum(axis=-1, keepdims=True) < top_p

    return jnp.where(below > last_that(stays, (*logits.shape[:-1], 1)), -jnp.inf, logits)
