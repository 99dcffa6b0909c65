"""The devices of a topology that is not here, as the compiler knows them."""

import importlib.util
import mmap
import os
from pathlib import Path

from deepseek_jax.errors import UserError
from deepseek_jax.parallel.topology import Topology

# The compiler of a platform: its module, the extra that installs it, and the environment that it wants where there is
# no such device.  Jax itself runs on the CPU, and warnings are let through, for they are read (compiling.py).
COMPILERS = {"tpu": ("libtpu", "tpu"), "cuda": ("jax_plugins.xla_cuda13", "gpu")}
COMMON = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "1"}
ENVIRONMENTS = {
    # libtpu asks its machine what TPU it is part of; where there is none it must be told not to.  Nor is there anything
    # that two processes which compile at once would have to share: a lock file of its own refuses the second.
    "tpu": {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
    },
    # CUB's sort asks the device for its scratch space while compiling; XLA's own does not.
    "cuda": {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "XLA_FLAGS": "--xla_gpu_enable_cub_radix_sort=false"},
}
OF_CHIPS = {
    # libtpu's threads overflow their stacks of a megabyte, and with JAX_OPTIMIZATION_LEVEL=O1 a check of what hands
    # collectives to the SparseCores fails; either aborts.
    "tpu7x": {
        "LIBTPU_INIT_ARGS": " ".join(
            [
                "--fibers_default_thread_stack_size=16777216",
                "--xla_tpu_enable_sparse_core_collective_offload_all_gather=false",
                "--xla_tpu_enable_sparse_core_collective_offload_all_reduce=false",
                "--xla_tpu_enable_sparse_core_collective_offload_reduce_scatter=false",
            ]
        )
    }
}
FLAGS = "XLA_FLAGS", "LIBTPU_INIT_ARGS"  # a user's follow ours, and the last of equal ones counts
# What the CUDA plugin calls the chips of parallel/chips.py in the descriptions that lie within its library.
DESCRIBED = {
    "a100": b"NVIDIA A100-SXM4-80GB",
    "h100": b"NVIDIA H100 80GB HBM3",
    "h100-pcie": b"NVIDIA H100 PCIe",
    "h200": b"NVIDIA H200 141GB HBM3e",
    "b200": b"NVIDIA B200",
}


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is part of
        return False


def prepare(topology: Topology):
    """Call before jax is imported; UserError where the compiler for these chips is not installed."""
    platform = topology.chip.platform
    module, extra = COMPILERS[platform]
    if not installed(module):
        raise UserError(
            f"compiling for {topology.name} needs {module}, which is not installed; in the checkout run "
            f"pip install -e '.[{extra}]' (it needs no {extra.upper()})."
        )
    ours = COMMON | ENVIRONMENTS[platform] | OF_CHIPS.get(topology.chip.name, {})
    given = {name: os.environ[name] for name in FLAGS if name in ours and name in os.environ}
    os.environ.update(ours | {name: f"{ours[name]} {flags}" for name, flags in given.items()})


def devices_of(topology: Topology) -> list:
    """For a mesh to compile for; nothing can run on them."""
    from jax.experimental import topologies

    if topology.chip.platform == "cuda":
        hosts, gpus = topology.grid
        asked = {"target_config": _description(topology), "topology": f"1x{hosts}x{gpus}"}
    else:
        asked = {"topology_name": topology.name}
    try:
        return list(topologies.get_topology_desc(platform=topology.chip.platform, **asked).devices)
    except Exception as error:  # compilers raise several kinds
        reason = str(error).splitlines()[0]
        raise UserError(f"the compiler knows no topology {topology.name}: {reason}") from None


def _description(topology: Topology) -> str:
    """XLA's description of a GPU, a text that lies in the plugin's library between two zero bytes."""
    package = Path(importlib.util.find_spec(COMPILERS["cuda"][0]).origin).parent
    name = b'device_description_str: "%s"' % DESCRIBED[topology.chip.name]
    with (package / "xla_cuda_plugin.so").open("rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
            place = library.find(name)
            if place < 0:
                raise UserError(
                    f"this CUDA plugin has no description of {topology.chip.name}; that of jax 0.12 has (Python 3.12)."
                )
            return library[library.rfind(b"\0", 0, place) + 1 : library.find(b"\0", place)].decode()
