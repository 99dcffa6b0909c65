"""Softmax attention over explicit queries, keys and values, and who may see whom.

B batch  S query length  T key length  H heads  G key heads  e = H/G queries a key  K key width  V value width
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.models.attention import kernels
from deepseek_jax.parallel.context import places, whole_sequence

SMALLEST_BLOCK, MOST_BLOCKS = 128, 8  # queries attended at a time; more blocks save work and cost compile time


def causal_mask(
    segment_ids_BS: Int[Array, "B S"], places_S: Int[Array, " S"], of_keys_BT: Int[Array, "B T"]
) -> Bool[Array, "B S T"]:
    """Tokens see themselves and what came before in their document; padding takes no part.

    `places_S` says where the queries are among the keys, whose segments are `of_keys_BT`.
    """
    before_ST = jnp.arange(of_keys_BT.shape[1]) <= places_S[:, None]
    queries_BS1 = segment_ids_BS[..., None]
    return before_ST & (queries_BS1 == of_keys_BT[:, None]) & (queries_BS1 > 0)


def masked_softmax(scores: Float[Array, "... T"], mask: Bool[Array, "... T"]) -> Float[Array, "... T"]:
    """Softmax in float32 over the entries that `mask` keeps; a row with none kept gives zeros."""
    scores = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
    top = jnp.maximum(scores.max(axis=-1, keepdims=True), jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - top)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)


def causal_attend(
    q_BSHK: Float[Array, "B S H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    segment_ids_BS: Int[Array, "B S"],
    scale: float,
) -> Float[Array, "B S H V"]:
    """softmax(scale * q k^T) v over the earlier keys of the same document (0: padding, which sees nothing).

    By a kernel where the platform has one (kernels.py) and the keys are those of the queries' tokens, else in blocks.
    """
    by = lambda way: functools.partial(way, scale=scale)  # noqa: E731
    arguments = q_BSHK, k_BTGK, v_BTGV, segment_ids_BS
    if q_BSHK.shape[1] != k_BTGK.shape[1] or not kernels.serves(q_BSHK.shape[1]):
        return causal_attend_blockwise(*arguments, scale=scale)
    platforms = {"tpu": by(kernels.on_tpu)}
    if kernels.cudnn_serves(q_BSHK.dtype):
        platforms["cuda"] = by(kernels.on_gpu)
    return jax.lax.platform_dependent(*arguments, **platforms, default=by(causal_attend_blockwise))


def causal_attend_blockwise(
    q_BSHK: Float[Array, "B S H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    segment_ids_BS: Int[Array, "B S"],
    scale: float,
) -> Float[Array, "B S H V"]:
    """A block of queries is multiplied only with the keys up to its own end: with 8 blocks that is 56% of the square.

    Where the sequence is spread, the keys are those of all devices, and each meets as many as the last one must.
    """
    k, v, of_keys_BT = k_BTGK.swapaxes(1, 2), v_BTGV.swapaxes(1, 2), whole_sequence(segment_ids_BS)
    length, places_S = q_BSHK.shape[1], places(q_BSHK.shape[1])

    def rows(start, end):
        seen = k_BTGK.shape[1] - length + end
        mask_BST = causal_mask(segment_ids_BS[:, start:end], places_S[start:end], of_keys_BT[:, :seen])
        return attend(q_BSHK[:, start:end], k[:, :, :seen], v[:, :, :seen], mask_BST, scale)

    block = max(SMALLEST_BLOCK, -(-length // MOST_BLOCKS))
    ends = [*range(block, length, block), length]
    return jnp.concatenate([rows(start, end) for start, end in zip([0, *ends], ends)], axis=1)


def attend(
    q_BSHK: Float[Array, "B S H K"],
    k_BGTK: Float[Array, "B G T K"],
    v_BGTV: Float[Array, "B G T V"],
    mask_BST: Bool[Array, "B S T"],
    scale: float,
) -> Float[Array, "B S H V"]:
    """softmax(scale * q k^T) v over the keys that `mask` shows; H/G query heads in turn share a key head.

    Queries of one key head are rows of one product: keys and values are not repeated.
    """
    G = k_BGTK.shape[1]
    each = q_BSHK.shape[2] // G
    q_BGZK = rearrange(q_BSHK * scale, "B S (G e) K -> B G (S e) K", G=G)
    mask_B1ZT = repeat(mask_BST, "B S T -> B 1 (S e) T", e=each)
    out_BGZV, _ = softmax_average(q_BGZK, k_BGTK, v_BGTV, mask_B1ZT)
    return rearrange(out_BGZV, "B G (S e) V -> B S (G e) V", e=each)


def softmax_average(
    q_BHSK: Float[Array, "B H S K"],
    k_BHTK: Float[Array, "B H T K"],
    v_BHTV: Float[Array, "B H T V"],
    mask_B1ST: Bool[Array, "B 1 S T"],
) -> tuple[Float[Array, "B H S V"], Float[Array, "B H S T"]]:
    """(softmax(q k^T) v over the entries that the mask keeps, the softmax itself, which carries no gradient)."""
    out_BHSV, weights_BHST = _attend(q_BHSK, k_BHTK, v_BHTV, mask_B1ST)
    return out_BHSV, jax.lax.stop_gradient(weights_BHST)


@jax.custom_vjp
def _attend(q_BHSK, k_BHTK, v_BHTV, mask_B1ST):
    return _attend_forward(q_BHSK, k_BHTK, v_BHTV, mask_B1ST)[0]


def _attend_forward(q_BHSK, k_BHTK, v_BHTV, mask_B1ST):
    weights_BHST = masked_softmax(q_BHSK @ k_BHTK.swapaxes(2, 3), mask_B1ST).astype(v_BHTV.dtype)
    out_BHSV = weights_BHST @ v_BHTV
    return (out_BHSV, weights_BHST), (q_BHSK, k_BHTK, v_BHTV, weights_BHST, out_BHSV)


def _attend_backward(saved, cotangents):
    """As derived for FlashAttention (arXiv:2205.14135, appendix B.2): dS = P * (dP - rowsum(dO * O)).

    dK and dV are computed transposed, so that the small operand is the one laid out anew.
    """
    (dout_BHSV, _), (q_BHSK, k_BHTK, v_BHTV, weights_BHST, out_BHSV) = cotangents, saved
    dweights_BHST = dout_BHSV @ v_BHTV.swapaxes(2, 3)
    mean_BHS1 = (dout_BHSV * out_BHSV).astype(jnp.float32).sum(axis=-1, keepdims=True)
    dscores_BHST = (weights_BHST * (dweights_BHST - mean_BHS1)).astype(q_BHSK.dtype)
    dk_BHKT = _fixed(_fixed(q_BHSK.swapaxes(2, 3)) @ dscores_BHST)
    dv_BHVT = _fixed(_fixed(dout_BHSV.swapaxes(2, 3)) @ weights_BHST)
    return dscores_BHST @ k_BHTK, dk_BHKT.swapaxes(2, 3), dv_BHVT.swapaxes(2, 3), None


_attend.defvjp(_attend_forward, _attend_backward)


def _fixed(x):
    """Keeps XLA from folding a transposition into a product, which its CPU code then computes at half speed."""
    return jax.lax.optimization_barrier(x)
