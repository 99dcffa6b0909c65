"""Which layers have the same structure: those are stacked, and stacks that alternate are scanned together.

V3 has two stacks, its dense layers and its MoE layers.  V4 alternates two attentions, so the stack of its even layers
and the stack of its odd layers run in one scan.
"""

import dataclasses
import re

from deepseek_jax.models.config import ModelConfig

LONGEST_PERIOD = 8  # of alternating layers


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What determines a layer's structure; layers of the same kind can be stacked."""

    attention: str  # one of checks.OF_ATTENTION
    feed_forward: str  # one of checks.OF_FEED_FORWARD


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers of one kind, whose parameters are stacked in arrays with a leading layer dimension."""

    layers: range
    kind: LayerKind

    @property
    def name(self) -> str:
        """ "3-9" for layers 3 to 9, "3-9by2" for every second of them."""
        step = f"by{self.layers.step}" if self.layers.step > 1 else ""
        return f"{self.layers[0]}-{self.layers[-1]}{step}"


def layers_of(name: str) -> range:
    """The indices of the layers in the stack of this name (Stack.name)."""
    first, last, step = re.fullmatch(r"(\d+)-(\d+)(?:by(\d+))?", name).groups(default="1")
    return range(int(first), int(last) + 1, int(step))


def layer_kinds(config: ModelConfig) -> tuple[LayerKind, ...]:
    """The kind of each layer, then of each MTP module."""
    pairs = zip(config.attention_kinds, config.feed_forward_kinds, strict=True)
    return tuple(LayerKind(*pair) for pair in pairs)


def groups(config: ModelConfig) -> list[list[Stack]]:
    """Groups of stacks in the order in which they run; the stacks of a group alternate, layer by layer."""
    kinds, found, start = layer_kinds(config)[: config.num_hidden_layers], [], 0
    while start < len(kinds):
        period, repeats = _longest_repetition(kinds[start:])
        stop = start + period * repeats
        found.append([Stack(range(first, stop, period), kinds[first]) for first in range(start, start + period)])
        start = stop
    return found


def pipelined(config: ModelConfig) -> list[Stack]:
    """The group of stacks that pipeline parallelism splits over its stages: the first with the most layers."""
    return max(groups(config), key=lambda stacks: len(stacks) * len(stacks[0].layers))


def pipelined_depth(config: ModelConfig) -> int:
    """How many units can be distributed over pipeline stages: layers, or cycles of layers that alternate."""
    return len(pipelined(config)[0].layers)


def _longest_repetition(kinds) -> tuple[int, int]:
    """(period, repeats) of the repetition that covers the most layers from the start of `kinds`; the shortest such."""

    def repeats(period):
        count = 1
        while kinds[count * period : (count + 1) * period] == kinds[:period]:
            count += 1
        return count

    found = [(period, repeats(period)) for period in range(1, min(LONGEST_PERIOD, len(kinds)) + 1)]
    repeating = [(period, count) for period, count in found if count > 1]
    return max(repeating, key=lambda each: each[0] * each[1], default=(1, 1))
