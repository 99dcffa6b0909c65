"""The device mesh: named axes, so that one device and a pod run the same program."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from deepseek_jax.config import MeshConfig
from deepseek_jax.errors import UserError
from deepseek_jax.parallel.rules import RULES, axis_size


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """A mesh of all devices, or of those given, with the axes of MeshConfig; -1 takes what the others leave."""
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(config)
    rest = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(rest) > 1:
        raise UserError(f"mesh.{' and mesh.'.join(rest)} are both -1; only one axis can take what is left.")
    if len(devices) % fixed or (not rest and fixed != len(devices)):
        product = " x ".join(f"{name}={size}" for name, size in sizes.items())
        raise UserError(
            f"the mesh {product} does not fit {len(devices)} devices; set one axis to -1 or change the sizes."
        )
    shape = tuple(len(devices) // fixed if size == -1 else size for size in sizes.values())
    if len(devices) == len(jax.devices()):
        return jax.make_mesh(shape, tuple(sizes), axis_types=(AxisType.Auto,) * len(shape))  # knows the chips' wiring
    return Mesh(np.asarray(devices).reshape(shape), tuple(sizes), axis_types=(AxisType.Auto,) * len(shape))


def check_batch(mesh: Mesh, name: str, size: int):
    """Raises UserError unless the devices that share a batch divide `size` sequences; `name` is the setting's."""
    _check(mesh, name, size, "batch", f"a batch (mesh axes {', '.join(RULES['batch'])})")


def check_sequence(mesh: Mesh, name: str, length: int):
    """Raises UserError unless the devices that share a sequence divide its `length`; `name` is the setting's."""
    _check(mesh, name, length, "sequence", f"a sequence (mesh.{RULES['sequence']})")


def _check(mesh, name, size, logical, shared):
    parts = axis_size(mesh, RULES[logical])
    if size % parts:
        raise UserError(
            f"{name} is {size}, which the {parts} devices that share {shared} do not divide; "
            f"make it a multiple of {parts}."
        )
