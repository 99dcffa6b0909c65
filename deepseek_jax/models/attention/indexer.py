"""The lightning indexer: a small attention that picks the keys for the main one (DeepSeek-V3.2-Exp, section 2).

It learns to predict the main attention's weights, with a KL loss of its own: no gradient flows into it from the
language-model loss, nor from its loss into the rest of the model.

B batch  S sequence  T keys  D model  Q query rank  h index heads  i index width  R rope dims  k keys picked
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.special import xlogy
from jaxtyping import Array, Bool, Float

from deepseek_jax.models.attention import kernels
from deepseek_jax.models.attention.index_kernels import index_scores
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import LayerNorm, exact_linear, linear
from deepseek_jax.models.rope import rotate
from deepseek_jax.models.tree import weight
from deepseek_jax.parallel.current import by_platform

KEY_NORM_EPS = 1e-6  # independent of rms_norm_eps (as in DeepSeek's code)
FEW_QUERIES = 4  # queries per row, as when decoding, up to which all heads are computed in one product
DIVERGENCE, RECALL = "indexer/divergence", "indexer/recall"  # what sparse attention tells of each token
UNSEEN = -1e30  # score of an invisible key: finite, so that 0 * its log-probability is 0 and not NaN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IndexQueries:
    """Each token's index queries, one per head, and its float32 weights for the heads' scores."""

    query_BShi: Float[Array, "B S h i"]
    weight_BSh: Float[Array, "B S h"]


class Indexer(nnx.Module):
    """Few narrow heads sharing one key per token: far cheaper per query-key pair than the main attention."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        D, Q, scale = config.hidden_size, config.q_lora_rank, config.initializer_range
        h, i = config.index_n_heads, config.index_head_dim
        self.q_up = weight(rngs.params(), (Q, h, i), ("rank", None, None), scale)
        self.k = weight(rngs.params(), (D, i), ("embed", None), scale)
        self.k_norm = LayerNorm(i, KEY_NORM_EPS)
        self.weights = weight(rngs.params(), (D, h), ("embed", None), scale)

    def __call__(
        self, x_BSD: Float[Array, "B S D"], q_BSQ: Float[Array, "B S Q"], cos_sin: tuple[Array, Array]
    ) -> tuple[IndexQueries, Float[Array, "B S i"]]:
        """Returns (queries, keys), from the attention's input and its normed query latent, both detached."""
        with jax.named_scope("indexer"):
            x_BSD, q_BSQ = jax.lax.stop_gradient((x_BSD, q_BSQ))
            query_BShi = self._rotated(linear(q_BSQ, self.q_up), cos_sin)
            key_BSi = self._rotated(self.k_norm(linear(x_BSD, self.k)), cos_sin)
            scale = (self.config.index_n_heads * self.config.index_head_dim) ** -0.5
            weight_BSh = exact_linear(x_BSD, self.weights) * scale
            return IndexQueries(query_BShi, weight_BSh), key_BSi

    def _rotated(self, x, cos_sin):
        """Rotates the first R channels as pairs (i, i + R/2), even if the main attention's pairs are interleaved."""
        R = self.config.qk_rope_head_dim
        return jnp.concatenate([rotate(x[..., :R], *cos_sin, interleave=False), x[..., R:]], axis=-1)


def scores_of_all(queries: IndexQueries, key_BTi: Float[Array, "B T i"]) -> Float[Array, "B S T"]:
    """sum_h w_h relu(q_h . k) for every key, in float32 (equation 1).

    Computed one head at a time: [B, S, h, T] is never materialised, and XLA's CPU code takes a tenth of the time.  With
    few queries the keys are the large operand: they are multiplied once for all heads, without a transposed copy.
    """
    if queries.weight_BSh.shape[1] <= FEW_QUERIES:
        return _scores_of_few(queries, key_BTi)
    ways = {"default": _scores_by_head}
    if kernels.serve(queries.weight_BSh.shape[1], key_BTi.shape[1]):
        ways["tpu"] = index_scores
    return by_platform(queries.query_BShi, queries.weight_BSh, key_BTi, **ways)


def _scores_by_head(query_BShi, weight_BSh, key_BTi) -> Float[Array, "B S T"]:
    key_BiT = key_BTi.astype(jnp.float32).swapaxes(1, 2)

    @jax.checkpoint
    def add_head(scores_BST, head):
        query_BSi, weight_BS = head
        return scores_BST + weight_BS[..., None] * jax.nn.relu(query_BSi @ key_BiT), None

    heads = jnp.moveaxis(query_BShi.astype(jnp.float32), 2, 0), jnp.moveaxis(weight_BSh, 2, 0)
    start_BST = jnp.zeros((*weight_BSh.shape[:2], key_BTi.shape[1]), jnp.float32)
    return jax.lax.scan(add_head, start_BST, heads)[0]


def _scores_of_few(queries: IndexQueries, key_BTi: Float[Array, "B T i"]) -> Float[Array, "B S T"]:
    (B, S, h, i), T = queries.query_BShi.shape, key_BTi.shape[1]
    query_BiZ = queries.query_BShi.astype(jnp.float32).reshape(B, S * h, i).swapaxes(1, 2)
    heads_BTSh = jax.nn.relu(key_BTi.astype(jnp.float32) @ query_BiZ).reshape(B, T, S, h)
    return jnp.einsum("BTSh,BSh->BST", heads_BTSh, queries.weight_BSh)


def scores_of_picked(queries: IndexQueries, key_BSki: Float[Array, "B S k i"]) -> Float[Array, "B S k"]:
    """Like `scores_of_all`, but each query has its own k keys."""
    query_BShi, key_BSki = queries.query_BShi.astype(jnp.float32), key_BSki.astype(jnp.float32)
    heads_BShk = jax.nn.relu(query_BShi @ key_BSki.swapaxes(2, 3))
    return jnp.einsum("BSh,BShk->BSk", queries.weight_BSh, heads_BShk)


def kl_of_indexer(
    index_scores: Float[Array, "B S T"], attention: Float[Array, "B S T"], visible: Bool[Array, "B S T"]
) -> Float[Array, "B S"]:
    """KL(attention || softmax(index_scores)) in nats over each token's visible keys; 0 for a token that sees none.

    `attention` is summed over heads; here it is normalised to sum to 1 and detached, so that only the indexer learns
    (equations 3 and 4).
    """
    attention = jnp.where(visible, jax.lax.stop_gradient(attention), 0.0)
    share = attention / jnp.maximum(attention.sum(axis=-1, keepdims=True), 1e-30)
    log_index = jax.nn.log_softmax(jnp.where(visible, index_scores, UNSEEN), axis=-1)
    return (xlogy(share, share) - share * log_index).sum(axis=-1)


def recall_of_indexer(
    attention: Float[Array, "B S T"], better: Bool[Array, "... T"], total: Float[Array, "B S"]
) -> Float[Array, "B S"]:
    """Share of the attention that falls on the `better` half of the keys that the indexer picks; no gradient.

    Only half, because sparse attention sees no keys but the picked ones: their share would always be 1.  `total` is the
    attention on all attended keys.
    """
    recall = jnp.where(better, attention, 0.0).sum(axis=-1) / jnp.maximum(total, 1e-30)
    return jax.lax.stop_gradient(recall)


def better_half(picks: int) -> int:
    """How many of so many picked keys, the best-scored ones, are the better half."""
    return -(-picks // 2)
