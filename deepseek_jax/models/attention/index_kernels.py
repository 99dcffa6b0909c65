"""The lightning indexer's scores by TPU kernels, which never write the products of single heads to main memory.

Tiles of scores are computed transposed, [t s]: then a head's weights for s queries are a row, as they lie in memory.

B batch  S queries  T keys  h index heads  i index width  s queries and t keys of a tile
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from deepseek_jax.models.attention.kernels import BY_WIDTH, block_size

QUERIES = 128  # of a tile, for all heads, so that they and their float32 gradients fit into a core's fast memory
BY_KEY = (((0,), (0,)), ((), ()))  # contracts the first dimensions of two matrices
ARRAYS = {"query": "BhSi", "weight": "BhS", "key": "BTi", "scores": "BST"}  # and their dimensions


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def index_scores(
    query_BShi: Float[Array, "B S h i"],
    weight_BSh: Float[Array, "B S h"],
    key_BTi: Float[Array, "B T i"],
    interpret: bool = False,
) -> Float[Array, "B S T"]:
    """sum_h w_h relu(q_h . k) in float32; `interpret` runs the kernels on any platform, slowly."""

    def kernel(query_hsi, weight_hs, key_ti, scores_st):
        def add(head, sum_ts):
            return sum_ts + _weight(weight_hs, head) * jax.nn.relu(_products(query_hsi, key_ti, head))

        start_ts = jnp.zeros((key_ti.shape[0], query_hsi.shape[1]), jnp.float32)
        scores_st[...] = jax.lax.fori_loop(0, query_hsi.shape[0], add, start_ts).T

    by_head = query_BShi.swapaxes(1, 2), weight_BSh.swapaxes(1, 2)
    return _call(kernel, (*by_head, key_BTi), ("scores",), interpret)[0]


def _forward(query_BShi, weight_BSh, key_BTi, interpret):
    return index_scores(query_BShi, weight_BSh, key_BTi, interpret), (query_BShi, weight_BSh, key_BTi)


def _backward(interpret, saved, dscores_BST):
    query_BShi, weight_BSh, key_BTi = saved
    arguments = query_BShi.swapaxes(1, 2), weight_BSh.swapaxes(1, 2), key_BTi, dscores_BST
    dquery_BhSi, dweight_BhS = _call(_add_to_queries, arguments, ("query", "weight"), interpret)
    (dkey_BTi,) = _call(_add_to_keys, arguments, ("key",), interpret, queries_inside=True)
    gradients = dquery_BhSi.swapaxes(1, 2), dweight_BhS.swapaxes(1, 2), dkey_BTi
    return tuple(gradient.astype(primal.dtype) for gradient, primal in zip(gradients, saved, strict=True))


index_scores.defvjp(_forward, _backward)


def _add_to_queries(query_hsi, weight_hs, key_ti, dscores_st, dquery_hsi, dweight_hs):
    """Adds a tile's part to the gradients of its queries and weights."""

    @pl.when(pl.program_id(2) == 0)
    def _begin():
        dquery_hsi[...], dweight_hs[...] = jnp.zeros_like(dquery_hsi), jnp.zeros_like(dweight_hs)

    dscores_ts = dscores_st[...].T

    def add(head, _):
        products_ts = _products(query_hsi, key_ti, head)
        dweight_hs[pl.ds(head, 1)] += (jax.nn.relu(products_ts) * dscores_ts).sum(axis=0, keepdims=True)
        dproducts_ts = _gradient(products_ts, dscores_ts, weight_hs, head, key_ti.dtype)
        dquery_hsi[head] += jax.lax.dot_general(dproducts_ts, key_ti[...], BY_KEY, preferred_element_type=jnp.float32)

    jax.lax.fori_loop(0, query_hsi.shape[0], add, None)


def _add_to_keys(query_hsi, weight_hs, key_ti, dscores_st, dkey_ti):
    """Adds a tile's part to the gradient of its keys."""

    @pl.when(pl.program_id(2) == 0)
    def _begin():
        dkey_ti[...] = jnp.zeros_like(dkey_ti)

    dscores_ts = dscores_st[...].T

    def add(head, sum_ti):
        products_ts = _products(query_hsi, key_ti, head)
        dproducts_ts = _gradient(products_ts, dscores_ts, weight_hs, head, key_ti.dtype)
        return sum_ti + jnp.matmul(dproducts_ts, query_hsi[head], preferred_element_type=jnp.float32)

    dkey_ti[...] += jax.lax.fori_loop(0, query_hsi.shape[0], add, jnp.zeros(dkey_ti.shape, jnp.float32))


def _products(query_hsi, key_ti, head):
    return jax.lax.dot_general(key_ti[...], query_hsi[head], BY_WIDTH, preferred_element_type=jnp.float32)


def _weight(weight_hs, head):
    return weight_hs[pl.ds(head, 1)]


def _gradient(products_ts, dscores_ts, weight_hs, head, dtype):
    return jnp.where(products_ts > 0, dscores_ts * _weight(weight_hs, head), 0).astype(dtype)


def _call(kernel, arguments, results, interpret, queries_inside=False):
    """Runs the kernel on every tile; the arguments are the first of ARRAYS, and the results are in float32.

    The grid's last dimension, along which a result that does not depend on it is summed, is that of the keys, or of the
    queries.
    """
    (B, h, S, i), T = arguments[0].shape, arguments[2].shape[1]
    s, t = min(QUERIES, block_size(S)), block_size(T)

    def tiled(*dims):
        """The array of these dimensions, of which each tile has a part along S and T."""

        def index(b, outside, inside):
            of_queries, of_keys = (inside, outside) if queries_inside else (outside, inside)
            return tuple({"B": b, "S": of_queries, "T": of_keys}.get(dim, 0) for dim in dims)

        # What stays the same along the grid's last dimension needs no second buffer for the next tile.  With one, a
        # float32 model with 64 heads of 128 would need 17.6 MiB of fast memory, where TPU v4 has 16.
        stays = ("S" if queries_inside else "T") not in dims
        whole, part = {"B": B, "S": S, "T": T, "h": h, "i": i}, {"B": None, "S": s, "T": t, "h": h, "i": i}
        shape = jax.ShapeDtypeStruct([whole[dim] for dim in dims], jnp.float32)
        return shape, pl.BlockSpec([part[dim] for dim in dims], index, pipeline_mode=pl.Buffered(1) if stays else None)

    arrays = {name: tiled(*dims) for name, dims in ARRAYS.items()}
    return pl.pallas_call(
        kernel,
        out_shape=[arrays[name][0] for name in results],
        grid=(B, T // t, S // s) if queries_inside else (B, S // s, T // t),
        in_specs=[arrays[name][1] for name, _ in zip(ARRAYS, arguments)],
        out_specs=[arrays[name][1] for name in results],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name=f"indexer_{'_'.join(results)}",
    )(*arguments)
