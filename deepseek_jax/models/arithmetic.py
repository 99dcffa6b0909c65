"""How matrix products are computed, in the forward and backward pass: plainly, or emulating low-precision hardware.

A parameter's arithmetic is metadata on it, as its logical axes are (`give` sets it); without one it multiplies plainly.

R rows, one per token  I inputs  O outputs
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.parallel.logical import is_variable, path_of


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Transforms (e.g. rounds) the operands of y = x w and of its gradients dy w^T and x^T dy; this class does nothing.

    `rows` and `weight` transform the operands of y, `gradients` and `weight` those of the input's gradient dy w^T, and
    `inputs` and `outputs` those of the weight's gradient x^T dy, which sums over rows.  Dimensions before the last two
    are batch dimensions.
    """

    def rows(self, x: Float[Array, "... R I"]) -> Float[Array, "... R I"]:
        return x

    def weight(self, w: Float[Array, "... I O"]) -> Float[Array, "... I O"]:
        return w

    def gradients(self, dy: Float[Array, "... R O"]) -> Float[Array, "... R O"]:
        return dy

    def inputs(self, x: Float[Array, "... R I"]) -> Float[Array, "... R I"]:
        return x

    def outputs(self, dy: Float[Array, "... R O"]) -> Float[Array, "... R O"]:
        return dy

    def split_over(self, axes: tuple[str, ...]) -> "Arithmetic":
        """This arithmetic for use inside `jax.shard_map`, where each row of x is sharded over these mesh axes."""
        return self

    def product(self, x: Float[Array, "... R I"], w: Float[Array, "... I O"]) -> Float[Array, "... R O"]:
        return self.rows(x) @ self.weight(w)

    def into_input(self, dy: Float[Array, "... R O"], w: Float[Array, "... I O"]) -> Float[Array, "... R I"]:
        return self.gradients(dy) @ self.weight(w).swapaxes(-2, -1)

    def into_weight(self, x: Float[Array, "... R I"], dy: Float[Array, "... R O"]) -> Float[Array, "... I O"]:
        return self.inputs(x).swapaxes(-2, -1) @ self.outputs(dy)


PLAIN = Arithmetic()


def of(param: nnx.Variable) -> Arithmetic:
    return getattr(param, "arithmetic", PLAIN)


def give(module: nnx.Module, choose: Callable[[str, int], Arithmetic]) -> nnx.Module:
    """Sets each parameter's arithmetic to choose(path, number of dimensions), in place, and returns the module."""
    for path, param in jax.tree_util.tree_leaves_with_path(module, is_leaf=is_variable):
        if isinstance(param, nnx.Param):
            arithmetic = choose(path_of(path), param.get_value().ndim)
            if arithmetic != PLAIN:
                param.set_metadata("arithmetic", arithmetic)
    return module


def multiply(x: Float[Array, "... R I"], w: Float[Array, "... I O"], how: Arithmetic) -> Float[Array, "... R O"]:
    """x w under the arithmetic `how`, in x's dtype."""
    return x @ w if how is PLAIN else _multiply(x, w, how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply(x, w, how):
    return how.product(x, w).astype(x.dtype)


def _forward(x, w, how):
    return _multiply(x, w, how), (x, w)


def _backward(how, saved, dy):
    x, w = saved
    return how.into_input(dy, w).astype(x.dtype), how.into_weight(x, dy).astype(w.dtype)


_multiply.defvjp(_forward, _backward)
