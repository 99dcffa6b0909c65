"""Lazy weights: a weight derived from others (adapters, masks, packed matrices) is computed inside its layer.

Thus only one layer's derived weights exist at a time, instead of all layers' for the whole step.

n layers of a stack
"""

import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import Array

from deepseek_jax.models.depth import stack_of
from deepseek_jax.parallel.logical import is_variable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LazyWeight:
    """Stands for the stacked weight [n ...] that make(*parts) computes.

    Each part is a tree of arrays [n ...], or of other LazyWeights.  `make` must treat layers independently: given a
    single layer's parts [1 ...], it returns that layer's weight.
    """

    parts: tuple
    make: Callable = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the stacked weight, which is not computed for it."""
        return jax.eval_shape(lambda parts: self.make(*materialised(parts)), self.parts).shape


def lazy_weight(path: str, make: Callable, *parts) -> Array | LazyWeight:
    """make(*parts) for the weight at `path`: lazily (a LazyWeight) if that is in a stack of layers, else at once."""
    return LazyWeight(parts, make) if stack_of(path) else make(*materialised(parts))


def materialised(tree):
    """The tree with every LazyWeight replaced by its array, for all layers of a stack at once."""

    def of(leaf):
        return leaf.make(*materialised(leaf.parts)) if is_lazy(leaf) else leaf

    return jax.tree.map(of, tree, is_leaf=is_lazy)


def of_layer(block):
    """A module sliced out of a stack (its arrays have lost their first dimension), with its lazy weights computed."""

    def of(param):
        value = param.get_raw_value()
        return param.replace(materialised(jax.tree.map(lambda part: part[None], value))[0]) if is_lazy(value) else param

    return jax.tree.map(of, block, is_leaf=is_variable)


def is_lazy(node) -> bool:
    return isinstance(node, LazyWeight)
