"""Modules as plain trees: make a model, take it apart into nested dicts of arrays, put it together inside a trace.

Flax NNX runs in tree mode here: a module is a stateless pytree, so JAX transforms work on it directly; what
routed experts lack of them is said in docs/models.md.  Between steps only plain dicts travel, which dispatch several
times faster than module pytrees.
"""

import flax
import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from deepseek_jax.parallel.rules import gathered

# For every thread: nnx.set_graph_mode and its like would do so for the one alone that imports this.
flax.config.update("nnx_graph_mode", False)
flax.config.update("nnx_graph_updates", False)
flax.config.update("flax_always_shard_variable", False)


Parts = tuple[nnx.GraphDef, dict, dict]  # of a model: its structure, parameters and buffers, as `split` gives them


class Buffer(nnx.Variable):
    """State that gets no gradient (a router's bias): the train step returns its new value, no optimizer sees it."""


def weight(key, shape: tuple[int, ...], axes: tuple[str | None, ...], scale: float) -> nnx.Param:
    """A normal parameter with its logical axes; `parallel/rules.py` maps those to axes of the mesh."""
    return nnx.Param(scale * jax.random.normal(key, shape, jnp.float32), out_sharding=axes)


def ones(size: int, axis: str | None = None) -> nnx.Param:
    return nnx.Param(jnp.ones((size,), jnp.float32), out_sharding=(axis,))


def zeros(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, jnp.float32), out_sharding=axes)


def constant(value, axes: tuple[str | None, ...]) -> nnx.Param:
    """A parameter that begins as this array of numbers."""
    return nnx.Param(jnp.asarray(value, jnp.float32), out_sharding=axes)


def used(param: nnx.Param, dtype) -> jax.Array:
    """A parameter's value as a layer computes with it.  Cast first, so that fewer bytes travel where it lies apart."""
    value = param[...].astype(dtype)
    return gathered(value, axes_of(param))


def axes_of(param: nnx.Variable) -> tuple[str | None, ...]:
    """The names of a variable's dimensions as it is here: inside of a scan over layers it has lost the first."""
    return param.out_sharding[-param[...].ndim :]


def is_variable(node) -> bool:
    """For `is_leaf` of jax.tree.map: to see the variables of a module and not their arrays."""
    return isinstance(node, nnx.Variable)


def stack(make, key, count: int, axis: str = "layers"):
    """`count` modules made by `make(key)`, as one module whose arrays have a leading axis of that logical name."""
    make = nnx.transform_metadata(make, in_axes=0, out_axes=0, partition=axis)
    return jax.vmap(make)(jax.random.split(key, count))


def in_order(modules: nnx.Dict) -> list[tuple[str, nnx.Module]]:
    """(name, module) of modules named "0", "1", ...; `merge` leaves them in the order of text, "10" before "2"."""
    return [(str(number), modules[str(number)]) for number in range(len(modules))]


def split(model) -> Parts:
    """(structure, parameters, buffers): the structure is static, the others nested dicts of arrays."""
    graphdef, params, buffers = nnx.split(model, nnx.Param, Buffer)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(buffers)


def merge(graphdef: nnx.GraphDef, params: dict, buffers: dict):
    """The model again, from what `split` gave."""
    return nnx.merge(graphdef, params, buffers)


def is_vector(name: str) -> bool:
    """Whether parameters of this last name are vectors; not told by rank, for stacks of layers add a dimension."""
    return name in ("scale", "sinks") or name.endswith("bias")


def path_of(path: tuple) -> str:
    """A path of jax's into a tree of arrays as text: "layers/1-3/attention/out"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_path(nested) -> dict[str, object]:
    """The leaves of a tree by their paths."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(nested)}


def flatten(nested: dict) -> dict[str, object]:
    """The leaves of nested dicts by their paths, as `by_path` has them; a leaf is whatever is no dict."""
    return traverse_util.flatten_dict(nested, sep="/")


def unflatten(flat: dict[str, object]) -> dict:
    """The nested dicts that `flatten` makes this of."""
    return traverse_util.unflatten_dict(flat, sep="/")


def logical_axes(model) -> tuple[dict, dict]:
    """The axis names of each dimension of each array, shaped like the two dicts that `split` gives."""

    def names(state):
        return jax.tree.map(lambda v: v.out_sharding, state, is_leaf=is_variable)

    _, params, buffers = nnx.split(model, nnx.Param, Buffer)
    return tuple(nnx.to_pure_dict(names(state)) for state in (params, buffers))
