"""Attention under any mask by TPU kernels, and its sum over heads, which V3.2's indexer learns to predict.

Neither writes the scores of single heads to the device's main memory.

B batch  S queries  T keys  H heads  K key width  V value width
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


def attend_masked(
    q_BSHK: Float[Array, "B S H K"],
    k_BTHK: Float[Array, "B T H K"],
    v_BTHV: Float[Array, "B T H V"],
    mask_BST: Bool[Array, "B S T"],
    scale: float,
    interpret: bool = False,
) -> tuple[Float[Array, "B S H V"], Float[Array, "B S T"]]:
    """Returns (softmax(scale * q k^T) v over the keys where the mask is true, the sum of the softmax over heads).

    The sum is in float32 and has no gradient.  A query without keys gives zeros.  `interpret` runs the kernels on any
    platform, slowly.
    """
    q_BHSK, k_BHTK, v_BHTV = (x.swapaxes(1, 2) for x in (q_BSHK * scale, k_BTHK, v_BTHV))
    some_BS = mask_BST.any(axis=2)
    # The kernels divide by a sum over keys, so a query without any gets all of them; what it finds is dropped.
    filled_BST = mask_BST | ~some_BS[..., None]
    rows = functools.partial(_attend, interpret=interpret)
    out_BHSV, total_BHS = kept(jax.vmap(rows)(q_BHSK, k_BHTK, v_BHTV, filled_BST))
    out_BSHV = jnp.where(some_BS[..., None, None], out_BHSV.swapaxes(1, 2), 0)
    fixed = jax.lax.stop_gradient((q_BHSK, k_BHTK, total_BHS))
    return out_BSHV, _sum_over_heads(*fixed, mask_BST, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_HSK, k_HTK, v_HTV, mask_ST, interpret):
    """(attention's output [H S V], log of the sum of exponentials [H S]); only the former has a gradient."""
    out_HSV, (total_HS,) = _splash(mask_ST, interpret, save_residuals=True)(q_HSK, k_HTK, v_HTV)
    return out_HSV, total_HS


def _attend_forward(q_HSK, k_HTK, v_HTV, mask_ST, interpret):
    return _attend(q_HSK, k_HTK, v_HTV, mask_ST, interpret), (q_HSK, k_HTK, v_HTV, mask_ST)


def _attend_backward(interpret, saved, cotangents):
    """Splash gives either the sums or gradients, so these begin with a second forward pass."""
    *qkv, mask_ST = saved
    return *jax.vjp(_splash(mask_ST, interpret), *qkv)[1](cotangents[0]), None


_attend.defvjp(_attend_forward, _attend_backward)


def _splash(mask_ST, interpret, **options):
    settings = {"block_sizes": block_sizes(*mask_ST.shape), "head_shards": 1, "q_seq_shards": 1}
    kernel = splash.make_splash_mha(mask_ST[None], **settings, interpret=interpret, **options)
    # It turns this flag, too, into an array, and then branches on it.
    kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
    return kernel


def _sum_over_heads(q_BHSK, k_BHTK, total_BHS, mask_BST, interpret) -> Float[Array, "B S T"]:
    """The sum over heads of exp(q k^T - total) where the mask is true, 0 elsewhere; blocks without any are skipped."""
    (B, H, S, K), T = q_BHSK.shape, k_BHTK.shape[2]
    s, t = block_size(S), block_size(T)
    some_Bij = mask_BST.reshape(B, S // s, s, T // t, t).any(axis=(2, 4)).astype(jnp.int32)

    def kernel(some_Bij, q_sK, k_tK, total_1s, mask_st, sum_st):
        b, i, j, h = map(pl.program_id, range(4))

        @pl.when(h == 0)
        def _begin():
            sum_st[...] = jnp.zeros_like(sum_st)

        @pl.when(some_Bij[b, i, j] > 0)
        def _add():
            scores_st = jax.lax.dot_general(q_sK[...], k_tK[...], BY_WIDTH, preferred_element_type=jnp.float32)
            sum_st[...] += jnp.where(mask_st[...], jnp.exp(scores_st - total_1s[0][:, None]), 0)

    # In a skipped block the head stays 0, so that nothing is copied for the others.
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(B, S // s, T // t, H),
        in_specs=[
            pl.BlockSpec((None, None, s, K), lambda b, i, j, h, some: (b, h * some[b, i, j], i, 0)),
            pl.BlockSpec((None, None, t, K), lambda b, i, j, h, some: (b, h * some[b, i, j], j, 0)),
            pl.BlockSpec((None, None, 1, s), lambda b, i, j, h, some: (b, h * some[b, i, j], 0, i)),
            pl.BlockSpec((None, s, t), lambda b, i, j, h, some: (b, i, j)),
        ],
        out_specs=pl.BlockSpec((None, s, t), lambda b, i, j, h, some: (b, i, j)),
    )
    order = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"))
    shape = jax.ShapeDtypeStruct(mask_BST.shape, jnp.float32)
    options = {"compiler_params": order, "interpret": interpret, "name": "attention_over_heads"}
    call = pl.pallas_call(kernel, out_shape=shape, grid_spec=grid, **options)
    return call(some_Bij, q_BHSK, k_BHTK, total_BHS[:, :, None], mask_BST)
