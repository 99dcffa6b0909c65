"""Queries and keys with their documents and positions: a query sees the keys of its document up to its own position.

B batch  S queries  T keys  H heads  d query width  e key width  h index heads  i index width
"""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.models.attention.indexer import IndexQueries


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """Tokens or compressed entries to attend to; `values` are both keys and values, directly or once expanded (mla).

    Segment ids and positions are as in Context: segment 0 is no document, positions count from 0 in each document.  A
    compressed entry has the position of the last token in it.  `index`: the indexer's keys.
    """

    values: Float[Array, "B ... T e"]
    segment_ids: Int[Array, "B ... T"]
    positions: Int[Array, "B ... T"]
    index: Float[Array, "B ... T i"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queries:
    """The attending tokens; `index`: their index queries."""

    values: Float[Array, "B ... S H d"]
    segment_ids: Int[Array, "B ... S"]
    positions: Int[Array, "B ... S"]
    index: IndexQueries | None = None


def visible(queries: Queries, keys: Keys) -> Bool[Array, "B ... S T"]:
    """Which keys each query may see: those of its document, not later than itself."""
    return sees(queries, keys.segment_ids[..., None, :], keys.positions[..., None, :])


def sees(
    queries: Queries, segment_ids: Int[Array, "B ... S k"], positions: Int[Array, "B ... S k"]
) -> Bool[Array, "B ... S k"]:
    """Like `visible`, for queries that have k keys each, given the keys' segment ids and positions."""
    own = queries.segment_ids[..., None]
    return (own > 0) & (segment_ids == own) & (positions <= queries.positions[..., None])
