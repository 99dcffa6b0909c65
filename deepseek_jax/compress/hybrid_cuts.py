"""Heads, recurrent units and channels of the hybrid: which arrays hold each unit, and the smaller model's config."""

import dataclasses

import numpy as np

from deepseek_jax.compress.cuts import Cut, Part, kept, plain
from deepseek_jax.errors import UserError
from deepseek_jax.models.hybrid.config import HybridConfig
from deepseek_jax.models.hybrid.recurrent import DIRECTIONS

ONE_MATRIX = ("classes", "numbers")  # heads that read all their input by the matrix head/kernel


def heads(config: HybridConfig, flat: dict[str, np.ndarray], share: float) -> tuple[HybridConfig, list[Cut]]:
    size, keep = config.attention.num_heads, kept(config.attention.num_heads, share)
    dims = {"q": 1, "k": 1, "v": 1, "q_bias": 0, "k_bias": 0, "v_bias": 0, "out": 0}
    parts = tuple(plain(f"attention/{name}", dim, size) for name, dim in dims.items() if size)
    attention = dataclasses.replace(config.attention, num_heads=keep if size else 0)
    return dataclasses.replace(config, attention=attention), [Cut(parts, 0, keep)] if size else []


def units(config: HybridConfig, flat: dict[str, np.ndarray], share: float) -> tuple[HybridConfig, list[Cut]]:
    """Recurrent units, chosen separately in each direction of each layer."""
    if config.recurrent.kind == "none":
        return config, []
    if config.attention.num_heads and config.attention.norm:
        raise UserError("units cannot be removed: attention.norm takes their mean, which would change")
    size, keep = config.recurrent.hidden_size, kept(config.recurrent.hidden_size, share)
    ways = DIRECTIONS[: 1 + config.recurrent.bidirectional]
    cuts = []
    for layer in range(config.recurrent.layers):
        for number, way in enumerate(ways):
            cell = f"recurrent/layers/{layer}/{way}/"
            dims = (("input", 2), ("state", 0), ("state", 2), ("bias", 1), ("state_bias", 0))
            own = [plain(cell + name, dim, size) for name, dim in dims if cell + name in flat]
            places = number * size + np.arange(size)[None]
            last = layer == config.recurrent.layers - 1
            read = _readers(config, places) if last else _next_layer(layer + 1, ways, places)
            cuts.append(Cut((*own, *read), 0, keep))
    recurrent = dataclasses.replace(config.recurrent, hidden_size=keep)
    return dataclasses.replace(config, recurrent=recurrent), cuts


def _next_layer(layer: int, ways, places) -> list[Part]:
    return [Part(f"recurrent/layers/{layer}/{way}/input", 0, places) for way in ways]


def _readers(config: HybridConfig, places) -> list[Part]:
    """The parts that read the recurrence's output: the head, and attention, whose output is added to it."""
    if config.head == "boxes":
        raise UserError("units cannot be removed: a head of boxes convolves as many channels as it is given")
    head = _head(config, places, "units")
    if not config.attention.num_heads:
        return head
    asking = [Part(f"attention/{name}", 0, places) for name in ("q", "k", "v")]
    return [*asking, Part("attention/out", 2, places), Part("attention/out_bias", 0, places), *head]


def _head(config: HybridConfig, places, removed: str) -> list[Part]:
    if config.head not in ONE_MATRIX:
        raise UserError(
            f"{removed} cannot be removed: it is not known which arrays of the head {config.head} read them; "
            "add it to deepseek_jax/compress/hybrid_cuts.py"
        )
    return [Part("head/kernel", 0, places)]


def channels(config: HybridConfig, flat: dict[str, np.ndarray], share: float) -> tuple[HybridConfig, list[Cut]]:
    """Channels of each convolution; all convolutions of a block keep equally many."""
    convolution = config.convolution
    if not convolution.filters:
        return config, []
    _check_channels(config)
    filters, cuts, deepest = [], [], convolution.convs_per_block - 1
    for block, size in enumerate(convolution.filters):
        filters.append(kept(size, share))
        for number in range(convolution.convs_per_block):
            within = f"convolution/blocks/{block}/"
            names = [f"convolutions/{number}/bias"]
            names += [f"norms/{number}/{name}" for name in ("scale", "bias", "mean", "variance")]
            own = [plain(within + name, 0, size) for name in names if within + name in flat]
            kernel = f"{within}convolutions/{number}/kernel"
            own.append(plain(kernel, flat[kernel].ndim - 1, size))
            following = f"{within}convolutions/{number + 1}/kernel"
            if number == deepest:
                following = f"convolution/blocks/{block + 1}/convolutions/0/kernel"
            if following in flat:
                read = [plain(following, flat[following].ndim - 2, size)]
            else:
                read = _readers_of_map(config, size)
            cuts.append(Cut((*own, *read), 0, filters[-1]))
    convolution = dataclasses.replace(convolution, filters=tuple(filters))
    return dataclasses.replace(config, convolution=convolution), cuts


def _readers_of_map(config: HybridConfig, size: int) -> list[Part]:
    rows = config.input == "image" and config.sequence == "rows"
    columns = config.map_size[1] if rows else 1
    places = np.arange(columns * size).reshape(columns, size)
    if config.recurrent.kind == "none":
        return _head(config, places, "channels")
    ways = DIRECTIONS[: 1 + config.recurrent.bidirectional]
    return _next_layer(0, ways, places)


def _check_channels(config: HybridConfig):
    """Raises UserError where removing a channel would change what the other channels compute, or cannot be done."""
    convolution, reason = config.convolution, ""
    if convolution.kind != "blocks":
        reason = f"the blocks of {convolution.kind} hand the same channels from one to the next"
    elif convolution.norm not in ("none", "batch"):
        reason = f"a {convolution.norm} norm takes means over channels, which would change; batch norms do not"
    elif convolution.residual:
        reason = "residual blocks hand the same channels from one to the next"
    elif config.recurrent.kind == "none" and (config.attention.num_heads or config.head == "boxes"):
        reason = "attention or boxes would have to shrink with them; a recurrence between would not"
    if reason:
        raise UserError(f"channels cannot be removed: {reason}")
