"""Low-rank adapters beside matrices (LoRA, arXiv:2106.09685), also with learned output norms (DoRA, 2402.09353).

The model computes with W + alpha / rank * A B, which each layer of a stack computes when it runs; so any code that
multiplies by a matrix, fused experts too, works unchanged.  The sum and its gradient exist for one layer at a time;
optimizer state exists only for A and B.

N matrices  I inputs  O outputs  r rank
"""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deepseek_jax.errors import UserError
from deepseek_jax.models.depth import ADAPTERS
from deepseek_jax.models.lazy import lazy_weight
from deepseek_jax.models.tree import flatten, unflatten
from deepseek_jax.tune.config import LoraConfig
from deepseek_jax.views.matrices import LINEAR, Matrix, by_matrix, chosen, matrix_of, ranks
from deepseek_jax.views.view import View

TINY = 1e-30  # shorter weight vectors count as zero

# a [*leading dims, *input dims, r], b [*leading dims, r, *output dims]; for DoRA also scale [*leading, *output dims]
Adapter = dict[str, Array]


def adapters_view(config: LoraConfig, seed: int) -> View:
    """The view whose parameters are the model's and {"adapters": an Adapter at the path of each adapted matrix}."""

    def split(params, buffers):
        flat = flatten(params)
        new = {path: new_adapter(config, path, flat[path], seed) for path in adapted(config, flat)}
        return params | {ADAPTERS: nested(new)}, {"model": buffers}

    def weights(params, buffers, update):
        flat = flatten({name: tree for name, tree in params.items() if name != ADAPTERS})
        for path, adapter in by_matrix(params[ADAPTERS]).items():
            flat[path] = lazy_weight(path, functools.partial(merged, path=path, config=config), flat[path], adapter)
        return unflatten(flat), buffers["model"]

    def axes(params, buffers):
        flat = flatten(params)
        new = {path: _axes(config, flat[path], matrix) for path, matrix in adapted(config, ranks(flat)).items()}
        return params | {ADAPTERS: nested(new)}, {"model": buffers}

    return View(split, weights, axes)


def adapted(config: LoraConfig, flat: dict) -> dict[str, Matrix]:
    """The matrices that get adapters, among the arrays `flat` by path; UserError if config.paths matches none."""
    found = chosen(flat, config.paths, "tune.lora.paths", (LINEAR,))
    if "embedding" in found:
        raise UserError(
            f"tune.lora.paths is {config.paths!r}, which matches the embedding; adapters need matrix products."
        )
    return found


def new_adapter(config: LoraConfig, path: str, weight: Float[Array, "..."], seed: int) -> Adapter:
    """The initial adapter: A uniform as in the library peft, B zero, so that the model is unchanged at first.

    Raises UserError for a rank at which the adapter is no smaller than the matrix.
    """
    matrix = matrix_of(path, weight.ndim)
    leading, inputs, outputs = matrix.split(weight.shape)
    I, O = math.prod(inputs), math.prod(outputs)
    if config.rank * (I + O) >= I * O:
        most = -(-I * O // (I + O)) - 1
        fitting = f"at most {most} would" if most else "none would; name others in tune.lora.paths"
        raise UserError(
            f"tune.lora.rank is {config.rank}, too large to save anything on {path} of {I} x {O}; {fitting}."
        )
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
    bound = 1 / math.sqrt(I)
    a = jax.random.uniform(key, (*leading, *inputs, config.rank), jnp.float32, -bound, bound)
    new = {"a": a, "b": jnp.zeros((*leading, config.rank, *outputs), jnp.float32)}
    return new | ({"scale": lengths(weight, matrix)} if config.dora else {})


def merge(params: dict, adapters: dict[str, Adapter], config: LoraConfig) -> dict:
    """The model's parameters with the adapters merged in: one float32 sum per weight, and with DoRA a product.

    Without DoRA, `unmerge` restores each weight to within 2^-24 (|W| + |W + update|), exactly if its update is zero.
    """
    flat = flatten(params)
    return unflatten(flat | {path: merged(flat[path], one, path, config) for path, one in adapters.items()})


def unmerge(params: dict, adapters: dict[str, Adapter], config: LoraConfig) -> dict:
    """The inverse of `merge`, except for rounding; UserError for DoRA, which replaces the norms of the weights."""
    if config.dora:
        raise UserError(
            "adapters with DoRA cannot be subtracted again: they do not contain the norms that the weights had."
        )
    flat = flatten(params)
    return unflatten(flat | {path: flat[path] - update(one, path, config) for path, one in adapters.items()})


def merged(weight: Float[Array, "..."], adapter: Adapter, path: str, config: LoraConfig) -> Float[Array, "..."]:
    """The matrix at `path` with its adapter merged in."""
    total = weight + update(adapter, path, config)
    if "scale" not in adapter:
        return total
    matrix = matrix_of(path, weight.ndim)
    # The norm is treated as a constant in the gradient (DoRA, section 4.3), which saves memory and changes little.
    # An output whose weights are all zero, which pruning may cause, stays zero.
    factor = adapter["scale"] / jnp.maximum(jax.lax.stop_gradient(lengths(total, matrix)), TINY)
    return total * factor.reshape(_over_inputs(matrix, weight.shape))


def update(adapter: Adapter, path: str, config: LoraConfig) -> Float[Array, "..."]:
    """alpha / rank * A B, in the shape of the matrix that it is added to."""
    a, b, leading = adapter["a"], adapter["b"], geometry(path, adapter).leading
    N, r = math.prod(a.shape[:leading]), a.shape[-1]
    product_NIO = a.reshape(N, -1, r) @ b.reshape(N, r, -1)
    return config.scale * product_NIO.reshape(*a.shape[:-1], *b.shape[leading + 1 :])


def lengths(weight: Float[Array, "..."], matrix: Matrix) -> Float[Array, "..."]:
    """The Euclidean norm of each output's weights: [*leading dims, *output dims], float32."""
    inputs = tuple(range(matrix.leading, matrix.leading + matrix.inputs))
    return jnp.sqrt(jnp.square(weight.astype(jnp.float32)).sum(axis=inputs))


def nested(adapters: dict[str, Adapter]) -> dict:
    return unflatten({f"{path}/{part}": array for path, one in adapters.items() for part, array in one.items()})


def geometry(path: str, adapter: Adapter) -> Matrix:
    """The geometry of the matrix at `path`, to which the adapter belongs."""
    a, b = adapter["a"], adapter["b"]
    return matrix_of(path, a.ndim + b.ndim - 2 - matrix_of(path, a.ndim).leading)


def _axes(config, names, matrix):
    leading, inputs, outputs = matrix.split(names)
    new = {"a": (*leading, *inputs, None), "b": (*leading, None, *outputs)}
    return new | ({"scale": (*leading, *outputs)} if config.dora else {})


def _over_inputs(matrix, shape):
    leading, inputs, outputs = matrix.split(shape)
    return (*leading, *(1 for _ in inputs), *outputs)
