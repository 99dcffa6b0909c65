"""Attention under any mask by TPU kernels, and its sum over heads, which an indexer learns to predict.

Neither writes the scores of single heads to the device's main memory.  The mask itself, a byte for each query and key,
is there, in three forms.

B batch  S queries  T keys  H heads (*H: absent if all heads share keys)  K key width  V value width
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jaxtyping import Array, Bool, Float

from deepseek_jax.models.attention.kernels import BY_WIDTH, block_size, block_sizes
from deepseek_jax.models.remat import kept

BLOCK = 512  # keys of a block


def attend_masked(
    q_BSHK: Float[Array, "B S H K"],
    k_BTHK: Float[Array, "B T *H K"],
    v_BTHV: Float[Array, "B T *H V"],
    mask_BST: Bool[Array, "B S T"],
    scale: float,
    sinks_H: Float[Array, " H"] | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "B S H V"], Float[Array, "B H S"]]:
    """Returns (softmax(scale * q k^T) v over the keys where the mask is true, log of the sum of its exponentials).

    The latter has no gradient.  `sinks_H`: a score of each head's that takes its share of the softmax and adds nothing.
    A query without keys gives zeros.  `interpret` runs the kernels on any platform, slowly.
    """
    (k_BTHK, v_BTHV), filled_BST = (_filled(x, axis=1) for x in (k_BTHK, v_BTHV)), _filled(mask_BST, axis=2)
    some_BS = mask_BST.any(axis=2)
    # The kernels divide by a sum over keys, so a query without any gets all of them; what it finds is dropped.
    filled_BST = filled_BST | ~some_BS[..., None]
    q_BHSK, k_BHTK, v_BHTV = (_heads_first(x) for x in (q_BSHK * scale, k_BTHK, v_BTHV))
    row = functools.partial(_attend, interpret)
    out_BHSV, total_BHS = kept(jax.vmap(row, (0, 0, 0, 0, None))(q_BHSK, k_BHTK, v_BHTV, filled_BST, sinks_H))
    return jnp.where(some_BS[..., None, None], out_BHSV.swapaxes(1, 2), 0), jax.lax.stop_gradient(total_BHS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(interpret, q_HSK, k_HTK, v_HTV, mask_ST, sinks_H):
    """(attention's output [H S V], log of the sum of exponentials [H S]); only the former has a gradient."""
    kernel = _splash(k_HTK, mask_ST, interpret, save_residuals=True)
    out_HSV, (total_HS,) = kernel(q_HSK, k_HTK, v_HTV, sinks=sinks_H)
    return out_HSV, total_HS


def _attend_forward(interpret, q_HSK, k_HTK, v_HTV, mask_ST, sinks_H):
    arguments = q_HSK, k_HTK, v_HTV, mask_ST, sinks_H
    return _attend(interpret, *arguments), arguments


def _attend_backward(interpret, saved, cotangents):
    """Splash gives either the sums or gradients, so these begin with a second forward pass."""
    *qkv, mask_ST, sinks_H = saved
    kernel = _splash(qkv[1], mask_ST, interpret)

    def attend(q_HSK, k_HTK, v_HTV, sinks_H):
        return kernel(q_HSK, k_HTK, v_HTV, sinks=sinks_H)

    *dqkv, dsinks_H = jax.vjp(attend, *qkv, sinks_H)[1](cotangents[0])
    return *dqkv, None, dsinks_H


_attend.defvjp(_attend_forward, _attend_backward)


def _filled(x, axis):
    """x with zeros (False) up to a multiple of a block's keys; unchanged if whole lanes of keys are already there."""
    if x.shape[axis] % splash.NUM_LANES == 0:
        return x
    return jnp.pad(x, [(0, -x.shape[axis] % BLOCK if each == axis else 0) for each in range(x.ndim)])


def _heads_first(x):
    """[B H T ...]; arrays without heads, which all share, stay as they are."""
    return x.swapaxes(1, 2) if x.ndim == 4 else x


def _splash(keys, mask_ST, interpret, **options):
    """Splash attention for keys [H T K], or [T K] that all heads share."""
    make = splash.make_splash_mha if keys.ndim == 3 else splash.make_splash_mqa
    settings = {"block_sizes": block_sizes(*mask_ST.shape), "head_shards": 1, "q_seq_shards": 1}
    kernel = make(mask_ST[None], **settings, interpret=interpret, **options)
    # It turns this flag, too, into an array, and then branches on it.
    kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
    return kernel


def sum_over_heads(
    q_BSHK: Float[Array, "B S H K"],
    k_BTHK: Float[Array, "B T *H K"],
    total_BHS: Float[Array, "B H S"],
    mask_BST: Bool[Array, "B S T"],
    scale: float,
    interpret: bool = False,
) -> Float[Array, "B S T"]:
    """The float32 sum over heads of the softmax whose log of the sum of exponentials is `total`, without a gradient.

    0 where the mask is false; blocks in which it is nowhere true are skipped.
    """
    fixed = jax.lax.stop_gradient((q_BSHK * scale, _filled(k_BTHK, axis=1)))
    (q_BHSK, k_BHTK), keys = map(_heads_first, fixed), mask_BST.shape[2]
    mask_BST = _filled(mask_BST, axis=2)
    (B, H, S, K), T = q_BHSK.shape, mask_BST.shape[2]
    s, t = block_size(S), block_size(T)
    some_Bij = mask_BST.reshape(B, S // s, s, T // t, t).any(axis=(2, 4)).astype(jnp.int32)

    # In a skipped block the head stays 0, so that nothing is copied for the others.
    k_spec = pl.BlockSpec((None, t, K), lambda b, i, j, h, some: (b, j, 0))
    if k_BHTK.ndim == 4:
        k_spec = pl.BlockSpec((None, None, t, K), lambda b, i, j, h, some: (b, h * some[b, i, j], j, 0))
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(B, S // s, T // t, H),
        in_specs=[
            pl.BlockSpec((None, None, s, K), lambda b, i, j, h, some: (b, h * some[b, i, j], i, 0)),
            k_spec,
            pl.BlockSpec((None, None, 1, s), lambda b, i, j, h, some: (b, h * some[b, i, j], 0, i)),
            pl.BlockSpec((None, s, t), lambda b, i, j, h, some: (b, i, j)),
        ],
        out_specs=pl.BlockSpec((None, s, t), lambda b, i, j, h, some: (b, i, j)),
    )
    order = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"))
    shape = jax.ShapeDtypeStruct(mask_BST.shape, jnp.float32)
    options = {"compiler_params": order, "interpret": interpret, "name": "attention_over_heads"}
    call = pl.pallas_call(_add_head, out_shape=shape, grid_spec=grid, **options)
    return call(some_Bij, q_BHSK, k_BHTK, total_BHS[:, :, None], mask_BST)[..., :keys]


def _add_head(some_Bij, q_sK, k_tK, total_1s, mask_st, sum_st):
    """The kernel of `sum_over_heads`: adds a head's part to a tile, if the mask is anywhere true in it."""
    b, i, j, h = map(pl.program_id, range(4))

    @pl.when(h == 0)
    def _begin():
        sum_st[...] = jnp.zeros_like(sum_st)

    @pl.when(some_Bij[b, i, j] > 0)
    def _add():
        scores_st = jax.lax.dot_general(q_sK[...], k_tK[...], BY_WIDTH, preferred_element_type=jnp.float32)
        sum_st[...] += jnp.where(mask_st[...], jnp.exp(scores_st - total_1s[0][:, None]), 0)
