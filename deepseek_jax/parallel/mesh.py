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
    sizes = axis_sizes(config, len(devices))
    shape, names, types = tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes)
    try:
        return jax.make_mesh(shape, names, types, devices=devices)  # knows the chips' wiring
    except NotImplementedError:  # of a torus whose sides this shape would have to cut
        return Mesh(np.asarray(devices).reshape(shape), names, axis_types=types)


def axis_sizes(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Devices along each axis; UserError where the sizes do not multiply to `num_devices`."""
    sizes = dataclasses.asdict(config)
    rest = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(rest) > 1:
        raise UserError(f"mesh.{' and mesh.'.join(rest)} are both -1; only one axis can take what is left.")
    if num_devices % fixed or (not rest and fixed != num_devices):
        product = " x ".join(f"{name}={size}" for name, size in sizes.items())
        raise UserError(
            f"the mesh {product} does not fit {num_devices} devices; set one axis to -1 or change the sizes."
        )
    return {name: num_devices // fixed if size == -1 else size for name, size in sizes.items()}


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
