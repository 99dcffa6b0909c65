"""Unstructured pruning: zeroes single weights by magnitude, or magnitude times input norm (Wanda, arXiv:2306.11695).

N matrices  I inputs
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from deepseek_jax import compiling
from deepseek_jax.compress import source
from deepseek_jax.compress.config import PruneConfig
from deepseek_jax.compress.removal import Moments, Removed
from deepseek_jax.errors import UserError
from deepseek_jax.models.tree import flatten, unflatten
from deepseek_jax.train.checkpoints.restore import Trained
from deepseek_jax.views import masks
from deepseek_jax.views.matrices import Matrix, is_product
from deepseek_jax.views.pruned import masked, pruned_matrices


def check_weighed(given: Trained, settings: PruneConfig):
    """Raises UserError if Wanda is to prune a matrix whose inputs `calibrate.input_sums` does not measure."""
    for path, matrix in pruned_matrices(settings, flatten(given.params)).items():
        if not is_product(path, matrix):
            raise UserError(
                f"wanda cannot measure the inputs of {path}; give --paths without it, or --method magnitude."
            )


def remove(given: Trained, settings: PruneConfig, moments: Moments | None) -> Removed:
    """The model with its lowest-scoring weights set to zero."""
    return under(given, find_masks(given.params, settings, moments), settings)


def find_masks(params: dict, settings: PruneConfig, moments: Moments | None) -> dict[str, Array]:
    """Masks by path: Wanda's if `moments` are given, otherwise by magnitude."""
    flat = flatten(params)
    chosen = pruned_matrices(settings, flat)
    scores = {path: score(flat[path], matrix, moments and moments[path]) for path, matrix in chosen.items()}
    if settings.pattern:
        return masks.by_pattern(scores, chosen, settings.pattern)

    def largest(scores):
        return masks.largest(scores, chosen, settings.sparsity, settings.scope)

    return compiling.jit(static_argnums=(), least_memory=True)(largest)(scores)


def score(weight: Float[Array, "..."], matrix: Matrix, moments: Float[Array, "N I"] | None) -> Float[Array, "..."]:
    """|w|, times the norm of its input if `moments` (the input's sums of squares) are given."""
    if moments is None:
        return jnp.abs(weight)
    return (jnp.abs(matrix.fold(weight)) * jnp.sqrt(moments)[:, :, None]).reshape(weight.shape)


def under(given: Trained, found: dict[str, Array], settings: PruneConfig) -> Removed:
    """The model with zeros where masks `found` are false; its experiment keeps them zero (prune.method "zeros")."""
    params = masked(given.params, unflatten(found))
    keeping = PruneConfig(method="zeros", paths=settings.paths)
    pruned = dataclasses.replace(source.with_sections(given, prune=keeping), params=params)
    left = {path: (masks.count(mask), mask.size) for path, mask in found.items()}
    kept, total = map(sum, zip(*left.values()))
    return Removed(pruned, left, 1 - kept / total)


def on_early(pruned: Trained, early: Trained) -> Trained:
    """The weights of an earlier step with the zeros of a pruned model: "rewinding" (arXiv:1912.05671)."""
    flat = flatten(pruned.params)
    zeros = {path: flat[path] != 0 for path in pruned_matrices(pruned.experiment.prune, flat)}
    params = masked(early.params, unflatten(zeros))
    return dataclasses.replace(pruned, params=params, buffers=early.buffers, step=early.step)
