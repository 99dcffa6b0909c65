"""Plans how tensors are sharded on a mesh, from shapes and logical axes alone, and reports problems and waste."""

import dataclasses
import math
import re
from collections.abc import Iterable

import jax
from jax.sharding import AbstractMesh

from deepseek_jax.config import MeshConfig
from deepseek_jax.parallel.logical import path_of
from deepseek_jax.parallel.mesh import axis_sizes
from deepseek_jax.parallel.rules import PIPELINED, axis_size, several, spec_on, undivided

STACKED = "layers", PIPELINED  # logical axes of the leading dimension of stacked layers
LARGE = 16 * 2**20  # bytes from which a replicated tensor is worth a warning


@dataclasses.dataclass(frozen=True)
class Placement:
    """One tensor: each dimension's logical axis, and the mesh axes (with several devices) that it is sharded over."""

    name: str
    shape: tuple[int, ...]
    itemsize: int
    logical: tuple[str | None, ...]
    mesh_axes: tuple[tuple[str, ...], ...]
    parts: tuple[int, ...]  # number of shards of each dimension

    @property
    def shard(self) -> tuple[int, ...]:
        return tuple(-(-size // parts) for size, parts in zip(self.shape, self.parts))

    @property
    def divides(self) -> bool:
        """Whether every dimension is a multiple of its number of shards, without which training refuses the tensor."""
        return not any(size % parts for size, parts in zip(self.shape, self.parts))

    @property
    def bytes_a_device(self) -> int:
        return math.prod(self.shard) * self.itemsize


def abstract_mesh(config: MeshConfig, num_devices: int) -> AbstractMesh:
    """The mesh of a config over `num_devices` devices, which need not exist."""
    sizes = axis_sizes(config, num_devices)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def placements(mesh: AbstractMesh, axes_tree, shapes_tree):
    """A tree with a Placement for each leaf, as `rules.shardings` would shard it.

    Shards of a dimension that does not divide evenly are rounded up here; `problems` reports it.
    """

    def place(path, array, axes):
        spec = spec_on(mesh, axes, array.shape)
        split = tuple(several(mesh, names) for names in spec)
        parts = tuple(axis_size(mesh, names) for names in split)
        logical = tuple(axis[0] if isinstance(axis, tuple) else axis for axis in axes)
        return Placement(path_of(path), array.shape, array.dtype.itemsize, logical, split, parts)

    return jax.tree_util.tree_map_with_path(place, shapes_tree, axes_tree)


def everywhere(leaf: jax.ShapeDtypeStruct) -> Placement:
    """The Placement of a replicated array."""
    dims = len(leaf.shape)
    return Placement("", leaf.shape, leaf.dtype.itemsize, (None,) * dims, ((),) * dims, (1,) * dims)


def grouped(tensors: Iterable[Placement]) -> dict[str, list[Placement]]:
    """Groups tensors that are the same part of different layers and sharded alike, under the name of that part.

    Includes those of MTP modules.  Tensors that a pipeline causes to be sharded differently keep their own names.
    """
    found = {}
    for tensor in tensors:
        part = re.sub(r"(^|/)(layers/[^/]+|mtp/[^/]+/block)/", r"\1", tensor.name)
        known = found.setdefault(part, [tensor])
        if _of_layer(known[0]) != _of_layer(tensor):
            found[tensor.name] = [tensor]
        elif known[0] is not tensor:
            known.append(tensor)
    return found


def _of_layer(tensor):
    return tensor.mesh_axes[tensor.logical[0] in STACKED :]


def problems(mesh: AbstractMesh, tensors: Iterable[Placement], num_experts: int) -> list[str]:
    """Sentences about tensors that cannot be sharded as planned, and about large ones replicated without need."""
    found = []
    if (experts := mesh.shape["expert"]) > num_experts:
        found.append(
            f"mesh.expert is {experts}, more than the {num_experts} experts; lower it and give the rest to mesh.fsdp."
        )
    for name, group in grouped(tensors).items():
        found += _uneven(mesh, name, group[0]) or _whole(mesh, name, group)
    return found


def _uneven(mesh, name, tensor):
    return [
        undivided(mesh, name, logical, size, names)
        for size, parts, logical, names in zip(tensor.shape, tensor.parts, tensor.logical, tensor.mesh_axes)
        if size % parts
    ]


def _whole(mesh, name, group):
    """Warns of a large tensor that is replicated although fsdp, expert or tensor could shard it."""
    size = sum(tensor.bytes_a_device for tensor in group)
    if math.prod(group[0].parts) > 1 or size < LARGE:
        return []
    could = [
        f"mesh.{axis}"
        for axis in ("fsdp", "expert", "tensor")
        if mesh.shape[axis] > 1 and any(length % mesh.shape[axis] == 0 for length in group[0].shape)
    ]
    if not could:
        return []
    logical = ", ".join(str(axis) for axis in group[0].logical)
    return [
        f"{name} is whole on every device, {size / 2**20:,.0f} MiB; {' or '.join(could)} could shard it, given a rule "
        f"for one of its axes ({logical})."
    ]
