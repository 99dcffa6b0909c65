"""How fast a compiled step could be: an estimate from what it computes, moves in memory and sends.

A bound, not a forecast: each of the three runs at the vendor's peak.  If they overlap entirely the longest is the time
of a step, if not at all their sum is; a real step lies beyond the first.
"""

import dataclasses

import numpy as np

from deepseek_jax.parallel.chips import Chip
from deepseek_jax.pods.collectives import Collective
from deepseek_jax.pods.hlo import Instruction, Program, size

# Results that are no new bytes: views, and what its own instructions account for.
FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "after-all"}
FREE |= {"copy-done", "call-done", "async-done", "iota", "partition-id", "replica-id", "opt-barrier"}
UNDER_WAY = "-start", "-update"  # of what runs beside others; their shapes name operands too, those of "-done" do not
COMPUTED_AGAIN = {"none": 1.0, "dots": 1.0, "full": 4 / 3}  # of the products of a step, by train.remat


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds a step of each kind of work, and the share of the peak that useful work would be."""

    compute: float
    memory: float
    network: float
    useful: float  # of `compute`, the share that is not done for the second time

    @property
    def fastest(self) -> float:
        return max(self.compute, self.memory, self.network)

    @property
    def slowest(self) -> float:
        return self.compute + self.memory + self.network

    def utilisation(self, seconds: float) -> float:
        """The model FLOPs of a step of so many seconds, as a share of what the chips could do."""
        return self.compute * self.useful / seconds


def roofline(program: Program, found: list[Collective], flops: float, remat: str, chip: Chip, devices) -> Roofline:
    """`flops` of a step over all devices; `devices` in the order of the mesh."""
    again = COMPUTED_AGAIN[remat]
    return Roofline(
        compute=flops * again / (len(devices) * chip.peak),
        memory=2 * bytes_written(program) / chip.bandwidth,  # what is written is read once, at the least
        network=sum(each.sent / bandwidth(each.group, chip, devices) for each in found),
        useful=1 / again,
    )


def bytes_written(program: Program) -> int:
    """To a device's main memory, a step."""
    return sum(
        times * _written(each, program)
        for each, _, times, fused in program.executed()
        if not fused and each.opcode not in FREE and not each.opcode.endswith(UNDER_WAY)
    )


def _written(each: Instruction, program: Program) -> int:
    """A slice that is put into a larger array writes only itself."""
    if each.opcode == "fusion":
        fusion = program.computations[each.called[0]]
        (root,) = (inner for inner in fusion.values() if inner.root)
        results = [fusion[name] for name in root.operands] if root.opcode == "tuple" else [root]
        if any(result.opcode == "dynamic-update-slice" for result in results):
            return sum(_updated(result, fusion) for result in results)
    return size(each.shape, memory=0)


def _updated(result: Instruction, computation: dict) -> int:
    if result.opcode == "dynamic-update-slice":
        return size(computation[result.operands[1]].shape)
    return size(result.shape)


def bandwidth(group: tuple[int, ...], chip: Chip, devices) -> float:
    """Bytes/s that a device can send to others of a group: by the links of the torus' dimensions that the group spans.

    A group of GPUs that reaches beyond a host is as fast as its network.
    """
    if chip.platform == "cuda":
        inside = len({place // chip.island for place in group}) == 1
        return chip.links * chip.link if inside else chip.network
    coordinates = np.array([devices[place].coords for place in group])
    spanned = int((coordinates != coordinates[0]).any(axis=0).sum())
    return min(2 * max(spanned, 1), chip.links) * chip.link
