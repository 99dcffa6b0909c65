"""Causal attention by kernels of JAX and of tokamax, as core.causal_attend: scores never leave the chip.

B batch  S queries  T keys  H heads  G key heads  K key width  V value width
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from deepseek_jax.models import gpu

SHORTEST = 512  # keys; fewer, and scores are small enough to exist
NOWHERE = -1  # the document of keys that nothing may see


def serve(queries: int, keys: int) -> bool:
    """Whether so many of them are the kernels' business."""
    return keys >= SHORTEST and queries % splash.NUM_LANES == 0 and keys % splash.NUM_LANES == 0


def on_gpu(
    q_BSHK: Float[Array, "B S H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    segment_ids_BS: Int[Array, "B S"],
    of_keys_BT: Int[Array, "B T"],
    *,
    scale: float,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, "B S H V"]:
    """By tokamax, else by cuDNN; documents are a mask [B 1 S T]."""
    seen_B1ST = segment_ids_BS[:, None, :, None] == of_keys_BT[:, None, None, :]
    # Where queries are a slice of the row, is_causal would align them with its start.
    spread = q_BSHK.shape[1] < k_BTGK.shape[1]
    if spread:
        seen_B1ST &= jnp.arange(k_BTGK.shape[1]) <= first + jnp.arange(q_BSHK.shape[1])[:, None]
    masks = {"mask": seen_B1ST, "scale": scale, "is_causal": not spread}
    if tokamax := gpu.library(q_BSHK.dtype):
        out_BSHV = tokamax.dot_product_attention(q_BSHK, k_BTGK, v_BTGV, **masks)
    else:
        out_BSHV = _by_cudnn(q_BSHK, k_BTGK, v_BTGV, **masks)
    return _of_tokens(out_BSHV, segment_ids_BS)


def _by_cudnn(q_BSHK, k_BTGK, v_BTGV, **masks):
    """cuDNN wants keys and values of one width."""
    width = max(k_BTGK.shape[-1], v_BTGV.shape[-1])
    filled = [jnp.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])]) for x in (q_BSHK, k_BTGK, v_BTGV)]
    return jax.nn.dot_product_attention(*filled, **masks, implementation="cudnn")[..., : v_BTGV.shape[-1]]


def on_tpu(
    q_BSHK: Float[Array, "B S H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    segment_ids_BS: Int[Array, "B S"],
    of_keys_BT: Int[Array, "B T"],
    *,
    scale: float,
    first: int | Int[Array, ""] = 0,
    interpret: bool = False,
) -> Float[Array, "B S H V"]:
    """By splash attention, a row at a time; `interpret` runs the kernel anywhere, slowly.

    Its mask must be the same for every device.  So where the queries are some of a row's, from index `first` on, the
    keys are turned until the last query's own is the last, and those that come after it belong to no document.
    """
    (length, heads), total = q_BSHK.shape[1:3], k_BTGK.shape[1]
    if length < total:
        after = total - length - first
        k_BTGK, v_BTGV, of_keys_BT = (jnp.roll(x, after, axis=1) for x in (k_BTGK, v_BTGV, of_keys_BT))
        of_keys_BT = jnp.where(jnp.arange(total) < after, NOWHERE, of_keys_BT)
    of_queries, of_keys = (max(size for size in (128, 256, 512) if each % size == 0) for each in (length, total))
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length, total), offset=total - length)] * heads),
        block_sizes=splash.BlockSizes(
            block_q=of_queries,
            block_kv=of_keys,
            block_q_dkv=of_queries,
            block_kv_dkv=of_keys,
            block_kv_dkv_compute=of_keys,
            block_q_dq=of_queries,
            block_kv_dq=of_keys,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def row(q_SHK, k_TGK, v_TGV, segment_ids_S, of_keys_T):
        q_HSK, k_GTK, v_GTV = (x.swapaxes(0, 1) for x in (q_SHK * scale, k_TGK, v_TGV))
        return kernel(q_HSK, k_GTK, v_GTV, splash.SegmentIds(segment_ids_S, of_keys_T)).swapaxes(0, 1)

    out_BSHV = jax.vmap(row)(q_BSHK, k_BTGK, v_BTGV, segment_ids_BS, of_keys_BT)
    return _of_tokens(out_BSHV, segment_ids_BS)


def _of_tokens(out_BSHV, segment_ids_BS):
    """Zeros where there is padding, which to a kernel is one more document."""
    return jnp.where((segment_ids_BS > 0)[..., None, None], out_BSHV, 0)
