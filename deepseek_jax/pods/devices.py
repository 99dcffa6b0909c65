"""Descriptions of devices that this machine does not have, from the platform's compiler."""

import importlib.util
import mmap
import os
from pathlib import Path

from deepseek_jax.errors import UserError
from deepseek_jax.parallel.topology import Topology

# By platform: the compiler's module and the extra that installs it.
COMPILERS = {"tpu": ("libtpu", "tpu"), "cuda": ("jax_plugins.xla_cuda13", "gpu")}
# Environment variables that compilers need on a machine without such devices.  Jax itself runs on the CPU; warnings are
# let through, because remarks.py reads them.
COMMON = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "1"}
ENVIRONMENTS = {
    # libtpu queries which TPU its machine belongs to, and must be told not to where there is none.  Its lock file would
    # refuse a second process, although processes that only compile share nothing.
    "tpu": {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
    },
    # CUB's sort queries the device for its scratch size during compilation; XLA's own sort does not.
    "cuda": {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "XLA_FLAGS": "--xla_gpu_enable_cub_radix_sort=false"},
}
OF_CHIPS = {
    # libtpu's threads overflow their 1 MiB stacks, and with JAX_OPTIMIZATION_LEVEL=O1 a check fails in the code that
    # offloads collectives to the SparseCores; either one aborts the process.
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
FLAGS = "XLA_FLAGS", "LIBTPU_INIT_ARGS"  # the user's flags are appended to ours, because the last of equal ones counts
# Names of the chips of parallel/chips.py in the device descriptions inside the CUDA plugin's library.
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
    except ModuleNotFoundError:  # its parent package is missing
        return False


def prepare(topology: Topology):
    """Sets environment variables, so call it before jax is imported; UserError if the compiler is not installed."""
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
    """The topology's devices, for a mesh to compile for; nothing can run on them."""
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
    """XLA's description of a GPU: a text between two zero bytes inside the plugin's shared library."""
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
