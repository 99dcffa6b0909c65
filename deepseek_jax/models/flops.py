"""Multiply-adds of a forward pass, counted from the architecture.

Counts the matrix products of tokens with parameters (`counts.multiplied`) and of queries with the keys and values that
they see.  Ignores look-ups, norms, softmax, rotary embeddings and the mixing of hyper-connected streams.
"""

from collections import Counter

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from deepseek_jax.models.attention.costs import attention_cost
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.counts import multiplied


def attention_a_token(config: ModelConfig, seen: Int[Array, "..."]) -> Float[Array, "..."]:
    """Multiply-adds of one token's queries with keys and values, over all layers and MTP modules.

    `seen`: the number of tokens up to and including this one.  For a numpy array so is the answer, and takes no device.
    """
    seen = seen.astype(np.float32) if isinstance(seen, np.ndarray) else jnp.asarray(seen, jnp.float32)
    layers = Counter(config.attention_kinds)
    return sum(count * attention_cost(config, kind).products(seen) for kind, count in layers.items())


def flops_a_token(config: ModelConfig, length: int) -> float:
    """FLOPs (two per multiply-add) of the main model's forward pass for the last of `length` tokens; no MTP modules."""
    main = config.without_mtp()
    return 2 * (multiplied(main) + float(attention_a_token(main, length)))
