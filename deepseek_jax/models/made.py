"""Lazy weights: what adapters, masks and packed matrices stand for is computed inside the layer that uses it.

So no more than one layer's such weights exist at a time, and not those of all layers for the whole of a step.

n layers of a stack
"""

import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import Array

from deepseek_jax.models.depth import stack_of
from deepseek_jax.models.tree import is_variable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Made:
    """In the place of a stacked weight [n ...]: `make(*parts)` is it, of trees of arrays [n ...] or of others of these.

    `make` treats every layer alike: of arrays [1 ...] it makes the weight of that layer alone.
    """

    parts: tuple
    make: Callable = dataclasses.field(metadata={"static": True})


def made(path: str, make: Callable, *parts) -> Array | Made:
    """make(*parts): at once, or of a stack of layers when they ask for it."""
    return Made(parts, make) if stack_of(path) else make(*materialised(parts))


def materialised(tree):
    """A tree with arrays in the place of what is still to be made, for all layers of a stack."""

    def of(leaf):
        return leaf.make(*materialised(leaf.parts)) if is_made(leaf) else leaf

    return jax.tree.map(of, tree, is_leaf=is_made)


def of_layer(block):
    """A module out of a stack, its arrays without their first dimension, with weights instead of what makes them."""

    def of(param):
        value = param.get_raw_value()
        return param.replace(materialised(jax.tree.map(lambda part: part[None], value))[0]) if is_made(value) else param

    return jax.tree.map(of, block, is_leaf=is_variable)


def is_made(node) -> bool:
    return isinstance(node, Made)
