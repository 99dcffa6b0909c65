"""The path of an array in a tree, and the logical axes that a parameter carries as metadata (rules.py maps them)."""

import jax
from flax import nnx


def path_of(path: tuple) -> str:
    """A JAX key path as text, e.g. "layers/1-3/attention/out"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_variable(node) -> bool:
    """For `is_leaf` of jax.tree.map: makes a module's variables the leaves, instead of their arrays."""
    return isinstance(node, nnx.Variable)


def axes_of(param: nnx.Variable) -> tuple[str | None, ...]:
    """The logical axes of a variable's present dimensions: inside a scan over layers it has lost the first one."""
    return param.out_sharding[-param[...].ndim :]
