"""Multiply-adds of a forward pass, counted from the architecture.

Counted are matrix products: a token with the parameters it meets (`counts.multiplied`), and a query with the keys and
values it sees.  Not counted: look-ups, norms, softmax, rotary embeddings, the mixing of streams.
"""

from collections import Counter

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.models.attention.costs import attention_cost
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.counts import multiplied


def attention_a_token(config: ModelConfig, seen: Int[Array, "..."]) -> Float[Array, "..."]:
    """Multiply-adds of queries with keys and values, over all layers, MTP modules too.

    `seen`: how many tokens it comes after, itself included.
    """
    seen = jnp.asarray(seen, jnp.float32)
    layers = Counter(config.attention_kinds)
    return sum(count * attention_cost(config, kind).products(seen) for kind, count in layers.items())


def flops_a_token(config: ModelConfig, length: int) -> float:
    """Of the main model's forward pass for the last of `length` tokens; two a multiply-add."""
    main = config.without_mtp()
    return 2 * (multiplied(main) + float(attention_a_token(main, length)))
