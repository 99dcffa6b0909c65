"""The mesh and the platform that the present code is being traced for."""

from collections.abc import Callable

import jax
from jax.sharding import AbstractMesh


def current_mesh() -> AbstractMesh | None:
    """The mesh of the present trace (set by compiling.py); None if there is none or it has one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform() -> str | None:
    """The `jax.Device.platform` of the devices that are traced for; None if unknown, as in a jit of the user's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else None


def on_host_devices() -> bool:
    """Whether the current mesh is one of several CPU devices."""
    return current_mesh() is not None and platform() == "cpu"


def by_platform(*arguments, default: Callable, **ways: Callable):
    """Calls the way of the platform that is traced for (cpu, tpu, cuda), or `default` if that has none.

    `jax.lax.platform_dependent` also traces all other ways, which takes as long as the rest of a training step.  So it
    is left to choose only where the platform is unknown, or a GPU, which may be of either maker.
    """
    known = platform()
    if known in ("cpu", "tpu"):
        return ways.get(known, default)(*arguments)
    return jax.lax.platform_dependent(*arguments, **ways, default=default)
