"""Logical axes to mesh axes: the one table that determines how parameters, batches and activations are sharded.

Parameters and activations name what their dimensions mean ("heads", "experts"); only this table maps the names to mesh
axes, so a change of parallelism is a change here.  Mesh axes: `stage` splits layers into pipeline stages, `data` splits
the batch and replicates parameters, `fsdp` shards the batch and parameters, `context` splits each sequence, `expert`
the experts, `tensor` heads, feed-forward width and vocabulary.
"""

import functools
from collections.abc import Callable

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from deepseek_jax.errors import UserError
from deepseek_jax.parallel import order
from deepseek_jax.parallel.current import current_mesh, on_host_devices

# Axes by which a parameter is sharded only in storage: it is gathered along them wherever it is used.  STORED is the
# model dimension; RANK, a compressed width, takes its place in matrices without a model dimension, FEATURES in the
# hybrid network.  PIPELINED: see RULES.
STORED, RANK, FEATURES, PIPELINED = "embed", "rank", "features_in", "pipelined_layers"
ONLY_STORED = STORED, RANK, FEATURES
EXPERT_ROWS = "expert_rows"  # selected (layer, expert) pairs in one dimension (views/frozen.py): few, so replicated

RULES = {
    "layers": None,  # scanned over, so every device holds its shard of each layer
    PIPELINED: None,  # replaces "layers" in the stacks that run as a pipeline (schedule.pipelined)
    "stages": "stage",
    "vocab": "tensor",
    STORED: "fsdp",
    "heads": "tensor",
    "latent": None,  # the compressed key-value and query widths: small, and shared by all heads
    RANK: "fsdp",
    "mlp": "tensor",
    "experts": "expert",
    EXPERT_ROWS: None,
    "expert_mlp": "tensor",
    FEATURES: "fsdp",  # input and output widths of products inside the hybrid network, but not of its data or classes
    "features_out": "tensor",
    # Outside the experts, the devices along `expert` split the batch, too.  So do the stages outside the pipeline;
    # inside, every stage sees all of a microbatch.
    "batch": ("stage", "data", "fsdp", "expert"),
    "microbatch": ("data", "fsdp", "expert"),
    "sequence": "context",
}
# From here on all are tuples of mesh axes.
RULES = {name: (over,) if isinstance(over, str) else over or () for name, over in RULES.items()}
# Between steps each pipelined layer is sharded over all stages, as if by fsdp; parallel/pipeline.py collects each
# stage's layers.
RULES_OF_PIPELINED = RULES | {name: RULES[name] + RULES["stages"] for name in (STORED, RANK)}
TOKENS = RULES["batch"] + RULES["sequence"]  # the mesh axes that split tokens
TOKENS_OF_LAYER = RULES["microbatch"] + RULES["sequence"]  # those that split tokens in every layer, pipelined or not
# Those that split nothing but the batch: along them every device has the same parameters.
REPLICAS = tuple(
    axis
    for axis in RULES["microbatch"]
    if all(name in ("batch", "microbatch") for name, over in RULES.items() if axis in over)
)
# Whether the surrounding code is mapped over REPLICAS by `sum_of_replicas`.  Part of jit's cache key.
_OF_ONE_REPLICA = jax.make_user_context(default_value=False)


def only_axis(logical: str) -> str:
    """The mesh axis of a logical axis whose code takes exactly one; raises ValueError if it has another number."""
    if len(RULES[logical]) != 1:
        raise ValueError(
            f"the table in deepseek_jax/parallel/rules.py must map {logical!r} to one mesh axis, not {RULES[logical]}; "
            "to leave it whole, give that axis one device."
        )
    return RULES[logical][0]


# For each dimension a logical name, None, or several names: then it is sharded over the mesh axes of all of them.
Axes = tuple[str | tuple[str | None, ...] | None, ...]


def partition_spec(axes: Axes) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes; raises KeyError for an axis without a rule."""
    unknown = [name for axis in axes for name in _names(axis) if name not in RULES]
    if unknown:
        raise KeyError(
            f"no rule for the logical axis {unknown[0]!r}; add it to the table in deepseek_jax/parallel/rules.py"
        )
    rules = RULES_OF_PIPELINED if PIPELINED in axes else RULES
    return PartitionSpec(*(_all_of(rules, axis) for axis in axes))


def spec_on(mesh: Mesh | AbstractMesh, axes: Axes, shape: tuple[int, ...]) -> PartitionSpec:
    """`partition_spec` for an array of this shape.

    If a dimension with several names is not a multiple of all their devices together, only the first name is used: the
    others merely save memory.
    """
    split = zip(axes, shape, partition_spec(axes), strict=True)
    return partition_spec(
        tuple(
            axis[0] if isinstance(axis, tuple) and size % axis_size(mesh, over) else axis for axis, size, over in split
        )
    )


def _names(axis) -> tuple[str, ...]:
    return tuple(name for name in axis if name) if isinstance(axis, tuple) else (axis,) if axis else ()


def _all_of(rules, axis):
    over = tuple(mesh_axis for name in _names(axis) for mesh_axis in rules[name])
    return over if len(over) > 1 else over[0] if over else None


def shardings(mesh: Mesh, axes_tree, shapes_tree):
    """NamedShardings for a tree of arrays, given the tree of their logical axes (a tuple of names per leaf).

    Raises UserError if a dimension is not a multiple of the devices it is sharded over.
    """

    def place(path, array, axes):
        spec = spec_on(mesh, axes, array.shape)
        for size, axis, mesh_axes in zip(array.shape, axes, spec, strict=True):
            if size % axis_size(mesh, mesh_axes):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise UserError(undivided(mesh, name, _names(axis)[0], size, several(mesh, mesh_axes)))
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, shapes_tree, axes_tree)


def several(mesh: Mesh | AbstractMesh, mesh_axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Those of the given mesh axes that have more than one device."""
    names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
    return tuple(name for name in names if mesh.shape[name] > 1)


def undivided(mesh: Mesh | AbstractMesh, array: str, logical: str, size: int, mesh_axes: tuple[str, ...]) -> str:
    """The error message for an array's dimension that is not a multiple of the devices it is sharded over."""
    return (
        f"{array} has {logical} = {size}, which is not divisible by the {axis_size(mesh, mesh_axes)} devices of "
        f"mesh.{' x mesh.'.join(mesh_axes)}; choose another mesh.{mesh_axes[0]}."
    )


def abstract_on(mesh: Mesh, axes_tree, shapes_tree):
    """`shapes_tree` as ShapeDtypeStructs with their `shardings`, as needed to restore a checkpoint."""
    at = shardings(mesh, axes_tree, shapes_tree)
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes_tree, at)


def axis_size(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    """The number of devices along a mesh axis, or along several together."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    size = 1
    for name in names:
        size *= mesh.shape[name]
    return size


def batch_sharding(mesh: Mesh, leading: int = 0, dims: int = 2) -> NamedSharding:
    """The sharding of arrays [B, S, ...] by batch and sequence or, if `dims` is 1, of arrays [B] by batch.

    The first `leading` dimensions, such as microbatches of gradient accumulation, are not sharded.
    """
    return NamedSharding(mesh, partition_spec((None,) * leading + ("batch", "sequence")[:dims]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def unmapped_axes() -> frozenset[str]:
    """The mesh axes with several devices over which the surrounding code is not already mapped by `jax.shard_map`."""
    mesh = current_mesh()
    if mesh is None:
        return frozenset()
    kinds = zip(mesh.axis_names, mesh.axis_types)
    return frozenset(name for name, kind in kinds if kind == AxisType.Auto and mesh.shape[name] > 1)


def mapped_axes(axes: str | tuple[str, ...]) -> tuple[str, ...]:
    """Those of the given mesh axes with several devices over which the surrounding code is mapped by `jax.shard_map`.

    Collectives are possible and needed only along these.  In `sum_of_replicas` REPLICAS are not among them.
    """
    mesh = current_mesh()
    if mesh is None:
        return ()
    names = (axes,) if isinstance(axes, str) else axes
    mapped = set(mesh.manual_axes).difference(REPLICAS if _OF_ONE_REPLICA.value else ())
    return tuple(name for name in names if name in mapped and mesh.shape[name] > 1)


def sum_of_replicas(f: Callable, batch):
    """The sums over REPLICAS of all arrays in f(batch), each replica having its part of the batch [K, M, ...].

    They are summed after f, once: f computes as if there were no other replica, even in a `shard_map` inside it.
    """
    mesh = current_mesh()
    if mesh is None or not (names := several(mesh, REPLICAS)):
        return f(batch)

    def of_replica(batch):
        with _OF_ONE_REPLICA(True):
            found = f(batch)
        return jax.tree.map(lambda x: jax.lax.psum(x, names), found)

    # With the axes of one device: kernels on TPUs need all axes to be mapped, those that are left by `shard_map`.
    alone = frozenset(name for name, size in mesh.shape.items() if size == 1)
    options = {"axis_names": alone | set(names), "check_vma": False}
    return jax.shard_map(of_replica, in_specs=PartitionSpec(None, names), out_specs=PartitionSpec(), **options)(batch)


def shard_map(f: Callable, in_axes: tuple, out_axes, **options) -> Callable:
    """`f` mapped by `jax.shard_map` over all mesh axes that the surrounding code is not already mapped over.

    `in_axes` and `out_axes` are trees of PartitionSpecs from `unmapped_spec`.  Returns `f` itself if no axis is left.
    """
    if not unmapped_axes():
        return f
    mesh = current_mesh()
    # Includes axes of one device: XLA handles a shard_map over all axes best.
    names = frozenset(mesh.axis_names) - frozenset(mesh.manual_axes)
    run = jax.shard_map(f, in_specs=in_axes, out_specs=out_axes, axis_names=names, **options)
    if not on_host_devices():
        return run
    same = functools.partial(jax.shard_map, axis_names=names, check_vma=False)
    return lambda *arrays: order.available_together(
        run(*order.available_together(arrays, in_axes, same)), out_axes, same
    )


def unmapped_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """`partition_spec` restricted to the `unmapped_axes`."""
    free = unmapped_axes()

    def keep(mesh_axes):
        names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
        return tuple(name for name in names if name in free) or None

    return PartitionSpec(*(keep(mesh_axes) for mesh_axes in partition_spec(axes)))


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """x with its sharding constrained by logical axes, one per dimension (None: whole); unchanged without a mesh.

    XLA infers the sharding of most activations; use this where it would choose badly.  Mesh axes that the surrounding
    code is already mapped over by `jax.shard_map` are not affected.
    """
    return jax.lax.with_sharding_constraint(x, unmapped_spec(axes)) if unmapped_axes() else x


def constrain_tokens(x: jax.Array) -> jax.Array:
    """Constrains an activation [B, S, ...] to be sharded by batch and sequence only."""
    return constrain(x, ("batch", "sequence", *(None,) * (x.ndim - 2)))


def gathered(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A parameter's value, with logical `axes`, for use: all-gathered along the dimension sharded only in storage.

    Its gradient is reduce-scattered, so that each device sums only the shard that it keeps.  This is explicit because
    XLA might instead gather the batch, if it is smaller; with the batch sharded over `fsdp` too and the result over
    `tensor`, the XLA of jax 0.10 and 0.12 even multiplies the wrong shards.
    """
    stored = [dim for dim, axis in enumerate(axes) if axis in ONLY_STORED]
    if not stored:
        return x
    over = RULES[axes[stored[0]]]
    if names := mapped_axes(over):
        return jax.lax.all_gather(varying(x, mapped_axes(TOKENS_OF_LAYER)), names, axis=stored[0], tiled=True)
    return x if unmapped_axes().isdisjoint(over) else _gathered(x, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x, axes):
    return constrain(x, tuple(None if axis in ONLY_STORED else axis for axis in axes))


_gathered.defvjp(lambda x, axes: (_gathered(x, axes), None), lambda axes, _, dx: (constrain(dx, axes),))


def total(x: jax.Array, axes: str | tuple[str, ...]) -> jax.Array:
    """The sum over devices along those of the given mesh axes that the surrounding code is mapped over."""
    names = mapped_axes(axes)
    return jax.lax.psum(x, names) if names else x


def varying(tree, names: tuple[str, ...]):
    """Inside `jax.shard_map`: marks arrays that are equal along the mesh axes `names` as varying over them.

    Their gradients are then summed over those axes.
    """

    def vary(x):
        missing = tuple(name for name in names if name not in jax.typeof(x).manual_axis_type.varying)
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)


def varying_as(x: jax.Array, tree):
    """`varying` over the axes that x varies over, e.g. for a loop's initial carry, whose type must match its result."""
    return varying(tree, tuple(jax.typeof(x).manual_axis_type.varying))
