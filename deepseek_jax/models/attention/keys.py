"""Who asks and who is seen, wherever they lie: a query sees the keys of its document up to its own place.

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

    Document 0 is none; `places` count from 0 in each document.  A compressed entry lies at the place of the last token
    in it.  `index`: what an indexer knows a key by.
    """

    values: Float[Array, "B ... T e"]
    documents: Int[Array, "B ... T"]
    places: Int[Array, "B ... T"]
    index: Float[Array, "B ... T i"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queries:
    """`index`: what an indexer asks with."""

    values: Float[Array, "B ... S H d"]
    documents: Int[Array, "B ... S"]
    places: Int[Array, "B ... S"]
    index: IndexQueries | None = None


def visible(queries: Queries, keys: Keys) -> Bool[Array, "B ... S T"]:
    """Which keys are no later than the query, and of its document."""
    return sees(queries, keys.documents[..., None, :], keys.places[..., None, :])


def sees(queries: Queries, documents: Int[Array, "B ... S k"], places: Int[Array, "B ... S k"]) -> Bool[Array, "..."]:
    """`visible` where each query has k keys of its own."""
    own = queries.documents[..., None]
    return (own > 0) & (documents == own) & (places <= queries.places[..., None])
