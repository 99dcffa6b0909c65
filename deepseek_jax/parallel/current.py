"""The mesh that code is traced under."""

import jax
from jax.sharding import AbstractMesh


def current_mesh() -> AbstractMesh | None:
    """The mesh that a step is traced under (compiling.py); None where there is none or it has one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform() -> str | None:
    """What its devices are, as `jax.Device.platform` has it; None where there is none, or only its sizes are known.

    `jax.lax.platform_dependent` would leave a conditional, inside of which nothing may be sent (parallel/order.py).
    """
    mesh = current_mesh()
    return mesh.abstract_device.platform if mesh and mesh.abstract_device else None
