"""Accelerators' memory, peak FLOP/s and bandwidths as stated by their vendors, for estimates and utilisation.

Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} for TPUs; NVIDIA's data sheets of A100 80 GB SXM, H100 SXM,
H100 PCIe, H200 SXM and B200 for GPUs.  Peaks are for dense bfloat16.
"""

import dataclasses

GIB, GB, TFLOPS = 2**30, 1e9, 1e12


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts devices (see `devices_per_chip`).

    It has `links` fast links of `link` bytes/s each in one direction: a TPU's to its neighbours in the torus; a GPU has
    one, NVLink, to the `island` devices of its host.  `network`: bytes/s to other hosts' devices; 0 for a TPU's torus.
    """

    name: str
    kind: str  # a prefix of jax.Device.device_kind
    platform: str  # JAX's name: tpu, cuda
    memory: int  # bytes
    peak: float  # FLOP/s
    bandwidth: float  # bytes/s of the memory
    links: int
    link: float
    devices_per_chip: int = 1
    island: int = 0
    network: float = 0.0


# Google states a chip's total interconnect bandwidth, over all links and both directions: v5p's 1,200 GB/s are 6 links
# of 100 GB/s each way.  A tpu7x chip is two devices, each with half of its memory, peak and bandwidths.
_CHIPS = (
    Chip("v4", "TPU v4", "tpu", 32 * GIB, 275 * TFLOPS, 1228 * GB, links=6, link=50 * GB),
    Chip("v5e", "TPU v5 lite", "tpu", 16 * GIB, 197 * TFLOPS, 819 * GB, links=4, link=50 * GB),
    Chip("v5p", "TPU v5", "tpu", 95 * GIB, 459 * TFLOPS, 2765 * GB, links=6, link=100 * GB),
    Chip("v6e", "TPU v6 lite", "tpu", 32 * GIB, 918 * TFLOPS, 1638 * GB, links=4, link=100 * GB),
    Chip("tpu7x", "TPU7x", "tpu", 96 * GIB, 1153.5 * TFLOPS, 3690 * GB, links=6, link=50 * GB, devices_per_chip=2),
    Chip("a100", "NVIDIA A100", "cuda", 80 * 10**9, 312 * TFLOPS, 2039 * GB, 1, 300 * GB, island=8, network=25 * GB),
    Chip("h100", "NVIDIA H100", "cuda", 80 * 10**9, 989 * TFLOPS, 3350 * GB, 1, 450 * GB, island=8, network=50 * GB),
    Chip(
        "h100-pcie", "NVIDIA H100 PCIe", "cuda", 80 * 10**9, 756 * TFLOPS, 2000 * GB, 1, 64 * GB, island=8, network=50e9
    ),
    Chip("h200", "NVIDIA H200", "cuda", 141 * 10**9, 989 * TFLOPS, 4800 * GB, 1, 450 * GB, island=8, network=50 * GB),
    Chip("b200", "NVIDIA B200", "cuda", 180 * 10**9, 2250 * TFLOPS, 8000 * GB, 1, 900 * GB, island=8, network=50 * GB),
)
CHIPS = {chip.name: chip for chip in _CHIPS}


def chip_of(device_kind: str) -> Chip | None:
    """The chip whose `kind` is the longest matching prefix of jax.Device.device_kind; None if none matches."""
    found = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(found, key=lambda chip: len(chip.kind), default=None)
