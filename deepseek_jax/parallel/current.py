"""The mesh that the present code is being traced under."""

import jax
from jax.sharding import AbstractMesh


def current_mesh() -> AbstractMesh | None:
    """The mesh of the present trace (set by compiling.py); None if there is none or it has one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform() -> str | None:
    """The `jax.Device.platform` of the current mesh; None without a mesh or if only the mesh's shape is known.

    Used because `jax.lax.platform_dependent` would leave a conditional, which must not contain collectives (order.py).
    """
    mesh = current_mesh()
    return mesh.abstract_device.platform if mesh and mesh.abstract_device else None
