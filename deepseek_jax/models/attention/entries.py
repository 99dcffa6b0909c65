"""Which compressed entries a query attends to: all, or those that an indexer picks.

B batch  S queries  E entries  K picks  F entries offered to a query: E, or K if the picks are gathered
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.models.attention.indexer import (
    DIVERGENCE,
    RECALL,
    better_half,
    kl_of_indexer,
    recall_of_indexer,
    scores_of_all,
    scores_of_picked,
)
from deepseek_jax.models.attention.keys import Keys, Queries, visible
from deepseek_jax.models.attention.selection import by_blocks, gather, masks_of_best, pick, visible_picked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Offered:
    """The entries offered to each query and, if there is an indexer, its scores and the better half of its picks."""

    values: Float[Array, "B S F d"] | None  # S is 1 if all queries are offered the same entries
    mask: Bool[Array, "B S F"]  # those that the query attends to
    index_scores: Float[Array, "B S F"] | None = None
    better: Bool[Array, "... F"] | None = None

    def learn(self, attention_BSF: Float[Array, "B S F"]) -> tuple[Array, Array] | tuple[None, None]:
        """The indexer's (divergence [B S], recall [B S]), given the attention on each entry summed over heads."""
        if self.index_scores is None:
            return None, None
        divergence_BS = kl_of_indexer(self.index_scores, attention_BSF, self.mask)
        return divergence_BS, recall_of_indexer(attention_BSF, self.better, attention_BSF.sum(axis=-1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attended:
    """Attention outputs, and the indexer's divergence and recall (indexer.py) per query; None without an indexer."""

    mixed: Float[Array, "B ... H d"]
    divergence: Float[Array, "B ..."] | None
    recall: Float[Array, "B ..."] | None

    @property
    def told(self) -> dict[str, Array]:
        """What the attention tells of each token (kinds.py)."""
        return {} if self.divergence is None else {DIVERGENCE: self.divergence, RECALL: self.recall}


def offer_all(queries: Queries, entries: Keys) -> Offered:
    """Offers every entry that is complete at the query's position."""
    return Offered(entries.values[:, None], visible(queries, entries))


def offer_masked(queries: Queries, entries: Keys, topk: int, warmup: Bool[Array, ""] | None) -> Offered:
    """Offers all entries but masks all except the `topk` best; if `warmup` is given and true, masks no visible one."""
    scores_BSE, visible_BSE = scores_of_all(queries.index, entries.index), visible(queries, entries)
    best_BSE, better_BSE = masks_of_best(scores_BSE, visible_BSE, topk)
    kept_BSE = best_BSE | (False if warmup is None else warmup)
    values_B1Ed = None if entries.values is None else entries.values[:, None]
    return Offered(values_B1Ed, kept_BSE & visible_BSE, scores_BSE, better_BSE)


def offer_masks(queries: Queries, entries: Keys, topk: int, warmup: Bool[Array, ""] | None, block: int) -> Offered:
    """`offer_masked` of `block` queries at a time, without values: for kernels, which take all queries at once."""

    def offer(queries, entries):
        return offer_masked(queries, entries, topk, warmup)

    without_values = (dataclasses.replace(each, values=None) for each in (queries, entries))
    return by_blocks(offer, block, *without_values)


def learn_by_blocks(offered: Offered, attention_BSF: Float[Array, "B S F"], block: int) -> tuple[Array, Array]:
    """`Offered.learn` of `block` queries at a time."""

    def learn(offered_and_attention, _):
        offered, attention_BSF = offered_and_attention
        return offered.learn(attention_BSF)

    return by_blocks(learn, block, (offered, attention_BSF), ())


def offer_gathered(queries: Queries, entries: Keys, topk: int) -> Offered:
    """Gathers the `topk` best entries for each query and offers only those."""
    scores_BSE = scores_of_all(queries.index, entries.index)
    return offer_picked(queries, entries, pick(scores_BSE, visible(queries, entries), topk))


def offer_picked(queries: Queries, entries: Keys, picked_BSK: Int[Array, "B S K"]) -> Offered:
    """Gathers the picked entries, best first, for each query and offers only those."""
    mask_BSK = visible_picked(queries, entries, picked_BSK)
    scores_BSK = scores_of_picked(queries.index, gather(entries.index, picked_BSK))
    better_K = jnp.arange(picked_BSK.shape[-1]) < better_half(picked_BSK.shape[-1])
    return Offered(gather(entries.values, picked_BSK), mask_BSK, scores_BSK, better_K)
