"""Structured pruning: removes whole heads, hidden units, channels or experts.  Arrays shrink; no masks are left.

A cut describes units that can be removed one by one, and the indices of every array that belong to each unit.

N sets of units, one per layer of a stack (for units inside routed experts: one per expert)
U units of a set   R indices that a unit has in a dimension
"""

import dataclasses
import math

import numpy as np

from deepseek_jax.compress.removal import Moments, Removed
from deepseek_jax.compress.source import with_model
from deepseek_jax.models.tree import flatten, unflatten
from deepseek_jax.train.checkpoints.restore import Trained
from deepseek_jax.views.matrices import matrix_of


@dataclasses.dataclass(frozen=True)
class Part:
    """A dimension of the array at `path`; column u of `places` [R, U] holds the indices there that belong to unit u.

    `dim` does not count the leading dimensions of its cut.
    """

    path: str
    dim: int
    places: np.ndarray


@dataclasses.dataclass(frozen=True)
class Cut:
    """The first `leading` dimensions of each array enumerate sets of units; `keep` units of each set stay."""

    parts: tuple[Part, ...]
    leading: int
    keep: int


def kept(size: int, share: float) -> int:
    """How many of `size` units stay when `share` of them is removed: at least one."""
    return max(1, round(size * (1 - share)))


def plain(path: str, dim: int, units: int) -> Part:
    """A dimension in which unit u owns exactly index u."""
    return Part(path, dim, np.arange(units)[None])


def arrays(given: Trained) -> dict[str, np.ndarray]:
    """Parameters and buffers by path; no path is in both."""
    found = flatten(given.params) | flatten(given.buffers)
    return {path: np.asarray(leaf) for path, leaf in found.items()}


def importance(cut: Cut, flat: dict[str, np.ndarray], moments: Moments) -> np.ndarray:
    """[N, U]: the energy (sum of squares) that each unit adds to the outputs of the matrices that read it.

    It is the sum of w^2 times the inputs' sums of squares, `moments`, over those weights.
    """
    total = 0.0
    for part in cut.parts:
        weight, matrix = flat[part.path], matrix_of(part.path, flat[part.path].ndim)
        within = part.dim + cut.leading
        if matrix is None or not matrix.leading <= within < matrix.leading + matrix.inputs or part.path not in moments:
            continue
        flowing = np.asarray(moments[part.path]).reshape(
            *weight.shape[: matrix.leading + matrix.inputs], *(1,) * (weight.ndim - matrix.leading - matrix.inputs)
        )
        energy = _by_set(weight.astype(np.float64) ** 2 * flowing, cut.leading)
        energy = energy.sum(axis=tuple(axis for axis in range(1, energy.ndim) if axis != part.dim + 1))
        total = total + energy[:, part.places].sum(axis=1)
    return total


def strongest(score_NU: np.ndarray, keep: int) -> np.ndarray:
    """[N, U]: true for the `keep` units of each set that score highest."""
    rank = np.argsort(np.argsort(-score_NU, axis=1, kind="stable"), axis=1)
    return rank < keep


def remove(given: Trained, model, choices: list[tuple[Cut, np.ndarray]]) -> Removed:
    """The source with `model` as its config, and of each cut only the units whose choice [N, U] is true."""
    flat = arrays(given)
    stays = {}  # by path and dimension, as several cuts may remove indices from the same one
    for cut, chosen in choices:
        for part in cut.parts:
            at = part.path, cut.leading + part.dim
            shape = math.prod(flat[part.path].shape[: cut.leading]), flat[part.path].shape[at[1]]
            leading, mask = stays.setdefault(at, (cut.leading, np.ones(shape, bool)))
            for number, units in enumerate(chosen):
                mask[number, part.places[:, ~units].ravel()] = False
    sizes = {path: leaf.size for path, leaf in flat.items()}
    for (path, dim), (leading, mask) in stays.items():
        flat[path] = _taken(flat[path], dim, leading, mask)
    left = {path: (flat[path].size, sizes[path]) for path in dict.fromkeys(path for path, _ in stays)}
    share = 1 - sum(int(chosen.sum()) for _, chosen in choices) / sum(chosen.size for _, chosen in choices)
    return Removed(with_arrays(given, model, flat), left, share)


def _taken(array, dim, leading, mask) -> np.ndarray:
    sets = _by_set(array, leading)
    parts = [np.compress(stays, one, axis=dim - leading) for one, stays in zip(sets, mask, strict=True)]
    return np.stack(parts).reshape(*array.shape[:leading], *parts[0].shape)


def _by_set(array, leading) -> np.ndarray:
    return array.reshape(math.prod(array.shape[:leading]), *array.shape[leading:])


def with_arrays(given: Trained, model, flat: dict[str, np.ndarray]) -> Trained:
    """The source with `model` as its config and the arrays `flat`, by path, in place of its own."""
    params, buffers = (
        unflatten({path: flat[path] for path in flatten(tree)}) for tree in (given.params, given.buffers)
    )
    return with_model(given, model, params, buffers)
