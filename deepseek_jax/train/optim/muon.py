"""Muon, which orthogonalises the momentum of matrices (Jordan et al. 2024), in DeepSeek-V4's variant.

V4 runs ten Newton-Schulz steps in two stages: eight that drive all singular values towards 1, and two that settle them
there.  The update's root mean square is matched to AdamW's, so that one learning rate serves both (arXiv:2502.16982).

The steps need whole matrices.  On a mesh that shards matrices, devices therefore exchange shards: each receives its
share of the matrices whole, and sends the results back.  This is done a few matrices at a time, to save memory.

N matrices  m rows  n columns of one matrix; `...` are dimensions that index matrices
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from deepseek_jax.models.tree import is_vector
from deepseek_jax.parallel import order
from deepseek_jax.parallel.current import current_mesh
from deepseek_jax.parallel.logical import path_of
from deepseek_jax.parallel.rules import EXPERT_ROWS, PIPELINED, axis_size, several, shard_map, spec_on

MOMENTUM = 0.95
UPDATE_RMS = 0.18
NEWTON_SCHULZ = 8 * [(3.4445, -4.7750, 2.0315)] + 2 * [(2.0, -1.5, 0.5)]  # a, b, c of a X + b XX'X + c (XX')^2 X
EPS = 1e-7
# Numbers in the matrices that a device orthogonalises at once (64 MiB), as the steps need several times their memory.
AT_ONCE = 2**24

# Logical axes that index separate matrices.
COUNTING = ("layers", PIPELINED, "experts", EXPERT_ROWS)
WIDTHS = ("embed", "rank", "features_in")  # beside heads: the input of a product if first, its output if last
LEFT_TO_ADAM = {"embedding", "head", "stream_head", "router"}  # names in a path: lookup tables and score matrices


@dataclasses.dataclass(frozen=True)
class MatrixDims:
    """How a parameter's dimensions form matrices: the first `counted` index them, the next `rows` form their rows."""

    counted: int
    rows: int

    @property
    def columns(self) -> int:
        """The first dimension of those that form columns."""
        return self.counted + self.rows


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
    return jax.tree_util.tree_map_with_path(
        lambda path, names: matrix_dims(path_of(path), names), axes, is_leaf=_is_names
    )


def scale_by_muon(axes: dict, others: optax.GradientTransformation) -> optax.GradientTransformation:
    """Muon's direction for matrices, recognised by the parameters' logical `axes`; that of `others` for the rest."""
    dims = dims_of(axes)
    labels = jax.tree.map(lambda dims: "others" if dims is None else "muon", dims, is_leaf=_is_dims)
    leaves = zip(jax.tree.leaves(dims, is_leaf=_is_dims), jax.tree.leaves(axes, is_leaf=_is_names), strict=True)
    kept = [(found, names) for found, names in leaves if found is not None]

    def orthogonal(updates, params=None):
        # optax.partition drops the other leaves from `updates`, so the rest are paired in order.
        momenta, structure = jax.tree.flatten(updates)
        return structure.unflatten(orthogonal_updates(momenta, *zip(*kept, strict=True)) if momenta else [])

    muon = optax.chain(optax.trace(decay=MOMENTUM, nesterov=True), optax.stateless(orthogonal))
    return optax.partition({"muon": muon, "others": others}, labels)


def _is_names(node) -> bool:
    return isinstance(node, tuple)


def _is_dims(node) -> bool:
    return node is None or isinstance(node, MatrixDims)


def orthogonal_updates(momenta: list[Array], dims: Sequence[MatrixDims], axes: Sequence[tuple]) -> list[Array]:
    """The `orthogonal_update` of each momentum; `axes`: their logical axes, by which they are sharded on a mesh."""
    mesh = current_mesh()
    if mesh is None:
        return [orthogonal_update(*pair) for pair in zip(momenta, dims, strict=True)]
    specs = tuple(spec_on(mesh, names, momentum.shape) for momentum, names in zip(momenta, axes, strict=True))

    def of_device(*shards):
        updates = []
        for shard, found, spec in zip(shards, dims, specs, strict=True):
            earlier = (update[(0,) * update.ndim] for update in updates[-1:])
            # Of a matrix's dimensions only the first that forms rows and the first that forms columns are sharded.
            over = several(mesh, spec[found.counted]), several(mesh, spec[found.columns])
            updates.append(orthogonal_update(order.after(shard, *earlier), found, over))
        return tuple(updates)

    return list(shard_map(of_device, specs, specs, check_vma=False)(*momenta))


def orthogonal_update(momentum: Array, dims: MatrixDims, over: tuple = ((), ())) -> Array:
    """The orthogonal matrices nearest to the momentum's, scaled to root mean square UPDATE_RMS, in its shape.

    Inside `jax.shard_map`, for a device's shard of the momentum, `over` are the mesh axes by which (rows, columns) of
    each matrix are sharded.
    """
    shape = momentum.shape
    rows, columns = math.prod(shape[dims.counted : dims.columns]), math.prod(shape[dims.columns :])
    shards = momentum.reshape(-1, rows, columns)
    devices = [axis_size(current_mesh(), names) if names else 1 for names in over]
    whole = rows * devices[0], columns * devices[1]
    # An orthogonal m x n matrix has min(m, n) singular values 1: its entries' mean square is 1 / max(m, n).
    scale = UPDATE_RMS * math.sqrt(max(whole))

    def update(shards):
        for side, names in enumerate(over, start=1):
            if names:
                shards = jax.lax.all_to_all(shards, names, split_axis=0, concat_axis=side, tiled=True)
        updates = orthogonalise(shards) * scale
        for side, names in reversed(list(enumerate(over, start=1))):
            if names:
                updates = jax.lax.all_to_all(updates, names, split_axis=side, concat_axis=0, tiled=True)
        return updates

    at_once = max(1, AT_ONCE // math.prod(whole)) * math.prod(devices)
    return _in_parts(update, shards, math.prod(devices), at_once).reshape(shape)


def _in_parts(f: Callable, x: Float[Array, "N m n"], multiple: int, most: int) -> Float[Array, "N m n"]:
    """f(x) for a function of independent matrices, called with at most `most` of them, a `multiple` of some number."""
    count = len(x)
    size = min(most, -(-count // multiple) * multiple)
    if size >= count:
        return f(jnp.pad(x, [(0, size - count), (0, 0), (0, 0)]))[:count]

    def part(turn, result):  # the last part overlaps with the one before, as slices are moved to fit in
        computed = f(jax.lax.dynamic_slice_in_dim(x, turn * size, size))
        return jax.lax.dynamic_update_slice_in_dim(result, computed, turn * size, 0)

    return jax.lax.fori_loop(0, -(-count // size), part, jnp.zeros_like(x))


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
