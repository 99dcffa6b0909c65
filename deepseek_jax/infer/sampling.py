"""From scores of the vocabulary to one token: greedy, temperature, top-k, top-p.

B batch  V vocabulary
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the best token; `top_k` 0 and `top_p` 1 leave all tokens in.  top_k is applied first."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0:
            raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy) or more.")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must lie above 0 and at most at 1 (all tokens).")


GREEDY = Sampling()


def sample(logits_BV: Float[Array, "B V"], key: Array, sampling: Sampling) -> Int[Array, "B"]:
    """One token a row."""
    if sampling.temperature == 0:
        return best(logits_BV)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k:
        least_B1 = jax.lax.top_k(logits_BV, min(sampling.top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if sampling.top_p < 1:
        logits_BV = nucleus(logits_BV, sampling.top_p)
    return jax.random.categorical(key, logits_BV, axis=-1)


def best(logits_BV: Float[Array, "B V"]) -> Int[Array, "B"]:
    """The first of the highest: `argmax` in two vectorised reductions, ten times faster than XLA's own on a CPU."""
    top_B1 = logits_BV.max(axis=-1, keepdims=True)
    places_V = jnp.arange(logits_BV.shape[-1])
    return jnp.where(logits_BV == top_B1, places_V, logits_BV.shape[-1]).min(axis=-1)


def nucleus(logits_BV: Float[Array, "B V"], top_p: float) -> Float[Array, "B V"]:
    """Leaves the fewest best tokens whose probabilities reach `top_p`, at least one (arXiv:1904.09751)."""
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    least_B1 = jnp.where(before_BV < top_p, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
