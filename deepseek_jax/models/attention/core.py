"""Softmax attention over explicit queries, keys and values, and who may see whom.

B batch  S query length  T key length  H heads  K key width  V value width
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def causal_mask(segment_ids_BS: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Each token sees itself and what came before it in its own document; padding (segment 0) sees and is seen by none."""
    length = segment_ids_BS.shape[1]
    before = jnp.tril(jnp.ones((length, length), bool))
    same = segment_ids_BS[:, :, None] == segment_ids_BS[:, None, :]
    return before & same & (segment_ids_BS[:, :, None] > 0)


def masked_softmax(scores: Float[Array, "... T"], mask: Bool[Array, "... T"]) -> Float[Array, "... T"]:
    """Softmax in float32 over the entries that `mask` keeps; a row with none kept gives zeros."""
    scores = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
    top = jnp.maximum(scores.max(axis=-1, keepdims=True), jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - top)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)


def attend(
    q_BSHK: Float[Array, "B S H K"],
    k_BTHK: Float[Array, "B T H K"],
    v_BTHV: Float[Array, "B T H V"],
    mask_BST: Bool[Array, "B S T"],
    scale: float,
) -> Float[Array, "B S H V"]:
    """softmax(scale * q k^T) v over the visible keys; weights in float32, cast to the values' type."""
    scores_BHST = jnp.einsum("BSHK,BTHK->BHST", q_BSHK * scale, k_BTHK)
    weights_BHST = masked_softmax(scores_BHST, mask_BST[:, None]).astype(v_BTHV.dtype)
    return jnp.einsum("BHST,BTHV->BSHV", weights_BHST, v_BTHV)
