"""Who asks and who is seen, wherever they lie: a query sees the keys of its document up to its own position.

B batch  S queries  T keys  H heads  d query width  e key width  h index heads  i index width
"""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.models.attention.indexer import IndexQueries


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """What attention mixes, and scores too or expands to what it scores.

    Segment ids and positions as in a Context: 0 is no document, positions count from 0 in each.  A compressed entry has
    the position of the last token in it.  `index`: what an indexer knows a key by.
    """

    values: Float[Array, "B ... T e"]
    segment_ids: Int[Array, "B ... T"]
    positions: Int[Array, "B ... T"]
    index: Float[Array, "B ... T i"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queries:
    """`index`: what an indexer asks with."""

    values: Float[Array, "B ... S H d"]
    segment_ids: Int[Array, "B ... S"]
    positions: Int[Array, "B ... S"]
    index: IndexQueries | None = None


def visible(queries: Queries, keys: Keys) -> Bool[Array, "B ... S T"]:
    """Which keys are no later than the query, and of its document."""
    return sees(queries, keys.segment_ids[..., None, :], keys.positions[..., None, :])


def sees(
    queries: Queries, segment_ids: Int[Array, "B ... S k"], positions: Int[Array, "B ... S k"]
) -> Bool[Array, "B ... S k"]:
    """`visible` where each query has k keys of its own."""
    own = queries.segment_ids[..., None]
    return (own > 0) & (segment_ids == own) & (positions <= queries.positions[..., None])
