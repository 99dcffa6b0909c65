"""Heads and hidden units of the decoders: which arrays hold each unit, and the config of the smaller model.

H heads  G key-value heads
"""

import dataclasses
import math

import numpy as np

from deepseek_jax.compress.cuts import Cut, Part, kept, plain
from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.schedule import layers_of


def _with_their_key(config: ModelConfig) -> np.ndarray:
    H, G = config.num_attention_heads, config.num_key_value_heads
    return np.arange(H).reshape(G if G > 1 else H, -1).T


def _alone(config: ModelConfig) -> np.ndarray:
    return np.arange(config.num_attention_heads)[None]


def _one_of_each_group(config: ModelConfig) -> np.ndarray:
    return np.arange(config.num_attention_heads).reshape(config.o_groups, -1)


TOGETHER = {  # by kind of attention, heads [R, U]: those of a column can only be removed together
    "gqa": _with_their_key,
    "mla": _alone,
    "dsa": _alone,
    "window": _one_of_each_group,
    "csa": _one_of_each_group,
    "hca": _one_of_each_group,
}


def heads(config: ModelConfig, flat: dict[str, np.ndarray], share: float) -> tuple[ModelConfig, list[Cut]]:
    """Attention heads: in GQA a key-value head goes with all its query heads, in V4 one head of every output group."""
    H, G, kinds = config.num_attention_heads, config.num_key_value_heads, set(config.attention_kinds)
    if unknown := sorted(kinds - TOGETHER.keys()):
        raise UserError(
            f"heads cannot be removed: it is not known which arrays hold those of {unknown[0]}; "
            "add it to deepseek_jax/compress/decoder_cuts.py"
        )
    step = math.lcm(*(len(TOGETHER[kind](config)) for kind in kinds))  # all layers must keep equally many heads
    left = step * kept(H // step, share)
    cuts = []
    for prefix in _prefixes(flat, "attention/", ("out", "out_up")):
        together = TOGETHER[_kind(prefix, config)](config)
        parts = tuple(part for part in _attention(prefix, config, together) if part.path in flat)
        cuts.append(Cut(parts, _stacked(prefix), left // len(together)))
    fewer_keys = G > 1 and any(TOGETHER[kind] is _with_their_key for kind in kinds)
    changes = {"num_key_value_heads": G * left // H} if fewer_keys else {}
    return dataclasses.replace(config, num_attention_heads=left, **changes), cuts


def _kind(prefix: str, config: ModelConfig) -> str:
    """The kind of attention at a prefix such as "layers/1-3/attention/" or "mtp/0/block/attention/"."""
    part, name = prefix.split("/")[:2]
    return config.attention_kinds[layers_of(name)[0] if part == "layers" else config.num_hidden_layers + int(name)]


def _attention(prefix: str, config: ModelConfig, together: np.ndarray):
    units = together.shape[1]
    for name, dim in (("q", 1), ("q_up", 1), ("kv_up", 1), ("q_bias", 0), ("out", 0), ("sinks", 0)):
        yield Part(f"{prefix}{name}", dim, together)
    yield Part(f"{prefix}out_down", 1, np.arange(units * config.head_dim).reshape(units, -1).T)
    if config.num_key_value_heads > 1:
        yield from (plain(f"{prefix}{name}", 1, units) for name in ("k", "v"))
        yield from (plain(f"{prefix}{name}", 0, units) for name in ("k_bias", "v_bias"))


def hidden(config: ModelConfig, flat: dict[str, np.ndarray], share: float) -> tuple[ModelConfig, list[Cut]]:
    """Hidden units of dense feed-forward layers."""
    size, keep = config.intermediate_size, kept(config.intermediate_size, share)
    cuts = [_feed_forward(prefix, flat, size, keep) for prefix in _prefixes(flat, "feed_forward/", ("gate",))]
    return dataclasses.replace(config, intermediate_size=keep), cuts


def expert_hidden(config: ModelConfig, flat: dict[str, np.ndarray], share: float) -> tuple[ModelConfig, list[Cut]]:
    """Hidden units of routed and shared experts, which have the same width (moe_intermediate_size)."""
    size, keep, shared = (
        config.moe_intermediate_size,
        kept(config.moe_intermediate_size, share),
        config.n_shared_experts,
    )
    cuts = [_feed_forward(prefix, flat, size, keep) for prefix in _prefixes(flat, "experts/", ("gate",))]
    cuts += [
        _feed_forward(prefix, flat, shared * size, shared * keep) for prefix in _prefixes(flat, "shared/", ("gate",))
    ]
    return dataclasses.replace(config, moe_intermediate_size=keep), cuts


def _feed_forward(prefix: str, flat, size: int, keep: int) -> Cut:
    dims = {"gate": 1, "up": 1, "down": 0, "gate_bias": 0, "up_bias": 0}
    parts = tuple(plain(f"{prefix}{name}", dim, size) for name, dim in dims.items() if f"{prefix}{name}" in flat)
    return Cut(parts, _stacked(prefix) + prefix.endswith("experts/"), keep)


def _prefixes(flat, ending: str, names: tuple[str, ...]) -> list[str]:
    """The module paths that end in `ending` and hold a parameter of one of these `names`."""
    return sorted({path.rpartition("/")[0] + "/" for path in flat if path.endswith(tuple(ending + n for n in names))})


def _stacked(prefix: str) -> int:
    return int(prefix.startswith("layers/"))
