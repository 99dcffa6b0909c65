"""Logical axes to mesh axes: the one table that says where a parameter or a batch lies.

A parameter names what its dimensions mean ("heads", "experts"), never where they lie; this table does, and a change of
parallelism is a change here.  Mesh axes: `data` copies parameters, `fsdp` shards them and the batch, `expert` spreads
the experts, `tensor` splits heads, feed-forward width and vocabulary.
"""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.errors import UserError

RULES = {
    "layers": None,  # scanned over, so every device holds its part of each layer
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "latent": None,  # the compressed key-value and query widths: small, and shared by all heads
    "mlp": "tensor",
    "experts": "expert",
    "expert_mlp": "tensor",
    # Each expert's group of devices works on its own part of the batch outside the experts.
    "batch": ("data", "fsdp", "expert"),
}


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of an array whose dimensions carry the logical names `axes`."""
    unknown = [axis for axis in axes if axis is not None and axis not in RULES]
    if unknown:
        raise KeyError(
            f"no rule for the logical axis {unknown[0]!r}; add it to the table in deepseek_jax/parallel/rules.py"
        )
    return PartitionSpec(*(RULES.get(axis) for axis in axes))


def shardings(mesh: Mesh, axes_tree, shapes_tree):
    """NamedShardings for a tree of arrays, given the tree of their logical axes (a tuple of names a leaf).

    Raises UserError where a dimension is not a multiple of the devices it is split over.
    """

    def place(path, array, axes):
        spec = partition_spec(axes)
        for size, logical, mesh_axes in zip(array.shape, axes, spec, strict=True):
            parts = axis_size(mesh, mesh_axes)
            if size % parts:
                raise UserError(
                    f"{jax.tree_util.keystr(path, simple=True, separator='/')} has {logical} = {size}, which the "
                    f"{parts} devices of mesh.{mesh_axes} do not divide; choose another mesh.{mesh_axes}."
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, shapes_tree, axes_tree)


def axis_size(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    """Devices along one mesh axis, or along several together."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    size = 1
    for name in names:
        size *= mesh.shape[name]
    return size


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Of arrays [B, ...]: the sequences are spread.  `leading` dimensions before them are not: microbatches in time."""
    return NamedSharding(mesh, partition_spec((None,) * leading + ("batch",)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
