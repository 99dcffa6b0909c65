"""What decoding remembers of the tokens it has seen.

B batch  T places  C key-value rank  R rope dims
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LatentCache:
    """MLA's cache: C + R numbers a token and layer, shared by all heads (DeepSeek-V2, table 1)."""

    entries: Float[Array, "B T C+R"]

    @classmethod
    def empty(cls, batch: int, places: int, config, dtype) -> "LatentCache":
        return cls(jnp.zeros((batch, places, config.kv_lora_rank + config.qk_rope_head_dim), dtype))

    def write(self, latent_BSC, rope_BSR, place) -> "LatentCache":
        """The cache with S new tokens at places `place`, `place` + 1, ..."""
        new = jnp.concatenate([latent_BSC, rope_BSR], axis=-1).astype(self.entries.dtype)
        return LatentCache(jax.lax.dynamic_update_slice_in_dim(self.entries, new, place, axis=1))
