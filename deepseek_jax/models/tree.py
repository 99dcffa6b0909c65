"""Modules as plain pytrees: create a model, split it into nested dicts of arrays, merge it again inside a trace.

Flax NNX runs in tree mode here: a module is a stateless pytree, so JAX transforms work on it directly (docs/models.md
lists those that routed experts do not support).  Between steps only plain dicts are passed around, which dispatch
several times faster than module pytrees.
"""

import flax
import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from deepseek_jax.errors import UserError
from deepseek_jax.parallel.logical import axes_of, is_variable, path_of
from deepseek_jax.parallel.rules import FEATURES, STORED, gathered

# Set for all threads: nnx.set_graph_mode and the like would only affect the thread that imports this.
flax.config.update("nnx_graph_mode", False)
flax.config.update("nnx_graph_updates", False)
flax.config.update("flax_always_shard_variable", False)


Parts = tuple[nnx.GraphDef, dict, dict]  # a model's structure, parameters and buffers, as returned by `split`


class Buffer(nnx.Variable):
    """State without a gradient (e.g. a router's bias): the train step returns its new value, no optimizer sees it."""


class KeysTogether(nnx.RngStream):
    """Gives the keys that nnx.RngStream gives, but derives `MANY` at a time.

    XLA inlines the cipher that derives a key, so a program that makes a model's parameters compiles a third faster if
    it does not contain that once for each of them.
    """

    MANY = 32

    def __init__(self, key: jax.Array | int, *, tag: str = "params"):
        super().__init__(key, tag=tag)
        self.given = 0

    def __call__(self) -> jax.Array:
        place = self.given % self.MANY
        if not place:
            counts = jnp.arange(self.given, self.given + self.MANY, dtype=jnp.uint32)
            self.keys = jax.vmap(jax.random.fold_in, (None, 0))(self.key[...], counts)
        self.given += 1
        return self.keys[place]


def new_rngs(key: jax.Array | int) -> nnx.Rngs:
    """nnx.Rngs(params=key), for a whole model: it compiles faster."""
    rngs = nnx.Rngs(params=key)
    rngs.params = KeysTogether(key)  # the constructor would take its key alone
    return rngs


def weight(key, shape: tuple[int, ...], axes: tuple[str | None, ...], scale: float) -> nnx.Param:
    """A parameter drawn from a normal distribution; `parallel/rules.py` maps its logical `axes` to axes of the mesh."""
    return nnx.Param(scale * jax.random.normal(key, shape, jnp.float32), out_sharding=axes)


def ones(size: int, axis: str | None = None) -> nnx.Param:
    return nnx.Param(jnp.ones((size,), jnp.float32), out_sharding=(axis,))


def zeros(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, jnp.float32), out_sharding=axes)


def constant(value, axes: tuple[str | None, ...]) -> nnx.Param:
    """A parameter initialised to this value."""
    return nnx.Param(jnp.asarray(value, jnp.float32), out_sharding=axes)


def used(param: nnx.Param, dtype) -> jax.Array:
    """A parameter's value cast to `dtype` and gathered if sharded; cast first, so that fewer bytes are communicated."""
    value = param[...].astype(dtype)
    return gathered(value, axes_of(param))


def stack(make, key, count: int, axis: str = "layers"):
    """`count` modules made by `make(key)`, as one module whose arrays have a leading dimension named `axis`."""
    make = nnx.transform_metadata(make, in_axes=0, out_axes=0, partition=axis)
    return jax.vmap(make)(jax.random.split(key, count))


def in_order(modules: nnx.Dict) -> list[tuple[str, nnx.Module]]:
    """(name, module) pairs in numeric order; `merge` leaves the names "0", "1", ... in text order, "10" before "2"."""
    return [(str(number), modules[str(number)]) for number in range(len(modules))]


def split(model) -> Parts:
    """Returns (structure, parameters, buffers): the structure is static, the others are nested dicts of arrays."""
    graphdef, params, buffers = nnx.split(model, nnx.Param, Buffer)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(buffers)


def merge(graphdef: nnx.GraphDef, params: dict, buffers: dict):
    """The inverse of `split`."""
    return nnx.merge(graphdef, params, buffers)


def is_vector(name: str) -> bool:
    """Whether parameters with this last path component are vectors; their rank does not tell, as stacking adds one."""
    return name in ("scale", "sinks") or name.endswith("bias")


def by_path(nested) -> dict[str, object]:
    """The leaves of a tree by their paths."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(nested)}


def flatten(nested: dict) -> dict[str, object]:
    """The leaves of nested dicts by their paths, as in `by_path`; anything that is not a dict is a leaf."""
    return traverse_util.flatten_dict(nested, sep="/")


def unflatten(flat: dict[str, object]) -> dict:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def logical_axes(model) -> tuple[dict, dict]:
    """(of parameters, of buffers): dicts nested like those of `split`, with each array's tuple of logical axes.

    UserError for an output projection of heads under a name by which its inputs would not be recognised.
    """

    def names(state):
        return jax.tree.map(lambda v: v.out_sharding, state, is_leaf=is_variable)

    _, params, buffers = nnx.split(model, nnx.Param, Buffer)
    params, buffers = (nnx.to_pure_dict(names(state)) for state in (params, buffers))
    for path, axes in flatten(params).items():
        of_heads = axes[axes.index("heads") :] if "heads" in axes else ()
        if len(of_heads) > 2 and axes[-1] in (STORED, FEATURES) and path.rpartition("/")[2] != "out":
            raise UserError(
                f"the parameter {path} projects heads to the model's width and must be called out: compression and "
                "adapters know by that name which of its dimensions are inputs (docs/architecture.md)."
            )
    return params, buffers
