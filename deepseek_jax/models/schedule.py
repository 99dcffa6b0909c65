"""Which layers are alike: equal ones are stacked, and stacks that alternate are scanned together.

V3 is two stacks, its dense layers and its MoE layers; V4 alternates two attentions, so the stacks of its even and its
odd layers run in one scan.
"""

import dataclasses
import re

from deepseek_jax.models.config import ModelConfig

LONGEST_PERIOD = 8
MOST_UNROLLED = 4  # a scan compiles one layer however many there are, and copies what each leaves for the backward pass


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What tells one layer from the next."""

    attention: str  # one of checks.OF_ATTENTION
    feed_forward: str  # one of checks.FEED_FORWARD


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers of one kind whose parameters lie in arrays with a leading layer dimension."""

    layers: range
    kind: LayerKind

    @property
    def name(self) -> str:
        """ "3-9" for layers 3 to 9, "3-9by2" for every second of them."""
        step = f"by{self.layers.step}" if self.layers.step > 1 else ""
        return f"{self.layers[0]}-{self.layers[-1]}{step}"


def layers_of(name: str) -> range:
    """The numbers of the layers in the stack of this name."""
    first, last, step = re.fullmatch(r"(\d+)-(\d+)(?:by(\d+))?", name).groups(default="1")
    return range(int(first), int(last) + 1, int(step))


def layer_kinds(config: ModelConfig) -> tuple[LayerKind, ...]:
    """Of each layer, then of each MTP module."""
    pairs = zip(config.attention_kinds, config.feed_forward_kinds, strict=True)
    return tuple(LayerKind(*pair) for pair in pairs)


def groups(config: ModelConfig) -> list[list[Stack]]:
    """Stacks in the order in which they run; those in one list take turns, layer by layer."""
    kinds, found, start = layer_kinds(config)[: config.num_hidden_layers], [], 0
    while start < len(kinds):
        period, repeats = _longest_repetition(kinds[start:])
        stop = start + period * repeats
        found.append([Stack(range(first, stop, period), kinds[first]) for first in range(start, start + period)])
        start = stop
    return found


def pipelined(config: ModelConfig) -> list[Stack]:
    """The group with the most layers, the first of several: those that the stages of a pipeline share."""
    return max(groups(config), key=lambda stacks: len(stacks) * len(stacks[0].layers))


def pipelined_depth(config: ModelConfig) -> int:
    """How many layers, or turns of those that alternate, stages can share."""
    return len(pipelined(config)[0].layers)


def _longest_repetition(kinds) -> tuple[int, int]:
    """(period, repeats) at the beginning of `kinds` that covers the most layers, the shortest such period."""

    def repeats(period):
        count = 1
        while kinds[count * period : (count + 1) * period] == kinds[:period]:
            count += 1
        return count

    found = [(period, repeats(period)) for period in range(1, min(LONGEST_PERIOD, len(kinds)) + 1)]
    repeating = [(period, count) for period, count in found if count > 1]
    return max(repeating, key=lambda each: each[0] * each[1], default=(1, 1))
