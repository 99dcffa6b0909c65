"""How fast a compiled step could be: an estimate from its computation, memory traffic and communication.

It is a bound, not a forecast: each of the three runs at the vendor's peak.  A step takes as long as the longest of them
if they overlap entirely, and as their sum if not at all; a real step takes longer than the former.
"""

import dataclasses

import numpy as np

from deepseek_jax.parallel.chips import Chip
from deepseek_jax.pods.collectives import Collective
from deepseek_jax.pods.hlo import Instruction, Program, size

# Instructions that write nothing new: views, and those whose bytes are counted in the computations they run.
FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "after-all"}
FREE |= {"copy-done", "call-done", "async-done", "iota", "partition-id", "replica-id", "opt-barrier"}
ASYNC_SUFFIXES = (
    "-start",
    "-update",
)  # asynchronous; "-done" is counted instead, as shapes of these include the operands
# Factor on a step's FLOPs, by train.remat.  For dots it leaves out the last of the experts' three products, and
# attention without a TPU's kernel.
COMPUTED_AGAIN = {"none": 1.0, "dots": 1.0, "full": 4 / 3}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds per step for each kind of work, if each ran alone at the hardware's peak."""

    compute: float
    memory: float
    network: float
    useful: float  # share of `compute` that is not recomputation (remat)

    @property
    def fastest(self) -> float:
        return max(self.compute, self.memory, self.network)

    @property
    def slowest(self) -> float:
        return self.compute + self.memory + self.network

    def utilisation(self, seconds: float) -> float:
        """Model FLOPs utilisation (MFU) of a step that takes `seconds`."""
        return self.compute * self.useful / seconds


def roofline(program: Program, found: list[Collective], flops: float, remat: str, chip: Chip, devices) -> Roofline:
    """The Roofline of a program.  `flops`: a step's, summed over all devices; `devices`: in the order of the mesh."""
    again = COMPUTED_AGAIN[remat]
    return Roofline(
        compute=flops * again / (len(devices) * chip.peak),
        memory=2 * bytes_written(program) / chip.bandwidth,  # whatever is written is read at least once
        network=sum(each.sent / bandwidth(each.group, chip, devices) for each in found),
        useful=1 / again,
    )


def bytes_written(program: Program) -> int:
    """Bytes written to a device's main memory per step."""
    return sum(
        times * _written(each, program)
        for each, _, times, fused in program.executed()
        if not fused and each.opcode not in FREE and not each.opcode.endswith(ASYNC_SUFFIXES)
    )


def _written(each: Instruction, program: Program) -> int:
    """Bytes of its result; a dynamic-update-slice writes only the slice, not the whole array."""
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
    """Bytes per second that a device can send within a group: over the links of the torus dimensions that it spans.

    A group of GPUs on several hosts is as fast as the network between hosts.
    """
    if chip.platform == "cuda":
        inside = len({place // chip.island for place in group}) == 1
        return chip.links * chip.link if inside else chip.network
    coordinates = np.array([devices[place].coords for place in group])
    spanned = int((coordinates != coordinates[0]).any(axis=0).sum())
    return min(2 * max(spanned, 1), chip.links) * chip.link
