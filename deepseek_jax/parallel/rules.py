"""Logical axes to mesh axes: the one table that says where a parameter, a batch or an activation lies.

Parameters and activations name what their dimensions mean ("heads", "experts"), never where they lie; this table does,
and a change of parallelism is a change here.  Mesh axes: `stage` splits layers into the stages of a pipeline, `data`
copies parameters, `fsdp` shards them and the batch, `context` spreads each sequence, `expert` the experts, `tensor`
splits heads, feed-forward width and vocabulary.
"""

import functools
from collections.abc import Callable

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from deepseek_jax.errors import UserError
from deepseek_jax.parallel import order
from deepseek_jax.parallel.current import current_mesh, platform

# The dimension by which a parameter only lies apart, whole wherever the parameter is used; RANK, a compressed width,
# stands for it in matrices that no model dimension is part of, FEATURES in the hybrid network.  PIPELINED: see below.
STORED, RANK, FEATURES, PIPELINED = "embed", "rank", "features_in", "pipelined_layers"
ONLY_STORED = STORED, RANK, FEATURES
EXPERT_ROWS = "expert_rows"  # single experts of a stack of layers, in one dimension: few, and whole on every device

RULES = {
    "layers": None,  # scanned over, so every device holds its part of each layer
    PIPELINED: None,  # of the longest run of equal layers, the one that is run as a pipeline
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
    FEATURES: "fsdp",  # widths inside the hybrid network, on either side of a product; data and classes are whole
    "features_out": "tensor",
    # Each expert's group of devices works on its own part of the batch outside the experts.
    # So does each stage outside of the pipeline; inside, every stage sees all of a microbatch.
    "batch": ("stage", "data", "fsdp", "expert"),
    "microbatch": ("data", "fsdp", "expert"),
    "sequence": "context",
}
# Between steps stages share each layer as fsdp does, whatever layers they run: parallel/pipeline.py brings those.
RULES_OF_PIPELINED = RULES | dict.fromkeys((STORED, RANK), (RULES[STORED], RULES["stages"]))
TOKENS = *RULES["batch"], RULES["sequence"]  # the mesh axes that split tokens
TOKENS_OF_LAYER = *RULES["microbatch"], RULES["sequence"]  # those that do so in every layer, pipelined or not

# Of a dimension one name, none, or several: split by all of them.
Axes = tuple[str | tuple[str | None, ...] | None, ...]


def partition_spec(axes: Axes) -> PartitionSpec:
    """The mesh axes of an array whose dimensions carry the logical names `axes`."""
    unknown = [name for axis in axes for name in _names(axis) if name not in RULES]
    if unknown:
        raise KeyError(
            f"no rule for the logical axis {unknown[0]!r}; add it to the table in deepseek_jax/parallel/rules.py"
        )
    rules = RULES_OF_PIPELINED if PIPELINED in axes else RULES
    return PartitionSpec(*(_all_of(rules, axis) for axis in axes))


def spec_on(mesh: Mesh | AbstractMesh, axes: Axes, shape: tuple[int, ...]) -> PartitionSpec:
    """`partition_spec` of an array of this shape.

    Where a dimension carries several names and their devices together do not divide it, only the first counts: the
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
    found = [rules[name] for name in _names(axis)]
    over = tuple(name for each in found for name in ((each,) if isinstance(each, str) else each or ()))
    return over if len(over) > 1 else over[0] if over else None


def shardings(mesh: Mesh, axes_tree, shapes_tree):
    """NamedShardings for a tree of arrays, given the tree of their logical axes (a tuple of names a leaf).

    Raises UserError where a dimension is not a multiple of the devices it is split over.
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
    """Those of some mesh axes that have several devices."""
    names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
    return tuple(name for name in names if mesh.shape[name] > 1)


def undivided(mesh: Mesh | AbstractMesh, array: str, logical: str, size: int, mesh_axes: tuple[str, ...]) -> str:
    """The sentence on a dimension of an array that is not a multiple of the devices it is split over."""
    return (
        f"{array} has {logical} = {size}, which the {axis_size(mesh, mesh_axes)} devices of "
        f"mesh.{' x mesh.'.join(mesh_axes)} do not divide; choose another mesh.{mesh_axes[0]}."
    )


def abstract_on(mesh: Mesh, axes_tree, shapes_tree):
    """`shapes_tree` with the shardings of `shardings`: what arrays are read into."""
    at = shardings(mesh, axes_tree, shapes_tree)
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes_tree, at)


def axis_size(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    """Devices along one mesh axis, or along several together."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    size = 1
    for name in names:
        size *= mesh.shape[name]
    return size


def batch_sharding(mesh: Mesh, leading: int = 0, dims: int = 2) -> NamedSharding:
    """Of arrays [B, S, ...]: sequences and their tokens are spread; of arrays [B], where `dims` is 1, what they are of.

    `leading` dimensions before them are not: microbatches in time.
    """
    return NamedSharding(mesh, partition_spec((None,) * leading + ("batch", "sequence")[:dims]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def open_axes() -> frozenset[str]:
    """The mesh axes that have several devices and that the code around is not divided over by `jax.shard_map`."""
    mesh = current_mesh()
    if mesh is None:
        return frozenset()
    kinds = zip(mesh.axis_names, mesh.axis_types)
    return frozenset(name for name, kind in kinds if kind == AxisType.Auto and mesh.shape[name] > 1)


def divided(axes: str | tuple[str, ...]) -> tuple[str, ...]:
    """Those of some mesh axes that the code around is divided over: what there is to communicate along."""
    mesh = current_mesh()
    names = (axes,) if isinstance(axes, str) else axes
    return tuple(name for name in names if name in mesh.manual_axes and mesh.shape[name] > 1) if mesh else ()


def shard_map(f: Callable, in_axes: tuple, out_axes, **options) -> Callable:
    """`f` of every device's own parts, by `jax.shard_map` over all axes that it is not divided over already.

    `in_axes` and `out_axes` are trees of specifications by `open_spec`.  f itself where there is nothing to divide.
    """
    if not open_axes():
        return f
    mesh = current_mesh()
    # Axes of one device too: XLA knows that case best.
    names = frozenset(mesh.axis_names) - frozenset(mesh.manual_axes)
    run = jax.shard_map(f, in_specs=in_axes, out_specs=out_axes, axis_names=names, **options)
    if platform() != "cpu":
        return run
    same = functools.partial(jax.shard_map, axis_names=names, check_vma=False)
    return lambda *arrays: order.at_once(run(*order.at_once(arrays, in_axes, same)), out_axes, same)


def open_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """`partition_spec` as far as the mesh axes are open."""
    free = open_axes()

    def keep(mesh_axes):
        names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
        return tuple(name for name in names if name in free) or None

    return PartitionSpec(*(keep(mesh_axes) for mesh_axes in partition_spec(axes)))


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """x, lying as its logical axes say, one a dimension (None: whole); x itself without a current mesh.

    XLA finds out by itself where most activations lie; this tells it where it would guess wrong.  Mesh axes that the
    code around is already divided over, by `jax.shard_map`, are left as they are.
    """
    return jax.lax.with_sharding_constraint(x, open_spec(axes)) if open_axes() else x


def constrain_tokens(x: jax.Array) -> jax.Array:
    """An activation [B, S, ...] that is whole but for its tokens."""
    return constrain(x, ("batch", "sequence", *(None,) * (x.ndim - 2)))


def gathered(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A parameter's value, of logical `axes`, as it is used: whole along the dimension by which it only lies apart.

    Its gradient is spread again, so that devices add up only the part that each keeps.  Said here because XLA would
    weigh parameters against activations, and may gather the batch instead; where the batch lies over `fsdp` too and the
    result over `tensor`, the XLA of jax 0.10 and 0.12 even multiplies wrong parts.
    """
    stored = [dim for dim, axis in enumerate(axes) if axis in ONLY_STORED]
    if not stored:
        return x
    if names := divided(RULES[STORED]):
        return jax.lax.all_gather(varying(x, divided(TOKENS_OF_LAYER)), names, axis=stored[0], tiled=True)
    return _gathered(x, axes) if RULES[STORED] in open_axes() else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x, axes):
    return constrain(x, tuple(None if axis in ONLY_STORED else axis for axis in axes))


_gathered.defvjp(lambda x, axes: (_gathered(x, axes), None), lambda axes, _, dx: (constrain(dx, axes),))


def total(x: jax.Array, axes: str | tuple[str, ...]) -> jax.Array:
    """The sum over the devices along those of some mesh axes that the code around is divided over."""
    names = divided(axes)
    return jax.lax.psum(x, names) if names else x


def varying(tree, names: tuple[str, ...]):
    """Inside of `jax.shard_map`: arrays that are the same along the mesh axes `names`, as ones that may differ there.

    Their gradients are summed over those axes.
    """

    def vary(x):
        missing = tuple(name for name in names if name not in jax.typeof(x).manual_axis_type.varying)
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)


def varying_as(x: jax.Array, tree):
    """`varying` along the axes where x may differ: what a loop begins with must be of the type that it ends with."""
    return varying(tree, tuple(jax.typeof(x).manual_axis_type.varying))
