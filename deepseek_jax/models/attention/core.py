"""Softmax attention over explicit queries, keys and values, and its causal masks.

B batch  S query length  T key length  H heads  G key heads  e = H/G heads per key head  K key width  V value width
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.models import gpu
from deepseek_jax.models.attention import kernels
from deepseek_jax.parallel.context import first_index, parts, swap_second_half, swapped_index, whole_sequence
from deepseek_jax.parallel.current import by_platform

SMALLEST_BLOCK, MOST_BLOCKS = 128, 8  # of queries processed at a time; more blocks save work but cost compile time


def causal_mask(
    segment_ids_BS: Int[Array, "B S"], indices_S: Int[Array, " S"], of_keys_BT: Int[Array, "B T"]
) -> Bool[Array, "B S T"]:
    """Tokens see themselves and earlier tokens of their document; padding (segment 0) sees nothing and is not seen.

    `indices_S` are the indices of the queries among the keys; `of_keys_BT` are the keys' segment ids.
    """
    before_ST = jnp.arange(of_keys_BT.shape[1]) <= indices_S[:, None]
    queries_BS1 = segment_ids_BS[..., None]
    return before_ST & (queries_BS1 == of_keys_BT[:, None]) & (queries_BS1 > 0)


def masked_softmax(scores: Float[Array, "... T"], mask: Bool[Array, "... T"]) -> Float[Array, "... T"]:
    """Softmax in float32 over the entries that `mask` keeps; a row with none kept gives zeros."""
    return jax.nn.softmax(scores.astype(jnp.float32), where=mask)


def attention_map(
    q_BSHK: Float[Array, "B S H K"], k_BTGK: Float[Array, "B T G K"], mask_BST: Bool[Array, "B S T"], scale: float
) -> Float[Array, "B H S T"]:
    """The full matrix softmax(scale * q k^T), for inspection; every H/G consecutive query heads share a key head."""
    q_BSGeK = rearrange(q_BSHK * scale, "B S (G e) K -> B S G e K", G=k_BTGK.shape[2])
    scores_BGeST = jnp.einsum("BSGeK,BTGK->BGeST", q_BSGeK, k_BTGK, preferred_element_type=jnp.float32)
    return masked_softmax(rearrange(scores_BGeST, "B G e S T -> B (G e) S T"), mask_BST[:, None])


def causal_attend(
    q_BSHK: Float[Array, "B S H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    segment_ids_BS: Int[Array, "B S"],
    scale: float,
) -> Float[Array, "B S H V"]:
    """softmax(scale * q k^T) v over the keys of the same document up to the query (segment 0 is padding, gives zeros).

    With context parallelism, queries and segment ids are a device's own, keys and values those of all tokens.  If each
    device attended with its own queries, all would wait for the last one, whose queries see every key.  So each device
    swaps the second half of its queries with the mirrored device (first with last, and so on inwards): then every
    device has one half whose queries see only keys from the first half of the row.
    """
    length, keys = q_BSHK.shape[1], (k_BTGK, v_BTGV, whole_sequence(segment_ids_BS))
    if parts() % 2 or length % 2:
        return _attend_from(first_index(length), q_BSHK, segment_ids_BS, *keys, scale)
    swapped = swap_second_half((q_BSHK, segment_ids_BS))
    own, other = zip(*(jnp.split(x, 2, axis=1) for x in swapped))
    own, other = (first_index(length), *own), (swapped_index(length), *other)
    early, late = _in_order(own[0] < other[0], own, other)
    of_early = _attend_from(*early, *(x[:, : x.shape[1] // 2] for x in keys), scale)
    of_late = _attend_from(*late, *keys, scale)
    of_own_and_other = jnp.concatenate(_in_order(own[0] < other[0], of_early, of_late), axis=1)
    return swap_second_half(of_own_and_other)


def _in_order(already, first, second):
    """(first, second) if `already` (a traced boolean that differs between devices), else (second, first)."""

    def choose(a, b):
        return jax.tree.map(functools.partial(jnp.where, already), a, b)

    return choose(first, second), choose(second, first)


def _attend_from(first, q_BSHK, segment_ids_BS, k_BTGK, v_BTGV, of_keys_BT, scale):
    """Uses a kernel if the platform has one that supports these lengths, else `causal_attend_blockwise`."""
    arguments, settings = (q_BSHK, k_BTGK, v_BTGV, segment_ids_BS, of_keys_BT), {"first": first, "scale": scale}
    if not kernels.serve(q_BSHK.shape[1], k_BTGK.shape[1]):
        return causal_attend_blockwise(*arguments, **settings)
    ways = {"tpu": kernels.on_tpu, "default": causal_attend_blockwise}
    if gpu.kernels_available(q_BSHK.dtype):
        ways["cuda"] = kernels.on_gpu
    ways = {platform: functools.partial(way, **settings) for platform, way in ways.items()}
    return by_platform(*arguments, **ways)


def causal_attend_blockwise(
    q_BSHK: Float[Array, "B S H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    segment_ids_BS: Int[Array, "B S"],
    of_keys_BT: Int[Array, "B T"],
    *,
    scale: float,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, "B S H V"]:
    """Multiplies each block of queries only with keys up to the block's end: with 8 blocks, 56% of all S x S pairs.

    The queries have the indices `first` to `first` + S - 1 among the keys.  As `first` may be traced, each block takes
    the keys that it would see if `first` had its largest value, T - S; the mask hides those it must not see.
    """
    k, v, length = k_BTGK.swapaxes(1, 2), v_BTGV.swapaxes(1, 2), q_BSHK.shape[1]
    indices_S = first + jnp.arange(length)

    def rows(start, end):
        seen = k_BTGK.shape[1] - length + end
        mask_BST = causal_mask(segment_ids_BS[:, start:end], indices_S[start:end], of_keys_BT[:, :seen])
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
    """softmax(scale * q k^T) v over the keys where `mask` is true; every H/G consecutive query heads share a key head.

    All queries of a key head are the rows of one product, so keys and values need not be repeated.
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
    """Returns (softmax(q k^T) v over the keys where the mask is true, the softmax itself, without a gradient)."""
    out_BHSV, weights_BHST = _attend(q_BHSK, k_BHTK, v_BHTV, mask_B1ST)
    return out_BHSV, jax.lax.stop_gradient(weights_BHST)


@jax.custom_vjp
def _attend(q_BHSK, k_BHTK, v_BHTV, mask_B1ST):
    return _attend_forward(q_BHSK, k_BHTK, v_BHTV, mask_B1ST)[0]


def _attend_forward(q_BHSK, k_BHTK, v_BHTV, mask_B1ST):
    scores_BHST = jnp.matmul(q_BHSK, k_BHTK.swapaxes(2, 3), preferred_element_type=jnp.float32)
    weights_BHST = masked_softmax(scores_BHST, mask_B1ST).astype(v_BHTV.dtype)
    out_BHSV = weights_BHST @ v_BHTV
    return (out_BHSV, weights_BHST), (q_BHSK, k_BHTK, v_BHTV, weights_BHST, out_BHSV)


def _attend_backward(saved, cotangents):
    """As derived for FlashAttention (arXiv:2205.14135, appendix B.2): dS = P * (dP - rowsum(dO * O)).

    dK and dV are computed transposed, so that only the small operand has to be copied into a transposed layout.
    """
    (dout_BHSV, _), (q_BHSK, k_BHTK, v_BHTV, weights_BHST, out_BHSV) = cotangents, saved
    dweights_BHST = jnp.matmul(dout_BHSV, v_BHTV.swapaxes(2, 3), preferred_element_type=jnp.float32)
    mean_BHS1 = (dout_BHSV.astype(jnp.float32) * out_BHSV.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    dscores_BHST = (weights_BHST * (dweights_BHST - mean_BHS1)).astype(q_BHSK.dtype)
    dk_BHKT = _fixed(_fixed(q_BHSK.swapaxes(2, 3)) @ dscores_BHST)
    dv_BHVT = _fixed(_fixed(dout_BHSV.swapaxes(2, 3)) @ weights_BHST)
    return dscores_BHST @ k_BHTK, dk_BHKT.swapaxes(2, 3), dv_BHVT.swapaxes(2, 3), None


_attend.defvjp(_attend_forward, _attend_backward)


def _fixed(x):
    """Keeps XLA from fusing a transposition into a matrix product, which would run at half the speed on CPUs."""
    return jax.lax.optimization_barrier(x)
