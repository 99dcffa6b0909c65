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

LEAP = 0x1E3779B1  # odd, and the golden ratio's part of 2^31: multiples of it lie evenly between 0 and 2^31


def largest(scores: dict[str, Float[Array, "..."]], chosen: dict[str, Matrix], sparsity, scope: str) -> dict:
    """Masks by path that leave out the share `sparsity` with the lowest scores (at least 0), of each by itself.

    Exactly that share, rounded to whole weights, also where scores are equal.  `sparsity` may be traced.
    """
    folded = {path: matrix.fold(scores[path]) for path, matrix in chosen.items()}
    axes = {"global": (0, 1, 2), "layer": (1, 2), "output": (1,)}[scope]
    kept = {}
    for paths in [tuple(folded)] if scope == "global" else [(path,) for path in folded]:
        kept |= zip(paths, _kept([folded[path] for path in paths], sparsity, axes))
    return {path: mask.reshape(scores[path].shape) for path, mask in kept.items()}


def _kept(scores: list[Float[Array, "N I O"]], sparsity, axes: tuple[int, ...]) -> list[Bool[Array, "N I O"]]:
    """All but the share `sparsity` of all the scores along `axes`, the lowest; of equal ones by their places."""
    compared = sum(math.prod(score.shape[axis] for axis in axes) for score in scores)
    if compared > HIGHEST:
        raise UserError(f"{compared:,} weights are too many to compare with each other; choose the scope layer.")
    gone = jnp.round(jnp.asarray(sparsity, jnp.float32) * compared).astype(jnp.int32)
    bits, shape = [bits_of(score) for score in scores], [1 if a in axes else n for a, n in enumerate(scores[0].shape)]

    def count(masks):
        return sum(mask.sum(axes, keepdims=True, dtype=jnp.int32) for mask in masks)

    def below(limit):
        return count(each < limit for each in bits)

    def equal_before(place):
        places = _places([score.shape for score in scores])
        return [(each == limit) & (before < place) for each, before in zip(bits, places)]

    limit = last_that(lambda limit: below(limit) <= gone, shape)
    of_equal = gone - below(limit)
    first_kept = jax.lax.cond(
        (of_equal > 0).any(),  # never, where all scores differ
        lambda: last_that(lambda place: count(equal_before(place)) <= of_equal, shape),
        lambda: jnp.zeros(shape, jnp.int32),
    )
    return [(each >= limit) & ~equal for each, equal in zip(bits, equal_before(first_kept))]


def _places(shapes: list[tuple[int, int, int]]) -> list[Int[Array, "N I O"]]:
    """Numbers that differ among up to 2^31 weights, and whose order leaps evenly over all of them.

    In the order of rows and columns equal weights would all go from the same first inputs: a model in four bits, where
    most are equal to others, would lose its first heads.
    """
    places, before = [], 0
    for N, I, O in shapes:
        n, i, o = (jax.lax.broadcasted_iota(jnp.int32, (N, I, O), axis) for axis in range(3))
        places.append((((n * I + i) * O + o + before) * LEAP) & HIGHEST)  # what overflows changes no low bit
        before = (before + N * I * O) & HIGHEST
    return places


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
