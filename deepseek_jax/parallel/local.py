"""Per-device computation by shard_map, for parts that XLA must not shard by itself: attention, experts, vocabulary."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from deepseek_jax.parallel import rules
from deepseek_jax.parallel.logical import axes_of, is_variable

BY_TOKEN = ("batch", "sequence")
BY_HEAD = ("batch", "sequence", "heads")


def on_each_device(function: Callable, arguments: tuple, result) -> Callable:
    """`function`, called on each device with its shards of the arguments, and returning its shards of the result.

    `arguments` and `result` give the logical axes of the leading dimensions: a tuple of names for each argument, or a
    tree of them.  Further dimensions, and all of an argument with (), are not sharded.  Returns `function` itself if
    the current mesh has nothing to shard over.
    """
    # check_vma is off, as kernels and hand-written gradients cannot provide the types that it checks.
    return rules.shard_map(function, _specs(arguments), _specs(result), check_vma=False)


def stored_axes(module):
    """The logical axes of a module's parameters, for `on_each_device`: each device gets the shards that it holds."""
    return jax.tree.map(axes_of, module, is_leaf=is_variable)


def over_heads(x: jax.Array) -> jax.Array:
    """The sum over the devices that the heads are sharded over."""
    return rules.total(x, rules.RULES["heads"])


def _specs(axes_tree):
    def names(node):
        return isinstance(node, tuple) and all(name is None or isinstance(name, str) for name in node)

    return jax.tree.map(lambda axes: rules.unmapped_spec(axes) if axes else PartitionSpec(), axes_tree, is_leaf=names)
