"""Which weights stay: the largest of each matrix, output or model, or so many of every few inputs in a row.

Masks are true where a weight stays.  Thresholds are found by counting, so that they are exact, need no sort, and are
the same however the arrays are spread over devices.

N matrices  I inputs  O outputs  K weights that are compared with each other
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.compress.config import parse_pattern
from deepseek_jax.compress.matrices import Matrix
from deepseek_jax.errors import UserError
from deepseek_jax.halving import HIGHEST, bits_of, last_that


def largest(scores: dict[str, Float[Array, "..."]], chosen: dict[str, Matrix], sparsity, scope: str) -> dict:
    """Masks by path that leave out the share `sparsity` with the lowest scores (at least 0), of each by itself.

    Of several equal scores at the threshold all stay.  `sparsity` may be traced.
    """
    folded = {path: matrix.fold(scores[path]) for path, matrix in chosen.items()}
    if scope == "global":
        limit = _threshold(list(folded.values()), sparsity, (0, 1, 2))
        return {path: (bits_of(score) >= limit).reshape(scores[path].shape) for path, score in folded.items()}
    axes = {"layer": (1, 2), "output": (1,)}[scope]
    kept = {path: bits_of(score) >= _threshold([score], sparsity, axes) for path, score in folded.items()}
    return {path: mask.reshape(scores[path].shape) for path, mask in kept.items()}


def _threshold(scores: list[Float[Array, "N I O"]], sparsity, axes: tuple[int, ...]) -> Int[Array, "..."]:
    """The highest limit below which at most the share `sparsity` of all the scores along `axes` lies."""
    compared = sum(math.prod(score.shape[axis] for axis in axes) for score in scores)
    if compared > HIGHEST:
        raise UserError(f"{compared:,} weights are too many to compare with each other; choose the scope layer.")
    most = jnp.round(jnp.asarray(sparsity, jnp.float32) * compared).astype(jnp.int32)
    bits = [bits_of(score) for score in scores]

    def fits(limit):
        return sum((each < limit).sum(axes, keepdims=True, dtype=jnp.int32) for each in bits) <= most

    shape = [1 if axis in axes else size for axis, size in enumerate(scores[0].shape)]
    return last_that(fits, shape)


@functools.partial(jax.jit, static_argnums=(1, 2))
def of_pattern(score_NIO: Float[Array, "N I O"], n: int, m: int) -> Bool[Array, "N I O"]:
    """The n highest scores (at least 0) of every m inputs in a row stay, exactly; of equal ones the later."""
    N, I, O = score_NIO.shape
    grouped, place = bits_of(score_NIO).reshape(N, I // m, m, O), jnp.arange(m)[:, None]

    # All pairs are compared: to sort rows this short takes XLA's CPU code fifty times as long.
    def count(rival, above):
        bits = jax.lax.dynamic_slice_in_dim(grouped, rival, 1, axis=2)
        return above + ((bits > grouped) | ((bits == grouped) & (rival > place)))

    above = jax.lax.fori_loop(0, m, count, jnp.zeros_like(grouped))
    return (above < n).reshape(N, I, O)


def by_pattern(scores: dict[str, Float[Array, "..."]], chosen: dict[str, Matrix], pattern: str) -> dict:
    """Masks by path in which `pattern` ("2:4") holds along every output's inputs."""
    n, m = parse_pattern("pattern", pattern)
    folded = {path: matrix.fold(scores[path]) for path, matrix in chosen.items()}
    return {path: of_pattern(score, n, m).reshape(scores[path].shape) for path, score in folded.items()}


def that_divide(chosen: dict[str, Matrix], params: dict, m: int, key: str, given: bool) -> dict[str, Matrix]:
    """The matrices whose inputs come in whole groups of `m`.

    Raises UserError, naming the setting `key`, where none does, or one does not that was asked for by name (`given`).
    """
    inputs = {path: matrix.inputs_of(params[path].shape) for path, matrix in chosen.items()}
    fitting = {path: matrix for path, matrix in chosen.items() if inputs[path] % m == 0}
    if given and len(fitting) < len(chosen) or not fitting:
        path = next(path for path in chosen if path not in fitting)
        divisors = [size for size in (2, 4, 8, 16, 32, 64, 128) if inputs[path] % size == 0]
        fit = f"groups of {', '.join(map(str, divisors))} do" if divisors else "leave it out of the paths"
        raise UserError(f"{key}: {path} has {inputs[path]} inputs, into which groups of {m} do not fit; {fit}.")
    return fitting


def count(mask: Bool[Array, "... O"]) -> int:
    """How many stay: added up in 64 bits, as a stack of experts has more than 2^31 weights."""
    return int(np.asarray(mask.sum(axis=-1)).sum(dtype=np.int64))
