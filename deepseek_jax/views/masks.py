"""Pruning masks: keep the largest weights of each matrix, output or model, or n of every m consecutive inputs.

Masks are true where a weight stays.  Thresholds are found by counting, so they are exact, need no sort, and do not
depend on how the arrays are sharded.

N matrices  I inputs  O outputs
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.compress.config import parse_pattern
from deepseek_jax.errors import UserError
from deepseek_jax.halving import HIGHEST, largest_satisfying, ordered_bits
from deepseek_jax.views.matrices import Matrix

# 2^32 / the golden ratio, modulo 2^31 and odd: its multiples modulo 2^31 are distinct and spread evenly.
LEAP = 0x1E3779B1


def largest(scores: dict[str, Float[Array, "..."]], chosen: dict[str, Matrix], sparsity, scope: str) -> dict:
    """Masks by path that drop the share `sparsity` of weights with the lowest scores, which must not be negative.

    The share is dropped from each layer or output, or from all matrices together ("global"), as `scope` says: exactly,
    rounded to whole weights, even where scores are equal.  `sparsity` may be a traced number.
    """
    folded = {path: matrix.fold(scores[path]) for path, matrix in chosen.items()}
    axes = {"global": (0, 1, 2), "layer": (1, 2), "output": (1,)}[scope]
    kept = {}
    for paths in [tuple(folded)] if scope == "global" else [(path,) for path in folded]:
        kept |= zip(paths, _kept([folded[path] for path in paths], sparsity, axes))
    return {path: mask.reshape(scores[path].shape) for path, mask in kept.items()}


def _kept(scores: list[Float[Array, "N I O"]], sparsity, axes: tuple[int, ...]) -> list[Bool[Array, "N I O"]]:
    """True for all but the lowest share `sparsity` of the scores along `axes`; ties are broken by `_places`."""
    compared = sum(math.prod(score.shape[axis] for axis in axes) for score in scores)
    if compared > HIGHEST:
        raise UserError(f"{compared:,} weights are too many to compare with each other; choose the scope layer.")
    gone = jnp.round(jnp.asarray(sparsity, jnp.float32) * compared).astype(jnp.int32)
    bits, shape = (
        [ordered_bits(score) for score in scores],
        [1 if a in axes else n for a, n in enumerate(scores[0].shape)],
    )

    def count(masks):
        return sum(mask.sum(axes, keepdims=True, dtype=jnp.int32) for mask in masks)

    def below(limit):
        return count(each < limit for each in bits)

    def equal_before(place):
        places = _places([score.shape for score in scores])
        return [(each == limit) & (before < place) for each, before in zip(bits, places)]

    limit = largest_satisfying(lambda limit: below(limit) <= gone, shape)
    of_equal = gone - below(limit)
    first_kept = jax.lax.cond(
        (of_equal > 0).any(),  # false if all scores differ
        lambda: largest_satisfying(lambda place: count(equal_before(place)) <= of_equal, shape),
        lambda: jnp.zeros(shape, jnp.int32),
    )
    return [(each >= limit) & ~equal for each, equal in zip(bits, equal_before(first_kept))]


def _places(shapes: list[tuple[int, int, int]]) -> list[Int[Array, "N I O"]]:
    """A number per weight by which ties are broken: distinct for up to 2^31 weights, and in a scattered order.

    In row-major order equal weights would all be dropped from the first inputs: a 4-bit model, where most weights are
    equal to others, would lose its first heads.
    """
    places, before = [], 0
    for N, I, O in shapes:
        n, i, o = (jax.lax.broadcasted_iota(jnp.int32, (N, I, O), axis) for axis in range(3))
        places.append((((n * I + i) * O + o + before) * LEAP) & HIGHEST)  # overflow leaves the low bits right
        before = (before + N * I * O) & HIGHEST
    return places


@functools.partial(jax.jit, static_argnums=(1, 2))
def of_pattern(score_NIO: Float[Array, "N I O"], n: int, m: int) -> Bool[Array, "N I O"]:
    """True for exactly n of every m consecutive inputs: the highest scores (not negative), later ones among equals."""
    N, I, O = score_NIO.shape
    grouped, place = ordered_bits(score_NIO).reshape(N, I // m, m, O), jnp.arange(m)[:, None]

    # All pairs are compared: sorting rows this short is fifty times slower in XLA's CPU code.
    def count(rival, above):
        bits = jax.lax.dynamic_slice_in_dim(grouped, rival, 1, axis=2)
        return above + ((bits > grouped) | ((bits == grouped) & (rival > place)))

    above = jax.lax.fori_loop(0, m, count, jnp.zeros_like(grouped))
    return (above < n).reshape(N, I, O)


def by_pattern(scores: dict[str, Float[Array, "..."]], chosen: dict[str, Matrix], pattern: str) -> dict:
    """Masks by path that follow `pattern` ("2:4": 2 of every 4 stay) along the inputs of every output."""
    n, m = parse_pattern("pattern", pattern)
    folded = {path: matrix.fold(scores[path]) for path, matrix in chosen.items()}
    return {path: of_pattern(score, n, m).reshape(scores[path].shape) for path, score in folded.items()}


def divisible_by(chosen: dict[str, Matrix], params: dict, m: int, key: str, given: bool) -> dict[str, Matrix]:
    """The matrices whose number of inputs is a multiple of `m`.

    Raises UserError, naming the setting `key`, if there is none, or if the user named the matrices (`given`) and not
    all of them fit.
    """
    inputs = {path: matrix.inputs_of(params[path].shape) for path, matrix in chosen.items()}
    fitting = {path: matrix for path, matrix in chosen.items() if inputs[path] % m == 0}
    if given and len(fitting) < len(chosen) or not fitting:
        path = next(path for path in chosen if path not in fitting)
        divisors = [size for size in (2, 4, 8, 16, 32, 64, 128) if inputs[path] % size == 0]
        fit = f"groups of {', '.join(map(str, divisors))} fit" if divisors else "leave it out of the paths"
        raise UserError(f"{key}: {path} has {inputs[path]} inputs, not a multiple of {m}; {fit}.")
    return fitting


def count(mask: Bool[Array, "... O"]) -> int:
    """How many weights stay: summed in 64 bits, as a stack of experts can have more than 2^31 weights."""
    return int(np.asarray(mask.sum(axis=-1)).sum(dtype=np.int64))
