"""core.causal_attend by fused kernels from JAX and tokamax, which never write the scores to the device's main memory.

B batch  S queries  T keys  H heads  G key heads  K key width  V value width
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from deepseek_jax.models import gpu
from deepseek_jax.models.remat import KEPT

SHORTEST = 512  # keys; with fewer, the scores are small enough to materialise
NOWHERE = -1  # segment id of keys that no query may see
BY_WIDTH = (((1,), (1,)), ((), ()))  # for jax.lax.dot_general: contracts the last dimensions of two matrices


def serve(queries: int, keys: int) -> bool:
    """Whether the kernels support, and are worth using for, these numbers of queries and keys."""
    return keys >= SHORTEST and queries % splash.NUM_LANES == 0 and keys % splash.NUM_LANES == 0


def block_size(length: int) -> int:
    """How many queries or keys, of this many, a kernel on a TPU processes at a time."""
    return max(size for size in (128, 256, 512) if length % size == 0)


def block_sizes(queries: int, keys: int) -> splash.BlockSizes:
    """Of splash attention, for so many queries and keys, forward and backward."""
    of_queries, of_keys = block_size(queries), block_size(keys)
    return splash.BlockSizes(
        block_q=of_queries,
        block_kv=of_keys,
        block_q_dkv=of_queries,
        block_kv_dkv=of_keys,
        block_kv_dkv_compute=of_keys,
        block_q_dq=of_queries,
        block_kv_dq=of_keys,
    )


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
    """core.causal_attend_blockwise by tokamax if available, else cuDNN; documents become a mask [B 1 S T]."""
    seen_B1ST = segment_ids_BS[:, None, :, None] == of_keys_BT[:, None, None, :]
    # If the queries are only a slice of the row, is_causal would wrongly align them with the row's start.
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
    """cuDNN needs keys and values of the same width, so the narrower ones are padded."""
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
    """Splash attention, one row at a time; `interpret` runs the kernel on any platform, slowly.

    Its mask must be the same on every device.  So if the queries are only part of a row, from index `first` on, the
    keys are rolled until the last query's own key comes last, and those after it in the row get the segment NOWHERE.
    """
    (length, heads), total = q_BSHK.shape[1:3], k_BTGK.shape[1]
    if length < total:
        after = total - length - first
        k_BTGK, v_BTGV, of_keys_BT = (jnp.roll(x, after, axis=1) for x in (k_BTGK, v_BTGV, of_keys_BT))
        of_keys_BT = jnp.where(jnp.arange(total) < after, NOWHERE, of_keys_BT)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length, total), offset=total - length)] * heads),
        block_sizes=block_sizes(length, total),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=KEPT,
        interpret=interpret,
    )

    def row(q_SHK, k_TGK, v_TGV, segment_ids_S, of_keys_T):
        q_HSK, k_GTK, v_GTV = (x.swapaxes(0, 1) for x in (q_SHK * scale, k_TGK, v_TGV))
        return kernel(q_HSK, k_GTK, v_GTV, splash.SegmentIds(segment_ids_S, of_keys_T)).swapaxes(0, 1)

    out_BSHV = jax.vmap(row)(q_BSHK, k_BTGK, v_BTGV, segment_ids_BS, of_keys_BT)
    return _of_tokens(out_BSHV, segment_ids_BS)


def _of_tokens(out_BSHV, segment_ids_BS):
    """The output with padding zeroed; the kernels treat padding (segment 0) as a document."""
    return jnp.where((segment_ids_BS > 0)[..., None, None], out_BSHV, 0)
