"""What a layer of each kind of attention costs: its cache, its multiply-adds, and what training has in memory of it.

H heads  G key-value heads  d a head's width  m tokens in a block  W window
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from deepseek_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class AttentionCost:
    """Of one layer, and of each token that passes it."""

    cached: float  # numbers that its cache grows by with a token
    apart: int  # the same if each head kept a key and a value of its own
    # Multiply-adds of a query with the keys and values it sees, by the tokens it comes after, itself included.
    products: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    heads: int  # numbers of its intermediates that the tensor axis splits
    ranks: int = 0  # those that every device of the tensor axis has whole
    held: int = 0  # numbers that its cache has from the start


def attention_cost(config: ModelConfig, kind: str) -> AttentionCost:
    return COSTS[kind](config)


def _grouped(config):
    H, G, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    plain = 2 * H * d
    return AttentionCost(cached=2 * G * d, apart=plain, products=lambda seen: plain * seen, heads=2 * (H + G) * d)


def _latent(config):
    H, wide = config.num_attention_heads, config.qk_head_dim + config.v_head_dim
    return AttentionCost(
        cached=config.kv_lora_rank + config.qk_rope_head_dim,
        apart=H * wide,
        products=lambda seen: H * wide * seen,
        heads=2 * H * wide,
        ranks=config.q_lora_rank,
    )


def _sparse(config):
    """The indexer scores all keys, and keeps one of its own, to pick those that attention sees."""
    dense = _latent(config)
    return dataclasses.replace(
        dense,
        cached=dense.cached + config.index_head_dim,
        products=lambda seen: dense.products(jnp.minimum(seen, config.index_topk)) + _scored(config) * seen,
    )


def _window(config):
    H, d, W = config.num_attention_heads, config.head_dim, config.sliding_window
    return AttentionCost(
        cached=0,
        held=W * d,
        apart=2 * H * d,
        products=lambda seen: 2 * H * d * jnp.minimum(seen, W),
        heads=3 * H * d,
        ranks=config.q_lora_rank + config.o_groups * config.o_lora_rank,
    )


def _compressed(config, *, indexed):
    """An entry for each whole block of m tokens beside the window; what an unfinished block keeps is not counted."""
    window, m = _window(config), config.csa_rate if indexed else config.hca_rate
    entry = config.head_dim + (config.index_head_dim if indexed else 0)

    def products(seen):
        blocks = seen // m
        chosen = jnp.minimum(blocks, config.index_topk) if indexed else blocks
        scored = _scored(config) * blocks if indexed else 0
        return window.products(seen) + window.apart * chosen + scored

    return dataclasses.replace(window, cached=entry / m, products=products)


def _scored(config):
    """Multiply-adds of the indexer's queries with one key."""
    return config.index_n_heads * config.index_head_dim


COSTS = {
    "gqa": _grouped,
    "mla": _latent,
    "dsa": _sparse,
    "window": _window,
    "csa": functools.partial(_compressed, indexed=True),
    "hca": functools.partial(_compressed, indexed=False),
}
