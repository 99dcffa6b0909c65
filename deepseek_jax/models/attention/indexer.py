"""What an indexer learns from: its scores of keys against the attention those keys then get (V3.2, section 2.1).

B batch  S sequence  T keys
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array, Bool, Float

UNSEEN = -1e30  # score of a key that takes no part: finite, so that its share of nothing is 0 and not NaN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IndexerReport:
    """How well one layer's indexer foresees the attention; sums over the tokens that count, in nats and in shares."""

    divergence: Float[Array, ""]  # of `kl_of_indexer`
    recall: Float[Array, ""]  # share of the attention that lies on the better half of the keys that the indexer picks


def kl_of_indexer(
    index_scores: Float[Array, "B S T"], attention: Float[Array, "B S T"], visible: Bool[Array, "B S T"]
) -> Float[Array, "B S"]:
    """KL(attention || softmax of the index scores) over each token's visible keys; 0 where a token sees none.

    `attention` is summed over heads: here it is brought to the sum 1 and detached, so only the indexer learns
    (DeepSeek-V3.2-Exp, equations 3 and 4).
    """
    attention = jnp.where(visible, jax.lax.stop_gradient(attention), 0.0)
    share = attention / jnp.maximum(attention.sum(axis=-1, keepdims=True), 1e-30)
    log_index = jax.nn.log_softmax(jnp.where(visible, index_scores, UNSEEN), axis=-1)
    return (xlogy(share, share) - share * log_index).sum(axis=-1)
