"""Meshes whose devices need not exist."""

import dataclasses

import jax
from jax.sharding import AxisType

from deepseek_jax.config import MeshConfig


def abstract_mesh(**sizes: int) -> jax.sharding.AbstractMesh:
    """A mesh of these sizes; axes that are not given have one device."""
    sizes = dataclasses.asdict(MeshConfig(data=1)) | sizes
    return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes))
