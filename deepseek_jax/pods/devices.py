"""The devices of a topology that is not here, as the compiler knows them."""

import importlib.util
import os

from deepseek_jax.errors import UserError
from deepseek_jax.parallel.topology import Topology

# libtpu asks its machine what TPU it is part of; where there is none it must be told not to.  Jax runs on the CPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TF_CPP_MIN_LOG_LEVEL": "1",  # warnings too: they are read (compiling.py)
}


def prepare(topology: Topology):
    """Call before jax is imported; UserError where there is no compiler for these chips, or it is not installed."""
    if topology.chip.platform != "tpu":
        raise UserError(f"compile knows TPUs only; for {topology.name} there is `deepseek-jax plan`.")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"compiling for {topology.name} needs libtpu, which is not installed; run pip install 'deepseek-jax[tpu]' "
            "(it needs no TPU)."
        )
    os.environ.update(ENVIRONMENT)


def devices_of(topology: Topology) -> list:
    """For a mesh to compile for; nothing can run on them."""
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices)
    except Exception as error:  # libtpu raises several kinds
        reason = str(error).splitlines()[0]
        raise UserError(f"libtpu knows no topology {topology.name}: {reason}") from None
