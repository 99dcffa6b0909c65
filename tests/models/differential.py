"""A custom attention: differential attention (arXiv:2410.05258), which reports the entropy of each of its heads.

B batch  S query length  T key length  H heads  G key-value heads  d head width
"""

import jax.numpy as jnp

from deepseek_jax.models.attention.core import attention_map, causal_mask
from deepseek_jax.models.attention.gqa import GroupedQueryAttention, remember
from deepseek_jax.models.cache import written_before
from deepseek_jax.models.layers import RMSNorm, linear
from deepseek_jax.models.rope import rotate
from deepseek_jax.models.tree import weight

FIRST_MIX = 0.8  # lambda at the start


class DifferentialAttention(GroupedQueryAttention):
    """softmax(q1 k1) - lambda softmax(q2 k2), with both halves of each head's query and key rotated on their own."""

    def __init__(self, config, kind, *, rngs):
        super().__init__(config, kind, rngs=rngs)
        self.mix_bias = weight(rngs.params(), (4, config.head_dim // 2), (None, None), 0.1)
        self.head_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def __call__(self, x_BSD, context):
        return self._differ(*self._project(x_BSD, context), _mask(context), x_BSD)

    def prefill(self, x_BSD, context, cache):
        q_BSHd, k_BSGd, v_BSGd = self._project(x_BSD, context)
        y_BSD, _ = self._differ(q_BSHd, k_BSGd, v_BSGd, _mask(context), x_BSD)
        return y_BSD, remember(cache, (k_BSGd, v_BSGd), context)

    def decode(self, x_BSD, context, cache):
        q_BSHd, *new = self._project(x_BSD, context)
        cache = remember(cache, new, context)
        k_BTGd, v_BTGd = (entries_BGTd.swapaxes(1, 2) for entries_BGTd in cache)
        mask_BST = written_before(context.positions_BS, k_BTGd.shape[1])
        return self._differ(q_BSHd, k_BTGd, v_BTGd, mask_BST, x_BSD)[0], cache

    def attention_map(self, x_BSD, context):
        q_BSHd, k_BSGd, _ = self._project(x_BSD, context)
        return self._maps(q_BSHd, k_BSGd, _mask(context))[0]

    def _project(self, x_BSD, context):
        def rotated(x):
            halves = rotate(jnp.stack(jnp.split(x, 2, axis=-1), axis=3), *context.rope[self.kind], interleave=False)
            return halves.reshape(x.shape)

        return rotated(linear(x_BSD, self.q)), rotated(linear(x_BSD, self.k)), linear(x_BSD, self.v)

    def _maps(self, q_BSHd, k_BTGd, mask_BST):
        """The difference of two attention maps [B H S T], and the first of them."""
        halves = (jnp.split(x, 2, axis=-1) for x in (q_BSHd, k_BTGd))
        first, second = (attention_map(q, k, mask_BST, q.shape[-1] ** -0.5) for q, k in zip(*halves, strict=True))
        a, b, c, d = self.mix_bias[...]
        return first - (jnp.exp(a @ b) - jnp.exp(c @ d) + FIRST_MIX) * second, first

    def _differ(self, q_BSHd, k_BTGd, v_BTGd, mask_BST, x_BSD):
        weights_BHST, first_BHST = self._maps(q_BSHd, k_BTGd, mask_BST)
        each_BTHd = jnp.repeat(v_BTGd, q_BSHd.shape[2] // v_BTGd.shape[2], axis=2)
        mixed_BSHd = jnp.einsum("BHST,BTHd->BSHd", weights_BHST.astype(x_BSD.dtype), each_BTHd)
        entropy_BHS = -(first_BHST * jnp.log(first_BHST + 1e-20)).sum(axis=-1)
        told = {f"entropy_{head}": entropy_BHS[:, head] for head in range(entropy_BHS.shape[1])}
        return self._output((1 - FIRST_MIX) * self.head_norm(mixed_BSHd), x_BSD), told


def _mask(context):
    length = context.segment_ids_BS.shape[1]
    return causal_mask(context.segment_ids_BS, jnp.arange(length), context.segment_ids_BS)
