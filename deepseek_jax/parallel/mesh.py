"""Creates and checks the device mesh, whose axes have names, so that one device and a pod run the same program."""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from deepseek_jax.config import MeshConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.hybrid.config import HybridConfig
from deepseek_jax.parallel.rules import RULES, axis_size, only_axis

MeshOf = Callable[[ModelConfig | HybridConfig], Mesh]  # chooses the mesh on which to place a model


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """A mesh of all devices, or of those given, with the axes of MeshConfig; an axis of -1 gets the remaining devices.

    Raises UserError if the sizes do not fit the number of devices.
    """
    here, devices = devices is None, jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices), here=here)
    shape, names, types = tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes)
    try:
        return jax.make_mesh(shape, names, types, devices=devices)  # orders devices by the interconnect's topology
    except NotImplementedError:  # raised if the shape would have to split a side of the torus
        return Mesh(np.asarray(devices).reshape(shape), names, axis_types=types)


def inference_config(model: ModelConfig | HybridConfig) -> MeshConfig:
    """The mesh for using a model without training it, over all devices, whatever mesh it was trained on.

    Parameters are sharded (fsdp) over as many devices as divide the model's widths, and replicated over the rest.
    Hybrid networks are fully replicated: they are small and may have any widths.
    """
    if isinstance(model, HybridConfig):
        return MeshConfig()
    widths = model.hidden_size, model.q_lora_rank, model.kv_lora_rank, model.o_lora_rank
    return MeshConfig(fsdp=math.gcd(jax.device_count(), *widths))


def mesh_of_scored(model: ModelConfig | HybridConfig) -> Mesh:
    """The mesh for a model with which all processes score together."""
    return make_mesh(inference_config(model))


def mesh_of_used(model: ModelConfig | HybridConfig) -> Mesh:
    """The mesh for a model that each process may save or run independently, so each must hold all parameters."""
    return mesh_of_scored(model) if jax.process_count() == 1 else make_mesh(MeshConfig())


def axis_sizes(config: MeshConfig, num_devices: int, *, here: bool = False) -> dict[str, int]:
    """The number of devices along each axis; raises UserError if their product is not `num_devices`.

    `here`: the devices are this machine's actual ones, so the message suggests simulating more on a CPU.
    """
    sizes = dataclasses.asdict(config)
    rest = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(rest) > 1:
        raise UserError(f"mesh.{' and mesh.'.join(rest)} are both -1; only one axis can take what is left.")
    if num_devices % fixed or (not rest and fixed != num_devices):
        raise UserError(_misfit(sizes, num_devices, here))
    return {name: num_devices // fixed if size == -1 else size for name, size in sizes.items()}


def _misfit(sizes: dict[str, int], num_devices: int, here: bool) -> str:
    product = " x ".join(f"{name}={size}" for name, size in sizes.items() if size != 1) or "of one device"
    count = math.prod(size for size in sizes.values() if size != -1)
    needed = f"{count} device{'s' * (count > 1)}"
    if rest := -1 in sizes.values():
        needed = f"a multiple of {needed}"
    there = f"there {'are' if num_devices > 1 else 'is'} {num_devices}"
    change = "change the sizes" if rest else "change the sizes, or set one to -1 for the remaining devices"
    if here and count > num_devices:
        flag = f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        change += f"; JAX_PLATFORMS=cpu {flag} simulates {count} on a CPU, for a trial"
    return f"the mesh {product} needs {needed}, and {there}: {change}."


def check_batch(mesh: Mesh, name: str, size: int):
    """Raises UserError unless `size`, a number of sequences, is a multiple of the devices that share a batch.

    `name` is the setting that the message names.
    """
    _check(mesh, name, size, "batch", f"a batch (mesh axes {', '.join(RULES['batch'])})")


def check_sequence(mesh: Mesh, name: str, length: int):
    """Raises UserError unless `length` is a multiple of the devices that share a sequence; `name` is the setting."""
    _check(mesh, name, length, "sequence", f"a sequence (mesh.{only_axis('sequence')})")


def _check(mesh, name, size, logical, shared):
    parts = axis_size(mesh, RULES[logical])
    if size % parts:
        raise UserError(
            f"{name} is {size}, which is not divisible by the {parts} devices that share {shared}; "
            f"make it a multiple of {parts}."
        )
