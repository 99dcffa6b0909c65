"""The communication of a compiled program: which collectives run, among which devices, how often, with how many bytes.

n devices in a group
"""

import dataclasses
import re
from collections.abc import Iterable

import numpy as np

from deepseek_jax.pods.hlo import Program, place, scopes, size

# Bytes that each device sends per byte of its operand, with the algorithms that send least (rings).
SENT = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction.  `group`: its first group of devices, as indices into the mesh; its other groups are alike."""

    kind: str
    group: tuple[int, ...]
    operand: int  # bytes of a device's operands, per execution
    times: int  # executions per step
    scopes: str
    place: str = ""  # file:line in the source, if known

    @property
    def sent(self) -> float:
        """Bytes that a device sends per step."""
        return self.times * self.operand * SENT[self.kind](len(self.group))


def collectives(program: Program, num_devices: int) -> list[Collective]:
    """All collectives of a program that involve more than one device."""
    found = []
    for each, computation, times, fused in program.executed():
        kind = each.opcode.removesuffix("-start")
        if kind not in SENT:
            continue
        group = first_group(each.attributes, num_devices)
        if len(group) == 1:
            continue
        if kind == "all-reduce" and fused:  # fused with a slice of its result: how TPUs write a reduce-scatter
            kind = "reduce-scatter"
        brought = each.operands[:1] if kind == "ragged-all-to-all" else each.operands
        operand = sum(size(computation[name].shape) for name in brought)
        source = scopes(each.attributes), place(each.attributes, program.frames)
        found.append(Collective(kind, group, operand, times, *source))
    return found


def totals(found: Iterable[Collective]) -> dict[str, tuple[int, float]]:
    """(executions per step, bytes that a device sends per step) by kind, the most bytes first."""
    sums = {}
    for each in found:
        times, sent = sums.get(each.kind, (0, 0.0))
        sums[each.kind] = times + each.times, sent + each.sent
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def first_group(attributes: str, num_devices: int) -> tuple[int, ...]:
    """The first group of communicating devices, in whichever of XLA's four notations; all devices if none is given."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(map(int, listed[1].split(",")))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return tuple(_iota(iota[3])[: int(iota[2])].tolist())
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}", attributes):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        sizes = [int(length) for length in axes.values()]
        ids = (_iota(mesh[2]) if mesh[2] else np.arange(np.prod(sizes))).reshape(sizes)
        named = re.findall(r"'(\w+)'", mesh[3])
        return tuple(ids[tuple(slice(None) if axis in named else 0 for axis in axes)].ravel().tolist())
    return tuple(range(num_devices))


def _iota(text: str) -> np.ndarray:
    """The flat list that XLA's notation [64,16]T(1,0) means: 0, 1, ... reshaped to [64,16], transposed by (1,0)."""
    dims, _, order = text.partition("T")
    numbers = np.arange(np.prod(_ints(dims))).reshape(_ints(dims))
    return numbers.transpose(_ints(order) if order else None).ravel()


def _ints(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
