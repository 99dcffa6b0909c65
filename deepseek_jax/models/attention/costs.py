"""What a layer of each kind of attention costs: cache size, multiply-adds, and activation memory in training.

H heads  G key-value heads  d head width  m tokens per block  W window
"""

import dataclasses
import functools
from collections.abc import Callable

from jaxtyping import Array, Float

from deepseek_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class AttentionCost:
    """Costs of one layer, per token unless stated otherwise; sizes are counts of numbers, not bytes."""

    cached: float  # numbers that each token adds to the cache
    apart: int  # the same if every head cached its own key and value
    # Multiply-adds of a token's queries with keys and values, given the number of tokens up to and including it.
    products: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    heads: int  # intermediate numbers that the tensor axis shards
    ranks: int = 0  # intermediate numbers that are replicated along the tensor axis
    held: int = 0  # size of the part of the cache that does not grow with length (per text)


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
    """mla over the picked keys, plus the indexer, which scores all keys and caches a key of its own per token."""
    dense = _latent(config)
    return dataclasses.replace(
        dense,
        cached=dense.cached + config.index_head_dim,
        products=lambda seen: dense.products(seen.clip(max=config.index_topk)) + _scored(config) * seen,
    )


def _window(config):
    H, d, W = config.num_attention_heads, config.head_dim, config.sliding_window
    return AttentionCost(
        cached=0,
        held=W * d,
        apart=2 * H * d,
        products=lambda seen: 2 * H * d * seen.clip(max=W),
        heads=3 * H * d,
        ranks=config.q_lora_rank + config.o_groups * config.o_lora_rank,
    )


def _compressed(config, *, indexed):
    """The window's costs plus an entry per complete block of m tokens; state of an incomplete block is not counted."""
    window, m = _window(config), config.csa_rate if indexed else config.hca_rate
    entry = config.head_dim + (config.index_head_dim if indexed else 0)

    def products(seen):
        blocks = seen // m
        chosen = blocks.clip(max=config.index_topk) if indexed else blocks
        scored = _scored(config) * blocks if indexed else 0
        return window.products(seen) + window.apart * chosen + scored

    return dataclasses.replace(window, cached=entry / m, products=products)


def _scored(config):
    """Multiply-adds of a token's index queries with one key."""
    return config.index_n_heads * config.index_head_dim


COSTS = {
    "gqa": _grouped,
    "mla": _latent,
    "dsa": _sparse,
    "window": _window,
    "csa": functools.partial(_compressed, indexed=True),
    "hca": functools.partial(_compressed, indexed=False),
}
