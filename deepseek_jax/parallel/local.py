"""What each device computes on its own part of the data: attention, experts, the vocabulary.

XLA must not try to divide it further.
"""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from deepseek_jax.models.tree import axes_of, is_variable
from deepseek_jax.parallel import rules

BY_TOKEN = ("batch", "sequence")
BY_HEAD = ("batch", "sequence", "heads")


def on_each_device(function: Callable, arguments: tuple, result) -> Callable:
    """`function` of each device's parts: of arguments, and into a result, whose dimensions carry logical names.

    Names are given for each argument, or for each part of a tree; further dimensions of an array are whole, and so is
    every argument named ().  The function itself where the current mesh leaves nothing to divide.
    """
    # JAX's check of which values differ between devices asks more than kernels and gradients by hand can tell it.
    return rules.shard_map(function, _specs(arguments), _specs(result), check_vma=False)


def as_it_lies(module):
    """The names of the dimensions of a module's parameters, as an argument's: each device is given its own part."""
    return jax.tree.map(axes_of, module, is_leaf=is_variable)


def over_heads(x: jax.Array) -> jax.Array:
    """The sum of what the devices that share the heads have."""
    return rules.total(x, rules.RULES["heads"])


def _specs(axes_tree):
    def names(node):
        return isinstance(node, tuple) and all(name is None or isinstance(name, str) for name in node)

    return jax.tree.map(lambda axes: rules.open_spec(axes) if axes else PartitionSpec(), axes_tree, is_leaf=names)
