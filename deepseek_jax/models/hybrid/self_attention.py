"""Multi-head self-attention over a whole sequence, without a causal mask (arXiv:1706.03762, section 3.2).

B batch  Q query steps  S steps of the sequence  F features  H heads  K key width
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from deepseek_jax.models.attention.core import softmax_average
from deepseek_jax.models.hybrid.config import AttentionConfig
from deepseek_jax.models.hybrid.regularisation import drop_path
from deepseek_jax.models.layers import LayerNorm, linear
from deepseek_jax.models.tree import weight, zeros

EPS = 1e-5


class SelfAttention(nnx.Module):
    """Attention with biases and heads of width key_dim; optionally with a norm before it and a residual around it."""

    def __init__(self, config: AttentionConfig, features: int, *, rngs: nnx.Rngs):
        self.config = config
        F, H, K = features, config.num_heads, config.key_dim
        self.norm = LayerNorm(F, EPS) if config.norm else None
        for name in ("q", "k", "v"):
            setattr(self, name, weight(rngs.params(), (F, H, K), ("features_in", "heads", None), F**-0.5))
            setattr(self, f"{name}_bias", zeros((H, K), ("heads", None)))
        self.out = weight(rngs.params(), (H, K, F), ("heads", None, "features_in"), (H * K) ** -0.5)
        self.out_bias = zeros((F,), ("features_in",))

    def __call__(
        self,
        asking_BQF: Float[Array, "B Q F"],
        x_BSF: Float[Array, "B S F"],
        real_BS: Bool[Array, "B S"] | None,
        drop_rate: float,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B Q F"]:
        """The query steps `asking_BQF` (all of the sequence or some) attend to the real steps of the sequence `x_BSF`.

        `drop_rate` is the drop-path rate of the residual branch.
        """
        normed = self.norm or (lambda x: x)
        sequence_BSF = normed(x_BSF)
        q_BQHK = linear(normed(asking_BQF), self.q, self.q_bias) * self.config.key_dim**-0.5
        k_BSHK = linear(sequence_BSF, self.k, self.k_bias)
        v_BSHK = linear(sequence_BSF, self.v, self.v_bias)
        mask_B11S = jnp.ones((1, 1, 1, 1), bool) if real_BS is None else real_BS[:, None, None]
        mixed_BHQK, _ = softmax_average(*(each.swapaxes(1, 2) for each in (q_BQHK, k_BSHK, v_BSHK)), mask_B11S)
        y_BQF = linear(mixed_BHQK.swapaxes(1, 2), self.out, self.out_bias, contract=2)
        return asking_BQF + drop_path(y_BQF, drop_rate, key) if self.config.residual else y_BQF
