"""Causal attention by the kernels that JAX brings, as core.causal_attend: scores never leave the chip.

B batch  S sequence  H heads  G key heads  K key width  V value width
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

SHORTEST = 512  # tokens; below, scores are small enough to exist


def serves(length: int) -> bool:
    """Whether sequences of this length are the kernels' business."""
    return length >= SHORTEST and length % splash.NUM_LANES == 0


def cudnn_serves(dtype) -> bool:
    """Whether cuDNN is to be asked; what it can do hangs on the GPU at hand, so there must be one."""
    return jax.default_backend() == "gpu" and dtype in (jnp.bfloat16, jnp.float16)


def on_gpu(
    q_BSHK: Float[Array, "B S H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGV: Float[Array, "B S G V"],
    segment_ids_BS: Int[Array, "B S"],
    *,
    scale: float,
) -> Float[Array, "B S H V"]:
    """By cuDNN, which wants keys and values of one width, and documents as a mask [B 1 S S]."""
    padding = k_BSGK.shape[-1] - v_BSGV.shape[-1]
    v_BSGK = jnp.pad(v_BSGV, ((0, 0), (0, 0), (0, 0), (0, padding)))
    same_B1SS = segment_ids_BS[:, None, :, None] == segment_ids_BS[:, None, None, :]
    out_BSHK = jax.nn.dot_product_attention(
        q_BSHK, k_BSGK, v_BSGK, mask=same_B1SS, scale=scale, is_causal=True, implementation="cudnn"
    )
    return _of_tokens(out_BSHK[..., : v_BSGV.shape[-1]], segment_ids_BS)


def on_tpu(
    q_BSHK: Float[Array, "B S H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGV: Float[Array, "B S G V"],
    segment_ids_BS: Int[Array, "B S"],
    *,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "B S H V"]:
    """By splash attention, a row at a time; `interpret` runs the kernel anywhere, slowly."""
    length, heads = q_BSHK.shape[1:3]
    block = max(size for size in (128, 256, 512) if length % size == 0)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length, length))] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def row(q_SHK, k_SGK, v_SGV, segment_ids_S):
        q_HSK, k_GSK, v_GSV = (x.swapaxes(0, 1) for x in (q_SHK * scale, k_SGK, v_SGV))
        return kernel(q_HSK, k_GSK, v_GSV, splash.SegmentIds(segment_ids_S, segment_ids_S)).swapaxes(0, 1)

    out_BSHV = jax.vmap(row)(q_BSHK, k_BSGK, v_BSGV, segment_ids_BS)
    return _of_tokens(out_BSHV, segment_ids_BS)


def _of_tokens(out_BSHV, segment_ids_BS):
    """Zeros where there is padding, which to a kernel is one more document."""
    return jnp.where((segment_ids_BS > 0)[..., None, None], out_BSHV, 0)
