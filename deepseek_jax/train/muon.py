"""Muon, which orthogonalises the momentum of matrices (Jordan et al. 2024), in DeepSeek-V4's variant.

V4 runs ten Newton-Schulz steps in two stages: eight that drive all singular values towards 1, and two that settle them
there.  The update's root mean square is matched to AdamW's, so that one learning rate serves both (arXiv:2502.16982).

m rows  n columns of one matrix; `...` are dimensions that index matrices
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from deepseek_jax.models.tree import is_vector
from deepseek_jax.parallel.logical import path_of
from deepseek_jax.parallel.rules import EXPERT_ROWS, PIPELINED

MOMENTUM = 0.95
UPDATE_RMS = 0.18
NEWTON_SCHULZ = 8 * [(3.4445, -4.7750, 2.0315)] + 2 * [(2.0, -1.5, 0.5)]  # a, b, c of a X + b XX'X + c (XX')^2 X
EPS = 1e-7

# Logical axes that index separate matrices.
COUNTING = ("layers", PIPELINED, "experts", EXPERT_ROWS)
WIDTHS = ("embed", "rank", "features_in")  # beside heads: the input of a product if first, its output if last
LEFT_TO_ADAM = {"embedding", "head", "stream_head", "router"}  # names in a path: lookup tables and score matrices


@dataclasses.dataclass(frozen=True)
class MatrixDims:
    """How a parameter's dimensions form matrices: the first `counted` index them, the next `rows` form their rows."""

    counted: int
    rows: int


def matrix_dims(path: str, axes: tuple[str | None, ...]) -> MatrixDims | None:
    """How the parameter at `path` ("layers/1-3/attention/out") with these logical axes is read as matrices.

    None for parameters that stay with AdamW: embeddings, head, routers, norms, biases, and those with more than two
    dimensions whose axes do not say which are multiplied, such as convolution kernels.
    """
    counted = next((place for place, axis in enumerate(axes) if axis not in COUNTING), len(axes))
    names = path.split("/")
    if LEFT_TO_ADAM & set(names) or is_vector(names[-1]):  # by name: DoRA's magnitudes of head outputs are 2-D too
        return None
    match axes[counted:]:
        case (_, _):
            return MatrixDims(counted, 1)
        case (first, "heads", None) if first in WIDTHS:  # [in, heads, width of one]
            return MatrixDims(counted, 1)
        case ("rank", None, None):  # the same for heads that are not sharded, as in an indexer
            return MatrixDims(counted, 1)
        case ("heads", None, "rank"):  # a matrix for each group of heads (V4's grouped output)
            return MatrixDims(counted + 1, 1)
        case ("heads", None, last) if last in WIDTHS:  # [heads, width of one, out]
            return MatrixDims(counted, 2)
    return None


def dims_of(axes: dict) -> dict:
    """A tree like `axes`, which has a tuple of axis names per parameter, of MatrixDims or None."""

    def is_names(node):
        return isinstance(node, tuple)

    return jax.tree_util.tree_map_with_path(
        lambda path, names: matrix_dims(path_of(path), names), axes, is_leaf=is_names
    )


def scale_by_muon(axes: dict, others: optax.GradientTransformation) -> optax.GradientTransformation:
    """Muon's direction for matrices, recognised by the parameters' logical `axes`; that of `others` for the rest."""
    dims = dims_of(axes)
    labels = jax.tree.map(lambda dims: "others" if dims is None else "muon", dims, is_leaf=_is_dims)

    def orthogonal(updates, params=None):
        # optax.partition drops the other leaves from `updates`, so the rest are paired in order.
        leaves, structure = jax.tree.flatten(updates)
        kept = [found for found in jax.tree.leaves(dims, is_leaf=_is_dims) if found is not None]
        return structure.unflatten([orthogonal_update(*pair) for pair in zip(leaves, kept, strict=True)])

    muon = optax.chain(optax.trace(decay=MOMENTUM, nesterov=True), optax.stateless(orthogonal))
    return optax.partition({"muon": muon, "others": others}, labels)


def _is_dims(node) -> bool:
    return node is None or isinstance(node, MatrixDims)


def orthogonal_update(momentum: Array, dims: MatrixDims) -> Array:
    """The orthogonal matrices nearest to the momentum's, scaled to root mean square UPDATE_RMS, in its shape."""
    shape = momentum.shape
    split = dims.counted + dims.rows
    rows, columns = math.prod(shape[dims.counted : split]), math.prod(shape[split:])
    matrices = momentum.reshape(*shape[: dims.counted], rows, columns)
    # An orthogonal m x n matrix has min(m, n) singular values 1: its entries' mean square is 1 / max(m, n).
    return (orthogonalise(matrices) * (UPDATE_RMS * math.sqrt(max(rows, columns)))).reshape(shape)


def orthogonalise(x: Float[Array, "... m n"]) -> Float[Array, "... m n"]:
    """Approximately U V' of every matrix U S V'; singular values below some 1e-3 of the norm do not reach 1."""
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.swapaxes(-1, -2)  # so that X X' is the smaller of the two squares
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + EPS)

    def step(x, coefficients):
        a, b, c = coefficients
        square = x @ x.swapaxes(-1, -2)
        return a * x + (b * square + c * square @ square) @ x, None

    x, _ = jax.lax.scan(step, x, jnp.asarray(NEWTON_SCHULZ, x.dtype))
    return x if wide else x.swapaxes(-1, -2)
